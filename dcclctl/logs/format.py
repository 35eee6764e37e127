"""What a log format is, and the table of all formats. A new format is one file and one row."""

import codecs
import csv
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dcclctl.config import Variant
from dcclctl.errors import DataError
from dcclctl.logs.layout import Layout
from dcclctl.logs.sources import BOM, Source

#: `ingest --format` → where it is, and what it is; `auto` asks each in this order
FORMATS: Mapping[str, Variant] = {
    "parquet": Variant("dcclctl.logs.parquet:ParquetFormat", "Parquet"),
    "jsonl": Variant("dcclctl.logs.jsonl:JsonlFormat", "JSON lines: one object a line"),
    # before recbole, whose suffixes u.user and u.item have too
    "movielens": Variant("dcclctl.logs.movielens:MovielensFormat", "MovieLens 100k, 1M and the CSV releases"),
    "recbole": Variant("dcclctl.logs.recbole:RecboleFormat", "RecBole atomic files: .inter, .user, .item"),
    "taobao": Variant("dcclctl.logs.taobao:TaobaoFormat", "Taobao UserBehavior, without a header"),
    "amazon": Variant("dcclctl.logs.amazon:AmazonFormat", "Amazon reviews 2014, 2018 and 2023: ratings and JSON lines"),
    "csv": Variant("dcclctl.logs.delimited:CsvFormat", "text with a comma, tab, semicolon or bar between the fields"),
}

_DELIMITERS = (",", "\t", ";", "|")
_HEAD_BYTES = 1 << 16


@dataclass(frozen=True)
class Head:
    """The start of a file, by which its format is recognised.

    Attributes:
        source: the file. data: its first bytes, decompressed. declared: its encoding, as --encoding says.
        mapped: columns that --map names. named: did --format name the format that is asked now?
    """

    source: Source
    data: bytes
    declared: str
    mapped: frozenset[str]
    named: bool

    @property
    def suffix(self) -> str:
        """'.csv' of clicks.csv.gz."""
        return Path(self.source.stem).suffix.lower()

    @property
    def is_parquet(self) -> bool:
        """By its first four bytes or its suffix."""
        return self.data.startswith(b"PAR1") or self.suffix in (".parquet", ".pq")

    @cached_property
    def text(self) -> bytes:
        """The first bytes as UTF-8, without a byte-order mark.

        Raises:
            DataError: it looks like UTF-16, and nobody said so.
        """
        text = self.data.removeprefix(BOM)
        if self.declared != "utf-8":
            return text.decode(self.declared, "ignore").encode()
        zeros = text[:4096].count(0)
        if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or zeros * 4 > len(text[:4096]) > 8:
            raise DataError(f"{self.source.path} looks like UTF-16", "Declare it: --encoding utf-16")
        return text

    @cached_property
    def lines(self) -> list[str]:
        """Up to 50 first lines that are not blank.

        Raises:
            DataError: there are none, or lines end with CR only.
        """
        path, text = self.source.path, self.text
        if not text.strip():
            raise DataError(f"{path} holds nothing but blank lines", "Leave it out, or fetch it again.")
        if b"\n" not in text and b"\r" in text:
            raise DataError(f"{path} ends its lines with CR only", f"Convert it: tr '\\r' '\\n' < {path} > lines.csv")
        # The last line of the head may be cut; with one line only there is nothing else to look at.
        lines = text.decode("utf-8", "replace").splitlines()
        return [line for line in (lines[:-1] if len(self.data) >= _HEAD_BYTES else lines) if line.strip()][:50]

    @cached_property
    def delimiter(self) -> str | None:
        """The delimiter that splits the first line, most evenly over the lines that follow; None: no delimiter does."""
        best: tuple[int, int] | None = None
        found = None
        for delimiter in _DELIMITERS:
            try:
                widths = [len(fields) for fields in csv.reader(self.lines, delimiter=delimiter, strict=False)]
            except csv.Error:
                continue
            if not widths or widths[0] < 2:
                continue
            score = (sum(width == widths[0] for width in widths), widths[0])
            if best is None or score > best:
                best, found = score, delimiter
        return found

    @cached_property
    def fields(self) -> list[str]:
        """The fields of the first line; none without a delimiter."""
        return next(csv.reader([self.lines[0]], delimiter=self.delimiter)) if self.delimiter else []

    def unlike(self, layout: str) -> DataError:
        """The error of a file that does not have the layout that --format names."""
        return DataError(
            f"{self.source.path} does not have the {layout} layout; its first line: {self.lines[0][:80]!r}",
            "Leave --format out, or use --format csv with --map.",
        )


class LogFormat(ABC):
    """How files of one format are recognised and read.

    A format says what a file's columns are called and which of the three readers takes it: `text`, `jsonl` or `parquet`.
    The row rules, the quarantine and the ids are the same for all formats.
    """

    @abstractmethod
    def recognise(self, head: Head) -> Layout | None:
        """The layout of a file of this format; None for a file of another one.

        Raises:
            DataError: --format names this format (`head.named`), and the file has another one.
        """

    def sides(self, log: str) -> tuple[str | None, str | None]:
        """Names of the users' and the items' file that lie beside a log of this name; None where there is none."""
        return None, None
