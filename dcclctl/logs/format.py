"""The interface of a log format, and the table of all formats. A new format is one file and one row."""

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

#: value of `ingest --format` → its class and description; `auto` tries each in this order
FORMATS: Mapping[str, Variant] = {
    "parquet": Variant("dcclctl.logs.parquet:ParquetFormat", "Parquet"),
    "otto": Variant("dcclctl.logs.otto:OttoFormat", "OTTO's sessions in JSON lines"),
    "jsonl": Variant("dcclctl.logs.jsonl:JsonlFormat", "JSON lines: one object a line"),
    "mind": Variant("dcclctl.logs.impressions:MindFormat", "MIND's behaviors.tsv: lists of shown and clicked news"),
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
        mapped: columns that --map names. named: whether --format names the format that is tried.
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
        """Whether the first four bytes or the suffix are Parquet's."""
        return self.data.startswith(b"PAR1") or self.suffix in (".parquet", ".pq")

    @cached_property
    def text(self) -> bytes:
        """The first bytes as UTF-8, without a byte-order mark.

        Raises:
            DataError: it looks like UTF-16, but --encoding does not say so.
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
        """The first lines (at most 50) that are not blank.

        Raises:
            DataError: all lines are blank, or they end with CR only.
        """
        path, text = self.source.path, self.text
        if not text.strip():
            raise DataError(f"{path} holds nothing but blank lines", "Leave it out, or fetch it again.")
        if b"\n" not in text and b"\r" in text:
            raise DataError(f"{path} ends its lines with CR only", f"Convert it: tr '\\r' '\\n' < {path} > lines.csv")
        # The last line may be cut where the head ends.
        lines = text.decode("utf-8", "replace").splitlines()
        return [line for line in (lines[:-1] if len(self.data) >= _HEAD_BYTES else lines) if line.strip()][:50]

    @cached_property
    def delimiter(self) -> str | None:
        """The delimiter that splits the first line and gives the most lines as many fields; None if no delimiter does."""
        scores = {}
        for delimiter in _DELIMITERS:
            try:
                widths = [len(fields) for fields in csv.reader(self.lines, delimiter=delimiter, strict=False)]
            except csv.Error:
                continue
            if widths and widths[0] > 1:
                scores[delimiter] = (widths.count(widths[0]), widths[0])
        return max(scores, key=lambda delimiter: scores[delimiter], default=None)

    @cached_property
    def fields(self) -> list[str]:
        """The fields of the first line; empty without a delimiter."""
        return next(csv.reader([self.lines[0]], delimiter=self.delimiter)) if self.delimiter else []

    def unlike(self, layout: str) -> DataError:
        """The error for a file that does not have the layout that --format names."""
        return DataError(
            f"{self.source.path} does not have the {layout} layout; its first line: {self.lines[0][:80]!r}",
            "Leave --format out, or use --format csv with --map.",
        )


class LogFormat(ABC):
    """How files of one format are recognised and read.

    A format gives the names of a file's columns and its reader: `text`, `jsonl` or `parquet`. Row rules, rejects and ids
    are the same for all formats.
    """

    @abstractmethod
    def recognise(self, head: Head) -> Layout | None:
        """The layout of a file of this format; None for a file of another format.

        Raises:
            DataError: --format names this format (`head.named`), but the file has another one.
        """

    def sides(self, log: str) -> tuple[str | None, str | None]:
        """Names of the users file and the items file that belong to a log of this name; None: there is no such file."""
        return None, None
