"""Adds the events of a new log to those of a dataset, by the rules that the dataset was ingested with."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from dcclctl.compute import OnProgress
from dcclctl.config import PERIODS, IngestConfig
from dcclctl.errors import DataError, UsageError
from dcclctl.logs.batch import Ints
from dcclctl.logs.events import RowRules
from dcclctl.logs.formats import check_same_columns, detect_log
from dcclctl.logs.ids import IdColumn
from dcclctl.logs.order import coarsen, order_by
from dcclctl.logs.quarantine import Quarantine
from dcclctl.logs.reader import Log, LogReader
from dcclctl.logs.sources import Source
from dcclctl.tables import EVENTS

#: number of an item that the dataset does not have
_UNKNOWN = -1


@dataclass(frozen=True)
class Known:
    """What a dataset has.

    Attributes:
        ref: its reference, for messages. events: an EVENTS table. user_ids, item_ids: ids by number.
        time_kind: 'timestamp' or 'ordinal'. config: that it was ingested with.
    """

    ref: str
    events: pl.DataFrame
    user_ids: pl.Series
    item_ids: pl.Series
    time_kind: str
    config: IngestConfig


@dataclass(frozen=True)
class Joined:
    """A dataset's events with those of a new log.

    Attributes:
        events: an EVENTS table without shares, sorted by (user_index, time_us).
        new_user_ids: users that the dataset does not have; their numbers follow its own, in this order.
        rejects: a REJECTS table. facts: what was read, and what was left out and why.
    """

    events: pl.DataFrame
    new_user_ids: list[str]
    rejects: pl.DataFrame
    facts: dict[str, Any]


def join_new_events(known: Known, sources: list[Source], on_progress: OnProgress) -> Joined:
    """Read new logs as the dataset's own were read, and add their events to its events.

    An event that the dataset has already is not added again, so logs may overlap. Rows of unknown items are left out,
    because no model can use them. Duplicates, repeats and the cap on a user's events are decided over all events.

    Args:
        sources: in the order that decides between equal times.

    Raises:
        UsageError: the logs do not have a column that the dataset's had.
        DataError: a log cannot be read, has too many bad rows, or has order numbers where the dataset has times.
    """
    log, quarantine = _read(known, sources, on_progress)
    rows = np.arange(len(log))
    if known.config.behaviours:
        if log.behaviours is None:
            raise UsageError(
                f"the new log has no behaviour column, and {known.ref} keeps {', '.join(known.config.behaviours)} only",
                "Give a log with the columns of the dataset's own.",
            )
        codes = np.unique(log.behaviours)
        names = log.behaviour_texts.texts(codes.tolist())
        wanted = [code for code, name in zip(codes, names, strict=True) if name in known.config.behaviours]
        rows = rows[np.isin(log.behaviours, wanted)]
    users, new_user_ids = _numbers(log.user_ids, log.users[rows], known.user_ids)
    items, unknown_ids = _numbers(log.item_ids, log.items[rows], known.item_ids)
    n_known = len(known.item_ids)
    usable = items < n_known
    times = log.times[rows]
    if known.time_kind == "ordinal" and len(times):
        # each log counts on its own: what is new comes after all that is known
        times = times - times.min() + int(known.events["time_us"].max() or 0) + 1  # type: ignore[arg-type]
    new = pl.DataFrame(
        {
            "user_index": users.astype(np.int32),
            "item_index": items.astype(np.int32),
            "time_us": times,
            "label": np.ones(len(rows), np.int8) if log.labels is None else log.labels[rows],
            "behaviour": np.zeros(len(rows), np.int64)
            if log.behaviours is None
            else log.behaviours[rows].astype(np.int64),
        }
    ).filter(pl.Series(usable))
    fresh = new.join(known.events, on=["user_index", "item_index", "time_us"], how="anti", maintain_order="left")
    events, added, dropped = _merged(known, fresh)
    facts = {
        "rows": sum(log.read.values()),
        "kept": len(log),
        "rejected": sum(quarantine.counts.values()),
        "rejected_by_reason": dict(sorted(quarantine.counts.items())),
        "other_behaviours": len(log) - len(rows),
        "unknown_items": len(unknown_ids),
        "unknown_item_rows": int((~usable).sum()),
        "known_events": new.height - fresh.height,
        "dropped": {rule: count for rule, count in dropped.items() if count},
        "added": added,
        "known_users": int((np.unique(users) < len(known.user_ids)).sum()),
        "new_users": len(new_user_ids),
    }
    return Joined(events, new_user_ids, quarantine.table(), facts)


def _read(known: Known, sources: list[Source], on_progress: OnProgress) -> tuple[Log, Quarantine]:
    """All rows of the new logs that pass the row rules, and those that do not."""
    config, quarantine = known.config, Quarantine()
    layouts = [(source, detect_log(source, config)) for source in sources]
    check_same_columns(layouts)
    log = LogReader(config, quarantine, on_progress).read(layouts)
    remedy = f"Mend the log. {known.ref} was ingested with --max-reject {config.max_reject:g}, which holds here too."
    quarantine.check("", sum(log.read.values()), config.max_reject, remedy)
    if len(log) and log.time_kind != known.time_kind:
        kinds = {"ordinal": "order numbers", "timestamp": "times"}
        raise DataError(
            f"{', '.join(source.name for source in sources)} has {kinds[log.time_kind]}, and {known.ref} has "
            f"{kinds[known.time_kind]}",
            "Give a log whose time column is like that of the dataset's log.",
        )
    return log, quarantine


def _numbers(ids: IdColumn, codes: Ints, known: pl.Series) -> tuple[Ints, list[str]]:
    """Numbers (N,) of a column's ids, and the ids that are not known, sorted; their numbers follow the known ones."""
    dense, texts = ids.dense(codes)
    numbered = pl.DataFrame({"id": known, "number": np.arange(len(known))})
    column = pl.DataFrame({"id": pl.Series(texts, dtype=pl.String)})
    numbers = column.join(numbered, on="id", how="left", maintain_order="left")["number"].fill_null(_UNKNOWN).to_numpy()
    unknown = numbers == _UNKNOWN
    found = np.where(unknown, len(known) + np.cumsum(unknown) - 1, numbers).astype(np.int64)
    return found[dense], [text for text, is_new in zip(texts, unknown, strict=True) if is_new]


def _merged(known: Known, fresh: pl.DataFrame) -> tuple[pl.DataFrame, int, dict[str, int]]:
    """All events by user and time, those of the dataset first; how many are new; rule → events left out."""
    test = PERIODS.index("test")
    old = known.events.with_columns(behaviour=pl.lit(0, pl.Int64), new=False)
    events = pl.concat([old, fresh.with_columns(period=pl.lit(test, pl.Int8), new=True).select(old.columns)])
    users, times = events["user_index"].to_numpy(), events["time_us"].to_numpy()
    events = events[order_by(users, coarsen(times))]
    users = events["user_index"].to_numpy()
    rules = RowRules(users, events["item_index"].to_numpy(), events["label"].to_numpy())
    rules.drop_repetitions(events["time_us"].to_numpy(), events["behaviour"].to_numpy(), known.config)
    if known.config.max_user_events:
        rules.cap(known.config.max_user_events)
    events = events.filter(pl.Series(rules.keep))
    # an event that came late belongs to the period of the user's next known one: periods stay in order of time
    keys = events["user_index"].to_numpy().astype(np.int64) * len(PERIODS) + events["period"].to_numpy()
    period = np.minimum.accumulate(keys[::-1])[::-1] % len(PERIODS)
    table = events.with_columns(pl.Series("period", period.astype(np.int8)))
    table = table.select(name for name in EVENTS.columns if name != "share")
    return table, int(events["new"].sum()), rules.dropped
