"""The manifest lists an artifact's files and inputs. Its SHA-256 is the artifact's id.

Nothing in it depends on the clock, the machine, the folder or the environment; `run.json` holds these.
"""

import hashlib
import json
import platform
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from dcclctl.errors import ArtifactError
from dcclctl.store.canonical import canonical
from dcclctl.version import __version__

#: Version of the layout. A reader refuses every other version.
FORMAT: Final = 2
#: Every kind of artifact → the command that makes one.
KINDS: Final = {
    "dataset": "dcclctl ingest LOG",
    "cloud": "dcclctl train",
    "memory": "dcclctl memory",
    "patches": "dcclctl patch",
    "evaluation": "dcclctl evaluate",
    "bundle": "dcclctl export",
}
#: Fields that are known before the work starts.
HEAD: Final = ("stage", "kind", "config", "seed", "inputs")
#: The keys that every manifest has; it has no others.
FIELDS: Final = frozenset(("format", *HEAD, "facts", "files", "tables", "packages"))
#: Packages whose version can change the results or the files.
PACKAGES: Final = ("numpy", "polars", "pyarrow", "safetensors", "torch")

_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Input:
    """What an artifact was made from.

    Args:
        kind: kind of an artifact, or 'raw' for a file from outside.
        id: the artifact's full id, or the raw file's SHA-256 (64 hex digits).
    """

    kind: str
    id: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS and self.kind != "raw":
            raise ValueError(f"no kind {self.kind!r}")
        if not _ID.fullmatch(self.id):
            raise ValueError(f"not a full id: {self.id!r}")


def inputs_document(inputs: dict[str, Input]) -> dict[str, dict[str, str]]:
    """Inputs by role, in the form of the manifest.

    Raises:
        ValueError: a role holds a path; it must be a file's name only, so that folders do not change the id.
    """
    for role in inputs:
        if "/" in role:
            raise ValueError(f"the role {role!r} holds a path; use the file's name")
    return {role: {"kind": given.kind, "id": given.id} for role, given in inputs.items()}


def work_key(head: dict[str, Any]) -> str:
    """SHA-256 of everything that a stage's result depends on; equal keys mean equal work.

    Args:
        head: a manifest, or its fields that are known before the work, see HEAD.
    """
    document = {field: head[field] for field in HEAD}
    return hashlib.sha256(canonical({"format": FORMAT, **document}, "key")).hexdigest()


def package_versions() -> dict[str, str]:
    """Versions of Python, of dcclctl and of `PACKAGES`, read without importing them."""
    versions = {"python": platform.python_version(), "dcclctl": __version__}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def read_manifest(data: bytes, kind: str, name: str) -> dict[str, Any]:
    """Decode a manifest whose hash has been checked already.

    Args:
        data: content of manifest.json. kind: the kind whose folder it is in. name: the artifact's reference, for errors.

    Raises:
        ArtifactError: a format version that this program does not read, missing or unknown fields, or another kind.
    """
    manifest = json.loads(data)
    found = manifest.get("format")
    if found != FORMAT:
        raise ArtifactError(
            f"{name} has format version {found}; this dcclctl {__version__} reads version {FORMAT}",
            f"Use a dcclctl that reads format version {found}, or make the artifact again with this one.",
        )
    if set(manifest) != FIELDS:
        odd = ", ".join(sorted(set(manifest) ^ FIELDS))
        raise ArtifactError(f"{name}: missing or unknown fields in its manifest: {odd}", "dcclctl did not write it.")
    if manifest["kind"] != kind:
        raise ArtifactError(f"{name} says that it is of kind {manifest['kind']}", "Its folder was moved; move it back.")
    return dict(manifest)
