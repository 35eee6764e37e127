"""What is checked of each artifact: its bytes, its dataset, and the events that it learned from or scored."""

from collections.abc import Iterable
from typing import Final

import numpy as np
import polars as pl

from dcclctl.audit.finding import Finding
from dcclctl.audit.timeline import Timeline
from dcclctl.config import PERIODS
from dcclctl.evaluation.targets import targets_in_words
from dcclctl.events.log import VALID, Block
from dcclctl.events.sampling import Ints
from dcclctl.store.artifact import Artifact
from dcclctl.store.lineage import ancestors

#: stages that learn, and whether they also choose their best epoch by the valid period
LEARNING: Final = {"train": True, "distill": True, "patch": False, "memory": False}
#: kinds of artifact that learned from events
LEARNED: Final = ("cloud", "patches", "memory")


def hashes(family: Iterable[Artifact], findings: list[Finding]) -> bool:
    """Check every byte; True if anything is damaged."""
    files = size = artifacts = 0
    damaged = False
    for each in family:
        for name, problem in each.verify().items():
            findings.append(Finding("leak", each.ref, f"{name} {problem}: it is not what was committed"))
            damaged = True
        artifacts += 1
        files += len(each.manifest["files"])
        size += each.size_bytes
    if not damaged:
        text = f"SHA-256 of {files} files ({size:,} bytes) of the {artifacts} artifacts of the lineage are what was committed"
        findings.append(Finding("proven", each.ref, text))
    return damaged


def dataset_id(artifact: Artifact) -> str:
    given = artifact.inputs.get("dataset")
    return given.id if given else ""


def _learned_ancestors(artifact: Artifact) -> list[Artifact]:
    """The artifact and every model and memory it was made from, each once, the oldest first."""
    own = [each for each in ancestors(artifact).values() if each.kind in LEARNED and each.id != artifact.id]
    return [*own, artifact]


def one_dataset(artifact: Artifact, family: dict[str, Artifact]) -> list[Finding]:
    """Is all of its lineage of one dataset, with one numbering of users and items?"""
    datasets = {id: each for each in _learned_ancestors(artifact) if (id := dataset_id(each))}
    expected = family[dataset_id(artifact)] if dataset_id(artifact) else None
    if expected is None:
        return []
    for id, other in datasets.items():
        if id != expected.id:
            text = (
                f"is made from {expected.ref} (split {expected.facts['split']}), but {other.ref} in its lineage from "
                f"{family[id].ref} (split {family[id].facts['split']}): what is test in one may be training in the other"
            )
            return [Finding("leak", artifact.ref, text)]
    id_map = artifact.facts.get("id_map", expected.facts["id_map"])
    if id_map != expected.facts["id_map"]:
        text = f"numbers users and items by another id map ({id_map[:12]}) than {expected.ref} ({expected.facts['id_map'][:12]})"
        return [Finding("leak", artifact.ref, text)]
    text = f"with all that it was made from it comes from {expected.ref} alone, one id map ({id_map[:12]})"
    return [Finding("proven", artifact.ref, text)]


def _blocks(artifact: Artifact) -> list[Block]:
    """What a trained artifact itself learned from, by its configuration; [] for other artifacts."""
    if artifact.manifest["stage"] not in LEARNING or artifact.kind == "memory":
        return []
    on = artifact.config["on"]
    return [Block.parse(text) for text in ([on] if isinstance(on, str) else on)]


def _rows(artifact: Artifact, timeline: Timeline) -> tuple[Ints, str]:
    """The events that an artifact itself learned from or counted, by its configuration, and their name."""
    if artifact.kind == "memory":
        last = Block.parse(artifact.config["counted_through"])
        earlier = [Block(period) for period in range(last.period)]
        return np.flatnonzero(timeline.dataset.log.up_to(last)), _text([*earlier, last])
    blocks = _blocks(artifact)
    return timeline.rows(*blocks), _text(blocks)


def _chose_by_valid(artifact: Artifact) -> bool:
    """Was its best epoch chosen by the valid period? A counted model has no epochs."""
    return LEARNING.get(artifact.manifest["stage"], False) and bool(artifact.facts["epochs"])


def _text(blocks: Iterable[Block]) -> str:
    return ", ".join(
        dict.fromkeys(
            PERIODS[block.period] + (f":{block.part}/{block.parts}" if block.parts > 1 else "") for block in blocks
        )
    )


def events_learned(artifact: Artifact, timeline: Timeline) -> list[Finding]:
    """Are the events that it says it learned from those of its blocks?"""
    blocks = _blocks(artifact)
    rows = timeline.rows(*blocks)
    said, users = artifact.facts.get("trained_on_events"), ""
    if artifact.kind == "patches":
        table = artifact.read_table("users.parquet")
        counts = np.bincount(timeline.user[rows], minlength=timeline.dataset.users.height)
        mine = counts[table["user_index"].to_numpy()]
        wrong = np.flatnonzero(mine != table["events"].to_numpy())
        if len(wrong):
            user = table["user_id"][int(wrong[0])]
            text = (
                f"the patch of user {user!r} learned from {table['events'][int(wrong[0])]} events, but the user has "
                f"{mine[wrong[0]]} in {_text(blocks)}"
            )
            return [Finding("leak", artifact.ref, text)]
        rows = rows[np.isin(timeline.user[rows], table["user_index"].to_numpy())]
        said, users = artifact.facts["events"], f" of its {table.height:,} users"
    if said != len(rows):
        text = f"says that it learned from {said} events, but {_text(blocks)} holds {len(rows):,}{users}"
        return [Finding("leak", artifact.ref, text)]
    return [Finding("proven", artifact.ref, f"learned from the {len(rows):,} events of {_text(blocks)}{users}")]


def events_remembered(memory: Artifact, timeline: Timeline) -> list[Finding]:
    """Are every device's items and everybody's counts those of the events up to the memory's end, and no others?"""
    rows, what = _rows(memory, timeline)
    rows = rows[timeline.label[rows] > 0]
    log, size = timeline.dataset.log, memory.config["size"]
    table = memory.read_table("memory.parquet")
    held = dict(table.select("user_index", "items").iter_rows())
    bounds = np.searchsorted(timeline.user[rows], np.arange(log.n_users + 1))
    for user in range(log.n_users):
        own = timeline.item[rows[bounds[user] : bounds[user + 1]]]
        if held.get(user, []) != own[::-1][:size].tolist():
            name = timeline.dataset.users["user_id"][user]
            text = f"what the device of user {name!r} remembers is not the user's newest {size:,} items of {what}"
            return [Finding("leak", memory.ref, text)]
    counts = np.bincount(timeline.item[rows], minlength=log.n_items)
    share = memory.read_tensors("statistics.safetensors")["item_share"].numpy().astype(np.float64)
    expected = (counts + 0.5) / (counts.sum() + 0.5 * log.n_items)
    wrong = np.flatnonzero(~np.isclose(share, expected, rtol=1e-5, atol=0))
    if len(wrong):
        name = timeline.dataset.items["item_id"][int(wrong[0])]
        text = (
            f"its statistics were not counted over {what}: the share of item {name!r} is {share[wrong[0]]:.3g}, "
            f"but {counts[wrong[0]]:,} of the {counts.sum():,} positive events make {expected[wrong[0]]:.3g}"
        )
        return [Finding("leak", memory.ref, text)]
    text = f"remembers and counts the {len(rows):,} positive events of {what}: {len(held):,} devices looked at"
    return [Finding("proven", memory.ref, text)]


def learned_with_unseen_models(patches: Artifact, family: dict[str, Artifact], timeline: Timeline) -> list[Finding]:
    """Patches that the cloud learned with other models (facts `learned_with`): had those not been trained on the events?"""
    findings = []
    for text in patches.facts.get("learned_with", []):
        id, _, name = text.partition(" on ")
        block = Block.parse(name)
        if id not in family:
            said = f"was learned from {_text([block])} with the cloud model {id[:12]}, which is not in its lineage"
            findings.append(Finding("leak", patches.ref, said))
            continue
        known = [_rows(each, timeline)[0] for each in _learned_ancestors(family[id])]
        shared = np.intersect1d(np.concatenate(known), timeline.rows(block))
        if len(shared):
            said = (
                f"was learned from {_text([block])} with {family[id].ref}, which had been trained on {len(shared):,} of "
                f"those events, e.g. {timeline.named(int(shared[0]))}"
            )
            findings.append(Finding("leak", patches.ref, said))
        else:
            said = f"was learned from {_text([block])} with {family[id].ref}, which had not been trained on any of it"
            findings.append(Finding("proven", patches.ref, said))
    return findings


def seen_before_scoring(
    judge: Artifact, subject: Artifact, block: Block, family: dict[str, Artifact], timeline: Timeline
) -> list[Finding]:
    """Did the subject, or anything that it was made from, learn from what it is judged on, or from what came later?

    Args:
        judge: the evaluation; or the subject itself, held against its test period.
        subject: a trained artifact.
        block: what it is judged on.
    """
    target = timeline.rows(block)
    findings: list[Finding] = []
    learned: dict[str, Ints] = {}
    looked: list[str] = []
    whom = "" if judge is subject else f"{subject.ref}: "
    for each in _learned_ancestors(subject):
        rows, what = _rows(each, timeline)
        learned[what] = rows
        itself = "it" if each is subject and judge is subject else each.ref
        shared = np.intersect1d(rows, target)
        late = timeline.not_before(rows, target)
        if len(shared):
            text = f"{whom}{itself} learned from {what}, and {len(shared):,} of those events are in {_text([block])}"
            findings.append(Finding("leak", judge.ref, f"{text}, e.g. {timeline.named(int(shared[0]))}"))
        elif len(late):
            text = f"{whom}{itself} learned from {what}, where {len(late):,} events are not before {_text([block])}"
            findings.append(Finding("leak", judge.ref, f"{text}, e.g. {timeline.named(int(late[0]))}"))
        if _chose_by_valid(each):
            valid = timeline.rows(Block(VALID))
            if len(np.intersect1d(valid, target)) or len(timeline.not_before(valid, target)):
                looked.append(each.ref)
    if findings:
        return findings
    rows = np.unique(np.concatenate(list(learned.values())))
    if len(rows) and len(target):
        if timeline.one_timeline:
            last, first = int(timeline.time[rows].max()), int(timeline.time[target].min())
            how = f"the last at {timeline.shown(last)}, before {_text([block])} begins at {timeline.shown(first)}"
        else:
            how = f"each before all of {_text([block])} of the same user ({len(target):,} events)"
        names = ", ".join(dict.fromkeys(name for what in learned for name in what.split(", ")))
        text = f"{whom}all that it and its ancestors learned from ({names}: {len(rows):,} events) is over: {how}"
        findings.append(Finding("proven", judge.ref, text))
    if looked:
        text = (
            f"{whom}{', '.join(looked)} chose the best epoch by the valid period, which is not over before "
            f"{_text([block])}: figures on it are a little too good"
        )
        findings.append(Finding("remark", judge.ref, text))
    return findings


def events_scored(evaluation: Artifact, timeline: Timeline) -> list[Finding]:
    """Did it score exactly the events of its block, for every subject?"""
    block = Block.parse(evaluation.config["on"])
    rows, what = timeline.rows(block), _text([block]) + targets_in_words(evaluation.config)
    targets = evaluation.config["targets"]
    if targets != "all":
        rows = rows[timeline.repeated()[rows] == (targets == "repeat")]
    if evaluation.config["first_events"]:
        after, (first,) = evaluation.config["targets_after"], evaluation.config["first_events"]
        limits = (first, first) if after == "next" else (after,)
        rows = timeline.late_of_new_users(rows, *limits)
        what += f" by new users {'right ' if after == 'next' else ''}after their first {limits[0]} positive events"
    counts = np.bincount(timeline.user[rows], minlength=timeline.dataset.users.height)
    users = np.flatnonzero(counts)
    for (subject,), table in evaluation.read_table("per_user.parquet").group_by("subject", maintain_order=True):
        scored = table.sort("user_index").select(pl.col("user_index", "events").cast(pl.Int64))
        if not np.array_equal(scored["user_index"].to_numpy(), users) or not np.array_equal(
            scored["events"].to_numpy(), counts[users]
        ):
            text = f"{subject} was not scored on the {len(rows):,} events of {what}"
            return [Finding("leak", evaluation.ref, text)]
    text = f"every model was scored on the same {len(rows):,} events of {what}, {len(users):,} users"
    return [Finding("proven", evaluation.ref, text)]
