"""A committed artifact as the record that `tracking` sends on."""

from dcclctl.artifacts import Evaluation, Tuning
from dcclctl.report.text import plain
from dcclctl.store.lineage import Node, dotted, lineage
from dcclctl.store.store import Artifact
from dcclctl.tables import GROUPS
from dcclctl.tracking import Record


def record_of(artifact: Artifact) -> Record:
    """Configuration, lineage and figures of an artifact; only cloud models, tunings and evaluations have figures.

    Per-epoch losses have their epoch as the step; a group's metrics are named subject/group/metric, step 0.

    Args:
        artifact: just committed, or found again.
    """
    facts = artifact.facts
    figures: list[tuple[int, dict[str, float]]] = []
    for epoch in facts.get("epochs", []):
        figures.append((epoch["epoch"], {name: value for name, value in epoch.items() if name != "epoch"}))
    figures += [(at, {"basis_loss": loss}) for at, loss in enumerate(facts.get("basis_losses", []), 1)]
    if artifact.kind == "cloud":
        if facts["epochs"]:  # a counted model has none
            best = ("best_valid_loss", "best_valid_auc", "best_valid_ndcg")
            figures.append((facts["best_epoch"], {name: facts[name] for name in best if facts.get(name) is not None}))
    elif artifact.kind == "tuning":
        tuning = Tuning(artifact)
        for row in tuning.trials.filter(state="done").to_dicts():
            figures.append((row["trial"], {f"{row['variant']}/{tuning.metric}": row["value"]}))
    elif artifact.kind == "evaluation":
        names = Evaluation(artifact).subjects
        groups = (*GROUPS, "all")
        for row in artifact.read_table("aggregate.parquet").to_dicts():
            if row["group"] in groups and row["value"] is not None:
                figures.append((0, {f"{names[row['subject']]}/{row['group']}/{row['metric']}": row["value"]}))
    return Record(
        ref=artifact.ref,
        id=artifact.id,
        stage=str(artifact.manifest["stage"]),
        config={"seed": artifact.seed, **dotted(artifact.config)},
        lineage=[plain(line) for line in _lines(lineage(artifact))],
        figures=figures,
        manifest=artifact.manifest,
    )


def _lines(node: Node, depth: int = 0) -> list[str]:
    role = f"{node.role}: " if node.role else ""
    name = "sha256" if node.kind == "raw" else node.ref or node.kind
    own = f"{'  ' * depth}{role}{name} {node.id}"
    return [own, *(line for child in node.inputs for line in _lines(child, depth + 1))]
