"""Recognises a file's format by its name and first bytes, and finds its columns. The formats are listed in format.py."""

import dataclasses
from pathlib import Path

from dcclctl.config import IngestConfig
from dcclctl.errors import DataError, UsageError
from dcclctl.logs.columns import SYNONYMS, assign_roles, check_unique
from dcclctl.logs.format import FORMATS, Head, LogFormat
from dcclctl.logs.layout import Layout
from dcclctl.logs.sources import BOM, Source, first_bytes


def detect_log(source: Source, config: IngestConfig, near: bool = False) -> Layout:
    """Layout of an event log, with its roles; near: see `assign_roles`.

    Raises:
        DataError: the file cannot be read as a log; the message says what to type.
        UsageError: --map names a role or a column that does not exist.
    """
    layout = _detect(source, config)
    row_order = config.split != "global" or config.time_unit == "ordinal"
    roles = assign_roles(layout, config.map, str(source.path), row_order, near)
    return dataclasses.replace(layout, roles=roles)


def detect_side(source: Source, config: IngestConfig, role: str) -> Layout:
    """Layout of a side table; its only role is the id: `role` is user or item.

    Raises:
        DataError: no id column is found.
    """
    layout = _detect(source, config.model_copy(update={"format": "auto"}), side=True)
    names = list(layout.columns)
    check_unique(names, str(source.path))
    found = next((name for name in (config.map.get(role), *SYNONYMS[role]) if name and name in names), None)
    if found is None:
        raise DataError(
            f"{source.path}: no column for the {role} id; its header: {', '.join(map(repr, names))}",
            f"Rename the id column to {role}_id, or name it as in the log and give --map {role}=…",
        )
    return dataclasses.replace(layout, roles={role: found})


def side_files(log: Path) -> tuple[Path | None, Path | None]:
    """The users file and the items file beside a log of a known layout; None where there is no such file."""
    plain = log.with_suffix("") if log.suffix in (".gz", ".zst") else log
    for name in FORMATS:
        names = format_of(name).sides(plain.name)
        if any(names):
            users, items = (log.with_name(each) if each and log.with_name(each).is_file() else None for each in names)
            return users, items
    return None, None


def format_of(name: str) -> LogFormat:
    """The format with this name.

    Raises:
        UsageError: there is no such format.
    """
    if name not in FORMATS:
        raise UsageError(f"--format {name!r}: there is no such format", f"Known: auto, {', '.join(FORMATS)}.")
    found: LogFormat = FORMATS[name].load()()
    return found


def _detect(source: Source, config: IngestConfig, side: bool = False) -> Layout:
    """The layout of a file in the format that --format names, or in the first format that recognises it."""
    named = config.format != "auto"
    head = Head(source, first_bytes(source), config, named, side)
    if head.is_parquet and config.format not in ("auto", "parquet"):
        raise DataError(
            f"{source.path} is parquet, not {config.format}", "Leave --format out, or write --format parquet"
        )
    for name in [config.format] if named else FORMATS:
        layout = format_of(name).recognise(head)
        if layout is None:
            continue
        if layout.container == "parquet":
            return layout
        # a format that knows its own encoding keeps it, and a byte order mark says more than --encoding
        bom = head.data.startswith(BOM)
        encoding = config.encoding if layout.encoding == "utf-8" and not bom else layout.encoding
        quoting = layout.quoting if config.quote == "auto" else config.quote == "double"
        return dataclasses.replace(layout, bom=bom, encoding=encoding, quoting=quoting)
    raise head.unlike(config.format if named else "expected")


def check_same_columns(layouts: list[tuple[Source, Layout]]) -> None:
    """Refuse logs whose formats or headers differ: the same role could be found in different columns.

    Raises:
        DataError: with the two files and what differs.
    """
    first, layout = layouts[0]
    for source, other in layouts[1:]:
        if other.container != layout.container or (other.container != "jsonl" and other.columns != layout.columns):
            differing = sorted(set(other.columns) ^ set(layout.columns)) or ["the order of the columns"]
            raise DataError(
                f"{first.path} and {source.path} do not have the same columns: {', '.join(differing)}",
                "Ingest them one by one, or make their headers equal.",
            )
