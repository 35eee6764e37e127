"""Parquet → batches of records, every needed column as text."""

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
        DataError: not Parquet, or cut.
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
    """The field that a column name means; 'a.b' is field b of the struct column a."""
    if name in schema.names:
        return schema.field(name)
    parent, _, child = name.partition(".")
    if child and parent in schema.names and pa.types.is_struct(schema.field(parent).type):
        struct = schema.field(parent).type
        return struct.field(child) if struct.get_field_index(child) >= 0 else None
    return None


def read_parquet(source: Source, layout: Layout, wanted: list[str], lists: bool = False) -> Iterator[Batch]:
    """Batches of a Parquet file.

    Args:
        source: the file.
        layout: how it looks.
        wanted: columns to hand on; 'a.b' means field b of struct a.
        lists: hand lists on as JSON text (side tables) instead of refusing the column.

    Raises:
        DataError: damaged, or a needed column is nested.
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
    after = source.path.stat()
    if (after.st_size, after.st_mtime_ns) != (source.bytes, source.modified_ns):
        raise DataError(
            f"{source.path} changed while it was read", "Wait until it is written completely, or ingest a copy."
        )


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
        return pl.Series(
            [
                None if value is None else json.dumps(value.to_list(), default=str, ensure_ascii=False)
                for value in column
            ],
            dtype=pl.String,
        )
    if kind == pl.Binary:
        return column.cast(pl.String, strict=False)
    return column.cast(pl.String)


class ParquetFormat(LogFormat):
    """The format `parquet`."""

    def recognise(self, head: Head) -> Layout | None:
        """By its first bytes or its suffix; nested columns that --map names are columns too."""
        if not head.named and not head.is_parquet:
            return None
        schema = schema_of(head.source)
        names = list(schema.names)
        inner = sorted(name for name in head.mapped if name not in names and field_of(schema, name) is not None)
        return Layout("parquet", "parquet", (*names, *inner))
