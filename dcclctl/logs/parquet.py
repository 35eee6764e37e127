"""Reads Parquet as batches of records, every wanted column as text."""

import json
from collections.abc import Collection, Iterator

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from dcclctl.errors import DataError
from dcclctl.logs.batch import MAX_FIELD_BYTES, Batch, Reject
from dcclctl.logs.format import Head, LogFormat
from dcclctl.logs.layout import Layout
from dcclctl.logs.sources import BOMB_BYTES, BOMB_RATIO, Source

BATCH_ROWS = 1 << 17
#: Whole numbers beyond this are not exact in a float column.
EXACT_FLOAT = float(1 << 53)


def schema_of(source: Source) -> pa.Schema:
    """Schema of a Parquet file.

    Raises:
        DataError: the file is damaged or not Parquet.
    """
    try:
        schema = pq.read_schema(source.place)
        str(schema)  # names are made text only when somebody looks at them
        return schema
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
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


def _has_text(kind: pa.DataType, inside: bool = False) -> bool:
    """Whether values of this type can be made text: scalars other than durations, and lists of them."""
    if pa.types.is_dictionary(kind):
        return _has_text(kind.value_type, inside)
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if any(of(kind) for of in lists):
        return _has_text(kind.value_type, True)
    odd = pa.types.is_duration(kind) or pa.types.is_interval(kind) or pa.types.is_nested(kind)
    return not (odd or (inside and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind))))


def read_parquet(source: Source, layout: Layout, wanted: list[str], lists: Collection[str] = ()) -> Iterator[Batch]:
    """Read a Parquet file batch by batch.

    Args:
        source, layout: the file and its layout.
        wanted: columns to return; 'a.b' means field b of struct a.
        lists: columns whose lists are returned as JSON text, and whose values may be left out if they are not text.

    Raises:
        DataError: the file is damaged or a compression bomb, or a wanted column is nested or not text.
    """
    schema = schema_of(source)
    for name in wanted:
        field = field_of(schema, name)
        if field is None or (_has_text(field.type) and (name in lists or not pa.types.is_nested(field.type))):
            continue
        if pa.types.is_nested(field.type):
            raise DataError(
                f"{source.path}: column {name!r} is nested ({field.type})",
                f"Name a field inside it, e.g. --map user={name}.id, or flatten it first.",
            )
        raise DataError(
            f"{source.path}: column {name!r} has values of type {field.type}", "Write it as a number or as text first."
        )
    ids = {layout.roles.get(role) for role in ("user", "item")}
    record = 1
    try:
        with pq.ParquetFile(source.place) as file:
            columns = sorted({name if name in schema.names else name.partition(".")[0] for name in wanted})
            for table in file.iter_batches(BATCH_ROWS, columns=columns):
                table.validate(full=True)  # text that is not UTF-8 would end the process inside polars
                yield _batch(source, table, wanted, ids, lists, record)
                record += table.num_rows
                size = 8 * record * len(wanted)
                if size > BOMB_BYTES and size > BOMB_RATIO * source.bytes:
                    raise DataError(
                        f"{source.path} holds more than {record:,} rows in {source.bytes:,} bytes: taken for a "
                        "compression bomb",
                        "If it is a real log, write it as CSV and ingest that.",
                    )
    except (pa.ArrowException, pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        raise _damaged(source, error) from error
    source.check_unchanged()


def _batch(
    source: Source, table: pa.RecordBatch, wanted: list[str], ids: set[str | None], lists: Collection[str], record: int
) -> Batch:
    try:
        # without the notes on its columns, on which polars would panic if they are no text
        frame = pl.DataFrame(pa.Table.from_arrays(table.columns, names=table.schema.names))
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of polars, which is no Exception
            raise
        raise pa.ArrowInvalid(str(error)) from error
    columns = []
    large = binary = 0
    for name in wanted:
        if name in frame.columns:
            column = frame[name]
        else:
            parent, _, child = name.partition(".")
            column = frame[parent].struct.field(child).alias(name)
        if name in ids and column.dtype.is_float():
            large += int((column.abs() > EXACT_FLOAT).sum())
        text = _as_text(column).alias(name)
        lost = text.null_count() - column.null_count()
        if lost and column.dtype == pl.Binary and name not in lists:
            raise DataError(
                f"{source.path}: column {name!r} is binary, and not UTF-8 text", "Write it as text first, e.g. as hex."
            )
        binary += lost
        columns.append(text)
    texts = pl.DataFrame(columns) if columns else pl.DataFrame()
    records = np.arange(record, record + table.num_rows, dtype=np.int64)
    long = np.zeros(table.num_rows, np.bool_)
    for column in texts.iter_columns():
        long |= (column.str.len_bytes().fill_null(0) > MAX_FIELD_BYTES).to_numpy()

    def shown(row: int) -> str:
        cut = {name: text and text[:MAX_FIELD_BYTES] for name, text in texts.row(row, named=True).items()}
        return json.dumps(cut, ensure_ascii=False)[:MAX_FIELD_BYTES]

    rejects = [Reject(record + row, None, "field-too-long", shown(row)) for row in np.flatnonzero(long).tolist()]
    stay = np.flatnonzero(~long)
    warnings = {"ids-over-2^53": large, "binary-values": binary}
    return Batch(
        texts.filter(~long) if rejects else texts,
        records[stay],
        lambda row: (None, shown(int(stay[row]))),
        rejects,
        read=table.num_rows,
        warnings={name: count for name, count in warnings.items() if count},
    )


def _as_text(column: pl.Series) -> pl.Series:
    kind = column.dtype
    if isinstance(kind, pl.Datetime):
        zone = "+00:00" if kind.time_zone else ""
        if kind.time_zone:
            column = column.dt.convert_time_zone("UTC")
        return column.dt.strftime("%Y-%m-%dT%H:%M:%S%.f" + zone)
    if isinstance(kind, pl.List | pl.Array):
        lists = column.to_list()
        texts = [None if each is None else json.dumps(each, default=str, ensure_ascii=False) for each in lists]
        return pl.Series(texts, dtype=pl.String)
    if kind == pl.Null:
        return pl.Series(column.name, [None] * len(column), dtype=pl.String)
    if kind == pl.Binary:
        try:
            return column.cast(pl.String)
        except pl.exceptions.PolarsError:
            return pl.Series(column.name, [_decoded(each) for each in column.to_list()], dtype=pl.String)
    return column.cast(pl.String)


def _decoded(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode("utf-8")
    except UnicodeDecodeError:
        return None


class ParquetFormat(LogFormat):
    def recognise(self, head: Head) -> Layout | None:
        """By its first bytes or its suffix; nested columns that --map names are columns too."""
        if not head.named and not head.is_parquet:
            return None
        schema = schema_of(head.source)
        names = list(schema.names)
        inner = sorted(name for name in head.mapped if name not in names and field_of(schema, name) is not None)
        odd = {field.name: str(field.type) for field in schema if not _has_text(field.type)}
        return Layout("parquet", "parquet", (*names, *inner), unreadable=odd)
