"""Reads and writes the three kinds of file in an artifact: Parquet tables, safetensors, canonical JSON.

Equal content gives equal bytes. Files are read only after their hash has been checked. No pickle anywhere.
"""

import hashlib
import json
import os
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader, BytesIO, FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from dcclctl.errors import ArtifactError
from dcclctl.store.canonical import canonical

if TYPE_CHECKING:
    import polars as pl
    from torch import Tensor

COMPRESSION: Final[Literal["zstd"]] = "zstd"
#: Fixed, because polars' default, and so the bytes, depend on the number of threads.
ROW_GROUP_ROWS: Final = 262_144

#: A file that changed more recently may change again without a new time stamp, so its hash is not remembered.
_SETTLED_NANOSECONDS = 100_000_000
_hashes: dict[tuple[int, int, int, int], str] = {}


def file_sha256(file: BufferedReader) -> str:
    """SHA-256 of an open file; of one on a disk remembered in this process by device, inode, size and time of change."""
    if not isinstance(file.raw, FileIO):
        return hashlib.file_digest(file, "sha256").hexdigest()
    before = os.fstat(file.fileno())
    key = (before.st_dev, before.st_ino, before.st_size, before.st_mtime_ns)
    if key in _hashes:
        return _hashes[key]
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time_ns() - before.st_mtime_ns > _SETTLED_NANOSECONDS:
        _hashes[key] = digest
    return digest


def write_table(path: Path | BytesIO, table: "pl.DataFrame") -> None:
    """Write Parquet with the same bytes for every number of threads and chunks."""
    table.write_parquet(path, compression=COMPRESSION, row_group_size=ROW_GROUP_ROWS)


def describe_table(path: Path) -> dict[str, Any]:
    """Rows and columns of a Parquet file, from its footer: {'rows': 3, 'schema': {'user_index': 'Int32'}}."""
    import polars as pl

    # Without glob, polars would take 's[1]' in the store's path for a pattern, and read the file in 's1'.
    frame = pl.scan_parquet(path, glob=False)
    rows = frame.select(pl.len()).collect().item()
    return {"rows": rows, "schema": {name: str(type_) for name, type_ in frame.collect_schema().items()}}


def plain_tensors(tensors: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
    """The tensors in the form that a file holds: on the CPU, contiguous, without gradients, sorted by name."""
    return {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}


def write_tensors(path: Path, tensors: dict[str, "Tensor"], metadata: dict[str, Any]) -> None:
    """Write safetensors with a single metadata key, 'meta', because several would be written in random order."""
    from safetensors.torch import save_file

    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    save_file(plain_tensors(tensors), path, {"meta": canonical(metadata, "metadata").decode()})
    path.chmod(mode)  # the package puts a file there that nobody else may read, whatever the umask says


class Files(ABC):
    """The files of an artifact that is committed or being made.

    A file is read once; its bytes are compared with its hash and then parsed, so that nothing can change in between.
    """

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of a file, checked against its hash.

        Raises:
            ArtifactError: missing or damaged.
        """

    @abstractmethod
    def unreadable(self, name: str, problem: str) -> ArtifactError:
        """The error for a file that has the right hash and cannot be parsed."""

    @contextmanager
    def _parsing(self, name: str) -> Iterator[bytes]:
        """The checked bytes of a file; whatever a parser raises on them becomes an error with the artifact's name."""
        data = self.read(name)
        try:
            yield data
        except BaseException as error:
            # polars' panics are no Exception
            if isinstance(error, Exception) or type(error).__name__ == "PanicException":
                said = str(error).partition("\n")[0] or type(error).__name__
                raise self.unreadable(name, f"cannot be parsed: {said}") from error
            raise

    def read_table(self, name: str) -> "pl.DataFrame":
        """Read a Parquet file."""
        import polars as pl

        with self._parsing(name) as data:
            return pl.read_parquet(data)

    def read_json(self, name: str) -> Any:
        """Read a JSON file."""
        with self._parsing(name) as data:
            return json.loads(data)

    def read_tensors(self, name: str) -> "Tensors":
        """Read every tensor of a safetensors file onto the CPU, in the order of their names."""
        from safetensors.torch import load

        with self._parsing(name) as data:
            # from bytes the package reads them in another order each time
            return Tensors(
                sorted(load(data).items()), missing=lambda key: self.unreadable(name, f"has no tensor {key}")
            )

    def read_weights(self, name: str, like: "Mapping[str, Tensor]") -> "Tensors":
        """Read a safetensors file that has tensors of these names, shapes and types, so that none is stretched to fit.

        Raises:
            ArtifactError: missing, damaged, or with other tensors.
        """
        found = self.read_tensors(name)
        for each, wanted in like.items():
            own = found[each]
            if own.shape != wanted.shape or own.dtype != wanted.dtype:
                raise self.unreadable(name, f"does not fit: {each} must be {_form(wanted)}; it is {_form(own)}")
        return found

    def tensor_metadata(self, name: str) -> dict[str, Any]:
        """Read the metadata that `write_tensors` was given."""
        with self._parsing(name) as data:
            return _metadata(data)


def _form(tensor: "Tensor") -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of the shape {tuple(tensor.shape)}"


class Tensors(dict[str, "Tensor"]):
    """The tensors of a file. One that is missing is an error that names the file, not a traceback."""

    def __init__(self, tensors: "Iterable[tuple[str, Tensor]]", missing: Callable[[str], ArtifactError]) -> None:
        super().__init__(tensors)
        self._error = missing

    def __missing__(self, key: str) -> "Tensor":
        raise self._error(key)


def _metadata(data: bytes) -> dict[str, Any]:
    """The metadata in the header of safetensors."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return dict(json.loads(header["__metadata__"]["meta"]))


def pack_tensors(tensors: dict[str, "Tensor"], metadata: dict[str, Any]) -> bytes:
    """Tensors and metadata as bytes, preceded by their SHA-256."""
    from safetensors.torch import save

    data = save(plain_tensors(tensors), {"meta": canonical(metadata, "state").decode()})
    return hashlib.sha256(data).digest() + data


def unpack_tensors(data: bytes) -> tuple[dict[str, "Tensor"], dict[str, Any]] | None:
    """Tensors and metadata from `pack_tensors`; None if the bytes are damaged."""
    from safetensors.torch import load

    digest, body = data[:32], data[32:]
    if hashlib.sha256(body).digest() != digest:
        return None
    return dict(sorted(load(body).items())), _metadata(body)
