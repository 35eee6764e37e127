"""Distillation from memories: what the teachers are asked about, and what a student learns of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_worlds import din, din_logits, first_loss, normal, random_log, run, same_state, trained, trainer
from world import World, quiet_progress

from dcclctl.artifacts import PatchSet
from dcclctl.config import DistillConfig
from dcclctl.distillation import from_memory
from dcclctl.distillation.from_memory import (
    FromMemory,
    FromMemorySettings,
    ListObjective,
    TaughtLists,
    list_kl,
    lists_of,
)
from dcclctl.distillation.method import DistillTask
from dcclctl.distillation.teachers import teacher_of
from dcclctl.events.log import CLOUD, DEVICE, Block, EventLog
from dcclctl.models.training import FitState
from dcclctl.stages.memory import remember
from dcclctl.stages.patch import patch
from dcclctl.stages.train import train
from dcclctl.store.store import Store

DEVICE_BLOCK = Block(DEVICE)


@pytest.fixture(scope="module")
def remembering(world: World, tmp_path_factory: pytest.TempPathFactory) -> PatchSet:
    """Memory patches on the world's cloud model trained further on device."""
    store = Store(world.copy(tmp_path_factory.mktemp("remembering") / "store"))
    first = World(store.root, world.log, {}).cloud(1)
    fresh = train(first.dataset, {"on": ["device"], "epochs": 1, "threads": 1}, start=first)
    memory = remember(fresh.dataset, {"size": 8, "neighbours": 5})
    return patch(fresh, {"method": "memory", "epochs": 1, "hidden_size": 4, "threads": 1}, memory=memory)


def task_of(
    patches: PatchSet, block: Block = DEVICE_BLOCK, teachers: str = "patched", **settings: float
) -> DistillTask:
    given = FromMemorySettings(**({"negatives": 4, "highest": 3, "others": 2} | settings))
    config = DistillConfig(seed=3, on=str(block), method="from-memory", teachers=teachers)
    return DistillTask(patches, patches.cloud, block, config, given, torch.device("cpu"), None, quiet_progress)


# What the teachers are asked about


def by_hand(task: DistillTask, log: EventLog, event: int) -> tuple[list[int], torch.Tensor, set[int]]:
    """The items that may stand in an event's list, best first for the cloud model; the teacher's logits of all items; the rest."""
    teacher = teacher_of(task, log)
    items = torch.arange(log.n_items)[None]
    cloud = teacher.backbone.logits_of_few(np.array([event]), items, teacher.backbone.head)[0].detach()
    known = set(log.catalogue(DEVICE_BLOCK).tolist())
    mine = (log.user == log.user[event]) & (log.label > 0) & (log.period <= DEVICE)
    basket = (log.history_end == log.history_end[event]) & (log.period == DEVICE)
    taken = set(log.item[mine & (basket if log.repeats else True)].tolist())
    allowed = known - taken - {int(log.item[event])}
    return sorted(allowed, key=lambda item: -float(cloud[item])), teacher(np.array([event]), items)[0], allowed


@pytest.mark.parametrize("repeats", [True, False])
def test_a_list_has_the_teachers_best_of_the_cloud_models_best_and_some_others(
    remembering: PatchSet, monkeypatch: pytest.MonkeyPatch, repeats: bool
) -> None:
    monkeypatch.setattr(from_memory, "CONSIDERED", 6)
    task = task_of(remembering)
    log = replace(remembering.cloud.dataset.log, repeats=repeats)
    lists = lists_of(task, log)
    assert np.array_equal(lists.events, log.events_in(DEVICE))
    asked_again = 0
    for event, items, logits in zip(lists.events, lists.items, lists.logits, strict=True):
        best, teacher, allowed = by_hand(task, log, int(event))
        expected = sorted(best[:6], key=lambda item: -float(teacher[item]))[:3]
        assert items[:3].tolist() == expected
        left, others = items[3:5].tolist(), items[5:].tolist()
        assert set(left) <= set(best[:6]) - set(expected) and len(set(left)) == 2
        assert set(others) <= allowed - set(best[:6]) and len(set(others)) == 2
        torch.testing.assert_close(logits, teacher[items.long()], atol=1e-5, rtol=1e-5)
        before = log.item[(log.user == log.user[event]) & (log.period < DEVICE) & (log.label > 0)]
        asked_again += len(set(before.tolist()) & set(items.tolist()))
    # an item taken before the block may come again where there are repeats, and is no candidate where there are none
    assert (asked_again > 0) == repeats


def test_where_few_items_are_left_places_stay_empty(remembering: PatchSet) -> None:
    """Every item that is left has one place; the places that are too many count for nothing."""
    log = remembering.cloud.dataset.log
    lists = lists_of(task_of(remembering, highest=log.n_items, others=5), log)
    for event, items, logits in zip(lists.events, lists.items, lists.logits, strict=True):
        *_, allowed = by_hand(task_of(remembering), log, int(event))
        there = torch.isfinite(logits)
        assert sorted(items[there].tolist()) == sorted(allowed) and (~there).any()


def test_in_a_large_log_some_events_are_taught(remembering: PatchSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """About as many as the limit says, and each event that has a list is found by its row."""
    log, task = remembering.cloud.dataset.log, task_of(remembering)
    every = log.events_in(DEVICE)
    monkeypatch.setattr(from_memory, "TAUGHT_EVENTS", len(every) // 3)
    some = lists_of(task, log)
    assert 0.2 < len(some.events) / len(every) < 0.5 and set(some.events) < set(every)
    rows, found = some.find(every)
    assert found.numpy().tolist() == [event in set(some.events) for event in every]
    assert np.array_equal(some.events[rows[found].numpy()], every[found.numpy()])


def test_without_teachers_nobody_is_asked(remembering: PatchSet) -> None:
    log = remembering.cloud.dataset.log
    lists = lists_of(task_of(remembering, beta=0.0), log)
    assert not len(lists.events)
    assert not lists.find(log.events_in(DEVICE))[1].any()


# What the student learns of it


def test_the_divergence_of_lists_is_torchs_and_ignores_empty_places() -> None:
    teacher, student = 4 * normal(40, 6), 4 * normal(40, 6, seed=1)
    categorical = torch.distributions.Categorical
    expected = torch.distributions.kl_divergence(categorical(logits=teacher), categorical(logits=student))
    torch.testing.assert_close(list_kl(teacher, student), expected, atol=1e-5, rtol=1e-5)
    assert list_kl(teacher, teacher + 3).abs().max() < 1e-5  # the level of a list says nothing
    empty = torch.full((40, 2), -torch.inf)
    wide = list_kl(torch.cat([teacher, empty], 1), torch.cat([student, normal(40, 2)], 1))
    torch.testing.assert_close(wide, expected, atol=1e-5, rtol=1e-5)
    assert not list_kl(empty, normal(40, 2)).any()


@pytest.fixture(scope="module")
def log() -> EventLog:
    return random_log(n_events=40)


def lists_for(log: EventLog, events: np.ndarray, prefers: int = 0) -> TaughtLists:
    """Lists of the items 0 … 5, in which the teacher prefers those with the parity `prefers`; the last place is empty."""
    items = torch.arange(6, dtype=torch.int32).expand(len(events), -1)
    logits = torch.where(items % 2 == prefers, 3.0, -3.0)
    return TaughtLists(events, items, logits.index_fill(1, torch.tensor([5]), -torch.inf))


def objective_for(
    log: EventLog, lists: TaughtLists, beta: float = 0.7, weight: torch.Tensor | None = None
) -> ListObjective:
    return ListObjective(log, beta, torch.ones(log.n_users) if weight is None else weight, lists)


@pytest.mark.parametrize("softmax", [False, True])
def test_the_loss_is_that_of_the_labels_and_beta_times_the_divergence_of_lists(log: EventLog, softmax: bool) -> None:
    """Per event beside a softmax, and beside a binary loss per candidate; of the events that have a list alone."""
    events = log.events_in(DEVICE)
    lists = lists_for(log, events[::2])
    fit = {"batch_size": 10_000, "dropout": 0.0, "shared_negatives": 100 * softmax}

    def model() -> torch.nn.Module:  # each anew, because a first loss is followed by a step
        return din(log)

    plain = first_loss(trainer(model(), log, DEVICE, **fit))
    found = first_loss(trainer(model(), log, DEVICE, objective_for(log, lists), **fit))
    student = din_logits(model(), log, lists.events, lists.items.long()).detach()
    p, q = (torch.softmax(each[:, :5], 1) for each in (lists.logits, student))
    divergence = float((p * torch.log(p / q)).sum(1).mean())
    # the default of these tests: three negatives beside an event's own item
    assert found == pytest.approx(plain + 0.7 * divergence / (1 if softmax else 4), rel=1e-5)
    nobody = objective_for(log, lists_for(log, events[:0]))
    assert first_loss(trainer(model(), log, DEVICE, nobody, **fit)) == pytest.approx(plain, rel=1e-6)


def test_users_whose_teacher_has_weight_zero_are_taught_by_labels_alone(log: EventLog) -> None:
    """No lie of their teachers changes anything."""
    events = log.events_in(DEVICE)
    honest, liar = lists_for(log, events), lists_for(log, events)
    weight = (torch.arange(log.n_users) >= 6).float()
    lies = torch.from_numpy(log.user[events] < 6)[:, None]
    liar = replace(liar, logits=torch.where(lies, -liar.logits, liar.logits))

    def learned(lists: TaughtLists, weight: torch.Tensor | None = None) -> FitState:
        return trained(din(log), log, period=DEVICE, objective=objective_for(log, lists, weight=weight))

    assert same_state(learned(honest, weight), learned(liar, weight))
    assert not same_state(learned(honest), learned(liar))


def test_a_student_takes_over_its_teachers_order(log: EventLog) -> None:
    model, events = din(log), log.events_in(DEVICE)
    lists = lists_for(log, events)
    run(trainer(model, log, DEVICE, objective_for(log, lists, beta=1000.0), epochs=40))
    found = din_logits(model, log, events, lists.items.long())
    assert (found[:, [0, 2, 4]].min(1).values > found[:, [1, 3]].max(1).values).float().mean() > 0.95


def test_the_teachers_are_asked_once(remembering: PatchSet, monkeypatch: pytest.MonkeyPatch) -> None:
    log, method, asked = remembering.cloud.dataset.log, FromMemory(), []
    monkeypatch.setattr(
        from_memory, "lists_of", lambda task, log: asked.append(log.users) or lists_for(log, log.events_in(DEVICE))
    )
    for _ in range(3):
        method.objective(task_of(remembering), log)
    assert asked == [None]


def test_a_group_without_events_to_teach_does_not_silence_the_next(
    remembering: PatchSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, method = remembering.cloud.dataset.log, FromMemory()
    monkeypatch.setattr(from_memory, "lists_of", lambda task, log: lists_for(log, log.events_in(DEVICE)))
    nothing, everything = (replace(log, period=np.full_like(log.period, period)) for period in (CLOUD, DEVICE))
    assert not len(method.objective(task_of(remembering), nothing).lists.events)
    assert len(method.objective(task_of(remembering), everything).lists.events) == len(log.user)
