"""Every kind of cloud model that learns by gradient descent goes through one loop; a new kind is tested here by its row."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from small_worlds import random_log, same_state, trainer

from dcclctl.compute import OnProgress
from dcclctl.events.log import CLOUD, VALID, EventLog
from dcclctl.models.kind import MODELS, kind_of
from dcclctl.models.settings import TrainedSettings
from dcclctl.models.trainable import Trainable
from dcclctl.models.trained import TrainedKind
from dcclctl.models.training import FitState, snapshot
from dcclctl.store.store import Store

TRAINED = [name for name, variant in MODELS.items() if issubclass(variant.load(), TrainedKind)]
#: of every section, as far as it has them
SMALL = {
    "history": 6,
    "item_size": 6,
    "category_size": 4,
    "profile_size": 3,
    "attention_size": 5,
    "hidden_sizes": (12, 7),
}
N_ITEMS = 30
all_kinds = pytest.mark.parametrize("kind", TRAINED)


def settings_of(kind: str) -> TrainedSettings:
    own = kind_of(kind).Settings
    return own(**{name: value for name, value in SMALL.items() if name in own.model_fields})


def new(kind: str, log: EventLog, seed: int = 0) -> Trainable:
    made = kind_of(kind).new(log, settings_of(kind), torch.Generator().manual_seed(seed))
    assert isinstance(made, Trainable)
    return made


@pytest.fixture(scope="module")
def log() -> EventLog:
    """Nobody sees the last ten items; user 3 has no events in cloud."""
    log = random_log(n_users=14, n_items=N_ITEMS + 10, n_events=40)
    log.item[:] %= N_ITEMS
    log.sequence[:] %= N_ITEMS
    log.period[log.user == 3] = VALID
    return log


def test_there_are_six() -> None:
    assert set(TRAINED) >= {"din", "sasrec", "gru4rec", "bpr", "fm", "neumf"}


def rows(numbers: Iterable[int], count: int) -> torch.Tensor:
    """(count,) which rows those are."""
    wanted = torch.zeros(count, dtype=torch.bool)
    wanted[torch.tensor(sorted({int(number) for number in numbers}))] = True
    return wanted


@all_kinds
def test_one_epoch_changes_what_the_events_touch_and_nothing_else(kind: str, log: EventLog) -> None:
    model = new(kind, log)
    before = snapshot(model)
    fit = trainer(model, log, weight_decay=0.1)
    state = fit.epoch(FitState.start(model, fit.validate()))
    events = log.events_in(CLOUD)
    users = np.unique(log.user[events])
    past, mask = log.histories(events, 6)
    codes = log.item_categories[torch.from_numpy(np.unique(log.item[events]))].unique()
    touched = {
        "item_table": rows(log.item[events], log.n_items),
        "item_bias": rows(log.item[events], log.n_items),
        "user_table": rows(users, log.n_users),
        "history_table": rows(past[mask].tolist(), log.n_items),
        "category_table": rows(codes[codes < log.n_categories].tolist(), log.n_categories + 1),
    }
    for column, size in enumerate(log.profile_sizes):
        touched[f"profile_tables.{column}"] = rows(log.profile[users, column].tolist(), size)
    for name, weight in state.weights.items():
        changed = weight != before[name]
        if name in touched:
            assert torch.equal(changed.reshape(len(changed), -1).any(1), touched[name]), name
        else:
            assert changed.float().mean() > 0.7, f"{name} did not learn"
    assert set(state.weights) == {name for name, _ in model.named_parameters()}
    assert not touched["item_table"].all() and not touched["user_table"].all()


@all_kinds
def test_training_lowers_the_loss(kind: str, log: EventLog) -> None:
    fit = trainer(new(kind, log), log, epochs=6, dropout=0.0)
    state = FitState.start(fit.model, fit.validate())
    while not state.finished(fit.settings):
        state = fit.epoch(state)
    assert state.history[-1]["train_loss"] < state.history[0]["train_loss"]


class Killed(Exception):
    """As if the process ended."""


def killed_after(epochs: float) -> OnProgress:
    def on_progress(what: str, done: float, total: float, note: str) -> None:
        if what == "train" and done > total * epochs / 3:
            raise Killed

    return on_progress


@all_kinds
@pytest.mark.parametrize("shared", [0, 8])
def test_a_killed_run_goes_on_to_the_same_bits(kind: str, shared: int, log: EventLog, tmp_path: Path) -> None:
    def fit(store: Store, seed: int, kill_after: float) -> FitState:
        with store.begin("train", "cloud", {"model": kind}, 0, {}) as work:
            fit = trainer(new(kind, log, seed), log, shared_negatives=shared)
            return fit.fit(work, killed_after(kill_after), "train")

    whole = fit(Store(tmp_path / "whole"), 0, 9)
    stopped = Store(tmp_path / "stopped")
    for kill_after in (1.5, 2):  # within the second epoch, and at the first step of the third
        with pytest.raises(Killed):
            fit(stopped, 0, kill_after)
    resumed = fit(stopped, 99, 9)  # another process: a fresh model, and only the checkpoint
    assert same_state(resumed, whole)
    assert [record["epoch"] for record in whole.history] == [1, 2, 3]


@all_kinds
def test_the_served_model_is_the_trained_one(kind: str, log: EventLog) -> None:
    """What validation scores is what a pass over the same events gives, whatever the batches."""
    model = new(kind, log)
    fit = trainer(model, log)
    whole = fit.validate()
    through = model.serving_pass(log, fit.validation.samples.events)
    loss = count = 0.0
    for at in range(0, len(fit.validation.samples.events), 5):
        positions = np.arange(at, min(at + 5, len(fit.validation.samples.events)))
        index = torch.from_numpy(positions)
        with torch.no_grad():
            logits = through.forward(positions, fit.validation.samples.candidates[index]).logits
        losses, counts = model.losses(
            logits, fit.validation.samples.labels[index], fit.validation.samples.weights[index]
        )
        loss, count = loss + float((losses * counts).sum()), count + float(counts.sum())
    assert loss / count == pytest.approx(whole.loss, rel=1e-5)
