"""Recommendations: the best items of many users, in one table for each shard of users."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from dcclctl.artifacts.bundle import Bundle
from dcclctl.artifacts.cloud import CloudModel
from dcclctl.artifacts.handle import Handle, check_same
from dcclctl.artifacts.patches import PatchSet
from dcclctl.errors import UsageError
from dcclctl.store.disk import whole_file
from dcclctl.store.store import Artifact

if TYPE_CHECKING:
    import polars as pl

#: a spreadsheet takes a cell that begins with one of these for a formula
_FORMULA: Final = r"^[=+\-@\t\r]"
_NUMBER: Final = r"^[+-]?\d+(\.\d+)?$"


class Recommendations(Handle):
    """The lists of many users, made by one cloud model, set of patches or bundle.

    Raises:
        ArtifactError: the lists and their model do not belong together.
    """

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact)
        model = artifact.input("model")
        kinds: dict[str, type[CloudModel] | type[PatchSet] | type[Bundle]]
        kinds = {"cloud": CloudModel, "patches": PatchSet, "bundle": Bundle}
        self.model = kinds[model.kind](model)
        below = self.model if isinstance(self.model, CloudModel) else self.model.cloud
        check_same("the id map", artifact, artifact.facts["id_map"], below.artifact, below.dataset.id_map)

    def shards(self) -> "Iterator[pl.DataFrame]":
        """A RECOMMENDATIONS table for each shard of users, see tables.py; one at a time is in memory."""
        for number in range(int(self.facts["shards"])):
            yield self.artifact.read_table(shard_name(number))

    @property
    def lists(self) -> "pl.DataFrame":
        """All lists as one RECOMMENDATIONS table."""
        import polars as pl

        return pl.concat(self.shards())

    def write(self, path: str | Path) -> Path:
        """Write all lists to a Parquet, CSV or JSON-lines file, shard by shard; the file appears when it is whole.

        In CSV a text cell that a spreadsheet would take for a formula gets a ' in front; the other formats have every
        text as it is.

        Args:
            path: its suffix, .parquet, .csv or .jsonl, decides the format. An existing file is replaced.

        Raises:
            UsageError: another suffix, no such folder, or a file that cannot be written.
        """
        target = check_output(Path(path))
        try:
            with whole_file(target) as file:
                _WRITERS[target.suffix](file, self.shards())
        except OSError as error:
            raise UsageError(f"cannot write {target}: {error.strerror}", "Choose another file after -o.") from error
        return target


def shard_name(shard: int) -> str:
    """The file that holds the lists of one shard of users."""
    return f"lists-{shard:05d}.parquet"


def check_output(path: Path) -> Path:
    """Check that lists can be written there, before they are computed.

    Raises:
        UsageError: a suffix of no known format, no such folder, or a folder of that name.
    """
    if path.suffix not in _WRITERS:
        raise UsageError(
            f"{path}: the suffix {path.suffix or '(none)'} names no format for recommendations",
            f"End the name in {', '.join(_WRITERS)}.",
        )
    if not path.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {path.parent} for {path.name}", "Make it first, or choose another.")
    if path.is_dir():
        raise UsageError(f"{path} is a folder", "Name a file in it.")
    return path


def _write_parquet(file: IO[bytes], shards: "Iterator[pl.DataFrame]") -> None:
    import pyarrow.parquet as pq

    writer = None
    for shard in shards:
        table = shard.to_arrow()
        writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
        writer.write_table(table)
    if writer is not None:
        writer.close()


def _write_csv(file: IO[bytes], shards: "Iterator[pl.DataFrame]") -> None:
    import polars as pl

    text = pl.col("user_id", "item_id", "name")
    # -5 is a number, and an id may be one
    formula = text.str.contains(_FORMULA) & ~text.str.contains(_NUMBER)
    for number, shard in enumerate(shards):
        safe = shard.with_columns(pl.when(formula).then("'" + text).otherwise(text).name.keep())
        safe.write_csv(file, include_header=number == 0)


def _write_jsonl(file: IO[bytes], shards: "Iterator[pl.DataFrame]") -> None:
    for shard in shards:
        shard.write_ndjson(file)


#: suffix of a file → what writes its format
_WRITERS: Final[Mapping[str, Callable[[IO[bytes], Any], None]]] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
}
