"""Reads Parquet as batches of records, every wanted column as text."""

import json
from collections.abc import Iterator

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from dcclctl.errors import DataError
from dcclctl.logs.batch import MAX_FIELD_BYTES, Batch
from dcclctl.logs.format import Head, LogFormat
from dcclctl.logs.layout import Layout
from dcclctl.logs.sources import Source

BATCH_ROWS = 1 << 19
#: Whole numbers beyond this are not exact in a float column.
EXACT_FLOAT = float(1 << 53)


def schema_of(source: Source) -> pa.Schema:
    """Schema of a Parquet file.

    Raises:
        DataError: the file is damaged or not Parquet.
    """
    try:
        return pq.read_schema(source.path)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(source, error) from error


def _damaged(source: Source, error: Exception) -> DataError:
    return DataError(
        f"{source.path} is not a whole Parquet file: {str(error).splitlines()[0]}", "Fetch or write the file again."
    )


def field_of(schema: pa.Schema, name: str) -> pa.Field | None:
    """The field with this name; 'a.b' is field b of the struct column a. None: there is no such field."""
    if name in schema.names:
        return schema.field(name)
    parent, _, child = name.partition(".")
    if child and parent in schema.names and pa.types.is_struct(schema.field(parent).type):
        struct = schema.field(parent).type
        return struct.field(child) if struct.get_field_index(child) >= 0 else None
    return None


def read_parquet(source: Source, layout: Layout, wanted: list[str], lists: bool = False) -> Iterator[Batch]:
    """Read a Parquet file batch by batch.

    Args:
        source, layout: the file and its layout.
        wanted: columns to return; 'a.b' means field b of struct a.
        lists: return lists as JSON text (side tables) instead of refusing the column.

    Raises:
        DataError: the file is damaged, or a wanted column is nested.
    """
    schema = schema_of(source)
    for name in wanted:
        field = field_of(schema, name)
        if field is None or not pa.types.is_nested(field.type):
            continue
        if not (lists and (pa.types.is_list(field.type) or pa.types.is_large_list(field.type))):
            raise DataError(
                f"{source.path}: column {name!r} is nested ({field.type})",
                f"Name a field inside it, e.g. --map user={name}.id, or flatten it first.",
            )
    ids = {layout.roles.get(role) for role in ("user", "item")}
    record = 1
    try:
        with pq.ParquetFile(source.path) as file:
            columns = sorted({name if name in schema.names else name.partition(".")[0] for name in wanted})
            for table in file.iter_batches(BATCH_ROWS, columns=columns):
                yield _batch(table, wanted, ids, record)
                record += table.num_rows
    except (pa.ArrowException, OSError) as error:
        raise _damaged(source, error) from error
    source.check_unchanged()


def _batch(table: pa.RecordBatch, wanted: list[str], ids: set[str | None], record: int) -> Batch:
    frame = pl.DataFrame(pa.Table.from_batches([table]))
    columns = []
    large = 0
    for name in wanted:
        if name in frame.columns:
            column = frame[name]
        else:
            parent, _, child = name.partition(".")
            column = frame[parent].struct.field(child).alias(name)
        if name in ids and column.dtype.is_float():
            large += int((column.abs() > EXACT_FLOAT).sum())
        columns.append(_as_text(column).alias(name))
    texts = pl.DataFrame(columns) if columns else pl.DataFrame()

    def raw(row: int) -> tuple[None, str]:
        return None, json.dumps(texts.row(row, named=True), ensure_ascii=False)[:MAX_FIELD_BYTES]

    return Batch(
        texts,
        np.arange(record, record + table.num_rows, dtype=np.int64),
        raw,
        read=table.num_rows,
        warnings={"ids-over-2^53": large} if large else {},
    )


def _as_text(column: pl.Series) -> pl.Series:
    kind = column.dtype
    if isinstance(kind, pl.Datetime):
        zone = "+00:00" if kind.time_zone else ""
        if kind.time_zone:
            column = column.dt.convert_time_zone("UTC")
        return column.dt.strftime("%Y-%m-%dT%H:%M:%S%.f" + zone)
    if isinstance(kind, pl.List):
        lists = column.to_list()
        texts = [None if each is None else json.dumps(each, default=str, ensure_ascii=False) for each in lists]
        return pl.Series(texts, dtype=pl.String)
    return column.cast(pl.String, strict=kind != pl.Binary)


class ParquetFormat(LogFormat):
    def recognise(self, head: Head) -> Layout | None:
        """By its first bytes or its suffix; nested columns that --map names are columns too."""
        if not head.named and not head.is_parquet:
            return None
        schema = schema_of(head.source)
        names = list(schema.names)
        inner = sorted(name for name in head.mapped if name not in names and field_of(schema, name) is not None)
        return Layout("parquet", "parquet", (*names, *inner))
