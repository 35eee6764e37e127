"""The users of a dataset with their events so far; a new log adds events and users."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from dcclctl.artifacts import Dataset
from dcclctl.compute import OnProgress
from dcclctl.config import IngestConfig
from dcclctl.events.log import EventLog

if TYPE_CHECKING:
    from dcclctl.logs.sources import Source


@dataclass(frozen=True)
class People:
    """Users and their events.

    Attributes:
        log: the events; None: those of the dataset. users: user_index, user_id, group. newest: time of the newest event, as in EVENTS.
        sources: files of the new log. rejects: a REJECTS table of its bad rows, None without one. facts: what was read from
            it; empty without one.
    """

    log: EventLog | None
    users: pl.DataFrame
    newest: int
    sources: "list[Source]"
    rejects: pl.DataFrame | None
    facts: dict[str, Any]


def people_of(dataset: Dataset, logs: Sequence[Path], on_progress: OnProgress) -> People:
    """The users of a dataset, with the events of new logs.

    Args:
        logs: files and globs, read as the dataset's own log was; none: the dataset as it is.

    Raises:
        UsageError, DataError: see `join_new_events`.
    """
    users = dataset.users.select("user_index", "user_id", "group")
    if not logs:
        return People(None, users, dataset.newest_us, [], None, {})
    # what reads logs takes a while to import
    from dcclctl.logs.new_events import Known, join_new_events
    from dcclctl.logs.sources import check_distinct, find_paths, identify

    events = dataset.events
    sources = [identify(path) for path in find_paths(list(logs))]
    check_distinct(sources)
    known = Known(
        dataset.ref,
        events.drop("share"),
        dataset.users["user_id"],
        dataset.items["item_id"],
        str(dataset.facts["time_kind"]),
        IngestConfig(**dataset.config),
    )
    joined = join_new_events(known, sources, on_progress)
    n_new = len(joined.new_user_ids)
    new = pl.DataFrame(
        {
            "user_index": np.arange(users.height, users.height + n_new, dtype=np.int32),
            "user_id": pl.Series(joined.new_user_ids, dtype=pl.String),
            "group": pl.Series(["new"] * n_new, dtype=pl.String),
        }
    )
    newest = int(joined.events["time_us"].max() or 0)  # type: ignore[arg-type]
    log = dataset.log_of(joined.events, n_new)
    return People(log, pl.concat([users, new]), newest, sources, joined.rejects, joined.facts)
