"""Training on groups of users, one in memory at a time: each event once an epoch, with the negatives of the whole log."""

from typing import Any

import numpy as np
import pytest
import torch
from small_worlds import din, fit_settings, log_of, trainer
from torch import Tensor

from dcclctl.artifacts import Dataset
from dcclctl.artifacts import dataset as dataset_module
from dcclctl.errors import DataError
from dcclctl.events.groups import UserGroups
from dcclctl.events.log import CLOUD, Block, EventLog
from dcclctl.models.sequence import SasrecKind, SequenceSettings
from dcclctl.models.trainable import Trainable
from dcclctl.models.training import FitState, Objective, Trainer
from dcclctl.stages.ingest import ingest
from dcclctl.store.store import Store

SIZES = SequenceSettings(item_size=8, history=6)


class Recorder(Objective):
    """Notes what it is asked about: the places of events in the whole log, and their negatives."""

    own_negatives = True

    def __init__(self, log: EventLog, found: list[tuple[int, tuple[int, ...]]]) -> None:
        self.log, self.found = log, found

    def loss(self, model: Any, samples: Any, candidates: Any, logits: Tensor, shared: Any = None) -> Tensor:
        places = self.log.places(samples.events).tolist()
        self.found += zip(places, map(tuple, samples.candidates.tolist()), strict=True)
        return super().loss(model, samples, candidates, logits, shared)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("groups")
    draw = np.random.default_rng(3)
    lines = ["user_id,item_id,timestamp"]
    lines += [f"u{user},i{draw.integers(30)},{1_600_000_000 + 3600 * n}" for n in range(25) for user in range(16)]
    log = folder / "log.csv"
    log.write_text("\n".join(lines) + "\n")
    return ingest([log], Store(folder / "store"), {"repeats": "keep", "shard_users": 3})


def new(dataset: Dataset) -> Trainable:
    return SasrecKind().new(dataset.no_events, SIZES, torch.Generator().manual_seed(0))


def groups_of(dataset: Dataset, users: int, monkeypatch: pytest.MonkeyPatch) -> UserGroups:
    monkeypatch.setattr(dataset_module, "_GROUP_USERS", users)
    return dataset.groups


def learned(dataset: Dataset, groups: UserGroups | EventLog, epochs: int = 2) -> tuple[Trainer, list[Any]]:
    found: list[Any] = []
    settings = fit_settings(batch_size=16, epochs=epochs, shared_negatives=5)
    trainer = Trainer(new(dataset), groups, [Block(CLOUD)], settings, lambda log: Recorder(log, found))
    state, each = FitState.start(trainer.model, trainer.validate()), []
    for _ in range(epochs):
        found.clear()
        state = trainer.epoch(state)
        each.append(list(found))
    return trainer, each


def test_each_event_is_learned_once_an_epoch_with_the_negatives_of_the_whole_log(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = groups_of(dataset, 6, monkeypatch)
    assert groups.count == 3
    assert sum(len(groups.open(number).user) for number in range(3)) == len(dataset.log.user)
    trainer, parts = learned(dataset, groups)
    _, whole = learned(dataset, dataset.log)
    for mine, theirs in zip(parts, whole, strict=True):
        assert sorted(mine) == sorted(theirs)
    assert [place for place, _ in parts[0]] != [place for place, _ in parts[1]]
    assert trainer.facts(FitState.start(trainer.model, trainer.validate()))["trained_on_events"] == len(whole[0])


def test_batches_are_of_one_group_and_groups_change_places(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = groups_of(dataset, 3, monkeypatch)
    opened: list[int] = []
    trainer = Trainer(
        new(dataset),
        UserGroups(groups.count, lambda number: opened.append(number) or groups.open(number)),  # type: ignore[func-returns-value]
        [Block(CLOUD)],
        fit_settings(batch_size=16, epochs=3, shared_negatives=5),
    )
    state = FitState.start(trainer.model, trainer.validate())
    orders = []
    for _ in range(3):
        last = opened[-1]
        opened.clear()
        state = trainer.epoch(state)
        orders.append(tuple(opened) if len(opened) == groups.count else (last, *opened))
    assert all(sorted(order) == list(range(groups.count)) for order in orders)
    assert len(set(orders)) > 1


def test_small_logs_are_one_group(dataset: Dataset) -> None:
    assert dataset.groups.count == 1
    assert dataset.groups.open(0) is dataset.log


def test_groups_learn_as_well_as_the_whole(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = groups_of(dataset, 6, monkeypatch)
    losses = []
    for log in (groups, dataset.log):
        settings = fit_settings(batch_size=16, epochs=4, shared_negatives=10, dropout=0.0)
        trainer = Trainer(new(dataset), log, [Block(CLOUD)], settings)
        state = FitState.start(trainer.model, trainer.validate())
        for _ in range(4):
            state = trainer.epoch(state)
        losses.append([record["train_loss"] for record in state.history])
        assert losses[-1][-1] < losses[-1][0]
    assert losses[0][-1] == pytest.approx(losses[1][-1], rel=0.05)


def test_a_log_with_one_item_has_nothing_to_validate_with():
    log = log_of([(0, 0, time, 1, period) for time, period in enumerate((0, 0, 1, 2, 3))], 1, 1)
    fit = trainer(din(log), log, shared_negatives=4)
    with pytest.raises(DataError, match="no valid event has another item"):
        fit.validate()
