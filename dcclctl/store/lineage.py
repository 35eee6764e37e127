"""What an artifact was made from, down to the raw logs; and what two artifacts do not have in common."""

from dataclasses import dataclass
from typing import Any

from dcclctl.errors import ArtifactError, UsageError
from dcclctl.store.artifact import Artifact
from dcclctl.store.manifest import Input

#: Table of an evaluation that holds its metrics (see tables.AGGREGATE).
AGGREGATE_FILE = "aggregate.parquet"
#: Start of the roles of the models that an evaluation scored: subject-00:cloud@3fa9c2d1.
SUBJECT_ROLE = "subject-"


@dataclass(frozen=True)
class Node:
    """One artifact or raw file in a lineage.

    Args:
        role: what it was to the artifact above it, e.g. 'dataset' or 'log:events.csv'; '' at the top.
        kind: kind of the artifact, or 'raw'.
        id: full id, or the raw file's SHA-256.
        ref: reference in this store; '' for a raw file, or if it is not to be had.
        problem: why it is not to be had; '' if it is.
        inputs: what it was made from; empty where the same artifact stands in the tree before, with all its inputs.
        shown: does it?
    """

    role: str
    kind: str
    id: str
    ref: str = ""
    problem: str = ""
    inputs: tuple["Node", ...] = ()
    shown: bool = False


def ancestors(*artifacts: Artifact) -> dict[str, Artifact]:
    """Everything that some artifacts were made from, and they themselves: id → artifact, each after its inputs.

    Raises:
        ArtifactError: one of them is gone or damaged.
    """
    found: dict[str, Artifact] = {}

    def visit(artifact: Artifact) -> None:
        for role, given in sorted(artifact.inputs.items()):
            if given.kind != "raw" and given.id not in found:
                visit(artifact.input(role))
        found[artifact.id] = artifact

    for artifact in artifacts:
        visit(artifact)
    return found


def lineage(artifact: Artifact) -> Node:
    """The tree of everything that an artifact was made from. Inputs that are gone or damaged stay in it, marked.

    Every artifact has its inputs under it once, where it comes first: rounds would double the tree each.
    """
    return _node(artifact, "", set())


def _node(artifact: Artifact, role: str, shown: set[str]) -> Node:
    if artifact.id in shown:
        return Node(role, artifact.kind, artifact.id, artifact.ref, shown=True)
    shown.add(artifact.id)
    inputs = tuple(_input_node(artifact, name, given, shown) for name, given in sorted(artifact.inputs.items()))
    return Node(role, artifact.kind, artifact.id, artifact.ref, inputs=inputs)


def _input_node(artifact: Artifact, role: str, given: Input, shown: set[str]) -> Node:
    if given.kind == "raw":
        return Node(role, given.kind, given.id)
    try:
        return _node(artifact.input(role), role, shown)
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
    names_a, names_b = _paired_names(a, b)
    all_a, all_b = _sections(a, names_a), _sections(b, names_b)
    sections = {}
    for section, in_a, in_b in zip(all_a, all_a.values(), all_b.values(), strict=True):
        keys = sorted(in_a.keys() | in_b.keys())
        changed = {key: (in_a.get(key), in_b.get(key)) for key in keys if in_a.get(key) != in_b.get(key)}
        if changed:
            sections[section] = changed
    return sections


def _subjects(artifact: Artifact) -> list[str]:
    """Names of the models that an evaluation scored, in their order; [] of other artifacts."""
    return [role.partition(":")[2] for role in artifact.inputs if role.startswith(SUBJECT_ROLE)]


def _paired_names(a: Artifact, b: Artifact) -> tuple[dict[str, str], dict[str, str]]:
    """Names to show the models of two evaluations under, so that the first new model stands beside the first old one."""
    in_a, in_b = _subjects(a), _subjects(b)
    old, new = [name for name in in_a if name not in in_b], [name for name in in_b if name not in in_a]
    pairs = [(x, y, f"{x} → {y}") for x, y in zip(old, new, strict=False)]
    return {x: both for x, _, both in pairs}, {y: both for _, y, both in pairs}


def _sections(artifact: Artifact, names: dict[str, str]) -> dict[str, dict[str, Any]]:
    facts = artifact.facts
    if "subjects" in facts:
        facts["subjects"] = {names.get(name, name): value for name, value in facts["subjects"].items()}
    inputs: dict[str, Any] = {}
    for role, given in artifact.inputs.items():
        name = role.partition(":")[2]
        # Without its place in the row: a model that was scored third instead of second is no change.
        shown = f"subject {names.get(name, name)}" if role.startswith(SUBJECT_ROLE) else role
        inputs[shown] = f"{given.kind} {given.id}"
    return {
        "config": {"seed": artifact.seed, **dotted(artifact.config)},
        "inputs": inputs,
        "facts": dotted(facts),
        "metrics": _metrics(artifact, names),
        "packages": artifact.manifest["packages"],
    }


def dotted(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} → {'a.b': 1}; lists stay whole, but for lists of records: they go by name, or by number from 1."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
            records = {str(each.get("name", at)): each for at, each in enumerate(value, 1)}
            value = records if len(records) == len(value) else {str(at): each for at, each in enumerate(value, 1)}
        if isinstance(value, dict) and value:
            flat |= dotted(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _metrics(artifact: Artifact, names: dict[str, str]) -> dict[str, float | None]:
    """'group.metric' → value; with the subject in front if the evaluation compared several."""
    if AGGREGATE_FILE not in artifact.manifest["files"]:
        return {}
    rows = artifact.read_table(AGGREGATE_FILE).to_dicts()
    several = len({row["subject"] for row in rows}) > 1
    return {
        ".".join([*([names.get(row["subject"], row["subject"])] if several else []), row["group"], row["metric"]]): row[
            "value"
        ]
        for row in rows
    }
