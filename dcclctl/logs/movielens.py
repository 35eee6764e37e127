"""MovieLens: the files of 100k and 1M, which have no header, and the CSV files of later releases."""

import dataclasses

from dcclctl.logs.delimited import CsvFormat
from dcclctl.logs.format import Head, LogFormat
from dcclctl.logs.layout import Layout

_GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
#: Prefix of the 0/1 columns that stand for one genre each in MovieLens-100k's u.item.
FLAG = "flag:"

#: Files of a known layout without a header: stem → layout.
_FILES = {
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
            *(FLAG + genre for genre in _GENRES),
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
_SIDES = {
    "u.data": ("u.user", "u.item"),
    "ratings.dat": ("users.dat", "movies.dat"),
    "ratings.csv": (None, "movies.csv"),
}


class MovielensFormat(LogFormat):
    """The format `movielens`."""

    def recognise(self, head: Head) -> Layout | None:
        """By the file's name, by '::' in the first line, or by the header of a CSV file."""
        known = _FILES.get(head.source.stem)
        if known is not None:
            return known
        if "::" in head.lines[0]:
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
