"""Small logs and models for the tests of the algorithms."""

from collections.abc import Sequence

import numpy as np
import torch

from dcclctl.algorithm.basis import new_basis
from dcclctl.algorithm.din import Din, DinSizes
from dcclctl.algorithm.eventlog import DEVICE, VALID, EventLog
from dcclctl.algorithm.metapatch import Basis, PatchShape
from dcclctl.algorithm.training import FitSettings, Samples, sample

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
    return EventLog.build(user, item, time, label, period, one_timeline=one_timeline, **given)


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
    sizes = DinSizes(
        log.n_items,
        log.n_categories,
        log.profile_sizes,
        item_size=6,
        category_size=4,
        profile_size=3,
        attention_size=5,
        hidden_sizes=hidden_sizes,
    )
    model = Din(sizes, log.item_categories, generator)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "table" in name:
                weight *= scale
            elif weight.dim() == 1:
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return model


def basis_for(model: Din, size: int = 4, bottleneck: int = 3, seed: int = 0) -> Basis:
    return new_basis(PatchShape(model.sizes.hidden_sizes, bottleneck), size, seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def fit_settings(**changes: object) -> FitSettings:
    given = {
        "history": 6,
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


def samples_of(log: EventLog, period: int = DEVICE, negatives: int = 3, epoch: int = 0) -> Samples:
    return sample(
        log, log.events_in(period), negatives, log.catalogue(period), log.positives_in(period), 5, "test", epoch
    )


def no_samples(log: EventLog) -> Samples:
    """What `valid` is when nothing is validated."""
    return sample(log, log.events_in(VALID)[:0], 3, log.catalogue(VALID), log.positives_in(VALID), 5, "test")


def frozen(*tensors: torch.Tensor) -> list[bytes]:
    """The bytes of tensors, to see later whether any of them changed."""
    return [tensor.detach().numpy().tobytes() for tensor in tensors]
