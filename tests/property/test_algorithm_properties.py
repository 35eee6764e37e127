"""Properties of the algorithms that no choice of data may break."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dcclctl.devices.basis import new_basis
from dcclctl.devices.hidden_patch import PatchShape
from dcclctl.distillation.teachers import bernoulli_kl
from dcclctl.events.log import Block, EventColumns, EventLog
from dcclctl.events.sampling import NO_ITEM, PairSet, draw_negatives, hashes, permutation

PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8)), max_size=40)
#: (user, time, item, label), to be sorted by (user, time); the period follows from the time
EVENTS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 11), st.integers(0, 8), st.integers(0, 1)), min_size=1, max_size=30
)
LOGITS = arrays.arrays(np.float64, 6, elements=st.floats(-30, 30))


def build(events: list[tuple[int, int, int, int]], one_timeline: bool = True) -> tuple[EventLog, np.ndarray]:
    """The log of the events, four periods of three moments each; and its times."""
    user, time, item, label = np.array(sorted(events, key=lambda event: event[:2]), dtype=np.int64).T
    log = EventLog.build(
        EventColumns(user, item, time, label, time // 3),
        item_categories=torch.zeros(9, 1, dtype=torch.int64),
        n_categories=0,
        profile=torch.zeros(4, 1, dtype=torch.int64),
        profile_sizes=(1,),
        one_timeline=one_timeline,
    )
    return log, time


@given(PAIRS, PAIRS)
def test_a_pair_set_is_a_set_of_pairs(inside, asked):
    users, items = (np.array([pair[side] for pair in inside], dtype=np.int64) for side in (0, 1))
    ours = PairSet(users, items, n_items=9)
    wanted = [np.array([pair[side] for pair in inside + asked], dtype=np.int64) for side in (0, 1)]
    assert ours.contains(*wanted).tolist() == [pair in set(inside) for pair in inside + asked]


@given(EVENTS, st.integers(1, 6))
def test_histories_are_those_of_a_plain_loop(events, limit):
    log, time = build(events)
    items, mask = log.histories(np.arange(len(time)), limit)
    for row in range(len(time)):
        earlier = [
            int(log.item[other])
            for other in range(len(time))
            if log.user[other] == log.user[row] and time[other] < time[row] and log.label[other]
        ]
        assert items[row][mask[row]].tolist() == earlier[::-1][:limit]
        assert log.history_lengths(np.array([row]), limit).tolist() == [min(limit, len(earlier))]


@given(EVENTS, st.integers(1, 5), st.booleans())
def test_blocks_partition_every_period(events, parts, one_timeline):
    log, _ = build(events, one_timeline)
    for period in range(4):
        rows = np.concatenate([log.events_in(Block(period, part, parts)) for part in range(1, parts + 1)])
        assert np.array_equal(np.sort(rows), log.events_in(period))


@given(EVENTS, st.integers(0, 3), st.integers(1, 3))
def test_what_happens_later_changes_nothing_earlier(events, last, parts):
    """Histories, blocks and the catalogue up to a period's end are the same if the log ends there."""
    whole, time = build(events)
    known = time // 3 <= last
    if not known.any():
        return
    short, _ = build([event for event in events if event[1] // 3 <= last])
    assert np.array_equal(whole.catalogue(last), short.catalogue(last))
    assert np.array_equal(whole.share[known], short.share)
    for block in (Block(last), Block(last, 1, parts)):
        assert np.array_equal(np.flatnonzero(known)[short.events_in(block)], whole.events_in(block))
    for ours, theirs in zip(
        whole.histories(np.flatnonzero(known), 5), short.histories(np.arange(len(short.user)), 5), strict=True
    ):
        assert torch.equal(ours, theirs)


@given(st.integers(0, 2**63 - 1), st.integers(0, 300), st.integers(0, 5))
def test_a_permutation_is_one(seed, size, round):
    order = permutation(seed, "shuffle", np.arange(size), round)
    assert np.array_equal(np.sort(order), np.arange(size))


@given(
    st.integers(0, 1000),
    st.lists(st.integers(0, 10**6), min_size=1, max_size=30, unique=True),
    PAIRS,
    st.integers(0, 12),
    st.integers(0, 12),
)
def test_negatives_are_distinct_allowed_items_that_depend_on_nothing_but_their_event(seed, keys, pairs, count, fewer):
    excluded = PairSet(*(np.array([pair[side] for pair in pairs], dtype=np.int64) for side in (0, 1)), n_items=9)
    keys = np.array(keys)
    users = keys % 6
    catalogue = np.arange(9)
    together = draw_negatives(seed, "n", keys, users, count, catalogue, excluded)
    less = draw_negatives(seed, "n", keys, users, min(count, fewer), catalogue, excluded)
    assert np.array_equal(less, together[:, :fewer])
    for row in range(len(keys)):
        alone = draw_negatives(seed, "n", keys[[row]], users[[row]], count, catalogue, excluded)
        assert np.array_equal(alone[0], together[row])
        left = set(range(9)) - {item for user, item in pairs if user == users[row]}
        drawn = together[row].tolist()
        items, rest = drawn[: len(left)], drawn[len(left) :]
        assert set(items) <= left and len(set(items)) == len(items)
        assert rest == [NO_ITEM] * len(rest)


@given(st.integers(0, 2**63 - 1), st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=50, unique=True))
def test_different_keys_have_different_hashes(seed, keys):
    """SplitMix64's finaliser is a bijection, so under one purpose a single key never collides with another."""
    assert len(np.unique(hashes(seed, "h", np.array(keys)))) == len(keys)


@given(LOGITS, LOGITS)
def test_kl_is_never_negative_and_zero_between_equals(teacher, student):
    teacher, student = torch.from_numpy(teacher), torch.from_numpy(student)
    # torch's softplus(x) is x above 20, which is e⁻²⁰ = 2e-9 off
    assert (bernoulli_kl(teacher, student) >= -1e-8).all()
    assert not bernoulli_kl(teacher, teacher).any()


@settings(max_examples=25)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.integers(1, 5), st.integers(0, 99))
def test_a_patch_is_its_flat_weights(h1, h2, bottleneck, size, seed):
    shape = PatchShape((h1, h2), bottleneck)
    basis = new_basis(shape, size, seed)
    codes = torch.randn(3, size, generator=torch.Generator().manual_seed(seed))
    patch = basis.patch(codes)
    flat = torch.cat([getattr(patch, name).flatten(1) for name in shape.parts], dim=1)
    assert flat.shape == (3, shape.size)
    assert torch.equal(flat, basis.weights(codes))
    assert torch.equal(shape.patch(basis.origin[None]).up_1, torch.zeros(1, h1, bottleneck))
