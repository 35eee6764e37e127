"""`ingest`: logs and side tables → one dataset."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from dcclctl.artifacts import Dataset
from dcclctl.compute import OnProgress
from dcclctl.config import PERIODS, IngestConfig
from dcclctl.errors import UsageError
from dcclctl.logs.events import Events, select_events, without
from dcclctl.logs.formats import check_same_columns, detect_log, side_files
from dcclctl.logs.groups import user_groups
from dcclctl.logs.ids import lookalikes
from dcclctl.logs.layout import Layout
from dcclctl.logs.quarantine import Quarantine
from dcclctl.logs.reader import Log, LogReader, label_rule
from dcclctl.logs.sides import SideTable, categories, profiles, read_side
from dcclctl.logs.sources import Source, check_distinct, find_paths, identify
from dcclctl.logs.split import TEST, Periods, iso, make_new, new_users, split
from dcclctl.stages.run import DEFAULT_RUN, NO_SETTINGS, RunOptions, Settings, named
from dcclctl.stages.settings import resolve
from dcclctl.store.store import Input, Store, Work
from dcclctl.tables import GROUPS


@dataclass(frozen=True)
class Sides:
    """What comes with the logs.

    Attributes:
        users, items: side tables with profile columns, and with names and categories; None takes the one beside a RecBole or
            MovieLens log. implicit: every event is positive, whatever its label.
    """

    users: Path | None = None
    items: Path | None = None
    implicit: bool = False


NO_SIDES = Sides()


def ingest(
    logs: Sequence[Path],
    store: Store,
    settings: Settings = NO_SETTINGS,
    run: RunOptions = DEFAULT_RUN,
    sides: Sides = NO_SIDES,
) -> Dataset:
    """Read logs into a dataset: events with periods, users with groups, items with categories, and what was rejected.

    Args:
        logs: files, globs or folders, in the order that decides between equal times. store: where the dataset goes.
        settings: see IngestConfig. run: how to run. sides: side tables.

    Raises:
        UsageError: a path, a setting or a column that does not exist.
        DataError: a log that cannot be read, has too many bad rows, or leaves a period empty.
    """
    config = resolve(IngestConfig, settings, run.config)
    if sides.implicit:
        roles = {role: column for role, column in config.map.items() if role != "label"}
        config = config.model_copy(update={"label": "", "map": roles})
    on_progress = run.on_progress
    paths = find_paths(list(logs))
    beside = [side_files(path) for path in paths]
    users = sides.users or next((found for found, _ in beside if found is not None), None)
    items = sides.items or next((found for _, found in beside if found is not None), None)
    on_progress("hashing", 0, len(paths), "")
    sources = [identify(path) for path in paths]
    check_distinct(sources)
    beside_log = {
        role: identify(_existing(path)) for role, path in (("user", users), ("item", items)) if path is not None
    }
    inputs = _inputs(
        [("log", source) for source in sources] + [(f"{role}s", side) for role, side in beside_log.items()]
    )
    with store.begin("ingest", "dataset", config.recorded(), config.seed, inputs, run.force) as work:
        if work.reused is not None:
            return named(Dataset.of(work.reused), run)
        layouts = [(source, detect_log(source, config)) for source in sources]
        check_same_columns(layouts)
        quarantine = Quarantine()
        log = LogReader(config, quarantine, on_progress).read(layouts)
        rejected = dict(sorted(quarantine.counts.items()))
        quarantine.check("", sum(log.read.values()), config.max_reject)
        tables = {role: read_side(source, config, role, quarantine) for role, source in beside_log.items()}
        rows = {
            "read": sum(log.read.values()),
            "kept": len(log),
            "rejected": sum(rejected.values()),
            "rejected_by_reason": rejected,
        }
        facts = _write_tables(work, log, layouts, tables, config, quarantine, rows, on_progress)
        facts["sources"] = [
            _source_facts(role, source, log, layouts, tables) for role, source in _roles(sources, beside_log)
        ]
        return named(Dataset.of(work.commit(facts)), run)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UsageError(f"no such file: {path}", "Check the path after --users or --items.")
    return path


def _inputs(named: list[tuple[str, Source]]) -> dict[str, Input]:
    """Inputs by role; a second file of the same base name gets a number."""
    inputs: dict[str, Input] = {}
    for role, source in named:
        key, number = f"{role}:{source.name}", 1
        while key in inputs:
            number += 1
            key = f"{role}:{source.name}#{number}"
        inputs[key] = Input("raw", source.sha256)
    return inputs


def _roles(sources: list[Source], sides: dict[str, Source]) -> list[tuple[str, Source]]:
    return [("log", source) for source in sources] + [(f"{role}s", side) for role, side in sides.items()]


def _source_facts(
    role: str, source: Source, log: Log, layouts: list[tuple[Source, Layout]], tables: dict[str, SideTable]
) -> dict[str, Any]:
    facts: dict[str, Any] = {"role": role, "name": source.name, "sha256": source.sha256, "bytes": source.bytes}
    if role == "log":
        layout = next(layout for each, layout in layouts if each is source)
        return facts | {"rows": log.read[source.name], "format": layout.format}
    table = tables[role.removesuffix("s")]
    return facts | {"rows": table.read, "rejected": table.rejected}


def _write_tables(
    work: Work,
    log: Log,
    layouts: list[tuple[Source, Layout]],
    tables: dict[str, SideTable],
    config: IngestConfig,
    quarantine: Quarantine,
    rows: dict[str, Any],
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Select, split and group the events, write the five tables, and state the facts."""
    on_progress("sorting", 0, 3, "")
    events = select_events(log, config)
    on_progress("splitting", 1, 3, "")
    periods, cuts = split(events.users, events.times, log.time_kind, config)
    chosen = new_users(events.user_ids, config.new_users, config.seed)
    periods, keep = make_new(events.users, periods, chosen, cuts is not None)
    if not keep.all():
        events, periods = without(events, keep, "new-users"), periods[keep]
    on_progress("writing", 2, 3, "")
    table = pl.DataFrame(
        {
            "user_index": events.users,
            "item_index": events.items,
            "time_us": events.times,
            "label": events.labels,
            "period": periods,
        }
    )
    with ThreadPoolExecutor(1) as pool:
        # The one large file is compressed while users and items are worked out.
        written = pool.submit(work.write_table, "events.parquet", table)
        groups = user_groups(events.users, periods, len(events.user_ids), config.head_fraction)
        profile, profile_rows = profiles(events.user_ids, tables.get("user"))
        log_column = layouts[0][1].roles.get("category")
        in_log = _log_categories(log, events, log_column)
        items, category_rows = categories(events.item_ids, tables.get("item"), in_log, config.map.get("category"))
        written.result()
    vocabulary = pl.concat([category_rows, profile_rows])
    work.write_table("users.parquet", _indexed("user", events.user_ids).hstack(groups).hstack(profile))
    work.write_table("items.parquet", _indexed("item", events.item_ids).hstack(items))
    work.write_table("vocabulary.parquet", vocabulary)
    work.write_table("rejects.parquet", quarantine.table())
    rule = label_rule(config, layouts[0][1])
    remarks = _remarks(log, events, periods, layouts, rule is not None, config) + [
        line for table in tables.values() for line in table.remarks
    ]
    return {
        "users": len(events.user_ids),
        "items": len(events.item_ids),
        "events": len(events),
        "rows": rows
        | {
            "dropped": {rule: count for rule, count in events.dropped.items() if count},
            "normalised_by_reason": dict(sorted(log.normalised.items())),
            "warnings": _warnings(log, events, tables),
        },
        "split": config.split,
        "time_kind": log.time_kind,
        "cut_times_us": cuts,
        "periods": _period_facts(events, periods, log.time_kind),
        "cuts": _cut_facts(events, periods, cuts, log.time_kind),
        "groups": {name: int((groups["group"] == name).sum()) for name in GROUPS},
        "repeats": config.repeats,
        "labels": "implicit" if rule is None else "observed",
        "label_expression": "" if rule is None else f"{rule.column}{rule.operator}{rule.value:g}",
        "positives": int(events.labels.sum(dtype=np.int64)),
        "categories": category_rows.height,
        "profiles": {name.removeprefix("profile_"): int(_codes(vocabulary, name)) for name in profile.columns},
        "id_map": _id_map(events),
        "remarks": remarks,
    }


def _indexed(role: str, ids: list[str]) -> pl.DataFrame:
    index = pl.Series(f"{role}_index", np.arange(len(ids), dtype=np.int32))
    return pl.DataFrame([index, pl.Series(f"{role}_id", ids, dtype=pl.String)])


def _codes(vocabulary: pl.DataFrame, profile_column: str) -> int:
    """Codes of a profile column, 0 for missing included."""
    column = profile_column.removeprefix("profile_")
    return vocabulary.filter((pl.col("kind") == "profile") & (pl.col("column") == column)).height + 1


def _log_categories(log: Log, events: Events, column: str | None) -> pl.DataFrame | None:
    """Distinct (item_index, column, value) of the log's own category column."""
    if log.categories is None or column is None:
        return None
    codes, texts = log.category_texts.dense(log.categories[events.rows])
    # Sorted and compared: several times faster than numpy's unique on millions of numbers.
    pairs = np.sort(events.items.astype(np.int64) * len(texts) + codes)
    pairs = pairs[np.append(True, pairs[1:] != pairs[:-1])]
    frame = pl.DataFrame(
        {
            "item_index": pl.Series(pairs // len(texts), dtype=pl.Int32),
            "column": pl.Series([column], dtype=pl.String).new_from_index(0, len(pairs)),
            "value": pl.Series(texts, dtype=pl.String).gather(pairs % len(texts)),
        }
    )
    return frame.filter(pl.col("value") != "")


def _period_facts(events: Events, periods: Periods, time_kind: str) -> list[dict[str, Any]]:
    """For each period its first and last time, events, users, and users without any earlier event."""
    first = np.full(len(events.user_ids), len(PERIODS), np.int8)
    np.minimum.at(first, events.users, periods)
    facts = []
    for number, name in enumerate(PERIODS):
        inside = periods == number
        times = events.times[inside]
        users = np.zeros(len(events.user_ids), np.bool_)
        users[events.users[inside]] = True
        facts.append(
            {
                "name": name,
                "start": _shown(times.min(), time_kind) if len(times) else None,
                "end": _shown(times.max(), time_kind) if len(times) else None,
                "events": len(times),
                "users": int(users.sum()),
                "new_users": int((users & (first == number)).sum()),
            }
        )
    return facts


def _shown(time: Any, time_kind: str) -> str | int:
    return int(time) if time_kind == "ordinal" else iso(int(time))


def _cut_facts(events: Events, periods: Periods, cuts: list[int] | None, time_kind: str) -> list[dict[str, Any]]:
    """What a model that learns from everything before a period never sees."""
    first = np.full(len(events.user_ids), len(PERIODS), np.int8)
    np.minimum.at(first, events.users, periods)
    return [
        {
            "before": PERIODS[number],
            "at": None if cuts is None else _shown(cuts[number - 1], time_kind),
            "events_left_out": int((periods >= number).sum()),
            "users_left_out": int((first >= number).sum()),
        }
        for number in range(1, len(PERIODS))
    ]


def _warnings(log: Log, events: Events, tables: dict[str, SideTable]) -> dict[str, int]:
    counts = dict(log.warnings)
    counts["lookalike-ids"] = lookalikes(events.user_ids) + lookalikes(events.item_ids)
    counts["label-conflicts"] = events.conflicts
    counts["heavy-users"] = events.heavy_users
    counts["repeated-side-rows"] = sum(table.repeated for table in tables.values())
    if log.labels is not None and len(np.unique(events.labels)) == 1:
        counts["labels-all-equal"] = len(events)
    return {name: count for name, count in sorted(counts.items()) if count}


def _remarks(
    log: Log,
    events: Events,
    periods: Periods,
    layouts: list[tuple[Source, Layout]],
    labelled: bool,
    config: IngestConfig,
) -> list[str]:
    remarks = []
    roles = layouts[0][1].roles
    if not labelled and "label" in roles:
        remarks.append(
            f"column {roles['label']!r} is not used: every event is positive (--label '{roles['label']}>=4' would use it)"
        )
    if config.split != "global":
        remarks.append(
            f"a {config.split} split leaks future trends between users: compare with a global one if you can"
        )
    if log.time_kind == "ordinal" and config.time_unit != "ordinal":
        remarks.append("the times are order numbers: only each user's order is known")
    if events.hidden["label-conflicts"]:
        remarks.append(
            f"{events.hidden['label-conflicts']} events had a positive and a negative label at one moment and count as "
            "negative (--label-conflicts max would make them positive)"
        )
    if events.dropped["repeats"]:
        chosen_by = ""
        if labelled:
            chosen_by = (
                f", {events.hidden['repeats']} of them positive; of each user and item the first positive event stays, "
                "or the first where none is positive"
            )
        remarks.append(
            f"{events.dropped['repeats']} repeated events left out{chosen_by} (--repeats keep would keep them)"
        )
    if config.new_users:
        chosen = new_users(events.user_ids, config.new_users, config.seed)
        known = np.zeros(len(chosen), np.bool_)
        known[events.users[periods < TEST]] = True
        remarks.append(
            f"{int((chosen & ~known).sum())} users drawn by --new-users {config.new_users:g} have nothing before test"
        )
    return remarks


def _id_map(events: Events) -> str:
    """SHA-256 over the user ids and the item ids in the order of their numbers."""
    # No id contains a NUL, so no two pairs of lists give the same text.
    text = "\0\0".join("\0".join(ids) for ids in (events.user_ids, events.item_ids))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
