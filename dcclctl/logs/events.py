"""Row rules that look at more than one row: duplicates, conflicting labels, repeats, caps and minimum counts."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

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
        users: dense user numbers; `user_ids[n]` is the outside id.
        items: dense item numbers.
        times: microseconds, or order numbers.
        labels: 0 or 1.
        rows: the event's row in the log's columns.
        dropped: rows left out after the row rules, counted by rule.
        hidden: positive rows among those dropped, of the rules that choose between rows of one user and item.
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
        log: every row that passed the row rules.
        config: the ingest settings.

    Raises:
        UsageError: a behaviour that the log does not have.
        DataError: no event is left.
    """
    dropped = dict.fromkeys(
        ("behaviours", "duplicates", "label-conflicts", "repeats", "max-user-events", "min-events"), 0
    )
    rows = np.arange(len(log), dtype=np.int64)
    if config.behaviours:
        rows = rows[_wanted_behaviours(log, config.behaviours)]
        dropped["behaviours"] = len(log) - len(rows)
    whole = len(rows) == len(log)
    with ThreadPoolExecutor(2) as pool:
        dense_users = pool.submit(log.user_ids.dense, log.users if whole else log.users[rows])
        dense_items = pool.submit(log.item_ids.dense, log.items if whole else log.items[rows])
    (users, user_ids), (items, item_ids) = dense_users.result(), dense_items.result()
    if len(rows) == 0:
        raise _nothing_left("the logs hold no usable event" if len(log) == 0 else "no event has these behaviours")

    sorting = order_by(users, coarsen(log.times if whole else log.times[rows]))
    rows, items = sorting if whole else rows[sorting], items[sorting]
    # Sorted by user, so the sorted users are known without moving them.
    users = np.repeat(np.arange(len(user_ids), dtype=np.int32), np.bincount(users, minlength=len(user_ids)))
    del sorting
    times = log.times[rows]
    labels = np.ones(len(rows), np.int8) if log.labels is None else log.labels[rows]
    behaviours = None if log.behaviours is None else log.behaviours[rows]
    hidden = dict.fromkeys(("label-conflicts", "repeats"), 0)
    keep, conflicts = _without_repetitions(users, items, times, labels, behaviours, config, dropped, hidden)

    counts = np.bincount(users, weights=keep, minlength=len(user_ids))
    heavy = int((counts >= rules.HEAVY_USER_EVENTS).sum())
    if config.max_user_events and counts.max() > config.max_user_events:
        dropped["max-user-events"] = _cap(users, keep, config.max_user_events)
    if config.min_user_events > 1 or config.min_item_events > 1:
        dropped["min-events"] = _require_counts(users, items, keep, config.min_user_events, config.min_item_events)
    if not keep.any():
        raise _nothing_left("no event is left after --min-user-events and --min-item-events")
    if not keep.all():
        rows, users, items, times, labels = rows[keep], users[keep], items[keep], times[keep], labels[keep]
        users, user_ids = _renumber(users, user_ids)
        items, item_ids = _renumber(items, item_ids)
    return Events(users, items, times, labels, rows, user_ids, item_ids, dropped, hidden, conflicts, heavy)


def without(events: Events, keep: Flags, rule: str) -> Events:
    """The events that stay, users and items without any renumbered away; what goes is counted under `rule`."""
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


def _without_repetitions(
    users: Codes,
    items: Codes,
    times: Ints,
    labels: npt.NDArray[np.int8],
    behaviours: Ints | None,
    config: IngestConfig,
    dropped: dict[str, int],
    hidden: dict[str, int],
) -> tuple[Flags, int]:
    """Which rows stay, and how many events had several labels; counts what is dropped."""
    keep = np.ones(len(users), np.bool_)
    # Rows of one user and item stand together here, oldest first.
    pairs = order_by(users, items)
    same_pair = np.zeros(len(pairs), np.bool_)
    sorted_users, sorted_items = users[pairs], items[pairs]
    np.equal(sorted_users[1:], sorted_users[:-1], out=same_pair[1:])
    same_pair[1:] &= sorted_items[1:] == sorted_items[:-1]
    del sorted_users, sorted_items
    repeated = np.flatnonzero(same_pair)
    conflicts = 0
    if len(repeated):
        same_time = times[pairs[repeated]] == times[pairs[repeated - 1]]
        if same_time.any():
            second = repeated[same_time]
            conflicts = _one_row_per_event(
                pairs,
                np.union1d(second, second - 1),
                users,
                items,
                times,
                labels,
                behaviours,
                keep,
                config,
                dropped,
                hidden,
            )
        if config.repeats == "first":
            same_pair[:-1] |= same_pair[1:]  # with the first row of each
            several = pairs[same_pair]
            again = _repeats(several[keep[several]], users, items, labels)
            dropped["repeats"], hidden["repeats"] = len(again), int(labels[again].sum(dtype=np.int64))
            keep[again] = False
    return keep, conflicts


def _repeats(rows: Ints, users: Codes, items: Codes, labels: npt.NDArray[np.int8]) -> Ints:
    """All rows of a user and an item but one: the first positive one, or the first where none is positive.

    An item is often shown several times before it is clicked: the first row alone would hide the click.

    Args:
        rows: row numbers by user, item and time.
        users, items, labels: of all rows.
    """
    starts = np.ones(len(rows), np.bool_)
    starts[1:] = (users[rows[1:]] != users[rows[:-1]]) | (items[rows[1:]] != items[rows[:-1]])
    first = np.flatnonzero(starts)
    if len(first) == len(rows):
        return rows[:0]
    place = np.where(labels[rows] > 0, np.arange(len(rows)), len(rows))
    positive = np.minimum.reduceat(place, first)
    again = np.ones(len(rows), np.bool_)
    again[np.where(positive < len(rows), positive, first)] = False
    return rows[again]


def _one_row_per_event(
    pairs: Ints,
    places: Ints,
    users: Codes,
    items: Codes,
    times: Ints,
    labels: npt.NDArray[np.int8],
    behaviours: Ints | None,
    keep: Flags,
    config: IngestConfig,
    dropped: dict[str, int],
    hidden: dict[str, int],
) -> int:
    """Drop exact duplicates, and all but one label of an event; returns the events with several labels."""
    rows = pairs[places]
    behaviour = np.zeros(len(rows), np.int64) if behaviours is None else behaviours[rows]
    event = ["user", "item", "time"]
    frame = pl.DataFrame(
        {
            "row": rows,
            "user": users[rows],
            "item": items[rows],
            "time": times[rows],
            "label": labels[rows],
            "behaviour": behaviour,
        }
    ).sort("row")
    label = pl.col("label")
    chosen = {"last": label.last(), "first": label.first(), "max": label.max()}[config.label_conflicts]
    # Chosen among all rows: after the duplicates are gone, the last label might not be the last one any more.
    frame = frame.with_columns(labels=label.n_unique().over(event), chosen=chosen.over(event))
    distinct = frame.unique([*event, "label", "behaviour"], keep="first", maintain_order=True)
    dropped["duplicates"] = frame.height - distinct.height
    kept = distinct.filter(label == pl.col("chosen"))
    dropped["label-conflicts"] = distinct.height - kept.height
    hidden["label-conflicts"] = distinct.filter((pl.col("chosen") == 0) & (label > 0)).select(event).n_unique()
    keep[rows] = False
    keep[kept["row"].to_numpy()] = True
    return distinct.filter(pl.col("labels") > 1).select(event).n_unique()


def _cap(users: Codes, keep: Flags, limit: int) -> int:
    """Keep the newest `limit` events of each user; returns how many go."""
    rows = np.flatnonzero(keep)
    last = np.searchsorted(users[rows], users[rows], side="right")
    old = last - np.arange(len(rows)) > limit
    keep[rows[old]] = False
    return int(old.sum())


def _require_counts(users: Codes, items: Codes, keep: Flags, min_user: int, min_item: int) -> int:
    """Leave out rare users and items until all that stay have enough events; returns how many events go."""
    before = int(keep.sum())
    while True:
        rows = np.flatnonzero(keep)
        if len(rows) == 0:
            return before
        enough = (np.bincount(users[rows]) >= min_user)[users[rows]] & (np.bincount(items[rows]) >= min_item)[
            items[rows]
        ]
        if enough.all():
            return before - len(rows)
        keep[rows[~enough]] = False


def _renumber(codes: Codes, texts: list[str]) -> tuple[Codes, list[str]]:
    """Close the gaps that dropped rows have left; the order of the texts stays."""
    present = np.zeros(len(texts), np.bool_)
    present[codes] = True
    number = (np.cumsum(present) - 1).astype(np.int32)
    return number[codes], [texts[code] for code in np.flatnonzero(present).tolist()]
