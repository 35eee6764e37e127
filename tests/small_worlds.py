"""Small logs and models, and short ways to train them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pytest
import torch

from dcclctl.devices.basis import new_basis
from dcclctl.devices.encoder import Encoder
from dcclctl.devices.hidden_patch import Basis, PatchShape
from dcclctl.devices.settings import LocalSettings
from dcclctl.events.log import CLOUD, DEVICE, Block, EventColumns, EventLog
from dcclctl.events.sampler import Sampler, Samples
from dcclctl.events.sampling import PairSet
from dcclctl.models.din import Din, DinSettings
from dcclctl.models.scoring import Backbone, HeadFunction, score
from dcclctl.models.settings import FitSettings
from dcclctl.models.trainable import Trainable
from dcclctl.models.training import FitState, Objective, Trainer, Validation

T = TypeVar("T")

#: L of the small models
HISTORY = 6
#: (user, item, time, label, period)
Row = tuple[int, int, int, int, int]


def log_of(rows: Sequence[Row], n_users: int, n_items: int, one_timeline: bool = True, **more: object) -> EventLog:
    """A log of the given rows, in their order; without categories and profiles unless given."""
    user, item, time, label, period = np.array(rows, dtype=np.int64).reshape(-1, 5).T
    given = {
        "item_categories": torch.zeros(n_items, 1, dtype=torch.int64),
        "n_categories": 0,
        "profile": torch.zeros(n_users, 1, dtype=torch.int64),
        "profile_sizes": (1,),
    } | more
    return EventLog.build(EventColumns(user, item, time, label, period), one_timeline=one_timeline, **given)


def random_log(
    seed: int = 0, n_users: int = 12, n_items: int = 30, n_events: int = 20, n_categories: int = 5
) -> EventLog:
    """A log with everything in it: ties in time, negatives, 0 to 3 categories an item, two profile columns, four periods."""
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    for user in range(n_users):
        times = np.sort(rng.integers(0, 40, n_events + user % 5))
        for time in times:
            period = int(np.searchsorted([20, 28, 34], time, side="right"))
            rows.append((user, int(rng.integers(n_items)), int(time), int(rng.random() < 0.8), period))
    categories = np.full((n_items, 3), n_categories)
    for item in range(n_items):
        own = rng.choice(n_categories, size=item % 4, replace=False)
        categories[item, : len(own)] = own
    profile = np.stack([rng.integers(0, 3, n_users), rng.integers(0, 4, n_users)], axis=1)
    return log_of(
        rows,
        n_users,
        n_items,
        item_categories=torch.from_numpy(categories),
        n_categories=n_categories,
        profile=torch.from_numpy(profile),
        profile_sizes=(3, 4),
    )


def din(log: EventLog, seed: int = 0, hidden_sizes: tuple[int, int] = (12, 7), scale: float = 1.0) -> Din:
    """A small DIN for the log, with random biases and slopes too, so that none of them can be forgotten unnoticed.

    Args:
        scale: factor on all embeddings (fresh ones are so small that histories hardly matter).
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = DinSettings(
        history=HISTORY, item_size=6, category_size=4, profile_size=3, attention_size=5, hidden_sizes=hidden_sizes
    )
    model = Din(log, sizes, generator)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "table" in name:
                weight *= scale
            elif weight.dim() == 1:
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return model


def basis_for(model: Din, size: int = 4, bottleneck: int = 3, seed: int = 0) -> Basis:
    return new_basis(PatchShape(model.sizes.hidden_sizes, bottleneck), size, seed)


def new_encoder(size: int, hidden: int, profile_sizes: tuple[int, ...], seed: int) -> Encoder:
    return Encoder(size, hidden, profile_sizes, torch.Generator().manual_seed(seed))


def local(steps: int, learning_rate: float, prior: float) -> LocalSettings:
    """How devices learn."""
    return LocalSettings(steps=steps, learning_rate=learning_rate, prior=prior)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def fit_settings(**changes: object) -> FitSettings:
    given = {
        "negatives": 3,
        "epochs": 3,
        "patience": 0,
        "batch_size": 32,
        "learning_rate": 0.01,
        "weight_decay": 1e-5,
        "dropout": 0.2,
        "seed": 7,
    }
    return FitSettings(**(given | changes))


def positives_in(log: EventLog, period: int) -> PairSet:
    """(user, item) pairs that are positive in a period."""
    rows = log.events_in(period)
    rows = rows[log.label[rows] > 0]
    return PairSet(log.user[rows], log.item[rows], log.n_items)


def samples_of(log: EventLog, period: int = DEVICE, negatives: int = 3, epoch: int = 0) -> Samples:
    sampler = Sampler(log, [period], negatives, 5, "test", positives_in(log, period))
    return sampler.draw(log.events_in(period), epoch)


def trainer(
    model: Trainable, log: EventLog, period: int = CLOUD, objective: Objective | None = None, **changes: object
) -> Trainer:
    return Trainer(model, log, [Block(period)], fit_settings(**changes), objective)


def begin(trainer: Trainer) -> FitState:
    """Before the first epoch."""
    return FitState.start(trainer.model, trainer.validate())


def run(trainer: Trainer, state: FitState | None = None, epochs: int | None = None) -> FitState:
    """Epochs one after another until the settings or `epochs` end it."""
    state = state or begin(trainer)
    while not state.finished(trainer.settings) and (epochs is None or state.epoch < epochs):
        state = trainer.epoch(state)
    return state


def trained(model: Trainable, log: EventLog, **given: object) -> FitState:
    """A model after its epochs."""
    return run(trainer(model, log, **given))


def first_loss(trainer: Trainer) -> float:
    """The loss that the first batch reports: that of the weights as they are."""
    told: list[float] = []
    start = FitState.start(trainer.model, Validation(1.0, 0.5))
    trainer.epoch(start, lambda epoch, done, loss: told.append(loss))
    return told[0]


def same_state(a: FitState, b: FitState) -> bool:
    groups = ((a.weights, b.weights), (a.best, b.best), (a.adam_state, b.adam_state))
    tensors = all(x.keys() == y.keys() and all(torch.equal(x[n], y[n]) for n in x) for x, y in groups)
    return tensors and (a.epoch, a.steps, a.history) == (b.epoch, b.steps, b.history)


def din_logits(model: Din, log: EventLog, events: np.ndarray, candidates: torch.Tensor) -> torch.Tensor:
    return model.logits(model.second_layer(model.first_layer_of_few(log, events, candidates)))


@dataclass(frozen=True)
class Asked:
    """Events with their candidates, as `score` takes them."""

    events: np.ndarray
    items: torch.Tensor | None


def scores(
    backbone: Backbone,
    events: np.ndarray,
    candidates: torch.Tensor | None = None,
    batch_events: int = 256,
    head: HeadFunction | None = None,
) -> torch.Tensor:
    """Logits (B, C) of candidates (None: the catalogue) as they are ranked, in the order of `events`, which ascend."""

    def batch_of(rows: np.ndarray) -> Asked:
        place = torch.from_numpy(np.searchsorted(events, rows))
        return Asked(rows, None if candidates is None else candidates[place])

    width = backbone.log.n_items if candidates is None else candidates.shape[1]
    parts = list(score(backbone, [head or backbone.head], events, batch_of, width, batch_events))
    rows = np.concatenate([batch.events for batch, _ in parts])
    assert max(len(batch.events) for batch, _ in parts) <= batch_events
    assert np.array_equal(np.sort(rows), events), "every event is scored once"
    return torch.cat([logits[0] for _, logits in parts])[torch.from_numpy(np.argsort(rows))]


def shown_with(model: Din, history: int) -> Din:
    """The same model with another L."""
    model.sizes = model.sizes.model_copy(update={"history": history})
    return model


def frozen(*tensors: torch.Tensor) -> list[bytes]:
    """The bytes of tensors, to see later whether any of them changed."""
    return [tensor.detach().numpy().tobytes() for tensor in tensors]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower with threads, much slower where several tests run at once."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def two_threads() -> Callable[[Callable[[], T]], tuple[T, T]]:
    """Call a function with one thread and with two."""

    def both(function: Callable[[], T]) -> tuple[T, T]:
        torch.set_num_threads(1)
        one = function()
        torch.set_num_threads(2)
        assert torch.get_num_threads() == 2
        return one, function()

    return both
