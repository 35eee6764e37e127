"""Reads side tables: profile columns of users, names and categories of items."""

import ast
import json
from collections import Counter
from dataclasses import dataclass, field

import polars as pl

from dcclctl.config import IngestConfig
from dcclctl.errors import DataError
from dcclctl.logs.columns import NAME_COLUMNS
from dcclctl.logs.formats import detect_side
from dcclctl.logs.ids import IdColumn
from dcclctl.logs.movielens import FLAG
from dcclctl.logs.quarantine import Quarantine
from dcclctl.logs.reader import batches
from dcclctl.logs.rules import EMPTY_IDS
from dcclctl.logs.sources import Source
from dcclctl.tables import VOCABULARY

#: A profile column with more values identifies single users instead of describing groups of them.
MAX_PROFILE_VALUES = 1000
#: A column is nearly unique if it has more values than this and than half of the rows.
FEW_VALUES = 20
#: A table with rows for a smaller share of the ids is probably another log's, or writes its ids in another way.
FEW_MATCHES = 0.1

_LIST_OF_NUMBERS = r"^[0-9]+( [0-9]+)+$"
_NO_GENRE = "(no genres listed)"


@dataclass
class SideTable:
    """A side table as text, one row an id, ids in the table's order.

    Args:
        name: file name.
        frame: String columns, `id` first; columns of lists are List(String).
        read, rejected, repeated: number of rows, of rows that cannot be read, and of rows whose id came before.
        warnings: key of `rules.WARNINGS` → count.
        matched: how many users or items of the log have a row; None before that is known.
        remarks: sentences for people.
    """

    name: str
    frame: pl.DataFrame
    read: int
    rejected: int
    repeated: int
    warnings: dict[str, int] = field(default_factory=dict)
    matched: int | None = None
    remarks: list[str] = field(default_factory=list)

    def match(self, role: str, ids: list[str]) -> None:
        """Count which ids of the log have a row; warn, with an example of both, if hardly any has one.

        Args:
            role: user or item. ids: all of them.
        """
        rows = set(self.frame["id"].to_list())
        missing = [each for each in ids if each not in rows]
        self.matched = len(ids) - len(missing)
        self.remarks.insert(0, f"{self.name}: a row for {self.matched:,} of {len(ids):,} {role}s")
        if self.matched < FEW_MATCHES * len(ids):
            self.warnings[f"unmatched-{role}s"] = len(missing)
            self.remarks[0] += f"; the log has {missing[0]!r}, the table has {self.frame['id'][0]!r}"
            if any(each.endswith(".0") for each in (missing[0], self.frame["id"][0])):
                self.remarks[0] += " (--ids int reads both '1.0' and '1' as '1')"


def read_side(source: Source, config: IngestConfig, role: str, quarantine: Quarantine) -> SideTable:
    """Read a users file (`role` is user) or an items file (item); `quarantine` collects its rejects.

    Raises:
        DataError: no id column, too many rejects, or the file is damaged.
    """
    layout = detect_side(source, config, role)
    id_column = layout.roles[role]
    columns = [name for name in layout.columns if name not in layout.unreadable or name == id_column]
    values = [name for name in columns if name != id_column]
    warnings: Counter[str] = Counter()
    numbers = IdColumn(as_int=True, empty_is_value=True)
    parts, read = [], 0
    for batch, _ in batches(source, layout, columns, values):
        read += batch.read
        warnings.update(batch.warnings)
        ids = batch.frame[id_column].fill_null("").str.strip_chars()
        if config.ids == "int":
            ids = pl.Series(numbers.texts(numbers.encode(ids)[0].tolist()), dtype=pl.String)
        empty = ids.is_in(list(EMPTY_IDS)).to_numpy()
        kept = quarantine.add_batch(source.name, batch, {f"empty-{role}": empty})
        frame = batch.frame.with_columns(ids.alias(id_column))
        parts.append(frame if kept is None else frame.filter(kept))
    quarantine.check(source.name, read, config.max_reject)
    if not parts or read == 0:
        raise DataError(f"{source.path} has a header and no rows", "Leave it out, or fetch it again.")
    frame = pl.concat(parts)
    first = frame.unique(id_column, keep="first", maintain_order=True)
    values = [name for name in values if name != "id"]
    table = first.select(pl.col(id_column).alias("id"), pl.col(values).str.strip_chars().replace("", None))
    table = _split_lists(_flags_to_list(table), layout.list_columns)
    repeated = frame.height - first.height
    odd = [
        f"{source.name}: column {name!r} is left out: its values ({kind[:60]}) are neither text, numbers nor lists"
        for name, kind in layout.unreadable.items()
    ]
    if "id" in frame.columns and id_column != "id":
        odd.append(f"{source.name}: column 'id' is left out: the ids are in {id_column!r}")
    rejected = quarantine.by_source[source.name]
    return SideTable(source.name, table, read, rejected, repeated, dict(warnings), remarks=odd)


def _flags_to_list(table: pl.DataFrame) -> pl.DataFrame:
    """Replace columns of 0/1 flags by one list column 'genre'."""
    flags = [name for name in table.columns if name.startswith(FLAG)]
    if not flags:
        return table
    genres = pl.concat_list(
        pl.when(pl.col(name) == "1").then(pl.lit(name.removeprefix(FLAG))) for name in flags
    ).list.drop_nulls()
    return table.with_columns(genres.alias("genre")).drop(flags)


def _split_lists(table: pl.DataFrame, separators: dict[str, str]) -> pl.DataFrame:
    """Split columns that hold lists: declared ones, JSON lists, a|b, and numbers separated by spaces."""

    def split(series: pl.Series) -> pl.Series:
        if series.name == "id" or series.name in NAME_COLUMNS or series.dtype != pl.String:
            return series
        return split_lists(series, separators.get(series.name))

    return pl.DataFrame([split(series) for series in table.iter_columns()])


def split_lists(series: pl.Series, separator: str | None) -> pl.Series:
    """The texts as lists where they are lists: JSON or Python lists, a|b, numbers separated by spaces.

    Args:
        separator: what a format that declares the column to hold lists has between the values; None: it declares nothing.
    """
    present = series.drop_nulls()
    if separator is not None:
        return series.str.split(separator)
    if present.str.starts_with("[").any():
        return pl.Series(series.name, [_values_of(text) for text in series], dtype=pl.List(pl.String))
    if present.str.contains("|", literal=True).any():
        return series.str.split("|")
    numbers = present.str.contains(_LIST_OF_NUMBERS).any() and present.str.contains(r"^[0-9]+( [0-9]+)*$").all()
    return series.str.split(" ") if numbers else series


def _values_of(text: str | None) -> list[str] | None:
    """Strings and numbers of a list and its inner lists; text that is no list as the only value."""
    if text is None or not text.startswith("["):
        return None if text is None else [text]
    for read in (json.loads, ast.literal_eval):  # a Python list has single quotes; literal_eval reads, it runs nothing
        try:
            value = read(text)
            break
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    else:
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
        table: the users file; None without one. Its remarks name the columns that are left out.

    Returns:
        `profile_<column>` Int32 columns (0 missing, from 1 in sorted order of the values), rows by user; and a VOCABULARY
        table, see tables.py.
    """
    vocabulary = [_vocabulary("", [])]
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
        codes = pl.Series(range(1, len(values) + 1), dtype=pl.Int32)
        coded = text.replace_strict(values, codes, default=None, return_dtype=pl.Int32)
        columns.append(coded.fill_null(0).alias(f"profile_{series.name}"))
        vocabulary.append(_vocabulary(series.name, values.to_list()))
    return pl.DataFrame(columns) if columns else pl.DataFrame(height=len(user_ids)), pl.concat(vocabulary)


def categories(
    item_ids: list[str],
    table: SideTable | None,
    in_log: pl.DataFrame | None,
    only: str | None,
    log_names: list[str | None] | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Names and categories of the items, and the vocabulary of the codes.

    Args:
        item_ids: outside ids by dense number.
        table: the items file; None without one. Its remarks name the columns that are left out.
        in_log: distinct (item_index, column, value) of the log itself; None if it has no category column.
        only: the column of the items file that --map names as category; None takes all columns.
        log_names: each item's name in the log itself, for items without one in the table.

    Returns:
        Columns name and category_indices, rows by item; and a VOCABULARY table (see tables.py), its codes in the order of
        (column, value).
    """
    count = len(item_ids)
    all_items = pl.DataFrame({"item_index": pl.Series(range(count), dtype=pl.Int32)})
    names = pl.Series("name", log_names or [None] * count, dtype=pl.String)
    values = [pl.DataFrame(schema={"item_index": pl.Int32, "column": pl.String, "value": pl.String})]
    if in_log is not None:
        values.append(in_log)
    if table is not None:
        known = all_items.with_columns(id=pl.Series(item_ids)).join(
            table.frame, on="id", how="left", maintain_order="left"
        )
        named = next((name for name in NAME_COLUMNS if name in table.frame.columns), None)
        if named is not None:
            text = known[named]
            text = text if text.dtype == pl.String else text.list.join(" ")
            names = text.zip_with(text.is_not_null(), names).alias("name")
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
    by_item = coded.sort("item_index", "code").group_by("item_index", maintain_order=True)
    lists = by_item.agg(pl.col("code").cast(pl.Int32))
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


def _vocabulary(column: str, values: list[str]) -> pl.DataFrame:
    """Vocabulary of one profile column, codes from 1."""
    rows = [("profile", column, code, value) for code, value in enumerate(values, 1)]
    return pl.DataFrame(rows, schema=VOCABULARY.schema(), orient="row")
