"""A committed artifact: read-only, and every file checked against the manifest before it is parsed."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dcclctl.compute import OnProgress, Phase
from dcclctl.errors import ArtifactError
from dcclctl.store.bucket import Disk
from dcclctl.store.contents import Files, Tensors, file_sha256
from dcclctl.store.disk import LocalDisk, open_inside
from dcclctl.store.manifest import KINDS, MANIFEST, MANIFEST_HASH, Input
from dcclctl.store.remake import remake
from dcclctl.tables import check_table, is_known

if TYPE_CHECKING:
    import polars as pl

RUN = "run.json"
METRICS = "metrics.jsonl"
#: Files that the manifest does not list. The last two are outside the hash and trusted by nothing: they hold clock times.
OWN_FILES = frozenset((MANIFEST, MANIFEST_HASH, RUN, METRICS))

#: the only tensor whose numbers may be NaN: losses of users without held-back events
MAY_BE_NAN = "losses"


class Home(Protocol):
    """The store of an artifact, or its picture at one moment, with the methods that an artifact needs."""

    on_progress: OnProgress

    def find(self, kind: str, id: str) -> "Artifact": ...

    def artifacts(self, kind: str | None = None) -> "list[Artifact]": ...

    def aliases(self, artifact: "Artifact") -> list[str]: ...


#: The largest run.json that is read.
_RUN_BYTES = 2**20


#: What must be text in run.json, and what must be a figure.
_RUN_TEXTS = ("started", "finished", "imported", "host")
_RUN_FIGURES = ("seconds", "fit_seconds", "peak_memory_bytes", "users_per_second", "amount")


class Recorded(dict[str, Any]):
    """Configuration or facts of an artifact. A key that is missing is an error that names the artifact, not a traceback.

    Args:
        values: the keys and values. ref: of the artifact. what: the field of the manifest.
    """

    def __init__(self, values: dict[str, Any], ref: str, what: str) -> None:
        super().__init__(values)
        self._ref, self._what = ref, what

    def __missing__(self, key: str) -> Any:
        raise ArtifactError(
            f"{self._ref} is damaged: {key!r} is missing in the {self._what} of its manifest",
            "dcclctl did not write it; make it again, or remove it with dcclctl artifacts rm.",
        )


@dataclass(frozen=True)
class Artifact(Files):
    """One version of one kind in a store.

    Args:
        kind: one of KINDS. number: its version number in this store, from 1. path: its folder.
        id: SHA-256 of its manifest; the same in every store.
        manifest: the manifest, checked.
        home: its store. reused: whether `Store.begin` found it instead of making it. disk: where its store is.
    """

    kind: str
    number: int
    path: Path
    id: str
    manifest: dict[str, Any] = field(repr=False)
    home: "Home" = field(repr=False, compare=False)
    reused: bool = field(default=False, compare=False)
    disk: Disk = field(default_factory=LocalDisk, repr=False, compare=False)

    @property
    def ref(self) -> str:
        """Short name in this store, e.g. 'cloud@7'."""
        return f"{self.kind}@{self.number}"

    @property
    def config(self) -> dict[str, Any]:
        """The stage's resolved configuration."""
        return Recorded(self.manifest["config"], self.ref, "configuration")

    @property
    def facts(self) -> dict[str, Any]:
        """Counts and metrics that the stage recorded at its end."""
        return Recorded(self.manifest["facts"], self.ref, "facts")

    @property
    def seed(self) -> int:
        """Seed of the stage's random draws."""
        return int(self.manifest["seed"])

    @cached_property
    def inputs(self) -> dict[str, Input]:
        """Role → what it was made from."""
        return {role: Input(given["kind"], given["id"]) for role, given in self.manifest["inputs"].items()}

    def input(self, role: str) -> "Artifact":
        """The artifact that it was made from in this role.

        Raises:
            ArtifactError: gone, or damaged.
        """
        given = self.inputs[role]
        return self.home.find(given.kind, given.id)

    def file_id(self, name: str) -> str:
        """SHA-256 of one of its files; empty if it has no such file."""
        listed = self.manifest["files"].get(name)
        return str(listed["sha256"]) if listed else ""

    @property
    def run(self) -> dict[str, Any]:
        """Time, duration and memory of the run that made it (not part of the id); what is no figure or text is left out."""
        try:
            run = json.loads(self.disk.read(self.path / RUN, _RUN_BYTES))
        except (OSError, ValueError, RecursionError, ArtifactError):
            return {}
        if not isinstance(run, dict):
            return {}
        types = dict.fromkeys(_RUN_TEXTS, str) | dict.fromkeys(_RUN_FIGURES, int | float)
        return {name: value for name, value in run.items() if isinstance(value, types.get(name, str | int | float))}

    @property
    def size_bytes(self) -> int:
        """Size of all files that the manifest lists."""
        return sum(file["bytes"] for file in self.manifest["files"].values())

    def as_input(self) -> Input:
        """This artifact as the input of another one."""
        return Input(self.kind, self.id)

    @property
    def command(self) -> str:
        """The command line that makes it again; --force makes it although it is there."""
        return remake(self.manifest, self.home)

    @property
    def place(self) -> str:
        """Where it is, as people are told of it: a path or a URL."""
        return self.disk.shown(self.path)

    @property
    def folder(self) -> Path:
        """The folder on this machine in which its files are, once `file` has been asked for them."""
        return self.disk.copies(self.path, self.id)

    def damage(self, name: str) -> str:
        """What is wrong with one of its files in the store, all of which is read; '' if nothing is wrong."""
        return self._checked(name, lambda: self.disk.open(self.path, name))[0]

    def _read(self, name: str, keep: bool) -> bytes:
        """The bytes of a file if they are to be kept, from this machine's copy, which is checked and if need be fetched again."""

        def opened() -> BufferedReader:
            self.disk.fetch(self.path, name, self.id)
            return open_inside(self.folder, name)

        problem, data = self._checked(name, opened, keep)
        if problem and self.disk.drop_copy(self.path, name, self.id):
            problem, data = self._checked(name, opened, keep)
        if problem:
            self.disk.drop_copy(self.path, name, self.id)
            raise self.unreadable(name, problem)
        return data

    def _checked(self, name: str, opened: Callable[[], BufferedReader], keep: bool = False) -> tuple[str, bytes]:
        """What is wrong with a file ('' if nothing is), and its bytes if they are to be kept."""
        listed = self.manifest["files"].get(name)
        if listed is None:
            return "is not in the manifest", b""
        try:
            with opened() as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
                if size != listed["bytes"]:
                    return _other_size(size, listed["bytes"]), b""
                data = file.read() if keep else b""
                found = hashlib.sha256(data).hexdigest() if keep else file_sha256(file)
                if found != listed["sha256"]:
                    return "does not have the SHA-256 that was recorded for it", b""
        except FileNotFoundError:
            return "is missing", b""
        except OSError as error:
            return f"cannot be read: {error.strerror}", b""
        return "", data

    def verify(self, every_byte: bool = True) -> dict[str, str]:
        """Damaged, missing or unknown file → what is wrong with it; {} if the artifact is whole.

        Args:
            every_byte: read all files where they are; else compare sizes only. What is read later is checked then.
        """
        found = {}
        sizes = self.disk.sizes(self.path)
        phase = Phase(self.home.on_progress, "check", self.size_bytes / 1e6, "MB")
        for name, file in self.manifest["files"].items():
            if every_byte or name not in sizes:
                found[name] = self.damage(name)
            else:
                found[name] = _other_size(sizes[name], file["bytes"])
            phase.add(file["bytes"] / 1e6, self.ref)
        phase.at(self.size_bytes / 1e6)
        for name in sizes:
            if name not in OWN_FILES and name not in found:
                found[name] = "is not in the manifest"
        return {name: problem for name, problem in sorted(found.items()) if problem}

    def read(self, name: str) -> bytes:
        return self._read(name, keep=True)

    def read_table(self, name: str) -> "pl.DataFrame":
        """Read a Parquet file that is as `tables.TABLES` says.

        Raises:
            ArtifactError: missing, damaged, or with other columns, types or values than any command writes.
        """
        table = super().read_table(name)
        if is_known(self.kind, name):
            try:
                check_table(self.kind, name, table)
            except ValueError as error:
                raise self.unreadable(name, f"does not fit: {error}") from error
        return table

    def read_tensors(self, name: str) -> Tensors:
        """Read every tensor of a safetensors file onto the CPU.

        Raises:
            ArtifactError: missing, damaged, or with numbers that are not finite, which no command writes.
        """
        tensors = super().read_tensors(name)
        for each, tensor in tensors.items():
            if each != MAY_BE_NAN and tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                rows = int((~tensor.isfinite()).reshape(len(tensor), -1).any(1).sum()) if tensor.dim() else 1
                raise self.unreadable(name, f"has numbers that are not finite in {rows:,} rows of {each}")
        return tensors

    def file(self, name: str) -> Path:
        """Path of a file, after checking its bytes; `read` gives the bytes that were checked."""
        self._read(name, keep=False)
        return self.folder / name

    def unreadable(self, name: str, problem: str) -> ArtifactError:
        return damaged(self.kind, self.number, f"{name} {problem}", self.place, self.command)


def _other_size(size: int, listed: int) -> str:
    return "" if size == listed else f"has {size} bytes instead of {listed}"


def damaged(kind: str, number: int, problem: str, place: str, command: str = "") -> ArtifactError:
    """The error for an artifact that differs from what was committed.

    Args:
        place: of the version, as people are told of it.
        command: that made it, if its manifest says so.
    """
    return ArtifactError(
        f"{kind}@{number} is damaged: {problem} (in {place})",
        f"Restore that folder from a backup, or make the artifact again: {command or KINDS[kind]} --force",
    )
