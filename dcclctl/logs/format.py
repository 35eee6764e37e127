"""The interface of a log format, and the table of all formats. A new format is one file and one row."""

import contextlib
import csv
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dcclctl.config import IngestConfig, Variant
from dcclctl.errors import DataError
from dcclctl.logs.layout import Layout
from dcclctl.logs.sources import BOM, HEAD_BYTES, Source, decoder_of

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
    "csv": Variant("dcclctl.logs.delimited:CsvFormat", "text with a delimiter between the fields"),
}

#: Delimiters that are found by themselves; a space only where no other one splits the first line.
_DELIMITERS = (",", "\t", ";", "|", "::", "\x01")
#: Where these stand between the fields, programs put quotes around a field that contains one.
_QUOTED = (",", ";", "|")


@dataclass(frozen=True)
class Head:
    """The start of a file, by which its format is recognised.

    Attributes:
        source: the file. data: its first bytes, decompressed.
        config: encoding, delimiter, quotes and the columns that --map names.
        named: whether --format names the format that is tried.
        side: whether the file is a side table. Then --map does not speak of its columns.
    """

    source: Source
    data: bytes
    config: IngestConfig
    named: bool
    side: bool = False

    @property
    def roles(self) -> Mapping[str, str]:
        """Role → column of this file, as --map says."""
        return {} if self.side else {role: column for role, column in self.config.map.items() if column}

    @property
    def mapped(self) -> frozenset[str]:
        """The columns that --map names."""
        return frozenset(self.roles.values())

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
        data, path = self.data, self.source.path
        if data.startswith(BOM):
            return data.removeprefix(BOM)
        if data[257:262] == b"ustar":
            raise DataError(f"{path} is a tar archive", f"Unpack it: tar -xf {path}")
        if self.config.encoding != "utf-8":
            text = decoder_of(self.config.encoding, data, "ignore").decode(data)
            return text.removeprefix("\ufeff").encode("utf-8", "ignore")
        zeros = data[:4096].count(0)
        if data.startswith((b"\xff\xfe", b"\xfe\xff")) or zeros * 4 > len(data[:4096]) > 8:
            raise DataError(f"{path} looks like UTF-16", "Declare it: --encoding utf-16")
        return data

    @cached_property
    def lines(self) -> list[str]:
        """The first lines (at most 50) that are not blank.

        Raises:
            DataError: all lines are blank, they end with CR only, or the first one is too long.
        """
        path, text = self.source.path, self.text
        whole = len(self.data) < HEAD_BYTES
        if not text.strip():
            found = "holds nothing but" if whole else f"begins with {HEAD_BYTES >> 20} MiB of"
            raise DataError(f"{path} {found} blank lines", "Leave the file out, or remove them.")
        if b"\n" not in text and b"\r" in text:
            raise DataError(f"{path} ends its lines with CR only", f"Convert it: tr '\\r' '\\n' < {path} > lines.csv")
        # The last line may be cut where the head ends.
        lines = text.decode("utf-8", "replace").split("\n")
        filled = [line.removesuffix("\r") for line in (lines if whole else lines[:-1]) if line.strip()][:50]
        if not filled:
            raise DataError(
                f"{path}: its first line is longer than {HEAD_BYTES >> 20} MiB: it is not line-separated text",
                "Convert it to CSV first.",
            )
        return filled

    @cached_property
    def delimiter(self) -> str | None:
        """The delimiter that splits the first line and gives the most lines as many fields; None if no delimiter does.

        Raises:
            DataError: the delimiter that --delimiter names is not in the first line.
        """
        declared, first = self.config.delimiter, self.lines[0]
        if declared and declared in first:
            return declared
        if declared and not self.side:
            raise DataError(
                f"{self.source.path}: the delimiter {declared!r} is not in its first line: {first[:80]!r}",
                "Name another one with --delimiter, or leave it out.",
            )
        scores = {}
        for delimiter in _DELIMITERS:
            widths = [len(fields) for fields in _split(self.lines, delimiter, delimiter in _QUOTED)]
            if widths and widths[0] > 1:
                scores[delimiter] = (widths.count(widths[0]), widths[0])
        best = max(scores, key=lambda delimiter: scores[delimiter], default=None)
        return best or (" " if " " in first.strip() else None)

    @cached_property
    def fields(self) -> list[str]:
        """The fields of the first line; empty without a delimiter."""
        return _split(self.lines[:1], self.delimiter, self.quoting)[0] if self.delimiter else []

    @property
    def rows(self) -> list[list[str]]:
        """The fields of the first lines."""
        return _split(self.lines, self.delimiter or ",", self.quoting)

    @property
    def quoting(self) -> bool:
        """Whether quotes enclose a field: as --quote says; with tabs and the like only where the first line has them."""
        if self.config.quote != "auto":
            return self.config.quote == "double"
        if self.delimiter in _QUOTED:
            return True
        plain = self.lines[0].split(self.delimiter or ",")
        return all(len(field) > 1 and field[0] == field[-1] == '"' for field in plain)

    def unlike(self, layout: str) -> DataError:
        """The error for a file that does not have the layout that --format names."""
        return DataError(
            f"{self.source.path} does not have the {layout} layout; its first line: {self.lines[0][:80]!r}",
            "Leave --format out, or use --format csv with --map.",
        )


def _split(lines: list[str], delimiter: str, quoted: bool) -> list[list[str]]:
    """The fields of some lines."""
    if quoted and len(delimiter) == 1:
        with contextlib.suppress(csv.Error):
            return list(csv.reader(lines, delimiter=delimiter, strict=False))
    return [line.split(delimiter) for line in lines]


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
