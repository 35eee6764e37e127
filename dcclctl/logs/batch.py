"""What every reader returns: batches of records as text columns, with the raw text of each record."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

#: Whole numbers, of 32 or 64 bits.
Ints = npt.NDArray[np.signedinteger[Any]]
Codes = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]

#: A longer field makes its record a reject; raw text is cut here.
MAX_FIELD_BYTES = 64 * 1024


@dataclass(frozen=True)
class Reject:
    """One record that was not kept.

    Args:
        record: record number in the file, from 1; the header is not counted.
        offset: byte where it starts in the (decompressed, UTF-8) file; None where the format has no offsets.
        reason: a key of `rules.REASONS`.
        raw: the record's text.
    """

    record: int
    offset: int | None
    reason: str
    raw: str


@dataclass
class Batch:
    """Consecutive records of a file.

    Args:
        frame: one String column for each wanted column.
        records: record number of each row of `frame`; rejected records leave gaps.
        raw: row of `frame` → (byte offset or None, raw text).
        rejects: records that could not be split into fields.
        read: number of records, kept and rejected.
        normalised: key of `rules.NORMALISED` → how often it was mended without losing a row.
        warnings: key of `rules.WARNINGS` → how often it occurs in kept rows.
        cut: whether the file ends with this batch's last row and without a line end.
    """

    frame: pl.DataFrame
    records: Ints
    raw: Callable[[int], tuple[int | None, str]]
    rejects: list[Reject] = field(default_factory=list)
    read: int = 0
    normalised: dict[str, int] = field(default_factory=dict)
    warnings: dict[str, int] = field(default_factory=dict)
    cut: bool = False


class BatchBuilder:
    """Collects the records of a piece of text one by one.

    Args:
        wanted: names of the columns. data: the text. offset: where it starts in the file.
        record: number of its first record.

    Attributes:
        record: number of the next record.
    """

    def __init__(self, wanted: Iterable[str], data: bytes, offset: int, record: int) -> None:
        self.record = self._first = record
        self._data, self._offset = data, offset
        self._columns: dict[str, list[str | None]] = {name: [] for name in wanted}
        self._records: list[int] = []
        self._spans: list[tuple[int, int]] = []
        self._rejects: list[Reject] = []

    def keep(self, fields: Iterable[str | None], start: int, end: int) -> None:
        """Add a record that stands from `start` to `end`, with one field for each wanted column."""
        for column, text in zip(self._columns.values(), fields, strict=True):
            column.append(text)
        self._records.append(self.record)
        self._spans.append((start, end))
        self.record += 1

    def reject(self, reason: str, start: int, end: int) -> None:
        """Add a record that cannot be split into fields."""
        self._rejects.append(Reject(self.record, self._offset + start, reason, self._text(start, end)))
        self.record += 1

    def batch(self) -> Batch:
        """The batch of all records so far."""
        frame = pl.DataFrame(self._columns, schema={name: pl.String for name in self._columns})
        return Batch(frame, np.array(self._records, np.int64), self._raw, self._rejects, self.record - self._first)

    def _raw(self, row: int) -> tuple[int, str]:
        start, end = self._spans[row]
        return self._offset + start, self._text(start, end)

    def _text(self, start: int, end: int) -> str:
        return self._data[start : min(end, start + MAX_FIELD_BYTES)].decode("utf-8", "replace")
