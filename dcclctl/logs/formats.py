"""Recognise a file's layout by its name and its first lines. To add a format, add a branch here and a test."""

import codecs
import csv
import dataclasses
import re
from pathlib import Path

from dcclctl.config import IngestConfig
from dcclctl.errors import DataError
from dcclctl.logs.columns import SYNONYMS, assign_roles, check_unique
from dcclctl.logs.jsonl import check_is_lines, first_keys
from dcclctl.logs.layout import Layout
from dcclctl.logs.parquet import field_of, schema_of
from dcclctl.logs.sources import BOM, Source, first_bytes

_DELIMITERS = (",", "\t", ";", "|")
_ASIN = re.compile(r"B[0-9A-Z]{9}|[0-9]{9}[0-9X]")
_TAOBAO_BEHAVIOURS = frozenset(("pv", "buy", "cart", "fav"))
_MOVIELENS_GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
#: Prefix of the 0/1 columns that stand for one genre each in MovieLens-100k's u.item.
FLAG = "flag:"

#: Files of a known layout without a header: stem → layout.
_MOVIELENS_FILES = {
    "u.data": Layout(
        *("movielens", "text", ("user_id", "item_id", "rating", "timestamp")),
        delimiter="\t",
        has_header=False,
        quoting=False,
    ),
    "u.user": Layout(
        *("movielens", "text", ("user_id", "age", "gender", "occupation", "zip_code")),
        delimiter="|",
        has_header=False,
        quoting=False,
        encoding="latin-1",
    ),
    "u.item": Layout(
        "movielens",
        "text",
        (
            *("item_id", "title", "release_date", "video_release_date", "imdb_url"),
            *(FLAG + genre for genre in _MOVIELENS_GENRES),
        ),
        delimiter="|",
        has_header=False,
        quoting=False,
        encoding="latin-1",
    ),
    "ratings.dat": Layout(
        *("movielens", "text", ("user_id", "item_id", "rating", "timestamp")),
        delimiter="::",
        has_header=False,
        quoting=False,
    ),
    "users.dat": Layout(
        *("movielens", "text", ("user_id", "gender", "age", "occupation", "zip_code")),
        delimiter="::",
        has_header=False,
        quoting=False,
        encoding="latin-1",
    ),
    "movies.dat": Layout(
        *("movielens", "text", ("item_id", "title", "genres")),
        delimiter="::",
        has_header=False,
        quoting=False,
        encoding="latin-1",
        list_columns={"genres": "|"},
    ),
}
_MOVIELENS_SIDES = {
    "u.data": ("u.user", "u.item"),
    "ratings.dat": ("users.dat", "movies.dat"),
    "ratings.csv": (None, "movies.csv"),
}


def detect_log(source: Source, config: IngestConfig) -> Layout:
    """Layout of an event log, with its roles.

    Raises:
        DataError: not a log that can be read; the message says what to type.
        UsageError: --map names what is not there.
    """
    layout = _detect(source, config, frozenset(config.map.values()))
    roles = assign_roles(layout.columns, config.map, str(source.path))
    return dataclasses.replace(layout, roles=roles)


def detect_side(source: Source, config: IngestConfig, role: str) -> Layout:
    """Layout of a side table; its one role is the id.

    Args:
        source: the file.
        config: for its encoding and its map.
        role: user or item.

    Raises:
        DataError: no id column is found.
    """
    side = config.model_copy(update={"format": "auto"})
    layout = _detect(source, side, frozenset())
    check_unique(list(layout.columns), str(source.path))
    wanted = config.map.get(role)
    names = list(layout.columns)
    if wanted is not None and wanted in names:
        return dataclasses.replace(layout, roles={role: wanted})
    found = next((name for name in SYNONYMS[role] if name in names), None)
    if found is None:
        raise DataError(
            f"{source.path}: no column for the {role} id; its header: {', '.join(map(repr, names))}",
            f"Rename the id column to {role}_id, or name it as in the log and give --map {role}=…",
        )
    return dataclasses.replace(layout, roles={role: found})


def side_files(log: Path) -> tuple[Path | None, Path | None]:
    """Users and items file that belong to a log of a known layout and lie beside it."""
    plain = log.with_suffix("") if log.suffix in (".gz", ".zst") else log
    if plain.suffix == ".inter":
        names: tuple[str | None, str | None] = (f"{plain.stem}.user", f"{plain.stem}.item")
    else:
        names = _MOVIELENS_SIDES.get(plain.name, (None, None))
    users, items = (log.with_name(name) if name and log.with_name(name).is_file() else None for name in names)
    return users, items


def _detect(source: Source, config: IngestConfig, mapped: frozenset[str]) -> Layout:
    suffix = Path(source.stem).suffix.lower()
    head = first_bytes(source)
    wanted = config.format
    if head.startswith(b"PAR1") or wanted == "parquet" or suffix in (".parquet", ".pq"):
        _check_format(source, wanted, "parquet")
        return Layout("parquet", "parquet", _parquet_columns(source, mapped))
    bom = head.startswith(BOM)
    text = head.removeprefix(BOM)
    encoding = _check_encoding(text, source, config.encoding)
    if encoding != "utf-8":
        text = text.decode(encoding, "ignore").encode()
    known = _MOVIELENS_FILES.get(source.stem)
    if known is not None and wanted in ("auto", "movielens"):
        return dataclasses.replace(known, bom=bom)
    if not text.strip():
        raise DataError(f"{source.path} holds nothing but blank lines", "Leave it out, or fetch it again.")
    if wanted == "jsonl" or (wanted in ("auto", "amazon") and text.lstrip()[:1] in (b"{", b"[")):
        check_is_lines(text, source.path)
        keys = first_keys(text)
        if not keys:
            raise DataError(
                f"{source.path}: none of its first lines is a JSON object", "Name its format, e.g. --format csv."
            )
        return Layout("jsonl" if wanted != "amazon" else "amazon", "jsonl", tuple(keys), bom=bom, encoding=encoding)
    if b"\n" not in text and b"\r" in text:
        raise DataError(
            f"{source.path} ends its lines with CR only", f"Convert it: tr '\\r' '\\n' < {source.path} > lines.csv"
        )
    # The last line of the head may be cut; with one line only there is nothing else to look at.
    lines = text.decode("utf-8", "replace").splitlines()
    lines = [line for line in (lines[:-1] if len(head) >= 1 << 16 else lines) if line.strip()][:50]
    layout = _detect_text(source, lines, wanted, suffix, mapped)
    return dataclasses.replace(layout, bom=bom, encoding=encoding)


def _check_format(source: Source, wanted: str, found: str) -> None:
    if wanted not in ("auto", found):
        raise DataError(f"{source.path} is {found}, not {wanted}", f"Leave --format out, or write --format {found}")


def _parquet_columns(source: Source, mapped: frozenset[str]) -> tuple[str, ...]:
    schema = schema_of(source)
    names = list(schema.names)
    inner = sorted(name for name in mapped if name not in names and field_of(schema, name) is not None)
    return (*names, *inner)


def _check_encoding(head: bytes, source: Source, declared: str) -> str:
    if declared == "utf-8":
        zeros = head[:4096].count(0)
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or zeros * 4 > len(head[:4096]) > 8:
            raise DataError(f"{source.path} looks like UTF-16", "Declare it: --encoding utf-16")
    return declared


def _detect_text(source: Source, lines: list[str], wanted: str, suffix: str, mapped: frozenset[str]) -> Layout:
    first = lines[0]
    if wanted == "recbole" or (wanted == "auto" and suffix in (".inter", ".user", ".item")):
        return _recbole(source, first)
    if "::" in first and wanted in ("auto", "movielens"):
        return dataclasses.replace(_MOVIELENS_FILES["ratings.dat"])
    delimiter = _sniff(lines)
    if delimiter is None:
        raise DataError(
            f"{source.path}: no delimiter (comma, tab, semicolon or bar) splits its first line: {first[:80]!r}",
            "Convert it to CSV, or name its format with --format.",
        )
    fields = next(csv.reader([first], delimiter=delimiter))
    if wanted in ("auto", "taobao") and len(fields) == 5 and fields[3] in _TAOBAO_BEHAVIOURS:
        taobao = ("user_id", "item_id", "category_id", "behaviour", "timestamp")
        return Layout("taobao", "text", taobao, delimiter=delimiter, has_header=False)
    if wanted in ("auto", "amazon") and len(fields) == 4 and (order := _amazon_order(fields)):
        return Layout("amazon", "text", order, delimiter=delimiter, has_header=False)
    positions = mapped and all(place.isdigit() and 1 <= int(place) <= len(fields) for place in mapped)
    if positions and not mapped & set(fields):
        columns = tuple(str(place) for place in range(1, len(fields) + 1))
        return Layout("csv", "text", columns, delimiter=delimiter, has_header=False)
    if wanted == "taobao" or (wanted == "amazon" and not set(fields) & {"user_id", "parent_asin", "asin"}):
        raise DataError(
            f"{source.path} does not have the {wanted} layout; its first line: {first[:80]!r}",
            "Leave --format out, or use --format csv with --map.",
        )
    if not any(name in fields for name in mapped) and _looks_like_data(fields):
        raise DataError(
            f"{source.path} has no header; its first line: {first[:80]!r}",
            "Name the columns by position: --map user=1,item=2,time=3   (or --format taobao, amazon, movielens)",
        )
    genres = {"genres": "|"} if fields[0] == "movieId" else {}
    movielens = fields[:2] in (["userId", "movieId"], ["movieId", "title"])
    return Layout(
        "movielens" if movielens else wanted if wanted == "amazon" else "csv",
        "text",
        tuple(fields),
        delimiter=delimiter,
        list_columns=genres,
    )


def _recbole(source: Source, header: str) -> Layout:
    typed = [field.rsplit(":", 1) for field in header.rstrip("\r").split("\t")]
    if not all(len(parts) == 2 and parts[1] in ("token", "token_seq", "float", "float_seq") for parts in typed):
        raise DataError(
            f"{source.path} has no RecBole header (like user_id:token); its first line: {header[:80]!r}",
            "Use --format csv with --map, or mend the header.",
        )
    return Layout(
        *("recbole", "text", tuple(name for name, _ in typed)),
        delimiter="\t",
        quoting=False,
        list_columns={name: " " for name, kind in typed if kind == "token_seq"},
    )


def _sniff(lines: list[str]) -> str | None:
    """The delimiter that splits the first line, most evenly over the lines that follow."""
    best: tuple[int, int] | None = None
    found = None
    for delimiter in _DELIMITERS:
        try:
            widths = [len(fields) for fields in csv.reader(lines, delimiter=delimiter, strict=False)]
        except csv.Error:
            continue
        if not widths or widths[0] < 2:
            continue
        score = (sum(width == widths[0] for width in widths), widths[0])
        if best is None or score > best:
            best, found = score, delimiter
    return found


def _amazon_order(fields: list[str]) -> tuple[str, ...] | None:
    """Columns of a headerless ratings file: 2014 has user,item,…, 2018 has item,user,…"""
    numeric = all(re.fullmatch(r"\d+(\.\d+)?", field) for field in fields[2:])
    first, second = (bool(_ASIN.fullmatch(field)) for field in fields[:2])
    if not numeric or first == second:
        return None
    ids = ("item_id", "user_id") if first else ("user_id", "item_id")
    return (*ids, "rating", "timestamp")


def _looks_like_data(fields: list[str]) -> bool:
    """Whether a first line holds values rather than names: mostly numbers, or an empty field."""
    return sum(bool(re.fullmatch(r"[+-]?[\d.:TZ\s-]+", field)) for field in fields) * 2 >= len(fields)


def check_same_columns(layouts: list[tuple[Source, Layout]]) -> None:
    """Refuse logs whose formats or headers differ: their columns would be guessed apart.

    Raises:
        DataError: naming the two files and what differs.
    """
    first, layout = layouts[0]
    for source, other in layouts[1:]:
        if other.container != layout.container or (other.container != "jsonl" and other.columns != layout.columns):
            differing = sorted(set(other.columns) ^ set(layout.columns)) or ["the order of the columns"]
            raise DataError(
                f"{first.path} and {source.path} do not have the same columns: {', '.join(differing)}",
                "Ingest them one by one, or make their headers equal.",
            )
