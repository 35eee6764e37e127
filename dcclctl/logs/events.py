"""Row rules that look at more than one row: duplicates, conflicting labels, repeats, caps and minimum counts."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from dcclctl.config import IngestConfig
from dcclctl.errors import DataError, UsageError
from dcclctl.logs import rules
from dcclctl.logs.batch import Codes, Flags, Ints
from dcclctl.logs.order import coarsen, order_by
from dcclctl.logs.reader import Log


@dataclass
class Events:
    """The events that stay, sorted by (user, time, order in the log).

    Args:
        users, items: dense numbers; `user_ids[n]` and `item_ids[n]` are the outside ids.
        times: microseconds, or order numbers.
        labels: 0 or 1.
        rows: the event's row in the log's columns.
        dropped: rule → rows that it left out.
        hidden: rule that chooses between rows of one user and item → positive rows that it left out.
        conflicts: events that had several labels.
        heavy_users: users with a million events or more.
    """

    users: Codes
    items: Codes
    times: Ints
    labels: npt.NDArray[np.int8]
    rows: Ints
    user_ids: list[str]
    item_ids: list[str]
    dropped: dict[str, int]
    hidden: dict[str, int]
    conflicts: int
    heavy_users: int

    def __len__(self) -> int:
        return len(self.users)


def select_events(log: Log, config: IngestConfig) -> Events:
    """Apply the rules in this order: behaviours, duplicates, label conflicts, repeats, cap, minimum counts.

    Args:
        log: every row that passed the row rules; its columns of users, items, times and labels are taken out of it.
        config: the ingest settings.

    Raises:
        UsageError: a behaviour that the log does not have.
        DataError: no event is left.
    """
    chosen = np.flatnonzero(_wanted_behaviours(log, config.behaviours)) if config.behaviours else None

    def column(name: str) -> npt.NDArray[Any]:
        values = log.take(name)
        return values if chosen is None else values[chosen]

    with ThreadPoolExecutor(2) as pool:
        dense_users = pool.submit(log.user_ids.dense, column("users"))
        dense_items = pool.submit(log.item_ids.dense, column("items"))
    (users, user_ids), (items, item_ids) = dense_users.result(), dense_items.result()
    del dense_users, dense_items
    if len(users) == 0:
        raise _nothing_left("the logs hold no usable event" if len(log) == 0 else "no event has these behaviours")
    outside, times = len(log) - len(users), column("times")
    sorting = order_by(users, coarsen(times))
    times, items = times[sorting], items[sorting]
    # Sorted by user, so the sorted users follow from the counts without moving them.
    users = np.repeat(np.arange(len(user_ids), dtype=np.int32), np.bincount(users, minlength=len(user_ids)))
    labels = np.ones(len(users), np.int8) if log.labels is None else column("labels")[sorting]
    rows: Ints = sorting if chosen is None else chosen[sorting]
    rows = rows.astype(np.int32 if len(log) < 2**31 else np.int64, copy=False)
    del sorting
    sorted_rows = RowRules(users, items, labels)
    sorted_rows.dropped["behaviours"] = outside
    sorted_rows.drop_repetitions(times, None if log.behaviours is None else log.behaviours[rows], config)
    counts = np.bincount(users[sorted_rows.keep], minlength=len(user_ids))
    if config.max_user_events and counts.max() > config.max_user_events:
        sorted_rows.cap(config.max_user_events)
    if config.min_user_events > 1 or config.min_item_events > 1:
        sorted_rows.require_counts(config.min_user_events, config.min_item_events)
    keep, dropped, hidden, conflicts = sorted_rows.keep, sorted_rows.dropped, sorted_rows.hidden, sorted_rows.conflicts
    del sorted_rows
    if not keep.any():
        raise _nothing_left("no event is left after --min-user-events and --min-item-events")
    if not keep.all():
        rows = rows[keep]
        times = times[keep]
        labels = labels[keep]
        users, user_ids = _renumber(users[keep], user_ids)
        items, item_ids = _renumber(items[keep], item_ids)
    heavy = int((counts >= rules.HEAVY_USER_EVENTS).sum())
    return Events(users, items, times, labels, rows, user_ids, item_ids, dropped, hidden, conflicts, heavy)


def without(events: Events, keep: Flags, rule: str) -> Events:
    """The events that `keep` names, users and items renumbered; `rule` counts the others."""
    users, user_ids = _renumber(events.users[keep], events.user_ids)
    items, item_ids = _renumber(events.items[keep], events.item_ids)
    return replace(
        events,
        users=users,
        items=items,
        times=events.times[keep],
        labels=events.labels[keep],
        rows=events.rows[keep],
        user_ids=user_ids,
        item_ids=item_ids,
        dropped=events.dropped | {rule: int((~keep).sum())},
    )


def _nothing_left(what: str) -> DataError:
    return DataError(what, "Check the log and the filters (--behaviours, --min-user-events, --min-item-events).")


def _wanted_behaviours(log: Log, wanted: list[str]) -> Flags:
    if log.behaviours is None:
        raise UsageError("--behaviours: the log has no behaviour column", "Name it: --map behaviour=YOUR_COLUMN")
    codes = np.unique(log.behaviours)
    names = log.behaviour_texts.texts(codes.tolist())
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        raise UsageError(
            f"--behaviours: the log has no {', '.join(map(repr, unknown))}",
            f"It has: {', '.join(map(repr, sorted(names)[:20]))}",
        )
    return np.isin(log.behaviours, [code for code, name in zip(codes, names, strict=True) if name in wanted])


class RowRules:
    """Rows sorted by user and time; each rule updates which of them stay, and counts those that it drops."""

    def __init__(self, users: Codes, items: Codes, labels: npt.NDArray[np.int8]) -> None:
        self._users, self._items, self._labels = users, items, labels
        self.keep = np.ones(len(users), np.bool_)
        self.dropped = dict.fromkeys(
            ("behaviours", "duplicates", "label-conflicts", "repeats", "max-user-events", "min-events"), 0
        )
        self.hidden = dict.fromkeys(("label-conflicts", "repeats"), 0)
        self.conflicts = 0

    def drop_repetitions(self, times: Ints, behaviours: Ints | None, config: IngestConfig) -> None:
        """Drop duplicates, all labels of an event except one and, where configured, repeats of a user and item."""
        # Rows of one user and item stand together here, oldest first.
        pairs = order_by(self._users, self._items)
        starts = self._pair_starts(pairs)
        repeated = np.flatnonzero(~starts)
        if len(repeated) == 0:
            return
        second = repeated[times[pairs[repeated]] == times[pairs[repeated - 1]]]
        if len(second):
            self._drop_same_time(pairs[np.union1d(second, second - 1)], times, behaviours, config.label_conflicts)
        if config.repeats == "first":
            several = ~starts
            several[:-1] |= several[1:]  # with the first row of each pair
            rows = pairs[several]
            again = self._repeats(rows[self.keep[rows]])
            self.dropped["repeats"], self.hidden["repeats"] = len(again), int(self._labels[again].sum(dtype=np.int64))
            self.keep[again] = False

    def _pair_starts(self, rows: Ints) -> Flags:
        """Which rows, given by user and item, are the first of their pair."""
        starts = np.ones(len(rows), np.bool_)
        users, items = self._users[rows], self._items[rows]
        starts[1:] = (users[1:] != users[:-1]) | (items[1:] != items[:-1])
        return starts

    def _repeats(self, rows: Ints) -> Ints:
        """All rows of a user and item except one: the first positive one, or the first where none is positive.

        An item is often shown several times before it is clicked: keeping the first row would hide the click.
        """
        first = np.flatnonzero(self._pair_starts(rows))
        if len(first) == len(rows):
            return rows[:0]
        place = np.where(self._labels[rows] > 0, np.arange(len(rows)), len(rows))
        positive = np.minimum.reduceat(place, first)
        again = np.ones(len(rows), np.bool_)
        again[np.where(positive < len(rows), positive, first)] = False
        return rows[again]

    def _drop_same_time(self, rows: Ints, times: Ints, behaviours: Ints | None, label_conflicts: str) -> None:
        """Drop exact duplicates, and all labels of an event except one."""
        event = ["user", "item", "time"]
        frame = pl.DataFrame(
            {
                "row": rows,
                "user": self._users[rows],
                "item": self._items[rows],
                "time": times[rows],
                "label": self._labels[rows],
                "behaviour": np.zeros(len(rows), np.int64) if behaviours is None else behaviours[rows],
            }
        ).sort("row")
        label = pl.col("label")
        chosen = {"last": label.last(), "first": label.first(), "max": label.max()}[label_conflicts]
        # Chosen among all rows: without the duplicates another label might be the last one.
        frame = frame.with_columns(labels=label.n_unique().over(event), chosen=chosen.over(event))
        distinct = frame.unique([*event, "label", "behaviour"], keep="first", maintain_order=True)
        kept = distinct.filter(label == pl.col("chosen"))
        lost = distinct.filter((pl.col("chosen") == 0) & (label > 0))
        self.dropped["duplicates"] = frame.height - distinct.height
        self.dropped["label-conflicts"] = distinct.height - kept.height
        self.hidden["label-conflicts"] = lost.select(event).n_unique()
        self.conflicts = distinct.filter(pl.col("labels") > 1).select(event).n_unique()
        self.keep[rows] = False
        self.keep[kept["row"].to_numpy()] = True

    def cap(self, limit: int) -> None:
        """Keep the newest `limit` events of each user."""
        rows = np.flatnonzero(self.keep)
        users = self._users[rows]
        old = np.searchsorted(users, users, side="right") - np.arange(len(rows)) > limit
        self.keep[rows[old]] = False
        self.dropped["max-user-events"] = int(old.sum())

    def require_counts(self, min_user: int, min_item: int) -> None:
        """Drop rare users and items until all that stay have enough events."""
        before = int(self.keep.sum())
        while len(rows := np.flatnonzero(self.keep)):
            users, items = self._users[rows], self._items[rows]
            enough = (np.bincount(users) >= min_user)[users] & (np.bincount(items) >= min_item)[items]
            if enough.all():
                break
            self.keep[rows[~enough]] = False
        self.dropped["min-events"] = before - len(rows)


def _renumber(codes: Codes, texts: list[str]) -> tuple[Codes, list[str]]:
    """Close the gaps that dropped rows have left; the order of the texts stays."""
    present = np.zeros(len(texts), np.bool_)
    present[codes] = True
    number = (np.cumsum(present) - 1).astype(np.int32)
    return number[codes], [texts[code] for code in np.flatnonzero(present).tolist()]
