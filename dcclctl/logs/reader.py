"""Reads all logs into columns of numbers, one row for each event that passed the row rules."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from dcclctl.config import IngestConfig
from dcclctl.errors import DataError, UsageError
from dcclctl.logs import impressions
from dcclctl.logs.batch import Batch, Flags, Ints
from dcclctl.logs.ids import EMPTY, LINE_END, NUL, IdColumn
from dcclctl.logs.jsonl import read_jsonl
from dcclctl.logs.labels import LabelRule
from dcclctl.logs.layout import Layout
from dcclctl.logs.parquet import read_parquet
from dcclctl.logs.quarantine import Quarantine
from dcclctl.logs.sources import ByteStream, Source
from dcclctl.logs.text import read_text
from dcclctl.logs.times import TimeColumn

#: Roles whose texts are kept as they are.
_OTHERS = ("category", "behaviour", "name")
Progress = Callable[[str, float, float, str], None]
T = TypeVar("T")


@dataclass
class Log:
    """Every kept row of all logs, in the order of the files and their records.

    Args:
        users, items: codes in `user_ids` and `item_ids`.
        times: microseconds, or order numbers.
        labels: 0 or 1; None if every event is positive.
        categories, behaviours, names: codes in `category_texts`, `behaviour_texts` and `name_texts`; None without such a
            column.
        time_kind: 'timestamp' or 'ordinal'.
        rows: how many there are. read: file name → number of its records.
        normalised, warnings: counts, see rules.py.
        remarks: sentences for people.
    """

    users: Ints
    items: Ints
    times: Ints
    labels: npt.NDArray[np.int8] | None
    categories: Ints | None
    behaviours: Ints | None
    names: Ints | None
    user_ids: IdColumn
    item_ids: IdColumn
    category_texts: IdColumn
    behaviour_texts: IdColumn
    name_texts: IdColumn
    time_kind: str
    rows: int
    read: dict[str, int]
    normalised: Counter[str]
    warnings: Counter[str]
    remarks: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return self.rows

    def take(self, column: str) -> npt.NDArray[Any]:
        """A column that the log then no longer holds, so that a large log is not in memory twice."""
        values: npt.NDArray[Any] = getattr(self, column)
        setattr(self, column, values[:0].copy())
        return values


def batches(
    source: Source, layout: Layout, wanted: list[str], lists: Collection[str] = ()
) -> Iterator[tuple[Batch, int]]:
    """Batches of a file in any format, each with the (compressed) bytes read so far; the next batch is parsed meanwhile.

    Raises:
        DataError: anything that the file's reader refuses.
    """
    if layout.container == "parquet":
        for batch in _ahead(read_parquet(source, layout, wanted, lists)):
            yield batch, 0
        return
    stream = ByteStream(source)
    reader = read_jsonl(stream, layout, wanted, lists) if layout.container == "jsonl" else None
    for batch in _ahead(reader or read_text(stream, layout, wanted)):
        yield batch, stream.position


def list_columns(layout: Layout) -> set[str]:
    """Columns that may hold lists."""
    return {layout.roles[role] for role in (*_OTHERS, "impressions", "clicked") if role in layout.roles}


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """Compute the next item in a thread while this one is used."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(next, items, None)
        while (item := future.result()) is not None:
            future = pool.submit(next, items, None)
            yield item


def label_rule(config: IngestConfig, layout: Layout) -> LabelRule | None:
    """The rule that makes labels from a column of the log; None if every event is positive.

    Raises:
        UsageError: the log has no such column.
    """
    if "impressions" in layout.roles:
        if config.label:
            raise UsageError(
                "--label: the log holds impressions, which say themselves what was clicked", "Leave it out."
            )
        return impressions.RULE
    if not config.label and not config.map.get("label"):
        return None
    # A label column without a condition is taken as 0/1.
    rule = LabelRule.parse(config.label or "label>0")
    if rule.column in layout.columns:
        return rule
    if rule.column == "label" and "label" in layout.roles:
        return LabelRule(layout.roles["label"], rule.operator, rule.value)
    raise UsageError(
        f"--label: the log has no column {rule.column!r}", f"Its columns: {', '.join(map(repr, layout.columns))}"
    )


class LogReader:
    """Reads logs one after another into one set of columns.

    Args:
        config: the ingest settings. quarantine: collects the rejects.
        on_progress: called with bytes done and total bytes.
    """

    def __init__(self, config: IngestConfig, quarantine: Quarantine, on_progress: Progress) -> None:
        self._config = config
        self._quarantine = quarantine
        self._on_progress = on_progress
        as_int = config.ids == "int"
        self._users, self._items = IdColumn(as_int), IdColumn(as_int)
        self._others = {role: IdColumn(empty_is_value=True) for role in _OTHERS}
        self._remarks: list[str] = []
        self._parts: dict[str, list[npt.NDArray[np.generic]]] = {}
        self._normalised: Counter[str] = Counter()
        self._warnings: Counter[str] = Counter()
        self._records_before = 0  # of the files that were read before

    def read(self, logs: list[tuple[Source, Layout]]) -> Log:
        """Read all logs.

        Raises:
            DataError: a file cannot be read, or one file has times and another one order numbers.
        """
        total, done = sum(source.bytes for source, _ in logs), 0
        self._on_progress("read", 0, total, "")
        units: dict[str, str] = {}
        read: dict[str, int] = {}
        for source, layout in logs:
            read[source.name] = read.get(source.name, 0)
            if layout.bom:
                self._normalised["byte-order-mark"] += 1
            column = layout.roles.get("time")
            steps = column is None or (column == "ordinal" and self._config.time_unit == "auto")
            unit = "ordinal" if steps else self._config.time_unit
            where = f"{source.path}, column {column!r}"
            zone = self._config.timezone or layout.timezone
            times = TimeColumn(unit, zone, self._config.now, where, self._config.time_format)
            rows = self._read_one(source, layout, times, done, total)
            self._remarks += [*layout.remarks, *times.remarks]
            read[source.name] += rows
            self._records_before += rows
            done += source.bytes
            if rows == 0 and not self._config.allow_empty:
                raise DataError(f"{source.path} has a header and no rows", "Leave it out, or accept it: --allow-empty")
            if times.unit != "auto":
                units[source.name] = "ordinal" if times.unit == "ordinal" else "timestamp"
        if len(set(units.values())) > 1:
            ordinal = [name for name, kind in units.items() if kind == "ordinal"]
            raise DataError(
                f"{', '.join(ordinal)} has order numbers and the other logs have times", "Ingest them separately."
            )
        return self._log(read, next(iter(units.values()), "timestamp"))

    def _read_one(self, source: Source, layout: Layout, times: TimeColumn, done: int, total: int) -> int:
        rule = label_rule(self._config, layout)
        shown = "impressions" in layout.roles
        needed = [column for role, column in layout.roles.items() if role != "label"]
        needed += [rule.column] if rule and not shown else []
        rows = 0
        for batch, position in batches(source, layout, list(dict.fromkeys(needed)), list_columns(layout)):
            if shown:
                batch = impressions.one_by_one(batch, layout.roles)
            rows += batch.read
            self._take(source.name, layout.roles, rule, times, batch)
            self._on_progress("read", done + position, total, source.name)
        return rows

    def _take(
        self, source: str, roles: dict[str, str], rule: LabelRule | None, times: TimeColumn, batch: Batch
    ) -> None:
        """Apply the row rules to a batch, and keep the rows that pass."""
        frame = batch.frame
        refused: dict[str, Flags] = {}
        columns: dict[str, npt.NDArray[np.generic]] = {}
        for role, ids in (("user", self._users), ("item", self._items)):
            codes, bad, padded, decimal = ids.encode(frame[roles[role]])
            columns[role] = codes
            if EMPTY in bad:
                refused[f"empty-{role}"] = bad[EMPTY]
            for problem, reason in ((NUL, "nul-in-id"), (LINE_END, "line-end-in-id")):
                if problem in bad:
                    refused[reason] = refused[reason] | bad[problem] if reason in refused else bad[problem]
            if padded is not None:
                self._normalised["padded-ids"] += int(padded.sum())
                self._warnings["padded-ids"] += int(padded.sum())
            if decimal is not None:
                self._normalised["ids-as-int"] += int(decimal.sum())
        if "time" in roles:
            columns["time"], late = times.read(frame[roles["time"]], batch)
            refused |= late
        else:  # the order of the records is all that is known
            columns["time"] = self._records_before + batch.records
        if rule is not None:
            columns["label"], unlabelled = rule.read(frame[rule.column], batch)
            refused |= unlabelled
        for role, texts in self._others.items():
            if role in roles:
                columns[role] = texts.encode(frame[roles[role]])[0]
        self._normalised.update(batch.normalised)
        self._warnings.update(batch.warnings)
        kept = self._quarantine.add_batch(source, batch, refused)
        for role, values in columns.items():
            values = values if kept is None else values[kept]
            if role not in ("time", "label") and len(values) and -(2**31) <= values.min() <= values.max() < 2**31:
                values = values.astype(np.int32)
            self._parts.setdefault(role, []).append(values)

    def _log(self, read: dict[str, int], time_kind: str) -> Log:
        def column(role: str) -> Ints:
            return np.concatenate(self._parts.pop(role, [np.zeros(0, np.int64)]))

        rows = sum(map(len, self._parts.get("user", [])))
        return Log(
            column("user"),
            column("item"),
            column("time"),
            column("label").astype(np.int8, copy=False) if "label" in self._parts else None,
            column("category") if "category" in self._parts else None,
            column("behaviour") if "behaviour" in self._parts else None,
            column("name") if "name" in self._parts else None,
            self._users,
            self._items,
            self._others["category"],
            self._others["behaviour"],
            self._others["name"],
            time_kind,
            rows,
            read,
            self._normalised,
            self._warnings,
            self._remarks,
        )
