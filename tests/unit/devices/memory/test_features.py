"""What a device remembers: the batch's features against the device's own ring, and against figures made by hand."""

from itertools import groupby
from math import log, log1p, log2, sqrt

import numpy as np
import pytest
import torch
from small_worlds import Row, log_of

from dcclctl.devices.memory import features as features_module
from dcclctl.devices.memory import statistics as statistics_module
from dcclctl.devices.memory.features import (
    FACTOR_FEATURES,
    FEATURES,
    ORDER_FEATURES,
    FeatureTables,
    Memories,
    Statistics,
    features_of,
)
from dcclctl.devices.memory.ring import Ring
from dcclctl.devices.memory.statistics import StatisticsSettings, count_statistics
from dcclctl.events.log import CLOUD, DEVICE, TEST, VALID, Block, EventLog

#: M and T: smaller than the histories, so that rings wrap
SIZE, WINDOW = 6, 4
#: with the order of events and factors
ALL = FEATURES + ORDER_FEATURES + FACTOR_FEATURES
IN_PROFILE = ALL[1:]
N_USERS, N_ITEMS, N_CATEGORIES = 9, 30, 5


def random_rows(repeats: bool = True) -> list[Row]:
    """Events with shared moments and negatives; without repeats each user has an item once."""
    draw = np.random.default_rng(1)
    rows: list[Row] = []
    for user in range(N_USERS):
        taken: set[int] = set()
        for time in np.sort(draw.integers(0, 30, 18 + user)):
            item = int(draw.integers(N_ITEMS))
            if repeats or item not in taken:
                period = int(np.searchsorted([16, 22, 26], time, side="right"))
                rows.append((user, item, int(time), int(draw.random() < 0.8), period))
            taken.add(item)
    return rows


def categorised() -> dict[str, object]:
    """0 to 3 categories an item, in no order."""
    draw = np.random.default_rng(2)
    codes = np.full((N_ITEMS, 3), N_CATEGORIES)
    for item in range(N_ITEMS):
        codes[item, : item % 4] = draw.choice(N_CATEGORIES, item % 4, replace=False)
    return {"item_categories": torch.from_numpy(codes), "n_categories": N_CATEGORIES}


def counted(
    world: EventLog, counted_through: str = "device", neighbours: int = 4, shrinkage: float = 1.0
) -> Statistics:
    settings = StatisticsSettings(SIZE, neighbours, shrinkage, 3, 4)
    return count_statistics(world, lambda log: log.up_to(Block.parse(counted_through)), settings, 3)


def features(
    world: EventLog, events: np.ndarray, candidates: torch.Tensor | None, statistics: Statistics, size: int
) -> torch.Tensor:
    """Without the profile of recent events."""
    return Memories(world, statistics, size, 0).features(events, candidates)


def plain(
    n_items: int,
    category_share: list[float],
    similar: dict[tuple[int, int], float],
    before: dict[tuple[int, int], float] | None = None,
    factors: torch.Tensor | None = None,
) -> Statistics:
    """Nothing taken off and nothing scaled, so that features are what their formulas say; items have equal shares."""
    similarity, transition = torch.zeros(2, n_items, n_items)
    for matrix, given in ((similarity, similar), (transition, before or {})):
        for (item, other), value in given.items():
            matrix[item, other] = value
    every = torch.arange(n_items).expand(n_items, -1)
    return Statistics(
        torch.full((n_items,), 1 / n_items),
        torch.tensor(category_share),
        every,
        similarity,
        every,
        transition,
        torch.zeros(n_items, 2) if factors is None else factors,
        torch.tensor([0.5, 0.25]),
        torch.zeros(n_items, len(ALL)),
        torch.ones(len(ALL)),
    )


# -- a batch and the devices say the same


@pytest.mark.parametrize("repeats", [True, False])
@pytest.mark.parametrize("categories", [True, False])
def test_a_batch_has_the_features_of_every_devices_ring(repeats: bool, categories: bool) -> None:
    """A ring takes in the positive events of a moment only after all events of that moment were looked at."""
    rows = random_rows(repeats)
    world = log_of(rows, N_USERS, N_ITEMS, repeats=repeats, **(categorised() if categories else {}))
    statistics = counted(world)
    found = Memories(world, statistics, SIZE, WINDOW).features(np.arange(len(rows)), None)
    everything, wrapped, row = torch.arange(N_ITEMS), 0, 0
    for _, mine in groupby(rows, key=lambda each: each[0]):
        ring = Ring(SIZE, profile_window=WINDOW, n_features=len(IN_PROFILE))
        for _, moment in groupby(mine, key=lambda each: each[2]):
            expected = ring.features(everything, world.item_categories, statistics)
            for _, item, _, label, _ in list(moment):
                torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-4)
                wrapped += ring.seen > SIZE
                row += 1
                if label:
                    ring.observe(item, expected[item])
        assert ring.bytes == 8 + 4 * SIZE + WINDOW * len(IN_PROFILE)
    assert row == len(rows)
    assert wrapped > 30
    profile = found[:, 0, len(ALL) :]
    assert (profile.abs().sum(1) > 0).sum() > 100
    assert found[..., len(ALL) :].equal(profile.unsqueeze(1).expand(-1, N_ITEMS, -1))  # the same for all candidates
    # some events after others, in another order, candidates of choice
    chosen = torch.tensor([[3, 3, 7], [0, 29, 1]])
    few = Memories(world, statistics, SIZE, WINDOW).features(np.array([100, 40]), chosen.flip(0)).flip(0)
    torch.testing.assert_close(few, torch.stack([found[40][chosen[0]], found[100][chosen[1]]]))


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_a_device_whose_log_begins_later_has_a_profile_of_its_own(keep: int) -> None:
    """In a truncated log an event's profile is that of a ring which saw the kept events only; others keep theirs."""
    world = log_of(random_rows(False), N_USERS, N_ITEMS, repeats=False, **categorised())
    statistics = counted(world)
    some = np.flatnonzero(world.history_lengths(np.arange(len(world.user)), keep + 1) > keep)[::3]
    cut = world.truncate_history(some, np.full(len(some), keep))
    found = Memories(cut, statistics, SIZE, WINDOW).features(some, None)
    whole = Memories(world, statistics, SIZE, WINDOW).features(some, None)
    for row, event in enumerate(some):
        ring = Ring(SIZE, profile_window=WINDOW, n_features=len(IN_PROFILE))
        ends = world.history_end[event]
        seen = [at for at in np.flatnonzero(world.label > 0) if world.user[at] == world.user[event]]
        kept = [at for at in seen if world.history_end[at] < ends][-keep:]
        begins = ends - keep
        for at in kept:  # events of one moment do not see each other
            before = Ring(SIZE, world.sequence[begins : max(begins, int(world.history_end[at]))].tolist())
            own = before.features(torch.tensor([world.item[at]]), world.item_categories, statistics)[0]
            ring.observe(int(world.item[at]), own)
        torch.testing.assert_close(found[row], ring.features(torch.arange(N_ITEMS), world.item_categories, statistics))
    profile = slice(len(ALL), None)
    assert not found[:, 0, profile].allclose(whole[:, 0, profile])
    others = np.setdiff1d(np.arange(len(world.user)), some)
    everything = Memories(cut, statistics, SIZE, WINDOW).features(np.arange(len(world.user)), None)
    torch.testing.assert_close(
        everything[torch.from_numpy(others)], Memories(world, statistics, SIZE, WINDOW).features(others, None)
    )
    torch.testing.assert_close(everything[torch.from_numpy(some)], found)


def rings_of(rows: list[Row], world: EventLog, statistics: Statistics) -> dict[int, list[tuple[int, torch.Tensor]]]:
    """user → of each positive event, oldest first: its period, and the ring's profile of R numbers right after it."""
    everything, found_for = torch.arange(N_ITEMS), {}
    for user, mine in groupby(rows, key=lambda each: each[0]):
        ring, profiles = Ring(SIZE, profile_window=WINDOW, n_features=len(IN_PROFILE)), []
        for _, moment in groupby(mine, key=lambda each: each[2]):
            found = ring.features(everything, world.item_categories, statistics)
            for _, item, _, label, period in list(moment):
                if label:
                    ring.observe(item, found[item])
                    profile = ring.features(everything[:1], world.item_categories, statistics)[0, len(ALL) :]
                    profiles.append((period, profile))
        found_for[user] = profiles
    return found_for


def test_users_without_counted_events_have_the_typical_profile() -> None:
    """The mean profile of counted users' rings when they held as many events; all other users keep their own."""
    rows = random_rows()
    world = log_of(rows, N_USERS, N_ITEMS, **categorised())
    statistics = counted(world)
    mask = world.up_to(Block.parse("cloud")) & (world.user % 3 > 0)
    strangers = world.user % 3 == 0
    memories = Memories(world, statistics, SIZE, WINDOW, mask)
    profiles = {user: own for user, own in rings_of(rows, world, statistics).items() if user % 3}
    for held in range(WINDOW + 1):
        known = [own[held - 1][1] for own in profiles.values() if 0 < held <= len(own) and own[held - 1][0] == CLOUD]
        expected = torch.stack(known).mean(0) if held else torch.zeros(len(IN_PROFILE))
        assert held == 0 or len(known) == 6
        torch.testing.assert_close(memories.typical[held], expected)
    everything = np.arange(len(rows))
    own = Memories(world, statistics, SIZE, WINDOW).features(everything, None)
    found = memories.features(everything, None)
    assert found[torch.from_numpy(~strangers)].equal(own[torch.from_numpy(~strangers)])
    assert found[..., : len(ALL)].equal(own[..., : len(ALL)])
    held = np.minimum(world.history_lengths(everything, WINDOW), WINDOW)[strangers]
    assert set(held) == set(range(WINDOW + 1))
    taken = found[torch.from_numpy(strangers)][:, 0, len(ALL) :]
    assert taken.equal(memories.typical[torch.from_numpy(held)])
    # and so has the device itself
    ring = Ring(SIZE, [3, 1], WINDOW, len(IN_PROFILE))
    ring.kept[:] = 100
    alone = ring.features(torch.arange(N_ITEMS), world.item_categories, statistics, memories.typical)
    assert alone[:, len(ALL) :].equal(memories.typical[2].expand(N_ITEMS, -1))


def test_the_typical_profile_where_no_counted_user_held_as_many_events() -> None:
    """That of those who held most is taken; without any counted user it is zero."""
    rows: list[Row] = [(0, 1, 0, 1, CLOUD), (0, 2, 1, 1, CLOUD), *((1, item, item, 1, TEST) for item in range(6))]
    world = log_of(rows, 2, N_ITEMS)
    statistics = counted(world)
    memories = Memories(world, statistics, SIZE, WINDOW, world.up_to(Block.parse("device")))
    assert memories.typical[2].any()
    assert memories.typical[3].equal(memories.typical[2]) and memories.typical[WINDOW].equal(memories.typical[2])
    nobody = Memories(world, statistics, SIZE, WINDOW, np.zeros(len(rows), dtype=bool))
    assert not nobody.typical.any()
    assert not nobody.features(np.arange(len(rows)), None)[..., len(ALL) :].any()
    plain_features = Memories(world, statistics, SIZE, 0, np.zeros(len(rows), dtype=bool))
    assert plain_features.features(np.arange(len(rows)), None).shape[2] == len(ALL)


def test_some_users_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample that depends on the users' numbers only; events after what was counted change nothing."""
    world = log_of(random_rows(), N_USERS, N_ITEMS)
    statistics, mask = counted(world), world.up_to(Block.parse("cloud"))
    every = Memories(world, statistics, SIZE, WINDOW, mask).typical
    monkeypatch.setattr(features_module, "_TYPICAL", 4)
    some = Memories(world, statistics, SIZE, WINDOW, mask).typical
    assert not some.allclose(every)
    assert some.equal(Memories(world, statistics, SIZE, WINDOW, mask).typical)
    later = [row if row[4] == CLOUD else (row[0], (row[1] + 7) % N_ITEMS, *row[2:]) for row in random_rows()]
    assert Memories(log_of(later, N_USERS, N_ITEMS), statistics, SIZE, WINDOW, mask).typical.equal(some)


def test_few_candidates_have_the_features_that_they_have_among_all() -> None:
    """Bit for bit, though their tables are made over the items that are held, and an item may be held by nobody."""
    world = log_of(random_rows(), N_USERS, N_ITEMS, **categorised())
    events, statistics = np.arange(len(world.user)), counted(world)
    memories = Memories(world, statistics, SIZE, WINDOW)
    every = memories.features(events, None)
    few = torch.from_numpy(np.random.default_rng(0).integers(0, N_ITEMS, (len(events), 7)))
    expected = every.gather(1, few.unsqueeze(2).expand(-1, -1, every.shape[2]))
    assert memories.features(events, few).equal(expected)
    alone = events[:1]  # nothing is held
    assert memories.features(alone, few[:1]).equal(expected[:1])


@pytest.mark.parametrize("categories", [True, False])
@pytest.mark.parametrize("more", [True, False])
def test_lists_turned_round_give_the_features_of_every_pair(categories: bool, more: bool) -> None:
    """Bit for bit what `features_of` computes pair by pair: for all items, and for many candidates of each event."""
    world = log_of(random_rows(), N_USERS, N_ITEMS, **(categorised() if categories else {}))
    settings = StatisticsSettings(SIZE, 4, 1.0, 3 if more else 0, 4 if more else 0)
    statistics = count_statistics(world, lambda log: log.up_to(Block.parse("device")), settings, 3)
    events, tables = np.arange(len(world.user)), FeatureTables(statistics, world.item_categories)
    held, mask = world.histories(events, SIZE)
    many = torch.from_numpy(np.random.default_rng(0).integers(0, N_ITEMS, (len(events), 50)))
    for candidates in (None, many, many[:, :2]):
        asked = torch.arange(N_ITEMS).expand(len(events), -1) if candidates is None else candidates
        expected = features_of(held, mask.float(), asked, world.item_categories, statistics)
        assert tables.of_events(world, events, candidates, SIZE).equal(expected)
    assert expected.isfinite().all() and expected.std() > 0.5


def test_no_events_have_no_features() -> None:
    world = log_of(random_rows(), N_USERS, N_ITEMS)
    nobody = torch.empty(0, 4, dtype=torch.int64)
    for window in (0, WINDOW):
        memories = Memories(world, counted(world), SIZE, window)
        found = memories.features(np.empty(0, np.int64), nobody)
        assert found.shape == (0, 4, len(ALL) + (len(IN_PROFILE) if window else 0))


# -- figures made by hand


def test_every_feature_by_hand() -> None:
    """A ring of 4 items, newest first 2, 1, 1, 0 of a catalogue of 5.

    Categories: item 0 in a, item 1 in a and b, item 2 in b, item 3 in a and b, item 4 in none.
    """
    a, b, none = 0, 1, 2
    categories = torch.tensor([[a, none], [a, b], [b, none], [a, b], [none, none]])
    before = {(3, 2): 0.1, (3, 0): 0.5, (1, 1): 0.3, (1, 4): 0.9}
    factors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.5, -3.0], [0.0, 0.0]])
    statistics = plain(5, [0.5, 0.25, 0.25], {(3, 1): 0.6, (3, 2): 0.2, (1, 4): 0.9}, before, factors)
    ring = Ring(4, [4, 0, 1, 1, 2])  # 4 is overwritten
    first, second, third = ring.features(torch.tensor([1, 3, 4]), categories, statistics)
    fresh = [1 / (1 + age / 20) for age in range(4)]
    lift = {"a": log((3 + 1) / (4 * 0.5 + 1)), "b": log((3 + 1) / (4 * 0.25 + 1))}
    size, both = log1p(4) / 5, log1p(3)
    # the sums of the factors of 2, 1, 1, 0, whose numbers are damped by what four events, or so many faded ones, say
    n = 1 + 0.9 + 0.9**2 + 0.9**3
    whole = (2 + 1) / (1 + 4 * 0.5), (1 + 1) / (1 + 4 * 0.25)
    lately = (2 + 0.9**3) / (1 + n * 0.5), (0.9 + 0.9**2) / (1 + n * 0.25)
    assert named(first) == pytest.approx(
        {
            "size": size,
            "item count": log1p(2),
            "item lift": log((2 + 1) / (4 / 5 + 1)),
            "item recency": fresh[1],
            "category count, mean": both,
            "category count, largest": both,
            "category lift, mean": (lift["a"] + lift["b"]) / 2,
            "category lift, largest": lift["b"],
            "category recency, mean": (fresh[1] + fresh[0]) / 2,
            "category recency, largest": fresh[0],
            "similarity, sum": 0.0,  # item 4 is forgotten
            "similarity, largest": 0.0,
            "similarity, lately": 0.0,
            "order, sum": log1p(20 * 0.3 * 0.8),
            "order, largest": 10 * 0.3 * 0.8,
            "factors": whole[1],
            "factors, log": log1p(50 * whole[1]),
            "factors, lately": lately[1],
            "factors, lately, log": log1p(50 * lately[1]),
        },
        abs=1e-6,
    )
    assert named(second) == pytest.approx(
        {
            "size": size,
            "item count": 0.0,
            "item lift": log(1 / (4 / 5 + 1)),
            "item recency": 0.0,
            "category count, mean": both,
            "category count, largest": both,
            "category lift, mean": (lift["a"] + lift["b"]) / 2,
            "category lift, largest": lift["b"],
            "category recency, mean": (fresh[1] + fresh[0]) / 2,
            "category recency, largest": fresh[0],
            "similarity, sum": log1p(10 * 0.8),
            "similarity, largest": 5 * 0.6,
            "similarity, lately": log1p(20 * (0.6 * 0.8 + 0.2)),
            "order, sum": log1p(20 * (0.1 + 0.5 * 0.8**3)),
            "order, largest": 10 * 0.5 * 0.8**3,
            "factors": whole[0] / 2 - 3 * whole[1],
            "factors, log": 0.0,
            "factors, lately": lately[0] / 2 - 3 * lately[1],
            "factors, lately, log": 0.0,
        },
        abs=1e-6,
    )
    nothing = dict.fromkeys(ALL, 0.0) | {"size": size, "item lift": log(1 / (4 / 5 + 1))}
    assert named(third) == pytest.approx(nothing, abs=1e-6)


def named(row: torch.Tensor) -> dict[str, float]:
    return dict(zip(ALL, row.tolist(), strict=True))


def test_the_profile_of_recent_events_by_hand() -> None:
    """Three events of value 0 are counted first, a byte is a feature times 32, and at most 4 is kept."""
    ring = Ring(4, profile_window=2, n_features=len(IN_PROFILE))
    statistics, categories = plain(5, [1.0], {}), torch.zeros(5, 1, dtype=torch.int64)
    found = torch.zeros(3, len(ALL) + len(IN_PROFILE))
    found[:, ALL.index("item count")] = torch.tensor([9.0, 0.26, 1.0])
    found[:, ALL.index("size")] = 1
    found[:, ALL.index("order, sum")] = torch.tensor([0.0, -0.5, -9.0])

    def profile() -> dict[str, float]:
        own = ring.features(torch.tensor([3, 4]), categories, statistics)[:, len(ALL) :]
        assert own[0].equal(own[1])
        return {name: value for name, value in zip(IN_PROFILE, own[0].tolist(), strict=True) if value}

    assert (profile(), ring.bytes) == ({}, 8)
    ring.observe(0, found[0])
    assert (profile(), ring.bytes) == ({"item count": pytest.approx(127 / 32 / 4)}, 8 + 4 + 18)
    ring.observe(1, found[1])
    assert profile() == {"item count": pytest.approx((127 + 8) / 32 / 5), "order, sum": pytest.approx(-0.5 / 5)}
    ring.observe(2, found[2])  # the first one is forgotten
    assert profile() == {
        "item count": pytest.approx((8 + 32) / 32 / 5),
        "order, sum": pytest.approx((-16 - 127) / 32 / 5),
    }
    assert ring.bytes == 8 + 3 * 4 + 2 * 18
    assert ring.kept.nbytes == 2 * 18


def test_an_empty_memory_says_nothing_of_anybody() -> None:
    statistics = plain(5, [1.0], {(3, 0): 0.6})
    found = Ring(4).features(torch.arange(5), torch.zeros(5, 1, dtype=torch.int64), statistics)
    assert found.shape == (5, len(ALL))
    assert not found.any()  # item 0, which stands in the empty places, neither
    world = log_of([(0, 1, 1, 1, CLOUD)], 1, 5)
    assert not features(world, np.array([0]), None, statistics, 4).any()


# -- the reference is taken off


def test_the_mean_over_the_reference_memories_is_taken_off() -> None:
    """With fewer events than references all of the newest quarter are chosen: their features have mean 0 and spread 1."""
    rows = random_rows()
    world = log_of(rows, N_USERS, N_ITEMS, **categorised())
    statistics = counted(world, "test")
    order = np.lexsort((world.share, world.period))
    found = features(world, order[-(len(rows) // 4) :], None, statistics, SIZE).double()
    torch.testing.assert_close(found[..., 1:].mean(0), torch.zeros(N_ITEMS, len(ALL) - 1).double(), atol=2e-3, rtol=0)
    spread = found.var(0, unbiased=False).mean(0).sqrt() * statistics.scale / (statistics.scale - 1e-2)
    assert spread[1:].numpy() == pytest.approx(1, abs=2e-3)
    # the size is not a matter of the item: it stays above 0 where anything is remembered
    assert (statistics.mean[:, 0] == 0).all()
    assert (found[:, 0, 0] > 0).tolist() == (world.history_lengths(order[-(len(rows) // 4) :], 1) > 0).tolist()


# -- what is counted


def test_similarity_is_the_weighted_shrunk_cosine() -> None:
    rows = random_rows()
    world = log_of(rows, N_USERS, N_ITEMS)
    shrinkage = 2.5
    statistics = counted(world, "device", N_ITEMS - 1, shrinkage)
    has = np.zeros((N_USERS, N_ITEMS))
    for user, item, _, label, period in rows:
        if label and period <= DEVICE:
            has[user, item] = 1
    for i in range(N_ITEMS):
        found = dict(zip(statistics.neighbours[i].tolist(), statistics.similarity[i].tolist(), strict=True))
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert found.pop(i, 0.0) == 0  # nobody is their own neighbour
        for j, value in found.items():
            both = sum(1 / log2(2 + has[user].sum()) for user in range(N_USERS) if has[user, i] and has[user, j])
            size = sqrt(has[:, i].sum() * has[:, j].sum())
            assert value == pytest.approx(both / (size + shrinkage), rel=1e-5)
    nearest = counted(world, "device", 3, shrinkage)
    assert nearest.similarity.equal(statistics.similarity[:, :3])
    assert nearest.bytes_per_candidate == 4 + 8 * 3 + 8 * 3 + 4 * 4 + 4 * len(ALL)


@pytest.mark.parametrize("repeats", [True, False])
def test_transition_scores_count_what_came_soon_after_what(repeats: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(repeats)
    world = log_of(rows, N_USERS, N_ITEMS, repeats=repeats)
    statistics = count_statistics(
        world, lambda log: log.up_to(Block(DEVICE)), StatisticsSettings(SIZE, N_ITEMS, 2.5, 3, 4), 3
    )
    score, number = np.zeros((N_ITEMS, N_ITEMS)), np.zeros(N_ITEMS)
    for _, mine in groupby((row for row in rows if row[3] and row[4] <= DEVICE), key=lambda each: each[0]):
        past: list[int] = []
        for _, moment in groupby(mine, key=lambda each: each[2]):
            together = [item for _, item, *_ in moment]
            for item in together:
                number[item] += 1
                for distance, before in enumerate(past[:-4:-1], 1):
                    score[item, before] += 1 / distance
            past += together
    score /= np.sqrt(number[:, None] * number) + 2.5
    assert (score > 0).sum() > 100
    for item in range(N_ITEMS):
        found = zip(statistics.predecessors[item].tolist(), statistics.transition_score[item].tolist(), strict=True)
        expected = {before: score[item, before] for before in range(N_ITEMS) if score[item, before]}
        assert {before: value for before, value in found if value} == pytest.approx(expected, rel=1e-5)
    with monkeypatch.context() as patched:
        patched.setattr(statistics_module, "_PAIRS", 100)  # in parts
        parts = count_statistics(
            world, lambda log: log.up_to(Block(DEVICE)), StatisticsSettings(SIZE, N_ITEMS, 2.5, 3, 4), 3
        )
    assert parts.transition_score.equal(statistics.transition_score) and parts.predecessors.equal(
        statistics.predecessors
    )
    fewer = count_statistics(world, lambda log: log.up_to(Block(DEVICE)), StatisticsSettings(SIZE, 3, 2.5, 3, 4), 3)
    assert fewer.transition_score.equal(statistics.transition_score[:, :3])
    assert list(statistics.transition_score[0]) == sorted(statistics.transition_score[0], reverse=True)
    without = count_statistics(world, lambda log: log.up_to(Block(DEVICE)), StatisticsSettings(SIZE, 3, 2.5, 0, 0), 3)
    assert without.transition_score.shape == (N_ITEMS, 0)
    assert (without.features, statistics.features) == (FEATURES, ALL)
    assert (without.profile_features, statistics.profile_features) == (FEATURES[1:], IN_PROFILE)
    assert without.bytes_per_candidate == 4 + 8 * 3 + 4 * len(FEATURES)
    every = np.arange(len(rows))
    plain, ordered = (features(world, every, None, each, SIZE) for each in (without, statistics))
    assert plain.shape[2] == len(FEATURES)
    torch.testing.assert_close(plain[..., :10], ordered[..., :10])  # neighbours are as many as predecessors, fewer here


def test_without_shrinkage_an_item_of_nobody_is_near_nothing() -> None:
    rows = [(0, 1, 1, 1, CLOUD), (0, 2, 2, 1, CLOUD), (1, 1, 1, 1, CLOUD), (1, 0, 5, 1, TEST)]
    world = log_of(rows, 2, 4)  # 0 comes later, 3 never
    statistics = counted(world, "device", 3, 0.0)
    assert statistics.similarity.isfinite().all()
    assert statistics.similarity[[0, 3]].sum() == 0
    assert statistics.similarity[1, 0] == pytest.approx(1 / log2(4) / sqrt(2))


def test_later_events_and_negatives_change_nothing_that_is_counted() -> None:
    rows = random_rows()
    world = log_of(rows, N_USERS, N_ITEMS, **categorised())
    known = [row for row in rows if row[4] <= DEVICE]
    only = counted(log_of(known, N_USERS, N_ITEMS, **categorised()))
    # what comes after the device period is another future, or is liked where it was not
    other = [
        row if row[4] <= DEVICE else (*row[:1], (row[1] + 7) % N_ITEMS, row[2], 1 - row[3], row[4]) for row in rows
    ]
    for later in (world, log_of(other, N_USERS, N_ITEMS, **categorised())):
        for name, tensor in counted(later).tensors().items():
            assert tensor.equal(only.tensors()[name]), name
    assert not counted(world, "valid").item_share.equal(only.item_share)
    # a negative event is in no count: only who stands for the reference may be another
    disliked = [
        (user, (item + 7) % N_ITEMS if not label else item, *rest, label, period)
        for user, item, *rest, label, period in rows
    ]
    found = counted(log_of(disliked, N_USERS, N_ITEMS, **categorised()))
    for name in (
        "item_share",
        "category_share",
        "neighbours",
        "similarity",
        "predecessors",
        "transition_score",
        "mean",
    ):
        assert found.tensors()[name].equal(only.tensors()[name]), name


def test_shares_by_hand() -> None:
    rows = [(0, 1, 1, 1, CLOUD), (0, 1, 2, 1, CLOUD), (0, 2, 3, 0, CLOUD), (1, 0, 1, 1, DEVICE), (1, 2, 9, 1, VALID)]
    world = log_of(rows, 2, 3, item_categories=torch.tensor([[0, 1], [1, 2], [2, 2]]), n_categories=2)
    statistics = counted(world)
    assert statistics.item_share.tolist() == pytest.approx([1.5 / 4.5, 2.5 / 4.5, 0.5 / 4.5])
    assert statistics.category_share[:2].tolist() == pytest.approx([1.5 / 4.5, 4 / 4.5])


def test_what_comes_later_changes_no_feature() -> None:
    rows = random_rows()
    world = log_of(rows, N_USERS, N_ITEMS, **categorised())
    early = np.flatnonzero(world.period <= DEVICE)
    other = [row if row[4] <= DEVICE else (row[0], 3, row[2], 1, row[4]) for row in rows]
    changed = log_of(other, N_USERS, N_ITEMS, **categorised())
    statistics = counted(world)
    before, after = (Memories(each, statistics, SIZE, WINDOW) for each in (world, changed))
    assert before.features(early, None).equal(after.features(early, None))
    late = np.flatnonzero(world.period == TEST)
    assert not features(world, late, None, statistics, SIZE).equal(features(changed, late, None, statistics, SIZE))


# -- the ring


def test_a_ring_overwrites_the_oldest_and_never_grows() -> None:
    ring, held = Ring(3), []
    assert (ring.newest_first().tolist(), ring.bytes) == ([], 8)
    place = ring.items
    for item in (5, 9, 5, 2**31 + 7, 0, 8, 1):
        ring.observe(item)
        held = [item, *held][:3]
        assert ring.newest_first().tolist() == held
        assert ring.bytes == 4 * len(held) + 8
    assert ring.items is place
    assert ring.items.nbytes == 12
    assert ring.seen == 7
    assert Ring(3, [1, 2]).newest_first().tolist() == [2, 1]


def test_columns_and_settings_by_name() -> None:
    world = log_of(random_rows(), N_USERS, N_ITEMS)
    statistics = counted(world)
    columns = statistics.columns(WINDOW)
    assert columns == ALL + IN_PROFILE and statistics.columns(0) == ALL
    assert [columns[at] for at in statistics.order_columns(WINDOW)] == [*ORDER_FEATURES, *ORDER_FEATURES]
    assert [ALL[at] for at in statistics.order_columns(0)] == list(ORDER_FEATURES)
    recorded = {"size": 5, "neighbours": 4, "shrinkage": 2.0, "transition_window": 3, "profile_window": 9, "factors": 8}
    assert StatisticsSettings.of(recorded) == StatisticsSettings(5, 4, 2.0, 3, 8)
