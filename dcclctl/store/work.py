"""An artifact in the making. Its folder survives an exception or a kill, so that the same command continues."""

import hashlib
import io
import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from dcclctl.compute import peak_memory
from dcclctl.errors import ArtifactError
from dcclctl.store import contents
from dcclctl.store.artifact import METRICS, RUN, Artifact, Home
from dcclctl.store.bucket import Disk
from dcclctl.store.canonical import canonical
from dcclctl.store.leases import Leases
from dcclctl.store.manifest import FILE_NAME, FORMAT, MANIFEST, MANIFEST_HASH, package_versions
from dcclctl.tables import check_table

if TYPE_CHECKING:
    import polars as pl
    from torch import Tensor

PACKAGES = "packages.json"


class Maker(Home, Protocol):
    """The store in which an artifact is made."""

    disk: Disk

    committed: list[str]

    @property
    def leases(self) -> Leases: ...


class Work(contents.Files):
    """The files of an artifact in the making; created by `Store.begin`.

    Args:
        home: the store.
        folder: `STORE/<kind>/work/<key>`, which becomes the artifact.
        head: the manifest's fields that are known before the work: kind, stage, config, seed, inputs.
        key: SHA-256 of what the result depends on.
        reused: the committed artifact with this key, which the stage then returns; None if there is none.
    """

    def __init__(self, home: Maker, folder: Path, head: dict[str, Any], key: str, reused: Artifact | None) -> None:
        self.kind, self.key = str(head["kind"]), key
        self.reused = reused
        self._home = home
        self._disk = home.disk.scratch
        self._folder = folder
        # Beside the folder, not in it, because everything in the folder becomes part of the artifact.
        self._state = folder.with_name(f"{folder.name}.state")
        self._head = head
        self._packages = package_versions()
        #: Files that this run has written or found finished; the artifact will hold no others.
        self._files: dict[str, dict[str, Any]] = {}
        self._notes: dict[str, Any] = {}
        #: called with every line of figures, see Store.listening
        self.listener: Callable[[dict[str, Any]], None] | None = None
        #: lines of metrics.jsonl that a stopped run has left; read when the first line of this one is added
        self._lines_before: frozenset[bytes] | None = None
        self._resumed = False
        self._started = datetime.now(UTC)
        self._clock = time.monotonic()

    def clear(self) -> None:
        """Delete everything that earlier runs left."""
        # This file first: without it, a run that is killed here leaves nothing that a later run would continue.
        self._disk.remove(self._state / PACKAGES)
        self._disk.remove(self._state)
        self._disk.remove(self._folder)

    def open(self) -> None:
        """Make the folders, or continue a killed run if it had the same package versions."""
        packages = self._state / PACKAGES
        try:
            self._resumed = self._disk.read(packages) == canonical(self._packages)
        except FileNotFoundError:
            self._resumed = False
        if not self._resumed:
            self.clear()
        self._disk.make_folder(self._folder)
        self._disk.make_folder(self._state / "files")
        if not self._resumed:
            self._disk.write(packages, canonical(self._packages))
        self._drop_half_line(self._state / METRICS)

    def _drop_half_line(self, path: Path) -> None:
        try:
            data = self._disk.read(path)
        except FileNotFoundError:
            return
        if not data.endswith(b"\n"):
            self._disk.write(path, data[: data.rfind(b"\n") + 1])

    # -- files of the artifact

    @contextmanager
    def new_file(self, name: str, expected_bytes: int = 0) -> Iterator[Path]:
        """Write one file: yield a temporary path, then fsync, rename, and record size and hash.

        Args:
            name: lower-case name, with '/' for folders; rows and schema of '.parquet' files are recorded.
            expected_bytes: its size if known, else 0.
        """
        if not FILE_NAME.fullmatch(name):
            raise ValueError(f"not a file name for an artifact: {name!r}")
        path = self._folder / name
        self._disk.make_folder(path.parent)
        self._files.pop(name, None)
        self._disk.remove(self._record_path(name))
        with self._disk.create(path, expected_bytes) as temporary:
            yield temporary
        record: dict[str, Any] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        if path.suffix == ".parquet":
            record["table"] = contents.describe_table(path)
        self._disk.write(self._record_path(name), canonical(record))
        self._files[name] = record

    def write_table(self, name: str, table: "pl.DataFrame") -> None:
        """Write Parquet; `name` ends in '.parquet'.

        Raises:
            ValueError: the table differs from `tables.TABLES`; nothing is written.
        """
        _check_suffix(name, ".parquet")
        check_table(self._head["kind"], name, table)
        with self.new_file(name) as path:
            contents.write_table(path, table)

    def write_tensors(self, name: str, tensors: "dict[str, Tensor]", metadata: dict[str, Any] | None = None) -> None:
        """Write safetensors; `name` ends in '.safetensors', `metadata` is a document for canonical JSON."""
        _check_suffix(name, ".safetensors")
        with self.new_file(name, sum(tensor.nbytes for tensor in tensors.values())) as path:
            contents.write_tensors(path, tensors, metadata or {})

    def write_json(self, name: str, document: Any) -> None:
        """Write canonical JSON; `name` ends in '.json'."""
        _check_suffix(name, ".json")
        data = canonical(document, name)
        with self.new_file(name, len(data)) as path:
            path.write_bytes(data)

    def finished(self, name: str) -> bool:
        """Whether this run or a killed one finished the file and its bytes still have the recorded hash.

        A file of a killed run becomes part of the artifact only if this run asks for it here or writes it again.
        """
        if name not in self._files:
            try:
                self._files[name] = json.loads(self._disk.read(self._record_path(name)))
            except (FileNotFoundError, ValueError):
                return False
        record, path = self._files[name], self._folder / name
        if path.is_file() and path.stat().st_size == record["bytes"] and _sha256(path) == record["sha256"]:
            return True
        del self._files[name]
        return False

    def read(self, name: str) -> bytes:
        if not self.finished(name):
            raise self.unreadable(name, "is missing or damaged")
        return (self._folder / name).read_bytes()

    def unreadable(self, name: str, problem: str) -> ArtifactError:
        return ArtifactError(f"{self._folder / name} {problem}", "Start this step anew: the same command with --force")

    def _record_path(self, name: str) -> Path:
        return self._state / "files" / f"{name.replace('/', '+')}.json"

    def leave_out(self, name: str) -> None:
        """Do not make a finished file part of the artifact: it was needed on the way only."""
        self._files.pop(name, None)

    # -- what is not part of the artifact's id

    def checkpoint(self, tensors: "dict[str, Tensor]", state: dict[str, Any]) -> None:
        """Replace the state to continue from in one step: after a kill, either the old or the new one is whole.

        Args:
            tensors: weights, the optimizer's state, generator states.
            state: counters and other values for canonical JSON, so no NaN and no infinity.
        """
        self._disk.write(self._state / "checkpoint", contents.pack_tensors(tensors, state))

    def load_checkpoint(self) -> "tuple[dict[str, Tensor], dict[str, Any]] | None":
        """The last checkpoint of this or an earlier run; None if there is none or it is damaged."""
        try:
            return contents.unpack_tensors(self._disk.read(self._state / "checkpoint"))
        except FileNotFoundError:
            return None

    def record(self, figures: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl, unless a stopped run that is continued has written the very same.

        Not part of the id, so it may hold times; no NaN and no infinity.
        """
        line = canonical(figures, "figures")
        if self._lines_before is None:
            self._lines_before = frozenset(self._metrics().splitlines(keepends=True))
        if line in self._lines_before:
            return
        self._disk.append(self._state / METRICS, line)
        if self.listener is not None:
            self.listener(figures)

    def recorded(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl so far: of the artifact that is reused, or of a stopped run that is continued."""
        return [json.loads(line) for line in self._metrics().splitlines()]

    def _metrics(self) -> bytes:
        try:
            if self.reused is None:
                return self._disk.read(self._state / METRICS)
            return self.reused.disk.read(self.reused.path / METRICS)
        except FileNotFoundError:
            return b""

    def note_run(self, **values: Any) -> None:
        """Add values to run.json (times, sizes, the machine); not part of the id."""
        self._notes |= values

    # -- the end

    def commit(self, facts: dict[str, Any]) -> Artifact:
        """Commit the artifact with the files that this run wrote or found finished.

        Args:
            facts: counts and metrics of the result; no times, no NaN.

        Returns:
            The committed artifact, which is on the disk.
        """
        self._home.on_progress("commit", 0, 0, f"{sum(file['bytes'] for file in self._files.values()) / 1e6:,.0f} MB")
        records = self._files.items()
        document = {
            "format": FORMAT,
            **self._head,
            "facts": facts,
            "files": {name: {key: record[key] for key in ("bytes", "sha256")} for name, record in records},
            "tables": {name: record["table"] for name, record in records if "table" in record},
            "packages": self._packages,
        }
        manifest = canonical(document, "manifest")
        for name in self._disk.files(self._folder):
            if name not in self._files:
                self._disk.remove(self._folder / name)
        with suppress(FileNotFoundError):
            self._disk.write(self._folder / METRICS, self._disk.read(self._state / METRICS))
        made = commit(self._home, self._folder, manifest, self._run())
        # the artifact is there: what cannot be tidied up is no reason to lose its reference
        with suppress(OSError, ArtifactError):
            self._disk.remove(self._state)
        return made

    def _run(self) -> dict[str, Any]:
        return {
            "started": self._started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._clock, 3),
            **({"peak_memory_bytes": peak} if (peak := peak_memory()) else {}),
            "host": platform.node(),
            "resumed": self._resumed,
            **self._notes,
        }


class Incoming:
    """An artifact that comes from an archive; created by `Store.adding`.

    Args:
        home: the store. folder: where it is put together.
        there: the same artifact, if the store has it whole; then nothing is written.
    """

    def __init__(self, home: Maker, folder: Path, there: Artifact | None) -> None:
        self._home, self._disk, self._folder = home, home.disk.scratch, folder
        self.there = there

    @contextmanager
    def new_file(self, name: str, size: int) -> Iterator[IO[bytes]]:
        """Write one file whole or not at all; `name` is that of a checked manifest."""
        if self.there is not None:
            yield io.BytesIO()
            return
        path = self._folder / name
        self._disk.make_folder(path.parent)
        with self._disk.create(path, size) as temporary, temporary.open("wb") as file:
            yield file
            file.flush()

    def commit(self, manifest: bytes, run: dict[str, Any]) -> Artifact:
        """Commit it; `manifest` is checked, and all its files are written."""
        return commit(self._home, self._folder, manifest, run)


def commit(home: Maker, folder: Path, manifest: bytes, run: dict[str, Any]) -> Artifact:
    """Commit a folder that holds all files of a manifest; the last step of `publish` is the only commit point."""
    scratch = home.disk.scratch
    scratch.write(folder / RUN, canonical(run, "run"))
    id, document = hashlib.sha256(manifest).hexdigest(), json.loads(manifest)
    scratch.write(folder / MANIFEST_HASH, f"{id}  {MANIFEST}\n".encode())
    scratch.write(folder / MANIFEST, manifest)
    # Before it is there, so that no other process collects it before this one has used it.
    home.leases.add(id, lambda: True)
    scratch.freeze(folder)
    versions = folder.parent.parent / "v"
    number = home.disk.publish(folder, versions)
    home.committed.append(f"{document['kind']}@{number}")
    return Artifact(document["kind"], number, versions / f"{number:06d}", id, document, home, disk=home.disk)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return contents.file_sha256(file)


def _check_suffix(name: str, suffix: str) -> None:
    if not name.endswith(suffix):
        raise ValueError(f"{name!r} must end in {suffix}")
