"""What of an event or an item only the events of all users tell: how far into its period it is, and where an item begins."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dcclctl.tables import ITEM_PERIODS

if TYPE_CHECKING:
    import polars as pl

#: events at a time
_BLOCK = 1 << 20
Integers = npt.NDArray[np.integer[Any]]
PERIOD_NAMES = ("cloud", "device", "valid", "test")


def shares(user: Integers, time: Integers, period: Integers, one_timeline: bool) -> npt.NDArray[np.float64]:
    """(N,) for each event the share of its period's events at an earlier time; equal times have equal shares.

    Args:
        one_timeline: see EventLog.build.
    """
    found = np.empty(len(time))
    for number in np.unique(period):  # one after the other, and few arrays at once: all events may be many
        rows = np.flatnonzero(period == number)
        if one_timeline:
            ordered = np.sort(time[rows])
            for first in range(0, len(rows), _BLOCK):
                some = rows[first : first + _BLOCK]
                some = some[np.argsort(time[some])]  # of sorted times the places are found several times as fast
                found[some] = np.searchsorted(ordered, time[some]) / len(rows)
            continue
        rows = rows[np.lexsort((time[rows], user[rows]))]
        new_time = _changes(time[rows])
        new_owner = _changes(user[rows])
        begins = np.flatnonzero(new_owner | new_time)
        before = np.repeat(begins, np.diff(begins, append=len(rows)))
        starts = np.flatnonzero(new_owner)
        lengths = np.diff(starts, append=len(rows))
        found[rows] = (before - np.repeat(starts, lengths)) / np.repeat(lengths, lengths)
    return found


def _changes(values: Integers) -> npt.NDArray[np.bool_]:
    """(N,) whether each value differs from the one before; True for the first."""
    new = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=new[1:])
    return new


class ItemPeriods(NamedTuple):
    """(R,) each, one row for an item and a period in which it has an event: the smallest share and the positive events."""

    item: Integers
    period: Integers
    first_share: npt.NDArray[np.float64]
    positives: Integers

    @classmethod
    def of_events(
        cls, item: Integers, period: Integers, share: npt.NDArray[np.float64], label: Integers
    ) -> "ItemPeriods":
        """From the events of all users, (N,) each; sorted by item and period."""
        cells = np.asarray(item, dtype=np.int64) * len(PERIOD_NAMES) + period
        size = (int(cells.max(initial=0)) // len(PERIOD_NAMES) + 1) * len(PERIOD_NAMES)
        first = np.full(size, np.inf)
        np.minimum.at(first, cells, share)
        positives = np.bincount(cells[np.asarray(label) > 0], minlength=size)
        rows = np.flatnonzero(np.isfinite(first))
        return cls(rows // len(PERIOD_NAMES), rows % len(PERIOD_NAMES), first[rows], positives[rows])

    def table(self) -> "pl.DataFrame":
        """An ITEM_PERIODS table, see tables.py."""
        import polars as pl

        return pl.DataFrame(dict(zip(ITEM_PERIODS.columns, self, strict=True)), schema=ITEM_PERIODS.schema())
