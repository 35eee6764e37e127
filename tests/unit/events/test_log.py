from itertools import pairwise

import numpy as np
import pytest
import torch
from small_worlds import log_of, random_log

from dcclctl.errors import UsageError
from dcclctl.events.log import CLOUD, DEVICE, TEST, VALID, Block, EventColumns, EventLog
from dcclctl.events.sampling import NO_ITEM, draw_negatives

#: user 0 has two events in one moment, a negative, and more positives than a short history holds; user 1 is new
ROWS = [
    (0, 10, 1, 1, CLOUD),
    (0, 11, 2, 0, CLOUD),
    (0, 12, 3, 1, CLOUD),
    (0, 13, 3, 1, CLOUD),
    (0, 14, 5, 1, DEVICE),
    (0, 15, 9, 0, TEST),
    (1, 16, 4, 1, DEVICE),
    (1, 17, 5, 1, DEVICE),
]


def shown(log: EventLog, limit: int) -> list[list[int]]:
    """Every event's history as a plain list."""
    items, mask = log.histories(np.arange(len(log.user)), limit)
    return [row[own].tolist() for row, own in zip(items, mask, strict=True)]


def test_a_history_is_positive_earlier_and_newest_first():
    log = log_of(ROWS, n_users=2, n_items=20)
    assert shown(log, limit=9) == [[], [10], [10], [10], [13, 12, 10], [14, 13, 12, 10], [], [16]]


def test_a_history_keeps_the_newest():
    log = log_of(ROWS, n_users=2, n_items=20)
    assert shown(log, limit=2) == [[], [10], [10], [10], [13, 12], [14, 13], [], [16]]
    assert log.history_lengths(np.arange(8), 2).tolist() == [0, 1, 1, 1, 2, 2, 0, 1]


def test_whole_histories_follow_one_another_oldest_first():
    log = log_of(ROWS, n_users=2, n_items=20)
    owners, places = log.history_places(np.array([5, 6, 7, 4]))
    assert owners.tolist() == [0, 0, 0, 0, 2, 3, 3, 3]
    assert log.sequence[places].tolist() == [10, 12, 13, 14, 16, 10, 12, 13]


def test_histories_are_no_wider_than_the_batch_needs():
    log = log_of(ROWS, n_users=2, n_items=20)
    assert log.histories(np.array([0, 1]), 9)[0].shape == (2, 1)
    assert log.histories(np.array([0]), 9)[0].shape == (1, 1)  # nothing to see is one masked column
    assert not log.histories(np.array([0]), 9)[1].any()


def test_events_of_one_moment_do_not_see_each_other_in_any_order():
    """A basket: the same log with the basket's rows in another order gives every event the same history."""
    basket = [(0, item, 7, 1, CLOUD) for item in (1, 2, 3)]
    rest = [(0, 9, 8, 1, DEVICE)]
    histories = []
    for turned in (basket, basket[::-1]):
        log = log_of(turned + rest, n_users=1, n_items=10)
        items = shown(log, limit=5)
        assert items[:3] == [[], [], []]
        histories.append(set(items[3]))
    assert histories == [{1, 2, 3}, {1, 2, 3}]


def test_a_log_without_positives_has_no_histories():
    log = log_of([(0, 1, 1, 0, CLOUD), (0, 2, 2, 0, CLOUD)], n_users=1, n_items=3)
    assert shown(log, limit=5) == [[], []]


def test_users_without_events_are_allowed():
    log = log_of([(2, 1, 1, 1, CLOUD), (2, 2, 2, 1, CLOUD)], n_users=5, n_items=3)
    assert shown(log, limit=5) == [[], [1]]


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("cloud", Block(CLOUD)),
        ("device", Block(DEVICE, 1, 1)),
        ("valid:1/1", Block(VALID)),
        ("device:2/3", Block(DEVICE, 2, 3)),
        ("test:10/12", Block(TEST, 10, 12)),
    ],
)
def test_a_block_is_read(text, block):
    assert Block.parse(text) == block


@pytest.mark.parametrize(
    ("texts", "first", "last"),
    [
        (["device:2/2", "device:2/4"], "device:2/4", "device:2/2"),
        (["device:4/8", "device:3/4"], "device:4/8", "device:3/4"),
        (["cloud:1/2", "cloud"], "cloud:1/2", "cloud"),
        (["device", "cloud:3/3"], "cloud:3/3", "device"),
    ],
)
def test_blocks_are_in_order_of_time(texts, first, last):
    blocks = [Block.parse(text) for text in texts]
    assert (str(Block.first(*blocks)), str(Block.last(*blocks))) == (first, last)
    assert sorted(blocks)[0] == Block.first(*blocks)


NO_BLOCKS = [
    "Device",
    "devices",
    "device:",
    "device:/",
    "device:2",
    "device:2/",
    "device:/3",
    "device:a/3",
    "device:-1/3",
    "device:1.5/3",
    "device:1/3/5",
    "device:0/3",
    "device:4/3",
    "device:0/0",
    "device:1/0",
    "device:²/3",
    "train",
]


@pytest.mark.parametrize("text", ["", "device: 1/3", "device\n", "device:1/" + "9" * 5000, *NO_BLOCKS])
def test_a_block_that_is_none_is_refused(text):
    with pytest.raises(UsageError) as error:
        Block.parse(text)
    assert error.value.remedy
    assert repr(text) in error.value.what


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 10, 49])
@pytest.mark.parametrize("one_timeline", [True, False])
def test_blocks_partition_a_period(parts, one_timeline):
    rng = np.random.default_rng(parts)
    rows = [(u, 0, int(t), 1, int(t >= 30)) for u in range(5) for t in np.sort(rng.integers(0, 60, 40))]
    log = log_of(rows, n_users=5, n_items=1, one_timeline=one_timeline)
    pieces = [log.events_in(Block(DEVICE, part, parts)) for part in range(1, parts + 1)]
    together = np.concatenate(pieces)
    assert len(together) == len(np.unique(together))
    assert np.array_equal(np.sort(together), log.events_in(DEVICE))
    assert np.array_equal(log.events_in(*(Block(DEVICE, k, parts) for k in range(1, parts + 1))), log.events_in(DEVICE))
    times = np.array([row[2] for row in rows])
    for before, after in pairwise(pieces):
        for user in [None] if one_timeline else range(5):
            earlier = times[before if user is None else before[log.user[before] == user]]
            later = times[after if user is None else after[log.user[after] == user]]
            if len(earlier) and len(later):
                assert earlier.max() < later.min(), "a block reaches into the next one, or a moment is torn apart"


def test_blocks_have_about_equal_sizes():
    rows = [(u, 0, 10 * t + u, 1, DEVICE) for u in range(3) for t in range(100)]
    log = log_of(rows, n_users=3, n_items=1)
    assert [len(log.events_in(Block(DEVICE, k, 3))) for k in (1, 2, 3)] == [100, 100, 100]


def test_share_is_the_share_of_events_at_an_earlier_time():
    rows = [(0, 0, 1, 1, CLOUD), (0, 0, 5, 1, DEVICE), (0, 0, 7, 1, DEVICE), (1, 0, 5, 1, DEVICE), (1, 0, 6, 1, DEVICE)]
    everybody = log_of(rows, n_users=2, n_items=1)
    assert everybody.share.tolist() == [0, 0, 0.75, 0, 0.5]
    each = log_of(rows, n_users=2, n_items=1, one_timeline=False)
    assert each.share.tolist() == [0, 0, 0.5, 0, 0.5]


def test_a_catalogue_has_no_item_of_the_future():
    log = random_log(n_items=400)
    for last in (CLOUD, DEVICE, Block(DEVICE, 1, 2), VALID, TEST):
        block = last if isinstance(last, Block) else Block(last)
        future = (log.period > block.period) | ((log.period == block.period) & (log.share >= block.end))
        catalogue = log.catalogue(last)
        assert np.array_equal(catalogue, np.unique(log.item[~future]))
        only_later = set(log.item[future]) - set(log.item[~future])
        assert not only_later & set(catalogue.tolist())
        assert only_later or last == TEST, "the test world has no item of the future"


def test_profiles_and_categories_are_kept():
    log = random_log()
    assert log.profile.shape == (12, 2)
    assert log.item_categories.shape == (30, 3)
    assert (log.n_users, log.n_items, log.n_categories, log.profile_sizes) == (12, 30, 5, (3, 4))
    assert torch.equal(log.sequence, torch.from_numpy(log.item[log.label == 1]))


@pytest.mark.parametrize("repeats", [True, False])
def test_what_a_user_had_before_is_no_negative_unless_it_may_come_again(repeats: bool) -> None:
    # one user: items 0, 1 in cloud, 2 in device, 3 in test
    log = EventLog.build(
        EventColumns(
            np.zeros(4, dtype=np.int64),
            np.arange(4),
            np.arange(4),
            np.ones(4, dtype=np.int64),
            np.array([CLOUD, CLOUD, DEVICE, TEST]),
        ),
        item_categories=torch.zeros(4, 1, dtype=torch.int64),
        n_categories=1,
        profile=torch.zeros(1, 1, dtype=torch.int64),
        profile_sizes=(1,),
        repeats=repeats,
    )

    def kept_out(block: int, event: int) -> list[bool]:
        pairs = log.never_negative(block)
        return pairs.contains(log.owners(np.full(4, event), pairs), np.arange(4)).tolist()

    assert kept_out(DEVICE, 2) == [not repeats, not repeats, True, False]  # the future never is
    # with repeats, what the user has at another moment of the block may well be a negative
    assert kept_out(CLOUD, 0) == [True, not repeats, False, False]
    assert kept_out(CLOUD, 1) == [not repeats, True, False, False]


def test_with_repeats_only_the_rest_of_the_basket_is_no_negative() -> None:
    # two users; baskets {0, 1} and {1, 2} of the first, {3} of the second, whose negative event has no basket
    log = EventLog.build(
        EventColumns(
            np.array([0, 0, 0, 0, 1, 1]),
            np.array([0, 1, 1, 2, 3, 0]),
            np.array([5, 5, 9, 9, 5, 7]),
            np.array([1, 1, 1, 1, 1, 0]),
            np.full(6, DEVICE),
        ),
        item_categories=torch.zeros(4, 1, dtype=torch.int64),
        n_categories=1,
        profile=torch.zeros(2, 1, dtype=torch.int64),
        profile_sizes=(1,),
        repeats=True,
    )
    pairs = log.never_negative(DEVICE)
    assert pairs.by_basket
    every = np.arange(6)
    found = pairs.contains(log.owners(every, pairs)[:, None], np.arange(4)[None, :])
    baskets = [{0, 1}, {0, 1}, {1, 2}, {1, 2}, {3}, set()]
    assert [set(np.flatnonzero(row)) for row in found] == baskets
    drawn = draw_negatives(0, "n", every, log.owners(every, pairs), 4, np.arange(4), pairs)
    assert [set(row) - {NO_ITEM} for row in drawn] == [{0, 1, 2, 3} - basket for basket in baskets]


def test_a_truncated_history_is_the_newest_part_of_the_old_one() -> None:
    log = log_of(ROWS, n_users=2, n_items=20)
    some = np.array([4, 5, 7])
    cut = log.truncate_history(some, np.array([2, 0, 9]))
    assert shown(cut, limit=9) == [[], [10], [10], [10], [13, 12], [], [], [16]]
    assert shown(log, limit=9)[4] == [13, 12, 10], "the log itself must stay as it is"


def test_whole_baskets_keep_the_basket_that_a_cut_goes_through() -> None:
    rows = [(0, 1, 0, 1, CLOUD), (0, 2, 0, 1, CLOUD), (0, 3, 1, 0, CLOUD), (0, 4, 2, 1, CLOUD), (0, 5, 2, 0, CLOUD)]
    rows += [(0, 6, 2, 1, CLOUD), (0, 7, 2, 1, DEVICE), (0, 8, 3, 1, DEVICE), (1, 9, 0, 1, CLOUD), (1, 8, 4, 1, DEVICE)]
    log = log_of(rows, n_users=2, n_items=20)
    # the history of the eighth row is 1 2 | 4 6 7
    last = np.full(5, 7)
    keep = np.array([1, 3, 4, 5, 20])
    whole = log.whole_baskets(last, keep)
    assert whole.tolist() == [3, 3, 5, 5, 5]
    assert log.whole_baskets(np.array([9]), np.array([3])).tolist() == [1], "a history ends where its user's begins"
    cut = log.truncate_history(last[:1], whole[:1])
    assert shown(cut, limit=9)[7] == [7, 6, 4]


def test_interacted_before_is_a_positive_event_at_an_earlier_time() -> None:
    rows = [(0, 1, 0, 1, CLOUD), (0, 2, 1, 0, CLOUD), (0, 1, 5, 0, DEVICE), (0, 2, 5, 1, DEVICE)]
    rows += [(0, 1, 5, 1, DEVICE), (0, 2, 6, 1, TEST), (1, 1, 9, 1, TEST)]
    log = log_of(rows, n_users=2, n_items=4)
    every = np.arange(len(rows))
    assert log.interacted_before(every).tolist() == [False, False, True, False, True, True, False]
    assert log.interacted_before(every[::2]).tolist() == [False, True, True, False]


def test_events_of_a_user_and_blocks_that_overlap() -> None:
    log = log_of(ROWS, n_users=3, n_items=20)
    assert [log.events_of(user).tolist() for user in range(3)] == [[0, 1, 2, 3, 4, 5], [6, 7], []]
    assert Block.of(DEVICE) == Block(DEVICE) and Block.of(Block(DEVICE, 2, 3)) == Block(DEVICE, 2, 3)
    second = Block(DEVICE, 2, 4)
    assert second.overlaps(Block(DEVICE)) and second.overlaps(Block(DEVICE, 1, 2)) and second.overlaps(second)
    assert not any(second.overlaps(other) for other in (Block(DEVICE, 2, 2), Block(DEVICE, 1, 4), Block(CLOUD)))
