"""Distillation from memories: which items the teachers are asked about, whose histories are truncated, whose labels are taught."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_worlds import random_log
from world import World, quiet_progress

from dcclctl.artifacts import PatchSet
from dcclctl.config import DistillConfig
from dcclctl.devices.memory.statistics import StatisticsSettings, count_statistics
from dcclctl.distillation.from_memory import FromMemory, FromMemorySettings, UnlabelledItems
from dcclctl.distillation.method import DistillTask
from dcclctl.errors import UsageError
from dcclctl.events.log import DEVICE, VALID, Block, EventLog
from dcclctl.stages.distill import distill
from dcclctl.stages.memory import remember
from dcclctl.stages.patch import patch
from dcclctl.stages.train import train
from dcclctl.store.store import Store

LIMIT = 6
DEVICE_BLOCK = Block(DEVICE)
HOW = StatisticsSettings(LIMIT, 5, 1.0, 3, 4)


@pytest.fixture(scope="module")
def log() -> EventLog:
    return random_log(n_events=40)


def questions(log, nearest=None, seed=0, count=6):
    """Draws items about which teachers are asked, of a task that has no more than that takes."""
    student = SimpleNamespace(history=LIMIT)
    settings, config = FromMemorySettings(unlabelled=count), DistillConfig(seed=seed)
    task = DistillTask(None, student, DEVICE_BLOCK, config, settings, torch.device("cpu"), None, quiet_progress)
    return UnlabelledItems(task, log, nearest)


@pytest.mark.parametrize("repeats", [True, False])
def test_unlabelled_items_are_seen_ones_that_no_event_of_the_user_labels(log, repeats):
    log = replace(log, repeats=repeats)
    events, known = log.events_in(DEVICE), set(log.catalogue(DEVICE).tolist())
    statistics = count_statistics(log, lambda log: log.up_to(DEVICE_BLOCK), HOW, seed=0)
    for nearest in (None, statistics):
        drawn = questions(log, nearest)(events, 0).numpy()
        assert drawn.shape == (len(events), 6)
        assert set(drawn.flatten().tolist()) <= known
        taken_before = 0
        for event, items in zip(events, drawn, strict=True):
            own = (log.user == log.user[event]) & (log.label > 0)
            assert not set(log.item[own & (log.period == DEVICE)]) & set(items)
            taken_before += len(set(log.item[own & (log.period < DEVICE)]) & set(items))
        # an item taken before the block may come again where there are repeats, and is no candidate where there are none
        assert (taken_before > 0) == repeats


def test_every_second_unlabelled_item_is_near_the_history(log):
    events = log.events_in(DEVICE)
    statistics = count_statistics(log, lambda log: log.up_to(DEVICE_BLOCK), HOW, seed=0)
    uniform, near = questions(log)(events, 0), questions(log, statistics)(events, 0)
    assert torch.equal(near[:, ::2], uniform[:, ::2])
    changed = near[:, 1::2] != uniform[:, 1::2]
    assert changed.float().mean() > 0.3
    history, mask = log.histories(events, LIMIT)
    for row, column in changed.nonzero().tolist():
        held = history[row][mask[row]]
        related = statistics.neighbours[held][statistics.similarity[held] > 0]
        assert near[row, 1 + 2 * column] in related


def test_unlabelled_items_of_an_event_depend_on_nothing_but_the_event_epoch_and_seed(log):
    events = log.events_in(DEVICE)
    statistics = count_statistics(log, lambda log: log.up_to(DEVICE_BLOCK), HOW, seed=0)
    draw = questions(log, statistics)
    some = np.random.default_rng(0).permutation(len(events))[:7]
    assert torch.equal(draw(events[some], 1), draw(events, 1)[torch.from_numpy(some)])
    assert not torch.equal(draw(events, 0), draw(events, 1))
    assert not torch.equal(draw(events, 0), questions(log, statistics, seed=1)(events, 0))


def test_without_a_history_every_second_item_is_drawn_by_popularity(log):
    """Every second item is drawn as popular items are, even one that this user once took; but none that the block labels."""
    log = replace(log, repeats=False)
    events = log.events_in(DEVICE)
    statistics = count_statistics(log, lambda log: log.up_to(DEVICE_BLOCK), HOW, seed=0)
    forgetful = log.truncate_history(events, np.zeros(len(events), dtype=np.int64))
    draw = questions(forgetful, statistics)
    drawn = np.concatenate([draw(events, epoch).numpy() for epoch in range(200)])
    owners = np.tile(log.user[events], 200)
    assert torch.equal(draw(events, 0)[:, ::2], questions(log)(events, 0)[:, ::2])  # the others are uniform, as ever
    past = log.up_to(DEVICE_BLOCK) & (log.label > 0)
    counts = np.bincount(log.item[past], minlength=log.n_items)
    in_block = log.positives_in(DEVICE_BLOCK)
    assert not in_block.contains(owners[:, None], drawn).any()
    before = log.up_to(DEVICE_BLOCK) & (log.period < DEVICE) & (log.label > 0)
    taken = {(int(user), int(item)) for user, item in zip(log.user[before], log.item[before], strict=True)}
    asked = {(int(user), int(item)) for user, items in zip(owners, drawn[:, 1::2], strict=True) for item in items}
    assert taken & asked
    assert not taken & {
        (int(user), int(item)) for user, items in zip(owners, drawn[:, ::2], strict=True) for item in items
    }
    often = np.bincount(drawn[:, 1::2].flatten(), minlength=log.n_items)
    evenly = np.bincount(drawn[:, ::2].flatten(), minlength=log.n_items)
    popular = counts >= np.median(counts[counts > 0])
    assert often[popular].sum() / often.sum() > evenly[popular].sum() / evenly.sum() + 0.1


def test_in_a_log_without_positive_events_all_items_are_of_the_catalogue(log):
    events = log.events_in(DEVICE)
    statistics = count_statistics(log, lambda log: log.up_to(DEVICE_BLOCK), HOW, seed=0)
    joyless = replace(log, label=np.zeros_like(log.label))
    forgetful = joyless.truncate_history(events, np.zeros(len(events), dtype=np.int64))
    drawn = questions(forgetful, statistics)(events, 0)
    assert set(drawn.flatten().tolist()) <= set(log.catalogue(DEVICE).tolist())


def test_where_nothing_is_left_the_events_own_item_stands_in(log):
    """With many questions and few items; every item that is left is asked about once."""
    small = replace(random_log(n_items=8), repeats=False)
    events = small.events_in(DEVICE)
    drawn = questions(small, count=20)(events, 0).numpy()
    excluded = small.never_negative(DEVICE)
    for event, items in zip(events, drawn, strict=True):
        left = [i for i in small.catalogue(DEVICE) if not excluded.contains(small.user[[event]], np.array([i]))[0]]
        assert sorted(items[: len(left)]) == sorted(left)
        assert (items[len(left) :] == small.item[event]).all()


# Whose histories are truncated, and whose labels are taught


@pytest.fixture(scope="module")
def remembering(world: World, tmp_path_factory: pytest.TempPathFactory) -> PatchSet:
    """Memory patches on the world's cloud model trained further on device."""
    store = Store(world.copy(tmp_path_factory.mktemp("remembering") / "store"))
    first = World(store.root, world.log, {}).cloud(1)
    fresh = train(first.dataset, {"on": ["device"], "epochs": 1, "threads": 1}, start=first)
    memory = remember(fresh.dataset, {"size": 8, "neighbours": 5})
    return patch(fresh, {"method": "memory", "epochs": 1, "hidden_size": 4, "threads": 1}, memory=memory)


def task_of(patches: PatchSet, block: Block = DEVICE_BLOCK, **settings: float) -> DistillTask:
    given = FromMemorySettings(**({"negatives": 4, "unlabelled": 3} | settings))
    device, config = torch.device("cpu"), DistillConfig(seed=3, on=str(block), method="from-memory")
    return DistillTask(patches, patches.cloud, block, config, given, device, None, quiet_progress)


def test_some_events_of_the_block_get_a_short_history_or_none(remembering: PatchSet) -> None:
    full = remembering.cloud.dataset.log
    every, block, limit = np.arange(len(full.user)), full.events_in(DEVICE), remembering.cloud.history
    before = full.history_lengths(every, limit)
    shares = []
    for share in (0.25, 1.0):
        cut = FromMemory().histories(task_of(remembering, truncated_share=share), full)
        after = cut.history_lengths(every, limit)
        assert (np.delete(after, block) == np.delete(before, block)).all()
        assert (after <= before).all()
        shares.append((after < before)[block].mean())
        assert {0, 1} <= set(after[block][after[block] < before[block]])
    assert 0.05 < shares[0] < 0.3 < 0.6 < shares[1]


def test_histories_stay_where_nobody_teaches_or_nothing_is_remembered(remembering: PatchSet, world: World) -> None:
    full = remembering.cloud.dataset.log
    assert FromMemory().histories(task_of(remembering, beta=0.0), full) is full
    assert FromMemory().histories(task_of(remembering, truncated_share=0.0), full).history_start.tolist() == (
        full.history_start.tolist()
    )
    assert FromMemory().histories(task_of(remembering, Block(VALID)), full) is full
    plain = task_of(world.patches())  # patches without a memory
    log = plain.student.dataset.log
    assert FromMemory().histories(plain, log) is log


def test_truncated_share_is_refused_for_teachers_without_a_memory(remembering: PatchSet, world: World) -> None:
    """Also through the stage, where the setting is resolved; the default is no error."""
    without, method = world.patches(), FromMemory()
    given = DistillConfig(method="from-memory", settings=FromMemorySettings(truncated_share=0.25))
    with pytest.raises(UsageError, match=f"truncated_share: {without.ref} has no memory") as error:
        method.check(without, DEVICE_BLOCK, given)
    assert "--method memory" in error.value.remedy
    method.check(remembering, DEVICE_BLOCK, given)
    method.check(without, DEVICE_BLOCK, DistillConfig(method="from-memory", settings=FromMemorySettings(negatives=4)))
    with pytest.raises(UsageError, match="has no memory"):
        distill(without, {"method": "from-memory", "distill.from-memory.truncated_share": 0.0})


def test_labels_of_truncated_events_are_not_taught_and_teachers_speak_in_the_students_odds(
    remembering: PatchSet,
) -> None:
    full, limit = remembering.cloud.dataset.log, remembering.cloud.history
    task = task_of(remembering, truncated_share=0.5, negatives=12)
    cut = FromMemory().histories(task, full)
    objective = FromMemory().objective(task, cut)
    for event in full.events_in(DEVICE):
        seen, there = (int(each.history_lengths(np.array([event]), limit)[0]) for each in (cut, full))
        assert objective.has_label[event] == (seen == there)
    assert 0 < objective.has_label[full.events_in(DEVICE)].mean() < 1
    events = full.events_in(DEVICE)[:20]
    items = objective.unlabelled(events, 0)
    usual = FromMemory().objective(task_of(remembering, truncated_share=0.5, negatives=4), cut)
    assert remembering.cloud.negatives == 4
    shifted = usual.teacher(events, items) + np.log(4 / 12)
    torch.testing.assert_close(objective.teacher(events, items), shifted.float())
