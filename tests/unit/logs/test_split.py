"""Periods and groups: known answers and plain loops."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcclctl.config import IngestConfig
from dcclctl.errors import DataError, UsageError
from dcclctl.logs.groups import user_groups
from dcclctl.logs.order import coarsen, order_by
from dcclctl.logs.split import leave_one_out, per_user, shares_of, split


def users_of(*counts: int) -> np.ndarray:
    return np.repeat(np.arange(len(counts), dtype=np.int32), counts)


def test_leave_one_out_by_hand() -> None:
    found = leave_one_out(users_of(1, 2, 3, 4, 5, 12))
    by_user = ["0", "03", "023", "0123", "00123", "000000011123"]
    assert "".join(map(str, found)) == "".join(by_user)


def test_per_user_by_hand() -> None:
    found = per_user(users_of(10, 5, 1, 2), shares_of(["60", "20", "10", "10"]))
    # 5 events: cuts at 3, 4, 4.5 → 5 (half up); 2 events: 1.2 → 1, 1.6 → 2, 1.8 → 2.
    assert "".join(map(str, found)) == "0000001123" + "00012" + "0" + "01"


def test_global_cuts_never_part_a_timestamp() -> None:
    times = np.array([1, 2, 3, 4, 5, 6, 6, 6, 7, 8], np.int64) * 10**15
    periods, cuts = split(np.zeros(10, np.int32), times, "timestamp", IngestConfig())
    assert periods.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 2, 3]
    assert cuts == [6 * 10**15, 7 * 10**15, 8 * 10**15]


@given(st.lists(st.integers(10**15, 10**15 + 40), min_size=4, max_size=60))
def test_global_periods_do_not_overlap(values: list[int]) -> None:
    times = np.array(values, np.int64)
    try:
        periods, cuts = split(np.zeros(len(values), np.int32), times, "timestamp", IngestConfig())
    except DataError as error:
        assert "holds no event" in error.what
        return
    assert cuts is not None
    for number, cut in enumerate(cuts):
        assert times[periods <= number].max() < cut <= times[periods > number].min()


def test_three_cut_times() -> None:
    times = np.array([parse * 1_000_000 for parse in (1_500_000_000, 1_512_086_400, 1_512_172_800, 1_512_259_200)])
    config = IngestConfig(periods=["2017-12-01", "2017-12-02T00:00:00Z", "1512259200"])
    periods, cuts = split(np.zeros(4, np.int32), times, "timestamp", config)
    assert periods.tolist() == [0, 1, 2, 3]
    assert cuts == times[1:].tolist()


def test_an_empty_period_is_named() -> None:
    with pytest.raises(DataError, match="'device'"):
        split(np.zeros(4, np.int32), np.array([1, 2, 3, 3], np.int64) * 10**15, "timestamp", IngestConfig())


def test_an_order_has_no_common_clock() -> None:
    with pytest.raises(UsageError, match="only the order of each user's events") as caught:
        split(users_of(5), np.arange(5), "ordinal", IngestConfig())
    assert "--split leave-one-out" in caught.value.remedy
    assert "--split per-user" in caught.value.remedy


def test_each_users_own_timeline_needs_no_clock() -> None:
    periods, cuts = split(users_of(10), np.arange(10), "ordinal", IngestConfig(split="per-user"))
    assert periods.tolist() == [0] * 6 + [1] * 2 + [2, 3]
    assert cuts is None


@pytest.mark.parametrize(
    "bad",
    [["60", "20", "20"], ["60", "20", "10"], ["a", "b", "c", "d"], ["50", "20", "10", "10"], ["110", "-20", "5", "5"]],
)
def test_shares_that_are_none(bad: list[str]) -> None:
    with pytest.raises(UsageError, match="--periods"):
        shares_of(bad)


def test_shares_may_be_fractions() -> None:
    assert shares_of(["0.6", "0.2", "0.1", "0.1"]) == shares_of(["60", "20", "10", "10"])


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), min_size=1, max_size=200),
    st.sampled_from([0.0, 0.2, 0.5, 1.0]),
)
def test_groups_agree_with_a_plain_loop(events: list[tuple[int, int]], fraction: float) -> None:
    users = np.array([user for user, _ in events], np.int32)
    periods = np.array([period for _, period in events], np.int8)
    count = 31
    table = user_groups(users, periods, count, fraction)
    before = Counter(user for user, period in events if period < 3)
    known = sorted(before, key=lambda user: (-before[user], user))
    # 0.2 × 15 is a little over 3 in floating point; the share that was typed is exactly 3.
    heads = set(known[: math.ceil(round(fraction * len(known), 9))])
    for user, group in enumerate(table["group"]):
        assert group == ("head" if user in heads else "tail" if user in before else "new")
    activity = table["activity_group"].to_list()
    for rank, user in enumerate(reversed(known)):
        assert activity[user] == rank * 20 // len(known)
    assert all(activity[user] is None for user in range(count) if user not in before)
    assert table["events"].to_list() == [sum(user == each for each, _ in events) for user in range(count)]


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 2**40)), max_size=50), st.booleans())
def test_order_by_is_a_stable_sort(rows: list[tuple[int, int]], wide: bool) -> None:
    # Wide numbers do not fit into one key and take the other way.
    scale = 2**20 if wide else 1
    columns = [np.array([row[place] * scale for row in rows], np.int64) for place in (0, 1)]
    expected = sorted(range(len(rows)), key=lambda row: rows[row])
    assert order_by(*columns).tolist() == expected


def test_coarsen() -> None:
    assert coarsen(np.array([2_000_000, 5_000_000])).tolist() == [2, 5]
    assert coarsen(np.array([2_000_000, 5_001_000])).tolist() == [2000, 5001]
    assert coarsen(np.array([7])).tolist() == [7]


def test_a_period_after_the_end_of_the_log_says_when_it_begins() -> None:
    times = np.array([1_500_000_000, 1_512_086_400, 1_512_172_800]) * 1_000_000
    config = IngestConfig(periods=["2017-12-01", "2017-12-02", "2018-12-03"])
    with pytest.raises(DataError, match=r"'test' \(begins 2018-12-03T00:00:00Z\) holds no event") as error:
        split(np.zeros(3, np.int32), times, "timestamp", config)
    assert "to 2017-12-02T00:00:00Z" in error.value.what
