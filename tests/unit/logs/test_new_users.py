"""Users made new by `ingest --new-users`: who they are, and what is left of them."""

from itertools import pairwise

import numpy as np
import pytest

from dcclctl.errors import DataError
from dcclctl.logs.split import make_new, new_users

IDS = [f"user-{number}" for number in range(2000)]


def test_a_hash_of_seed_and_id_chooses() -> None:
    chosen = new_users(IDS, 0.2, 7)
    # 2,000 draws of 0.2: five standard deviations are 89
    assert abs(int(chosen.sum()) - 400) < 89
    backwards = new_users(IDS[::-1], 0.2, 7)[::-1]
    some = new_users(IDS[500:700], 0.2, 7)
    assert np.array_equal(chosen, backwards)
    assert np.array_equal(chosen[500:700], some)
    assert not np.array_equal(chosen, new_users(IDS, 0.2, 8))


def test_a_larger_share_keeps_those_of_a_smaller_one() -> None:
    shares = [new_users(IDS, share, 0) for share in (0.0, 0.1, 0.3, 1.0)]
    assert not shares[0].any() and shares[3].all()
    assert all((less <= more).all() for less, more in pairwise(shares))


# Users 0 and 2 are chosen; 2 has no test event.
USERS = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2], np.int32)
PERIODS = np.array([0, 2, 3, 0, 1, 2, 3, 0, 1], np.int8)
CHOSEN = np.array([True, False, True])


def test_on_one_timeline_earlier_events_go() -> None:
    periods, keep = make_new(USERS, PERIODS, CHOSEN, one_timeline=True)
    assert np.array_equal(periods, PERIODS)
    assert keep.tolist() == [False, False, True, True, True, True, True, True, True]


def test_on_their_own_timelines_all_becomes_test() -> None:
    periods, keep = make_new(USERS, PERIODS, CHOSEN, one_timeline=False)
    assert periods.tolist() == [3, 3, 3, 0, 1, 2, 3, 3, 3]
    assert keep.all()


@pytest.mark.parametrize("one_timeline", [True, False])
def test_no_period_may_run_empty(one_timeline: bool) -> None:
    with pytest.raises(DataError, match="the period 'device' without any event"):
        make_new(USERS[:7], PERIODS[:7], np.array([False, True]), one_timeline)
