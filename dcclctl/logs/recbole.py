"""RecBole atomic files: tab-separated text with a type for each column in the header."""

from pathlib import Path

from dcclctl.errors import DataError
from dcclctl.logs.format import Head, LogFormat
from dcclctl.logs.layout import Layout

_TYPES = ("token", "token_seq", "float", "float_seq")


class RecboleFormat(LogFormat):
    def recognise(self, head: Head) -> Layout | None:
        """By its suffix."""
        if not head.named and head.suffix not in (".inter", ".user", ".item"):
            return None
        header = head.lines[0]
        typed = [field.rsplit(":", 1) for field in header.rstrip("\r").split("\t")]
        if not all(len(parts) == 2 and parts[1] in _TYPES for parts in typed):
            raise DataError(
                f"{head.source.path} has no RecBole header (like user_id:token); its first line: {header[:80]!r}",
                "Use --format csv with --map, or mend the header.",
            )
        return Layout(
            *("recbole", "text", tuple(name for name, _ in typed)),
            delimiter="\t",
            quoting=False,
            list_columns={name: " " for name, kind in typed if kind == "token_seq"},
        )

    def sides(self, log: str) -> tuple[str | None, str | None]:
        stem, suffix = Path(log).stem, Path(log).suffix
        return (f"{stem}.user", f"{stem}.item") if suffix == ".inter" else (None, None)
