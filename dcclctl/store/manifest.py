"""The manifest lists an artifact's files and inputs. Its SHA-256 is the artifact's id.

Nothing in it depends on the clock, the machine, the folder or the environment; `run.json` holds these.
"""

import hashlib
import json
import math
import platform
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Final, Never

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from dcclctl.errors import ArtifactError
from dcclctl.store.canonical import canonical
from dcclctl.version import __version__

MANIFEST: Final = "manifest.json"
#: The id, in the form that `sha256sum -c` reads. Without it, damage to the manifest would look like another id.
MANIFEST_HASH: Final = "manifest.sha256"
#: Version of the layout. A reader refuses every other version.
FORMAT: Final = 3
#: Every kind of artifact → the command that makes one.
KINDS: Final = {
    "dataset": "dcclctl ingest LOG",
    "cloud": "dcclctl train",
    "memory": "dcclctl memory",
    "patches": "dcclctl patch",
    "evaluation": "dcclctl evaluate",
    "tuning": "dcclctl tune train",
    "recommendations": "dcclctl recommend",
    "bundle": "dcclctl export",
}
#: Fields that are known before the work starts.
HEAD: Final = ("stage", "kind", "config", "seed", "inputs")
#: The keys that every manifest has; it has no others.
FIELDS: Final = frozenset(("format", *HEAD, "facts", "files", "tables", "packages"))
#: Packages whose version can change the results or the files.
PACKAGES: Final = ("numpy", "polars", "pyarrow", "safetensors", "torch")

#: Facts that have one type wherever they stand, so that those who read them need not ask; a figure may be null.
_FACTS: Final[dict[type | tuple[type, ...], tuple[str, ...]]] = {
    (int, float): (
        *(
            "best_epoch",
            "best_valid_auc",
            "best_valid_loss",
            "best_valid_ndcg",
            "bytes_per_candidate",
            "bytes_per_user",
        ),
        *("bytes_per_user_largest", "bytes_per_user_mean", "categories", "events", "events_read", "full", "items"),
        *("events_with_few_candidates", "events_without_candidates", "improved_share", "items_shown", "kept", "lists"),
        *("mean_teacher_weight", "negatives", "parameters", "patch_bound", "patch_size", "patch_weights", "positives"),
        *("patches_clipped", "patches_rejected", "round", "shards", "short_lists", "smallest_memory", "teachers"),
        *("trained_on_events", "trained_on_users", "unknown_candidates", "users", "users_asked_for", "users_improved"),
        *("users_from_older", "users_tested", "users_without_auc", "users_without_events", "users_without_list"),
        "validated_on_events",
    ),
    str: ("id_map", "labels", "no_basis", "on", "repeats", "split", "time_kind"),
    bool: ("order", "own_basis"),
    list: ("epochs", "features", "learned_with", "periods", "profile_features", "remarks"),
    dict: ("behaviours", "columns", "groups", "profiles", "served_by", "subjects"),
}
_TYPE_OF_FACT: Final = {name: kind for kind, names in _FACTS.items() for name in names}
_ID = re.compile(r"[0-9a-f]{64}")
#: A name cannot lead out of the artifact's folder: no part of it begins with a dot, and none is empty.
FILE_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]*(/[a-z0-9][a-z0-9_.-]*)*")
#: The largest manifest that is read, and how deep its settings and facts may be nested.
MAX_BYTES: Final = 64 * 2**20
_MAX_DEPTH = 40


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

    def refused(problem: str) -> ArtifactError:
        return ArtifactError(
            f"{name} is damaged: its manifest {problem}",
            "dcclctl did not write it. Remove it: dcclctl artifacts rm " + name,
        )

    try:
        manifest = json.loads(data, parse_constant=_no_number, parse_float=_number)
    except (ValueError, RecursionError) as error:
        raise refused(f"is not JSON: {error}") from error
    if not isinstance(manifest, dict):
        raise refused("is not a JSON object")
    found = manifest.get("format")
    if found != FORMAT:
        raise ArtifactError(
            f"{name} has format version {found!r:.40}; this dcclctl {__version__} reads version {FORMAT}",
            f"Use a dcclctl that reads format version {found!r:.40}, or make the artifact again with this one.",
        )
    if set(manifest) != FIELDS:
        odd = ", ".join(sorted(set(manifest) ^ FIELDS))
        raise refused(f"has missing or unknown fields: {odd}")
    try:
        _Manifest.model_validate(manifest)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise refused(f"says what it cannot, at {where or 'its top'}: {first['msg']}") from error
    if manifest["kind"] != kind:
        raise ArtifactError(f"{name} says that it is of kind {manifest['kind']}", "Its folder was moved; move it back.")
    return manifest


def _no_number(text: str) -> Never:
    raise ValueError(f"{text} is not a number")


def _number(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_number(text)  # 1e999


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


_Sha256 = Annotated[str, StringConstraints(pattern=rf"^{_ID.pattern}$")]
_FileName = Annotated[str, StringConstraints(pattern=rf"^{FILE_NAME.pattern}$", max_length=240)]


class _File(_Strict):
    bytes: int = Field(ge=0)
    sha256: _Sha256


class _Table(_Strict):
    rows: int = Field(ge=0)
    schema_: dict[str, str] = Field(alias="schema")


class _Given(_Strict):
    kind: str
    id: _Sha256

    @model_validator(mode="after")
    def _known(self) -> "_Given":
        Input(self.kind, self.id)
        return self


class _Manifest(_Strict):
    """What a manifest may hold. Nothing in it is trusted before it was compared with this."""

    format: int
    stage: str = Field(pattern=r"^[a-z]{1,40}$")
    kind: str
    config: dict[str, Any]
    seed: int
    inputs: dict[str, _Given]
    facts: dict[str, Any]
    files: dict[_FileName, _File]
    tables: dict[str, _Table]
    packages: dict[str, str]

    @model_validator(mode="after")
    def _makes_sense(self) -> "_Manifest":
        reserved = {MANIFEST, MANIFEST_HASH, "run.json", "metrics.jsonl"} & set(self.files)
        if reserved or not set(self.tables) <= set(self.files):
            raise ValueError("files that it cannot have, or tables without a file")
        for document in (self.config, self.facts):
            _check_depth(document, _MAX_DEPTH)
        for name, value in self.facts.items():
            kind = _TYPE_OF_FACT.get(name, object)
            nullable = kind == (int, float)
            if not (isinstance(value, kind) or (nullable and value is None)) or (nullable and isinstance(value, bool)):
                raise ValueError(f"its fact {name} is {value!r:.60}")
        return self


def _check_depth(value: Any, left: int) -> None:
    if not left:
        raise ValueError("settings or facts are nested too deeply")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(inner, left - 1)
