"""Delimited text with a header; or without a header, if --map gives the positions of the columns."""

import dataclasses
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
                f"{path}: no delimiter (comma, tab, semicolon, bar, space, '::') splits its first line: {first[:80]!r}",
                "Name it with --delimiter, or name the file's format with --format.",
            )
        layout = Layout("csv", "text", tuple(fields), delimiter=head.delimiter, quoting=head.quoting)
        positions = tuple(str(place) for place in range(1, len(fields) + 1))
        if mapped and mapped <= set(positions) and not _is_header_of_numbers(fields, mapped):
            return dataclasses.replace(layout, columns=positions, has_header=self._names_above_data(head))
        if not mapped & set(fields) and _looks_like_data(fields):
            remedy = (
                "Name the columns by position: --map user=1,item=2,time=3   (or --format taobao, amazon, movielens)"
            )
            raise DataError(
                f"{path} has no header; its first line: {first[:80]!r}",
                "Give it a first line with the names of its columns, e.g. item_id,name,category."
                if head.side
                else remedy,
            )
        return layout

    @staticmethod
    def _names_above_data(head: Head) -> bool:
        """Whether the first line has a word where the lines below it have a time."""
        place = int(head.roles.get("time", "0")) - 1
        times = [line[place] for line in head.rows if place >= 0 and len(line) > place]
        return len(times) > 1 and not any(map(str.isdigit, times[0])) and any(map(str.isdigit, times[1]))


def _is_header_of_numbers(fields: list[str], mapped: frozenset[str]) -> bool:
    """Whether a first line names its columns 0, 1, 2, … or 1, 2, 3, …, those of --map among them."""
    return mapped <= set(fields) and fields in (
        [str(place + start) for place in range(len(fields))] for start in (0, 1)
    )


def _looks_like_data(fields: list[str]) -> bool:
    """Whether a first line holds values rather than names: mostly numbers, or an empty field."""
    return sum(bool(re.fullmatch(r"[+-]?[0-9.:TZ\s-]+", field)) for field in fields) * 2 >= len(fields)
