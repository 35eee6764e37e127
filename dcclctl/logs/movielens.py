"""MovieLens: the files of 100k and 1M, which have no header, and the CSV files of later releases."""

import dataclasses
from collections.abc import Mapping

from dcclctl.logs.delimited import CsvFormat
from dcclctl.logs.format import Head, LogFormat
from dcclctl.logs.layout import Layout

_GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
#: Prefix of the columns of MovieLens-100k's u.item that hold 0 or 1 for one genre.
FLAG = "flag:"


def _file(delimiter: str, *columns: str, encoding: str = "latin-1", lists: Mapping[str, str] | None = None) -> Layout:
    """A file without a header."""
    return Layout(
        *("movielens", "text", columns),
        delimiter=delimiter,
        has_header=False,
        quoting=False,
        encoding=encoding,
        list_columns=dict(lists or {}),
    )


_RATINGS = ("user_id", "item_id", "rating", "timestamp")
_ITEM = ("item_id", "title", "release_date", "video_release_date", "imdb_url")
#: stem of a file without a header → its layout
_FILES = {
    "u.data": _file("\t", *_RATINGS, encoding="utf-8"),
    "u.user": _file("|", "user_id", "age", "gender", "occupation", "zip_code"),
    "u.item": _file("|", *_ITEM, *(FLAG + genre for genre in _GENRES)),
    "ratings.dat": _file("::", *_RATINGS, encoding="utf-8"),
    "users.dat": _file("::", "user_id", "gender", "age", "occupation", "zip_code"),
    "movies.dat": _file("::", "item_id", "title", "genres", lists={"genres": "|"}),
}
#: stem of a log → the users file and the items file beside it
_SIDES = {
    "u.data": ("u.user", "u.item"),
    "ratings.dat": ("users.dat", "movies.dat"),
    "ratings.csv": (None, "movies.csv"),
}


class MovielensFormat(LogFormat):
    def recognise(self, head: Head) -> Layout | None:
        """By the file's name, by '::' in the first line, or by the header of a CSV file."""
        known = _FILES.get(head.source.stem)
        if known is not None:
            return known
        ratings = head.lines[0].split("::")
        if len(ratings) == len(_RATINGS) and all(text.replace(".", "", 1).isdigit() for text in ratings[2:]):
            return _FILES["ratings.dat"]
        header = head.fields[:2] in (["userId", "movieId"], ["movieId", "title"])
        if not header and not head.named:
            return None
        layout = CsvFormat().recognise(head)
        if layout is None or not header or not layout.has_header:
            return layout
        lists = {"genres": "|"} if head.fields[0] == "movieId" else {}
        return dataclasses.replace(layout, format="movielens", list_columns=lists)

    def sides(self, log: str) -> tuple[str | None, str | None]:
        return _SIDES.get(log, (None, None))
