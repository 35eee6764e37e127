"""Delimited text with a header; or without a header, if --map gives the positions of the columns."""

import re

from dcclctl.errors import DataError
from dcclctl.logs.format import Head, LogFormat
from dcclctl.logs.layout import Layout


class CsvFormat(LogFormat):
    def recognise(self, head: Head) -> Layout | None:
        """By a delimiter that splits the first line.

        Raises:
            DataError: there is no such delimiter, or the first line holds values instead of names.
        """
        first, fields, mapped, path = head.lines[0], head.fields, head.mapped, head.source.path
        if head.delimiter is None:
            raise DataError(
                f"{path}: no delimiter (comma, tab, semicolon or bar) splits its first line: {first[:80]!r}",
                "Convert it to CSV, or name its format with --format.",
            )
        positions = mapped and all(place.isdigit() and 1 <= int(place) <= len(fields) for place in mapped)
        if positions and not mapped & set(fields):
            columns = tuple(str(place) for place in range(1, len(fields) + 1))
            return Layout("csv", "text", columns, delimiter=head.delimiter, has_header=False)
        if not mapped & set(fields) and _looks_like_data(fields):
            raise DataError(
                f"{path} has no header; its first line: {first[:80]!r}",
                "Name the columns by position: --map user=1,item=2,time=3   (or --format taobao, amazon, movielens)",
            )
        return Layout("csv", "text", tuple(fields), delimiter=head.delimiter)


def _looks_like_data(fields: list[str]) -> bool:
    """Whether a first line holds values rather than names: mostly numbers, or an empty field."""
    return sum(bool(re.fullmatch(r"[+-]?[\d.:TZ\s-]+", field)) for field in fields) * 2 >= len(fields)
