"""Side tables: what is known about users (profile columns) and items (names, categories)."""

import json
from dataclasses import dataclass, field

import polars as pl

from dcclctl.config import IngestConfig
from dcclctl.errors import DataError
from dcclctl.logs.columns import NAME_COLUMNS
from dcclctl.logs.formats import detect_side
from dcclctl.logs.movielens import FLAG
from dcclctl.logs.quarantine import Quarantine
from dcclctl.logs.reader import batches
from dcclctl.logs.rules import EMPTY_IDS
from dcclctl.logs.sources import Source

#: A profile column with more values than this says who somebody is, not what kind of person.
MAX_PROFILE_VALUES = 1000
#: A column is nearly unique if it has more values than this and than half of the rows.
FEW_VALUES = 20

_LIST_OF_NUMBERS = r"^\d+( \d+)+$"
_NO_GENRE = "(no genres listed)"


@dataclass
class SideTable:
    """A side table as text, one row an id, ids in the table's order.

    Args:
        name: file name.
        frame: String columns; `id` first. Lists are columns of List(String).
        read: rows in the file.
        rejected: rows of it that could not be read.
        repeated: rows whose id came before.
    """

    name: str
    frame: pl.DataFrame
    read: int
    rejected: int
    repeated: int
    remarks: list[str] = field(default_factory=list)


def read_side(source: Source, config: IngestConfig, role: str, quarantine: Quarantine) -> SideTable:
    """Read a users or items file.

    Args:
        source: the file.
        config: encoding, map and the largest share of rejects.
        role: user or item.
        quarantine: where its broken rows go.

    Raises:
        DataError: no id column, too many broken rows, or the file is damaged.
    """
    layout = detect_side(source, config, role)
    id_column = layout.roles[role]
    wanted = list(layout.columns)
    parts, read = [], 0
    for batch, _ in batches(source, layout, wanted, lists=True):
        read += batch.read
        ids = batch.frame[id_column].fill_null("").str.strip_chars()
        empty = ids.is_in(list(EMPTY_IDS)).to_numpy()
        kept = quarantine.add_batch(source.name, batch, {f"empty-{role}": empty})
        frame = batch.frame.with_columns(ids.alias(id_column))
        parts.append(frame if kept is None else frame.filter(kept))
    rejected = quarantine.by_source[source.name]
    quarantine.check(source.name, read, config.max_reject)
    if not parts or read == 0:
        raise DataError(f"{source.path} has a header and no rows", "Leave it out, or fetch it again.")
    frame = pl.concat(parts)
    first = frame.unique(id_column, keep="first", maintain_order=True)
    table = first.select(pl.col(id_column).alias("id"), *(_clean(name) for name in layout.columns if name != id_column))
    if any(name.startswith(FLAG) for name in table.columns):
        table = _flags_to_list(table)
    table = _split_lists(table, layout.list_columns)
    return SideTable(source.name, table, read, rejected, frame.height - first.height)


def _clean(name: str) -> pl.Expr:
    """A column with empty texts as nulls."""
    text = pl.col(name).str.strip_chars()
    return pl.when(text != "").then(text).alias(name)


def _flags_to_list(table: pl.DataFrame) -> pl.DataFrame:
    """Columns of 0/1 flags → one list column 'genre'."""
    flags = [name for name in table.columns if name.startswith(FLAG)]
    genres = pl.concat_list(
        pl.when(pl.col(name) == "1").then(pl.lit(name.removeprefix(FLAG))) for name in flags
    ).list.drop_nulls()
    return table.with_columns(genres.alias("genre")).drop(flags)


def _split_lists(table: pl.DataFrame, separators: dict[str, str]) -> pl.DataFrame:
    """Split columns that hold lists: declared ones, JSON lists, a|b, and numbers separated by spaces."""
    columns = []
    for series in table.iter_columns():
        name = series.name
        if name == "id" or name in NAME_COLUMNS or series.dtype != pl.String:
            columns.append(series)
            continue
        present = series.drop_nulls()
        if name in separators:
            columns.append(series.str.split(separators[name]))
        elif len(present) and present.str.starts_with("[").all():
            columns.append(pl.Series(name, [_from_json(text) for text in series], dtype=pl.List(pl.String)))
        elif present.str.contains("|", literal=True).any():
            columns.append(series.str.split("|"))
        elif present.str.contains(_LIST_OF_NUMBERS).any() and present.str.contains(r"^\d+( \d+)*$").all():
            columns.append(series.str.split(" "))
        else:
            columns.append(series)
    return pl.DataFrame(columns)


def _from_json(text: str | None) -> list[str] | None:
    """Strings and numbers in a JSON list, inner lists opened; None if it is not JSON."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return [text]
    flat: list[str] = []
    stack = [value]
    while stack:
        each = stack.pop()
        if isinstance(each, list):
            stack += reversed(each)
        elif isinstance(each, str | int | float):
            flat.append(str(each))
    return flat


def _nearly_unique(values: int, rows: int) -> bool:
    return values > max(FEW_VALUES, rows // 2)


def profiles(user_ids: list[str], table: SideTable | None) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Profile columns of the users, and the vocabulary of their codes.

    Args:
        user_ids: outside ids by dense number.
        table: the users file; None without one. Columns left out are noted in its remarks.

    Returns:
        One `profile_<column>` Int32 column each (0 missing, from 1 in sorted order of the values), rows by user;
        vocabulary rows (kind, column, code, value).
    """
    vocabulary = [_vocabulary("profile", "", [], 1)]
    if table is None:
        return pl.DataFrame(height=len(user_ids)), vocabulary[0]
    known = pl.DataFrame({"id": user_ids}).join(table.frame, on="id", how="left", maintain_order="left")
    columns = []
    for series in known.drop("id").iter_columns():
        text = series if series.dtype == pl.String else series.list.join("|")
        values = text.drop_nulls().unique().sort()
        if len(values) == 0:
            continue
        if len(values) > MAX_PROFILE_VALUES or _nearly_unique(len(values), known.height):
            table.remarks.append(
                f"{table.name}: column {series.name!r} has {len(values)} values for {known.height} users: left out"
            )
            continue
        columns.append(_codes(text, values, 1).fill_null(0).alias(f"profile_{series.name}"))
        vocabulary.append(_vocabulary("profile", series.name, values.to_list(), 1))
    return pl.DataFrame(columns) if columns else pl.DataFrame(height=len(user_ids)), pl.concat(vocabulary)


def categories(
    item_ids: list[str], table: SideTable | None, in_log: pl.DataFrame | None, only: str | None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Names and categories of the items, and the vocabulary of the codes.

    Args:
        item_ids: outside ids by dense number.
        table: the items file; None without one. Columns left out are noted in its remarks.
        in_log: distinct (item_index, column, value) that the log itself states; None if it has no category column.
        only: the one column of the items file that --map names as category; None takes all.

    Returns:
        Columns name and category_indices, rows by item; vocabulary rows (kind, column, code, value), codes from 0 over
        all columns in the order of (column, value).
    """
    count = len(item_ids)
    names = pl.Series("name", [None] * count, dtype=pl.String)
    values = [pl.DataFrame(schema={"item_index": pl.Int32, "column": pl.String, "value": pl.String})]
    if in_log is not None:
        values.append(in_log)
    if table is not None:
        index = pl.Series("item_index", range(count), dtype=pl.Int32)
        known = (
            pl.DataFrame({"id": item_ids})
            .with_columns(index)
            .join(table.frame, on="id", how="left", maintain_order="left")
        )
        named = next((name for name in NAME_COLUMNS if name in table.frame.columns), None)
        if named is not None:
            text = known[named]
            names = text.alias("name") if text.dtype == pl.String else text.list.join(" ").alias("name")
        chosen = [name for name in table.frame.columns if name not in ("id", named)]
        if only in chosen:
            chosen = [only]
        for name in chosen:
            found = _item_values(known, name)
            distinct = found["value"].n_unique()
            if distinct == 0:
                continue
            if _nearly_unique(distinct, known.height):
                table.remarks.append(f"{table.name}: column {name!r} has {distinct} values for {count} items: left out")
                continue
            values.append(found)
    all_values = pl.concat(values).unique().sort("item_index", "column", "value")
    vocabulary = all_values.select("column", "value").unique().sort("column", "value").with_row_index("code")
    coded = all_values.join(vocabulary, on=["column", "value"], how="left")
    lists = (
        coded.sort("item_index", "code").group_by("item_index", maintain_order=True).agg(pl.col("code").cast(pl.Int32))
    )
    all_items = pl.DataFrame({"item_index": pl.Series(range(count), dtype=pl.Int32)})
    indices = all_items.join(lists, on="item_index", how="left", maintain_order="left")["code"]
    empty = pl.Series([[]], dtype=pl.List(pl.Int32))
    indices = indices.fill_null(empty) if indices.null_count() else indices
    rows = vocabulary.select(pl.lit("category").alias("kind"), "column", pl.col("code").cast(pl.Int32), "value")
    return pl.DataFrame([names, indices.alias("category_indices")]), rows


def _item_values(known: pl.DataFrame, name: str) -> pl.DataFrame:
    column = known.select("item_index", pl.col(name).alias("value"))
    if column.schema["value"] != pl.String:
        column = column.explode("value")
    text = pl.col("value").str.strip_chars()
    return (
        column.with_columns(text)
        .filter(text.is_not_null() & (text != "") & (text != _NO_GENRE))
        .select("item_index", pl.lit(name).alias("column"), "value")
    )


def _codes(text: pl.Series, values: pl.Series, start: int) -> pl.Series:
    codes = pl.Series(range(start, start + len(values)), dtype=pl.Int32)
    return text.replace_strict(values, codes, default=None, return_dtype=pl.Int32)


def _vocabulary(kind: str, column: str, values: list[str], start: int) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "kind": pl.Series([kind] * len(values), dtype=pl.String),
            "column": pl.Series([column] * len(values), dtype=pl.String),
            "code": pl.Series(range(start, start + len(values)), dtype=pl.Int32),
            "value": pl.Series(values, dtype=pl.String),
        }
    )
