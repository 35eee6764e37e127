"""Head, tail and new users, and twenty groups by activity. Fixed at ingest, so that all models share the same groups."""

import math
from fractions import Fraction

import numpy as np
import polars as pl

from dcclctl.logs.batch import Codes, Ints
from dcclctl.logs.order import order_by
from dcclctl.logs.split import TEST, Periods
from dcclctl.tables import ACTIVITY_GROUPS


def user_groups(users: Codes, periods: Periods, count: int, head_fraction: float) -> pl.DataFrame:
    """One row a user, by number: events, events_before_test, group, activity_group.

    Args:
        users, periods: dense user number and period of each event.
        count: number of users.
        head_fraction: share of head users among the users with an event before test.
    """
    events = np.bincount(users, minlength=count).astype(np.int64)
    before = np.bincount(users[periods < TEST], minlength=count).astype(np.int64)
    # Most active first; among equals, the lower number first.
    ranked = order_by(-before)
    known: Ints = ranked[: int((before > 0).sum())]
    # The fraction as it was typed, not the nearest float: ceil(0.2 × 15) is 3, not 4.
    heads = math.ceil(Fraction(str(head_fraction)) * len(known))
    group = np.full(count, "new", dtype=object)
    group[known[:heads]] = "head"
    group[known[heads:]] = "tail"
    activity = np.full(count, -1, np.int64)
    if len(known):
        activity[known[::-1]] = np.arange(len(known)) * ACTIVITY_GROUPS // len(known)
    return pl.DataFrame(
        {
            "events": pl.Series(events, dtype=pl.Int32),
            "events_before_test": pl.Series(before, dtype=pl.Int32),
            "group": pl.Series(group.tolist(), dtype=pl.String),
            "activity_group": pl.Series([None if each < 0 else each for each in activity.tolist()], dtype=pl.Int8),
        }
    )
