"""Everything that an artifact was made from, down to the raw logs; and the differences between two artifacts."""

from dataclasses import dataclass
from typing import Any

from dcclctl.errors import ArtifactError, UsageError
from dcclctl.store.artifact import Artifact

#: Table of an evaluation that holds its metrics (see tables.AGGREGATE).
AGGREGATE_FILE = "aggregate.parquet"
#: Prefix of the roles of the models that an evaluation scored: subject-00:cloud@3fa9c2d1.
SUBJECT_ROLE = "subject-"


@dataclass(frozen=True)
class Node:
    """One artifact or raw file in a lineage.

    Args:
        role: its role as an input of the artifact above it, e.g. 'dataset' or 'log:events.csv'; '' at the top.
        kind: kind of the artifact, or 'raw'. id: full id, or the raw file's SHA-256.
        ref: reference in this store; '' for a raw file or an artifact that is gone or damaged.
        problem: why the artifact cannot be loaded; '' if it can.
        inputs: what it was made from; empty if `shown`.
        shown: whether the same artifact stands earlier in the tree, with all its inputs.
    """

    role: str
    kind: str
    id: str
    ref: str = ""
    problem: str = ""
    inputs: tuple["Node", ...] = ()
    shown: bool = False


def ancestors(*artifacts: Artifact) -> dict[str, Artifact]:
    """The artifacts and everything that they were made from: id → artifact, each after its inputs.

    Raises:
        ArtifactError: an artifact is gone or damaged.
    """
    found: dict[str, Artifact] = {}
    for artifact in artifacts:
        _visit(artifact, found)
    return found


# Not a function inside `ancestors`: one that calls itself would keep the artifacts, and with them their store's lease,
# until Python happens to collect cycles.
def _visit(artifact: Artifact, found: dict[str, Artifact]) -> None:
    """Add an artifact, after what it was made from."""
    for role, given in sorted(artifact.inputs.items()):
        if given.kind != "raw" and given.id not in found:
            _visit(artifact.input(role), found)
    found[artifact.id] = artifact


def lineage(artifact: Artifact) -> Node:
    """The tree of everything that an artifact was made from; inputs that are gone or damaged are marked.

    An artifact that occurs several times has its inputs only where it comes first; otherwise the tree would double with
    each round of distillation.
    """
    shown: set[str] = set()

    def node(artifact: Artifact, role: str) -> Node:
        if artifact.id in shown:
            return Node(role, artifact.kind, artifact.id, artifact.ref, shown=True)
        shown.add(artifact.id)
        inputs = []
        for name, given in sorted(artifact.inputs.items()):
            try:
                raw = given.kind == "raw"
                inputs.append(Node(name, given.kind, given.id) if raw else node(artifact.input(name), name))
            except ArtifactError as error:
                inputs.append(Node(name, given.kind, given.id, problem=error.what))
        return Node(role, artifact.kind, artifact.id, artifact.ref, inputs=tuple(inputs))

    return node(artifact, "")


def difference(a: Artifact, b: Artifact) -> dict[str, dict[str, tuple[Any, Any]]]:
    """The differences between two artifacts of one kind.

    Returns:
        section (config, inputs, facts, metrics, packages) → dotted key → (value in a, value in b), None for a missing
        value. Sections without a difference are left out.

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
    for section, in_a in all_a.items():
        in_b = all_b[section]
        keys = sorted(in_a.keys() | in_b.keys())
        sections[section] = {key: (in_a.get(key), in_b.get(key)) for key in keys if in_a.get(key) != in_b.get(key)}
    return {section: changed for section, changed in sections.items() if changed}


def _subjects(artifact: Artifact) -> list[str]:
    """Names of the models that an evaluation scored; [] for other artifacts."""
    return [role.partition(":")[2] for role in artifact.inputs if role.startswith(SUBJECT_ROLE)]


def _paired_names(a: Artifact, b: Artifact) -> tuple[dict[str, str], dict[str, str]]:
    """Common names for the models of two evaluations: 'old → new' for the first models that differ, and so on."""
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
        # Without its number: a model that was scored third instead of second is not a difference.
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
    """{'a': {'b': 1}} → {'a.b': 1}. Lists stay whole; only the records of a list get keys: their names, or 1, 2, …"""
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
    """'group.metric' → value; 'subject.group.metric' if the evaluation scored several models."""
    if AGGREGATE_FILE not in artifact.manifest["files"]:
        return {}
    rows = artifact.read_table(AGGREGATE_FILE).to_dicts()
    several = len({row["subject"] for row in rows}) > 1
    shown = {row["subject"]: f"{names.get(row['subject'], row['subject'])}." if several else "" for row in rows}
    return {f"{shown[row['subject']]}{row['group']}.{row['metric']}": row["value"] for row in rows}
