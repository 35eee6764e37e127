"""What an artifact was made from, down to the raw logs; and what two artifacts do not have in common."""

from dataclasses import dataclass
from typing import Any

from dcclctl.errors import ArtifactError, UsageError
from dcclctl.store.artifact import Artifact
from dcclctl.store.manifest import Input
from dcclctl.store.store import Store

#: Table of an evaluation that holds its metrics (see tables.AGGREGATE).
AGGREGATE_FILE = "aggregate.parquet"


@dataclass(frozen=True)
class Node:
    """One artifact or raw file in a lineage.

    Args:
        role: what it was to the artifact above it, e.g. 'dataset' or 'log:events.csv'; '' at the top.
        kind: kind of the artifact, or 'raw'.
        id: full id, or the raw file's SHA-256.
        ref: reference in this store; '' for a raw file, or if it is not to be had.
        problem: why it is not to be had; '' if it is.
        inputs: what it was made from.
    """

    role: str
    kind: str
    id: str
    ref: str = ""
    problem: str = ""
    inputs: tuple["Node", ...] = ()


def lineage(store: Store, artifact: Artifact, role: str = "") -> Node:
    """The tree of everything that an artifact was made from. Inputs that are gone or damaged stay in it, marked."""
    inputs = tuple(_input_node(store, name, given) for name, given in sorted(artifact.inputs.items()))
    return Node(role, artifact.kind, artifact.id, artifact.ref, inputs=inputs)


def _input_node(store: Store, role: str, given: Input) -> Node:
    if given.kind == "raw":
        return Node(role, given.kind, given.id)
    try:
        return lineage(store, store.find(given.kind, given.id), role)
    except ArtifactError as error:
        return Node(role, given.kind, given.id, problem=error.what)


def difference(a: Artifact, b: Artifact) -> dict[str, dict[str, tuple[Any, Any]]]:
    """What changed between two artifacts of one kind, and nothing else.

    Returns:
        section (config, inputs, facts, metrics, packages) → dotted key → (value in a, value in b), None where it has
        none. Sections without a change are left out.

    Raises:
        UsageError: two kinds.
    """
    if a.kind != b.kind:
        raise UsageError(
            f"{a.ref} is of kind {a.kind} and {b.ref} of kind {b.kind}: there is nothing to compare",
            "Name two artifacts of one kind; dcclctl artifacts list shows them.",
        )
    sections = {}
    for section, in_a, in_b in zip(_sections(a), _sections(a).values(), _sections(b).values(), strict=True):
        keys = sorted(in_a.keys() | in_b.keys())
        changed = {key: (in_a.get(key), in_b.get(key)) for key in keys if in_a.get(key) != in_b.get(key)}
        if changed:
            sections[section] = changed
    return sections


def _sections(artifact: Artifact) -> dict[str, dict[str, Any]]:
    return {
        "config": {"seed": artifact.seed, **dotted(artifact.config)},
        "inputs": {role: f"{given.kind} {given.id}" for role, given in artifact.inputs.items()},
        "facts": dotted(artifact.facts),
        "metrics": _metrics(artifact),
        "packages": artifact.manifest["packages"],
    }


def dotted(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} → {'a.b': 1}; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, dict) and value:
            flat |= dotted(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _metrics(artifact: Artifact) -> dict[str, float | None]:
    """'group.metric' → value; with the subject in front if the evaluation compared several."""
    if AGGREGATE_FILE not in artifact.manifest["files"]:
        return {}
    rows = artifact.read_table(AGGREGATE_FILE).to_dicts()
    several = len({row["subject"] for row in rows}) > 1
    return {
        ".".join([*([row["subject"]] if several else []), row["group"], row["metric"]]): row["value"] for row in rows
    }
