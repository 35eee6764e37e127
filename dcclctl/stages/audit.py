"""`audit`: check on the events themselves that no model was trained on the events it is scored on.

The audit trusts only the committed tables: it checks their hashes, splits the periods again, looks up the events behind
every trained artifact again by its configuration, and counts histories in a second way. It cannot see what was changed in
a log before it was ingested.
"""

from dcclctl.audit.checks import (
    LEARNED,
    LEARNING,
    dataset_id,
    events_learned,
    events_remembered,
    events_scored,
    hashes,
    learned_with_unseen_models,
    one_dataset,
    seen_before_scoring,
)
from dcclctl.audit.finding import Finding, leaks
from dcclctl.audit.timeline import Timeline
from dcclctl.compute import Phase
from dcclctl.events.log import TEST, VALID, Block
from dcclctl.store.lineage import SUBJECT_ROLE, ancestors
from dcclctl.store.store import Artifact, Store


def audit(artifact: Artifact) -> list[Finding]:
    """Audit an artifact and everything that it was made from; of a dataset, everything that was made from it.

    Args:
        artifact: any kind.

    Returns:
        Findings, those on inputs before those on what was made from them. It passed if none is a leak.

    Raises:
        ArtifactError: an artifact of the lineage is gone, or its manifest is damaged.
    """
    members = [artifact]
    if artifact.kind == "dataset":
        made = [each for each in artifact.home.artifacts() if each.kind != "dataset"]
        members += [each for each in made if artifact.as_input() in each.inputs.values()]
    family = ancestors(*members)
    findings = hashes(family.values())
    if leaks(findings):
        # Nothing can be proven with damaged tables.
        return findings
    timelines = {id: Timeline(each) for id, each in family.items() if each.kind == "dataset"}
    phase = Phase(artifact.home.on_progress, "audit", len(timelines) + len(family), "artifacts")
    for timeline in timelines.values():
        findings += timeline.findings()
        phase.add(1)
    for each in family.values():
        if each.kind != "dataset":
            findings += one_dataset(each, family)
    for each in family.values():
        phase.add(1, each.ref)
        timeline_of = timelines.get(dataset_id(each))
        if timeline_of is None or each.kind == "dataset":
            continue
        if each.kind in LEARNED and each.manifest["stage"] not in LEARNING:
            text = f"was made by {each.manifest['stage']!r}, so what it learned from is not known"
            findings.append(Finding("leak", each.ref, text))
        if each.manifest["stage"] in LEARNING:
            if each.kind == "memory":
                findings += events_remembered(each, timeline_of)
            else:
                findings += events_learned(each, timeline_of)
            findings += learned_with_unseen_models(each, family, timeline_of)
            # a memory may not count the valid period either: settings are chosen there (stages/memory.py)
            first = Block(VALID) if each.kind == "memory" else Block(TEST)
            findings += seen_before_scoring(each, each, first, family, timeline_of)
        if each.kind == "evaluation":
            findings += events_scored(each, timeline_of)
            block = Block.parse(each.config["on"])
            for role, given in each.inputs.items():
                if role.startswith(SUBJECT_ROLE):
                    findings += seen_before_scoring(each, family[given.id], block, family, timeline_of)
    return findings


def default_artifact(store: Store) -> Artifact:
    """The newest evaluation, or without one the newest patches, cloud model or dataset.

    Raises:
        UsageError: an empty store.
    """
    kinds = ("evaluation", "patches", "cloud")
    return store.latest(next((kind for kind in kinds if store.numbers(kind)), "dataset"))
