"""The layout of a recognised file."""

from dataclasses import dataclass, field
from typing import Literal

Container = Literal["text", "jsonl", "parquet"]


@dataclass(frozen=True)
class Layout:
    """How to read one file.

    Args:
        format: its name in format.FORMATS.
        container: which reader reads it.
        columns: names of its columns, in order; from the header, or known from the format.
        roles: our name (user, item, time, label, category, behaviour, impressions, clicked) → column.
        delimiter: between fields of a text file.
        has_header: whether its first line is a header.
        quoting: whether a double quote at the start of a field opens a quoted field.
        encoding: of a text file.
        bom: whether it starts with a UTF-8 byte order mark.
        list_columns: columns whose values are lists separated by this text.
        unreadable: columns that cannot be made text → their type.
        remarks: what a person should know of how the file is read, in sentences.
        timezone: of its local times, for a format whose published logs name none; --timezone wins.
    """

    format: str
    container: Container
    columns: tuple[str, ...]
    roles: dict[str, str] = field(default_factory=dict)
    delimiter: str = ","
    has_header: bool = True
    quoting: bool = True
    encoding: str = "utf-8"
    bom: bool = False
    list_columns: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    timezone: str = ""
