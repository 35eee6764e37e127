"""What every format's reader hands on: a run of records as text columns, and how to find a record's raw text again."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

#: Whole numbers, of 32 or 64 bits.
Ints = npt.NDArray[np.signedinteger[Any]]
Codes = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]

#: A field or a raw record longer than this is never believed, nor kept whole.
MAX_FIELD_BYTES = 64 * 1024


@dataclass(frozen=True)
class Reject:
    """One record that was not kept.

    Args:
        record: record number in the file, from 1, the header not counted.
        offset: byte where it starts in the (decompressed, UTF-8) file; None where the format has none.
        reason: a key of `rules.REASONS`.
        raw: the record's text.
    """

    record: int
    offset: int | None
    reason: str
    raw: str


@dataclass
class Batch:
    """Records of one stretch of a file, in file order.

    Args:
        frame: one String column for each wanted column.
        records: record number of each row of `frame`; structural rejects leave gaps.
        raw: row of `frame` → (byte offset or None, raw text).
        rejects: records that could not be split into fields.
        read: records in this stretch, kept and rejected.
        normalised: what was mended without losing a row, counted by name.
        warnings: what was kept but looks odd, counted by name.
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


def text_frame(columns: dict[str, list[str | None]]) -> pl.DataFrame:
    """A frame of String columns, of the right type even without rows."""
    return pl.DataFrame(columns, schema={name: pl.String for name in columns})
