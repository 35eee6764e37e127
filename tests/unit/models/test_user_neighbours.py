"""TIFU-KNN and UP-CF against plain loops that follow the papers' formulas."""

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from small_worlds import Row, log_of, random_log, scores

from dcclctl.events.log import CLOUD, TEST, EventLog
from dcclctl.models.user_neighbours import (
    TifuKnn,
    TifuKnnSettings,
    TrainingUsers,
    UpCf,
    UpCfSettings,
    UserKnnBackbone,
    UserModel,
    item_vectors,
)

Vector = dict[int, float]
TIFU = TifuKnn(TifuKnnSettings(neighbours=4, groups=3, basket_decay=0.8, group_decay=0.6, own_share=0.3))
UP_CF = UpCf(UpCfSettings(neighbours=5, recent_baskets=3, asymmetry=0.3, locality=2.0))
both = pytest.mark.parametrize("model", [TIFU, UP_CF], ids=["tifu-knn", "up-cf"])


def baskets_of(rows: list[Row], user: int, periods: tuple[int, ...], before: float = math.inf) -> list[set[int]]:
    """A user's positive items, a set for each time, oldest first."""
    found: dict[int, set[int]] = defaultdict(set)
    for owner, item, time, label, period in rows:
        if owner == user and label and period in periods and time < before:
            found[time].add(item)
    return [found[time] for time in sorted(found)]


def tifu_vector(baskets: list[set[int]], own: TifuKnnSettings) -> Vector:
    """Σ_i r_g^(m−i) v_i / m with v_i = Σ_j r_b^(x−j) b_j / x; of groups of unequal size the larger ones come last."""
    m = min(own.groups, len(baskets))
    groups, at = [], 0
    for i in range(m):
        x = len(baskets) // m + (1 if i >= m - len(baskets) % m else 0)
        groups.append(baskets[at : at + x])
        at += x
    assert at == len(baskets)
    vector: Vector = defaultdict(float)
    for i, group in enumerate(groups, start=1):
        for j, basket in enumerate(group, start=1):
            for item in basket:
                vector[item] += own.group_decay ** (m - i) / m * own.basket_decay ** (len(group) - j) / len(group)
    return vector


def up_vector(baskets: list[set[int]], own: UpCfSettings) -> Vector:
    """The share of the last r baskets that hold an item."""
    newest = baskets[-own.recent_baskets :]
    return {item: sum(item in basket for basket in newest) / len(newest) for item in set().union(*newest)}


def distance(a: Vector, b: Vector) -> float:
    return math.sqrt(sum((a.get(i, 0.0) - b.get(i, 0.0)) ** 2 for i in {*a, *b}))


def tifu_scores(mine: Vector, others: list[Vector], own: TifuKnnSettings) -> Vector:
    near = sorted(others, key=lambda other: distance(mine, other))[: own.neighbours]
    found: Vector = defaultdict(float)
    for item, value in mine.items():
        found[item] += own.own_share * value
    for other in near:
        for item, value in other.items():
            found[item] += (1 - own.own_share) * value / len(near)
    return found


def up_scores(mine: Vector, others: list[Vector], own: UpCfSettings) -> Vector:
    def similarity(other: Vector) -> float:
        return len({*mine} & {*other}) / (len(mine) ** own.asymmetry * len(other) ** (1 - own.asymmetry))

    found: Vector = defaultdict(float, mine)  # the similarity to oneself is 1
    for other in sorted(others, key=similarity, reverse=True)[: own.neighbours]:
        for item, value in other.items():
            found[item] += similarity(other) ** own.locality * value
    return {item: value for item, value in found.items() if value > 0}


def world(seed: int = 0) -> tuple[EventLog, list[Row]]:
    """Twenty users, baskets of one to three items with repeats, the last five users without training events."""
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    for user in range(20):
        n_baskets = int(rng.integers(2, 11))
        for time in range(n_baskets):
            period = TEST if time >= n_baskets - 2 or user >= 15 else CLOUD
            # some items twice in a basket, some disliked
            items = [*rng.integers(0, 16, rng.integers(1, 4)), user % 4]
            rows += [(user, int(item), time, int(rng.random() < 0.9), period) for item in [*items, items[0]]]
    return log_of(rows, 20, 18), rows


def trained(model: UserModel, log: EventLog) -> UserKnnBackbone:
    counted = log.events_in(CLOUD)
    counted = counted[log.label[counted] > 0]
    users, owners = np.unique(log.user[counted], return_inverse=True)
    shape = (len(users), log.n_items)
    vectors = item_vectors(owners, log.history_end[counted], log.item[counted], shape, model.weigh)
    others = TrainingUsers.of(TrainingUsers(users, vectors).tensors(), log.n_items)
    return UserKnnBackbone(
        model, log, others, torch.from_numpy(np.bincount(log.item[counted], minlength=log.n_items)).float()
    )


@pytest.mark.parametrize("total", range(1, 12))
@pytest.mark.parametrize("groups", [1, 3, 7])
def test_weights_of_baskets_follow_the_groups(total: int, groups: int) -> None:
    own = TifuKnnSettings(groups=groups, basket_decay=0.8, group_decay=0.6)
    expected = tifu_vector([{at} for at in range(total)], own)
    found = TifuKnn(own).weigh(np.arange(total), np.full(total, total))
    assert found == pytest.approx([expected[at] for at in range(total)], rel=1e-12)


@both
@pytest.mark.parametrize("seed", [0, 1])
def test_scores_are_those_of_the_formulas(model: UserModel, seed: int) -> None:
    log, rows = world(seed)
    backbone = trained(model, log)
    vector, combine = (tifu_vector, tifu_scores) if model is TIFU else (up_vector, up_scores)
    own = model.settings
    training = {user: vector(baskets_of(rows, user, (CLOUD,)), own) for user in range(15)}
    training = {user: found for user, found in training.items() if found}
    events = log.events_in(TEST)
    found = backbone.scores(events)
    had_neighbours = 0
    for event, row in zip(events, found, strict=True):
        user, _, time, _, _ = rows[event]
        past = baskets_of(rows, user, (CLOUD, TEST), before=time)
        expected = np.zeros(log.n_items)
        if past:
            mine = vector(past, own)
            others = [found for owner, found in training.items() if owner != user]
            for item, value in combine(mine, others, own).items():
                expected[item] = value
            had_neighbours += len(np.flatnonzero(expected)) > len(mine)
        assert row == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert had_neighbours > 20 and {rows[event][0] for event in events} >= set(range(15, 20))


@both
def test_logits_keep_the_order_and_popularity_ranks_the_rest(model: UserModel) -> None:
    log, _ = world()
    backbone, events = trained(model, log), log.events_in(TEST)
    logits, values = scores(backbone, events).double().numpy(), backbone.scores(events)
    for row, value in zip(logits, values, strict=True):
        larger = value[:, None] > value + 1e-3 * value.max()
        assert (row[:, None] > row)[larger].all()
        assert row[value > 0].min(initial=np.inf) > row[value == 0].max(initial=-np.inf)
        rest = np.flatnonzero(value == 0)
        assert (np.diff(row[rest][np.argsort(backbone.popularity[rest], kind="stable")]) >= 0).all()
    candidates = torch.tensor([[4, 0, 0]]).expand(len(events), 3)
    assert np.array_equal(
        scores(backbone, events).numpy()[:, [4, 0, 0]], backbone.activations(events, candidates).numpy()
    )


@both
def test_nothing_at_or_after_an_event_changes_its_scores(model: UserModel) -> None:
    log, rows = world()
    event = int(log.events_in(TEST)[30])
    user, _, time, _, _ = rows[event]
    changed = [
        (owner, (item + 5) % 18 if (owner, period) == (user, TEST) and at >= time else item, at, label, period)
        for owner, item, at, label, period in rows
    ]
    other = log_of(changed, 20, 18)
    assert not np.array_equal(other.item, log.item)
    found = [trained(model, each).scores(np.array([event])) for each in (log, other)]
    assert np.array_equal(*found)


@both
def test_a_users_own_training_vector_has_no_say(model: UserModel) -> None:
    log, _ = world()
    events = log.events_in(TEST)
    events = events[log.user[events] == 2]
    before = trained(model, log).scores(events)
    backbone = trained(model, log)
    row = int(np.searchsorted(backbone.others.users, 2))
    vectors = backbone.others.vectors
    vectors.data[vectors.indptr[row] : vectors.indptr[row + 1]] = 0.5
    assert np.array_equal(backbone.scores(events), before)


@both
def test_the_batch_has_no_effect_also_with_ties_in_time_and_without_a_history(model: UserModel) -> None:
    log = random_log()
    backbone, events = trained(model, log), log.events_in(CLOUD, TEST)
    assert (log.history_end[events] == log.history_start[events]).any()
    assert torch.equal(scores(backbone, events, batch_events=500), scores(backbone, events, batch_events=1))
    first = log.events_of(0)[:1]
    order = scores(backbone, first)[0].double().numpy()
    assert (np.diff(order[np.argsort(backbone.popularity, kind="stable")]) >= 0).all()


@both
def test_one_training_user_and_no_other(model: UserModel) -> None:
    log = log_of([(0, 1, 0, 1, CLOUD), (0, 2, 1, 1, TEST), (1, 1, 0, 1, TEST), (1, 0, 1, 1, TEST)], 2, 3)
    found = trained(model, log).scores(np.array([1, 3]))
    assert (found > 0).tolist() == [[False, True, False]] * 2


def test_vectors_count_an_item_once_a_basket_and_leave_zeros_out() -> None:
    owners, baskets, items = np.array([0, 0, 0, 2, 2]), np.array([5, 5, 9, 11, 12]), np.array([1, 1, 1, 0, 3])
    found = item_vectors(owners, baskets, items, (3, 4), lambda place, total: place + 0.0 * total)
    assert found.toarray().tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert found.nnz == 2
