"""`ingest`: logs and side tables → one dataset."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from dcclctl.artifacts import Dataset
from dcclctl.compute import OnProgress, Phase
from dcclctl.config import PERIODS, IngestConfig
from dcclctl.errors import UsageError
from dcclctl.events.periods import ItemPeriods, shares
from dcclctl.logs.events import Events, select_events, without
from dcclctl.logs.formats import check_same_columns, detect_log, side_files
from dcclctl.logs.groups import user_groups
from dcclctl.logs.ids import lookalikes
from dcclctl.logs.layout import Layout
from dcclctl.logs.quarantine import TOO_MANY_REJECTS, Quarantine
from dcclctl.logs.reader import Log, LogReader, label_rule
from dcclctl.logs.sides import SideTable, categories, profiles, read_side, split_lists
from dcclctl.logs.sources import Source, check_distinct, find_paths, identify
from dcclctl.logs.split import TEST, Periods, iso, make_new, new_users, shares_of, split
from dcclctl.logs.times import remark_on_unit
from dcclctl.stages.run import DEFAULT_RUN, NO_SETTINGS, RunOptions, Settings, named
from dcclctl.stages.settings import resolve
from dcclctl.store.store import Input, Store, Work
from dcclctl.tables import EVENTS, GROUPS


@dataclass(frozen=True)
class Sides:
    """Files and a label that come with the logs.

    Attributes:
        users: table with profile columns. items: table with names and categories. None takes the table beside a RecBole
            or MovieLens log. implicit: every event is positive, whatever its label.
    """

    users: Path | None = None
    items: Path | None = None
    implicit: bool = False


NO_SIDES = Sides()
#: so many behaviours are counted in the facts
MAX_BEHAVIOURS = 50


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
    if config.split == "leave-one-out" and config.periods != IngestConfig().periods:
        raise UsageError(
            "--periods has no effect with --split leave-one-out: a user's last event is test, the one before it valid",
            "Leave --periods out, or cut each user's own timeline at these shares: --split per-user",
        )
    paths = find_paths(list(logs))
    beside = [side_files(path) for path in paths]
    users = sides.users or next((found for found, _ in beside if found is not None), None)
    items = sides.items or next((found for _, found in beside if found is not None), None)
    sources = []
    total = sum(path.stat().st_size for path in paths) / 1e6
    phase = Phase(run.on_progress, "hash", total, "MB")
    for path in paths:
        sources.append(identify(path, lambda count: phase.add(count / 1e6)))
    phase.at(total)
    check_distinct(sources)
    side_sources = {
        role: identify(_existing(path)) for role, path in (("users", users), ("items", items)) if path is not None
    }
    inputs = _inputs([*(("log", source) for source in sources), *side_sources.items()])
    amount = sum(source.bytes for source in sources)
    with store.begin("ingest", "dataset", config.recorded(), config.seed, inputs, run.force, amount) as work:
        if work.reused is not None:
            return named(Dataset(work.reused), run)
        read = _Read.of(sources, side_sources, config, run.on_progress)
        if sides.implicit and "impressions" in read.columns:
            raise UsageError(
                "--implicit: the log holds impressions, of which only the clicked ones are positive", "Leave it out."
            )
        return named(Dataset(work.commit(_write(work, read, run.on_progress))), run)


def _remedy(rejected: dict[str, int], config: IngestConfig) -> str:
    """What to do about too many bad rows."""
    if config.time_unit != "auto" and rejected.get("bad-time", 0) + rejected.get("time-in-future", 0):
        return (
            f"Perhaps the times are not in --time-unit {config.time_unit}: without it (also in dccl.toml) the unit is told "
            "from the times."
        )
    return TOO_MANY_REJECTS


def _existing(path: Path) -> Path:
    if not path.exists():
        raise UsageError(f"no such file: {path}", "Check the path after --users or --items.")
    return path


def _inputs(sources: Iterable[tuple[str, Source]]) -> dict[str, Input]:
    """Inputs by role; a second file of the same base name gets a number."""
    inputs: dict[str, Input] = {}
    for role, source in sources:
        key, number = f"{role}:{source.name}", 1
        while key in inputs:
            number += 1
            key = f"{role}:{source.name}#{number}"
        inputs[key] = Input("raw", source.sha256)
    return inputs


@dataclass(frozen=True)
class _Read:
    """What was read from the logs and their side tables.

    Attributes:
        layouts: of each log. log: all rows that were kept. sides: role (users, items) → file and table.
        quarantine: rows that were rejected. rejected_log_rows: reason → rows of the logs among them.
    """

    config: IngestConfig
    layouts: list[tuple[Source, Layout]]
    log: Log
    sides: dict[str, tuple[Source, SideTable]]
    quarantine: Quarantine
    rejected_log_rows: dict[str, int]

    @classmethod
    def of(
        cls, sources: list[Source], side_sources: dict[str, Source], config: IngestConfig, on_progress: OnProgress
    ) -> "_Read":
        """Read all files.

        Raises:
            DataError: a file that cannot be read, or too many rejected rows.
        """
        layouts = [(source, detect_log(source, config)) for source in sources]
        check_same_columns(layouts)
        quarantine = Quarantine()
        log = LogReader(config, quarantine, on_progress).read(layouts)
        rejected = dict(sorted(quarantine.counts.items()))
        quarantine.check("", sum(log.read.values()), config.max_reject, _remedy(rejected, config))
        sides = {
            role: (source, read_side(source, config, role.removesuffix("s"), quarantine))
            for role, source in side_sources.items()
        }
        return cls(config, layouts, log, sides, quarantine, rejected)

    @property
    def columns(self) -> dict[str, str]:
        """Role → column of the logs."""
        return dict(self.layouts[0][1].roles)

    @property
    def unused(self) -> list[str]:
        """Columns of the logs that are not read."""
        layout = self.layouts[0][1]
        rule = label_rule(self.config, layout)
        used = {column for role, column in layout.roles.items() if role != "label"} | ({rule.column} if rule else set())
        inside = {column.partition(".")[0] for column in used}
        return [column for column in layout.columns if column not in used | inside]

    def behaviours(self) -> dict[str, int]:
        """Behaviour → rows of the logs that were kept, of the most frequent ones; empty without such a column."""
        if self.log.behaviours is None:
            return {}
        codes, counts = np.unique(self.log.behaviours, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:MAX_BEHAVIOURS]
        return dict(zip(self.log.behaviour_texts.texts(codes[order].tolist()), counts[order].tolist(), strict=True))

    def names(self, events: Events) -> list[str | None] | None:
        """Each item's first name in the logs; None without a column of names."""
        if self.log.names is None:
            return None
        codes, texts = self.log.name_texts.dense(self.log.names[events.rows])
        found: list[str | None] = [None] * len(events.item_ids)
        named = np.flatnonzero(np.array([bool(text.strip()) for text in texts])[codes])
        items, first = np.unique(events.items[named], return_index=True)
        for item, row in zip(items.tolist(), named[first].tolist(), strict=True):
            found[item] = texts[codes[row]].strip()
        return found

    def sources(self) -> list[dict[str, Any]]:
        """Facts about every file."""
        about: list[tuple[str, Source, dict[str, Any]]] = [
            *(
                ("log", each, {"rows": self.log.read[each.name], "format": found.format})
                for each, found in self.layouts
            ),
            *(
                (role, each, {"rows": side.read, "rejected": side.rejected, "matched": side.matched})
                for role, (each, side) in self.sides.items()
            ),
        ]
        return [
            {"role": role, "name": source.name, "sha256": source.sha256, "bytes": source.bytes, **facts}
            for role, source, facts in about
        ]

    def side(self, role: str) -> SideTable | None:
        """The side table of users or items, if there is one."""
        return self.sides[role][1] if role in self.sides else None

    def categories(self, events: Events) -> pl.DataFrame | None:
        """Distinct (item_index, column, value) of the log's own category column."""
        log, column = self.log, self.columns.get("category")
        if log.categories is None or column is None:
            return None
        codes, texts = log.category_texts.dense(log.categories[events.rows])
        # Sorted and compared: several times faster than numpy's unique on millions of numbers.
        pairs = np.sort(events.items.astype(np.int64) * len(texts) + codes)
        pairs = pairs[np.append(True, pairs[1:] != pairs[:-1])]
        values = pl.Series(texts, dtype=pl.String)
        separator = self.layouts[0][1].list_columns.get(column)
        frame = pl.DataFrame(
            {
                "item_index": pl.Series(pairs // len(texts), dtype=pl.Int32),
                "column": pl.Series([column], dtype=pl.String).new_from_index(0, len(pairs)),
                "value": split_lists(values, separator).gather(pairs % len(texts)),
            }
        )
        if frame.schema["value"] != pl.String:
            frame = frame.explode("value")
        return frame.with_columns(pl.col("value").str.strip_chars()).filter(pl.col("value") != "").unique()

    def warnings(self, events: Events) -> dict[str, int]:
        """Warning → number of rows or ids."""
        counts = Counter(self.log.warnings)
        for _, table in self.sides.values():
            counts.update(table.warnings)
        counts["lookalike-ids"] = lookalikes(events.user_ids) + lookalikes(events.item_ids)
        counts["label-conflicts"] = events.conflicts
        counts["heavy-users"] = events.heavy_users
        counts["repeated-side-rows"] = sum(table.repeated for _, table in self.sides.values())
        if self.log.labels is not None and len(np.unique(events.labels)) == 1:
            counts["labels-all-equal"] = len(events)
        return {name: count for name, count in sorted(counts.items()) if count}

    def remarks(self, events: Events, periods: Periods, labelled: bool) -> list[str]:
        """What a person should know about the dataset, in sentences."""
        config, dropped, hidden = self.config, events.dropped, events.hidden
        remarks = list(self.log.remarks)
        label = self.columns.get("label")
        if label is not None and not labelled:
            remarks.append(f"column {label!r} is not used: every event is positive (--label '{label}>=4' would use it)")
        if config.split != "global":
            remarks.append(
                f"with a {config.split} split models can learn trends of the test period from other users: compare with "
                "a global split if you can"
            )
        if "time" not in self.columns:
            remarks.append("no time column: the rows are taken to be in order of time")
        elif self.log.time_kind == "ordinal" and config.time_unit != "ordinal":
            remarks.append("the times are order numbers: only each user's order is known")
        elif doubtful := remark_on_unit(config.time_unit, int(events.times.max())):
            remarks.append(doubtful)
        remarks += _nothing_to_learn(events) + _empty_periods(periods, config)
        if hidden["label-conflicts"]:
            remarks.append(
                f"{hidden['label-conflicts']} events had a positive and a negative label at one time and count as "
                "negative (--label-conflicts max would make them positive)"
            )
        if dropped["repeats"]:
            positive = (
                f", {hidden['repeats']} of them positive; of each user and item the first positive event stays, "
                "or the first where none is positive"
            )
            remarks.append(
                f"{dropped['repeats']} repeated events left out{positive if labelled else ''} "
                "(--repeats keep would keep them)"
            )
        if config.new_users:
            chosen = new_users(events.user_ids, config.new_users, config.seed)
            known = np.zeros(len(chosen), np.bool_)
            known[events.users[periods < TEST]] = True
            count = int((chosen & ~known).sum())
            remarks.append(f"{count} users drawn by --new-users {config.new_users:g} have no event before test")
        return remarks + [line for _, table in self.sides.values() for line in table.remarks]


def _nothing_to_learn(events: Events) -> list[str]:
    """Warnings about a log that no model can learn from."""
    remarks = []
    if len(events) and not events.labels.any():
        remarks.append(
            "warning: no event is positive, so there is nothing to recommend and most models cannot be trained: give "
            "--label a lower limit"
        )
    again = events.users[1:] == events.users[:-1]
    if again.any() and not (events.times[1:] > events.times[:-1])[again].any():
        remarks.append(
            "warning: no user has events at two times, so no event has a history, and a memory holds nothing: if the rows "
            "are in order of time, ingest without the column of times"
        )
    return remarks


def _empty_periods(periods: Periods, config: IngestConfig) -> list[str]:
    """A warning about periods that hold no event although their share is not 0; a global split refuses such a log."""
    wanted = [True] * len(PERIODS)
    if config.split == "per-user":
        ends = [Fraction(0), *shares_of(config.periods), Fraction(1)]
        wanted = [start < end for start, end in pairwise(ends)]
    counts = np.bincount(periods, minlength=len(PERIODS))
    empty = [name for name, count, asked in zip(PERIODS, counts, wanted, strict=True) if asked and not count]
    if not empty:
        return []
    why = "users have too few events for a share of them"
    if config.split == "leave-one-out":
        why = "test needs a user with 2 events, valid and cloud one with 3, device one with 4"
    return [
        f"warning: no event in {', '.join(empty)}: {why}; training needs cloud and valid, evaluation test. "
        "Another --split may suit this log."
    ]


def _write(work: Work, read: _Read, on_progress: OnProgress) -> dict[str, Any]:
    """Select, split and group the events, write the tables, and state the facts."""
    log, config = read.log, read.config
    # shares of the time, measured on 3 million rows
    on_progress("arrange", 0, 1, "sorting")
    events = select_events(log, config)
    on_progress("arrange", 0.7, 1, "splitting")
    periods, cuts = split(events.users, events.times, log.time_kind, config)
    chosen = new_users(events.user_ids, config.new_users, config.seed)
    periods, keep = make_new(events.users, periods, chosen, cuts is not None)
    if not keep.all():
        events, periods = without(events, keep, "new-users"), periods[keep]
    on_progress("arrange", 0.75, 1, "writing")
    with ThreadPoolExecutor(1) as pool:
        # the large files are compressed while users and items are worked out
        written = pool.submit(_write_events, work, events, periods, config)
        groups = user_groups(events.users, periods, len(events.user_ids), config.head_fraction)
        for role, ids in (("user", events.user_ids), ("item", events.item_ids)):
            if (side := read.side(f"{role}s")) is not None:
                side.match(role, ids)
        profile, profile_rows = profiles(events.user_ids, read.side("users"))
        items, category_rows = categories(
            *(events.item_ids, read.side("items"), read.categories(events), config.map.get("category")),
            read.names(events),
        )
        written.result()
    vocabulary = pl.concat([category_rows, profile_rows])
    on_progress("arrange", 0.93, 1, "writing")
    work.write_table("users.parquet", _indexed("user", events.user_ids).hstack(groups).hstack(profile))
    work.write_table("items.parquet", _indexed("item", events.item_ids).hstack(items))
    work.write_table("vocabulary.parquet", vocabulary)
    work.write_table("rejects.parquet", read.quarantine.table())
    on_progress("arrange", 1, 1, "")
    rule = label_rule(config, read.layouts[0][1])
    profile_columns = [name.removeprefix("profile_") for name in profile.columns]
    return {
        "users": len(events.user_ids),
        "items": len(events.item_ids),
        "events": len(events),
        "rows": {
            "read": sum(log.read.values()),
            "kept": len(log),
            "rejected": sum(read.rejected_log_rows.values()),
            "rejected_by_reason": read.rejected_log_rows,
            "dropped": {rule: count for rule, count in events.dropped.items() if count},
            "normalised_by_reason": dict(sorted(log.normalised.items())),
            "warnings": read.warnings(events),
        },
        "columns": read.columns,
        "unused_columns": read.unused,
        "behaviours": read.behaviours(),
        "split": config.split,
        "time_kind": log.time_kind,
        "cut_times_us": cuts,
        **_period_facts(events, periods, cuts, log.time_kind),
        "groups": {name: int((groups["group"] == name).sum()) for name in GROUPS},
        "repeats": config.repeats,
        "labels": "implicit" if rule is None else "observed",
        "label_expression": "" if rule is None else f"{rule.column}{rule.operator}{rule.value:g}",
        "positives": int(events.labels.sum(dtype=np.int64)),
        "categories": category_rows.height,
        "profiles": {name: profile_rows.filter(pl.col("column") == name).height + 1 for name in profile_columns},
        "id_map": _id_map(events),
        "remarks": read.remarks(events, periods, rule is not None),
        "sources": read.sources(),
    }


def _write_events(work: Work, events: Events, periods: Periods, config: IngestConfig) -> None:
    """Write the events, one file for each `shard_users` users, and what one file cannot tell of all users' events."""
    share = shares(events.users, events.times, periods, config.split == "global")
    work.write_table("item_periods.parquet", ItemPeriods.of_events(events.items, periods, share, events.labels).table())
    firsts = np.arange(0, len(events.user_ids), config.shard_users)
    begins = [*np.searchsorted(events.users, firsts).tolist(), len(events)]
    for number, (begin, end) in enumerate(pairwise(begins)):
        columns = (events.users, events.items, events.times, events.labels, periods, share)
        rows = dict(zip(EVENTS.columns, (values[begin:end] for values in columns), strict=True))
        name = "events.parquet" if len(firsts) == 1 else f"events-{number:05d}.parquet"
        work.write_table(name, pl.DataFrame(rows))


def _indexed(role: str, ids: list[str]) -> pl.DataFrame:
    index = pl.Series(f"{role}_index", np.arange(len(ids), dtype=np.int32))
    return pl.DataFrame([index, pl.Series(f"{role}_id", ids, dtype=pl.String)])


def _period_facts(events: Events, periods: Periods, cuts: list[int] | None, time_kind: str) -> dict[str, Any]:
    """Each period's first and last time, events, users and users without an earlier event; and what the cuts left out."""
    first = np.full(len(events.user_ids), len(PERIODS), np.int8)  # each user's first period
    np.minimum.at(first, events.users, periods)

    def shown(time: int) -> str | int:
        return int(time) if time_kind == "ordinal" else iso(int(time))

    facts: dict[str, list[dict[str, Any]]] = {"periods": [], "cuts": []}
    for number, name in enumerate(PERIODS):
        inside = periods == number
        times = events.times[inside]
        facts["periods"].append(
            {
                "name": name,
                "start": shown(times.min()) if len(times) else None,
                "end": shown(times.max()) if len(times) else None,
                "events": len(times),
                "users": int(np.count_nonzero(np.bincount(events.users[inside]))),
                "new_users": int((first == number).sum()),
            }
        )
        if number:
            facts["cuts"].append(
                {
                    "before": name,
                    "at": None if cuts is None else shown(cuts[number - 1]),
                    "events_left_out": int((periods >= number).sum()),
                    "users_left_out": int((first >= number).sum()),
                }
            )
    return facts


def _id_map(events: Events) -> str:
    """SHA-256 over the user ids and the item ids in the order of their numbers."""
    # No id contains a NUL, so no two pairs of lists give the same text.
    text = "\0\0".join("\0".join(ids) for ids in (events.user_ids, events.item_ids))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
