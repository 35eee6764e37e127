"""A committed artifact: read-only, and every file checked against the manifest before it is parsed."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from dcclctl.errors import ArtifactError
from dcclctl.store.contents import Files, file_sha256
from dcclctl.store.manifest import KINDS, Input

MANIFEST = "manifest.json"
#: The id, in the form that `sha256sum -c` reads. Without it, damage to the manifest would look like another id.
MANIFEST_HASH = "manifest.sha256"
RUN = "run.json"
METRICS = "metrics.jsonl"
#: Files that the manifest does not list. The last two are not part of the id, because they hold clock times.
OWN_FILES = frozenset((MANIFEST, MANIFEST_HASH, RUN, METRICS))


class Home(Protocol):
    """The store of an artifact, with the methods that an artifact needs."""

    def find(self, kind: str, id: str) -> "Artifact": ...

    def artifacts(self, kind: str | None = None) -> "list[Artifact]": ...

    def aliases(self, artifact: "Artifact") -> list[str]: ...


@dataclass(frozen=True)
class Artifact(Files):
    """One version of one kind in a store.

    Args:
        kind: one of KINDS. number: its version number in this store, from 1. path: its folder.
        id: SHA-256 of its manifest; the same in every store.
        manifest: the manifest, checked.
        home: its store. reused: whether `Store.begin` found it instead of making it.
    """

    kind: str
    number: int
    path: Path
    id: str
    manifest: dict[str, Any] = field(repr=False)
    home: "Home" = field(repr=False, compare=False)
    reused: bool = field(default=False, compare=False)

    @property
    def ref(self) -> str:
        """Short name in this store, e.g. 'cloud@7'."""
        return f"{self.kind}@{self.number}"

    @property
    def config(self) -> dict[str, Any]:
        """The stage's resolved configuration."""
        return dict(self.manifest["config"])

    @property
    def facts(self) -> dict[str, Any]:
        """Counts and metrics that the stage recorded at its end."""
        return dict(self.manifest["facts"])

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
        """Time, duration and memory of the run that made it (not part of the id); {} if missing or damaged."""
        try:
            return dict(json.loads((self.path / RUN).read_bytes()))
        except (OSError, ValueError):
            return {}

    @property
    def size_bytes(self) -> int:
        """Size of all files that the manifest lists."""
        return sum(file["bytes"] for file in self.manifest["files"].values())

    def as_input(self) -> Input:
        """This artifact as the input of another one."""
        return Input(self.kind, self.id)

    def damage(self, name: str) -> str:
        """What is wrong with one of its files, all of which is read; '' if nothing is wrong."""
        listed = self.manifest["files"].get(name)
        if listed is None:
            return "is not in the manifest"
        path = self.path / name
        try:
            size = path.stat().st_size
            if size != listed["bytes"]:
                return f"has {size} bytes instead of {listed['bytes']}"
            if file_sha256(path) != listed["sha256"]:
                return "does not have the SHA-256 that was recorded for it"
        except FileNotFoundError:
            return "is missing"
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        return ""

    def verify(self) -> dict[str, str]:
        """Damaged, missing or unknown file → what is wrong with it; {} if the artifact is whole."""
        found = {name: self.damage(name) for name in self.manifest["files"]}
        for path in self.path.rglob("*"):
            name = path.relative_to(self.path).as_posix()
            if not path.is_dir() and name not in OWN_FILES and name not in found:
                found[name] = "is not in the manifest"
        return {name: problem for name, problem in sorted(found.items()) if problem}

    def file(self, name: str) -> Path:
        problem = self.damage(name)
        if problem:
            raise damaged(self.kind, self.number, f"{name} {problem}", self.path)
        return self.path / name


def damaged(kind: str, number: int, problem: str, path: Path) -> ArtifactError:
    """The error for an artifact that differs from what was committed."""
    return ArtifactError(
        f"{kind}@{number} is damaged: {problem} (in {path})",
        f"Restore that folder from a backup, or make the artifact again: {KINDS[kind]} --force",
    )
