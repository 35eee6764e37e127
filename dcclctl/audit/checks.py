"""What is checked of each artifact: its bytes, its dataset, and the events that it learned from or scored."""

from collections.abc import Collection, Iterable
from typing import Final

import numpy as np
import polars as pl

from dcclctl.audit.finding import Finding
from dcclctl.audit.timeline import Timeline
from dcclctl.evaluation.targets import targets_in_words
from dcclctl.events.log import VALID, Block
from dcclctl.events.sampling import Ints
from dcclctl.store.artifact import Artifact, remake
from dcclctl.store.lineage import ancestors

#: stages that learn, and whether they also choose their best epoch by the valid period
LEARNING: Final = {"train": True, "distill": True, "patch": False, "collect": False, "memory": False}
#: kinds of artifact that learned from events
LEARNED: Final = ("cloud", "patches", "memory")


def hashes(family: Collection[Artifact]) -> list[Finding]:
    """Is every file of these artifacts what was committed?"""
    found = [
        Finding("leak", each.ref, f"{name} {problem}: it is not what was committed")
        for each in family
        for name, problem in each.verify().items()
    ]
    files, size = sum(len(each.manifest["files"]) for each in family), sum(each.size_bytes for each in family)
    text = (
        f"{files} files ({size:,} bytes) of the {len(family)} artifacts of the lineage have the SHA-256 of their commit"
    )
    return found or [Finding("proven", [*family][-1].ref, text)]


def dataset_id(artifact: Artifact) -> str:
    """The id of the dataset that it was made from; '' without one."""
    given = artifact.inputs.get("dataset")
    return given.id if given else ""


def _learned_ancestors(artifact: Artifact) -> list[Artifact]:
    """The artifact and every model and memory it was made from, each once, the oldest first."""
    own = [each for each in ancestors(artifact).values() if each.kind in LEARNED and each.id != artifact.id]
    return [*own, artifact]


def one_dataset(artifact: Artifact, family: dict[str, Artifact]) -> list[Finding]:
    """Was everything in its lineage made from one dataset, with one numbering of users and items?"""
    if not dataset_id(artifact):
        return []
    expected = family[dataset_id(artifact)]
    for other in _learned_ancestors(artifact):
        if dataset_id(other) not in ("", expected.id):
            found = family[dataset_id(other)]
            text = (
                f"is made from {expected.ref} (split {expected.facts['split']}), but {other.ref} in its lineage from "
                f"{found.ref} (split {found.facts['split']}): a test event of one may be a training event of the other"
            )
            return [Finding("leak", artifact.ref, text)]
    id_map, expected_map = artifact.facts.get("id_map", expected.facts["id_map"]), expected.facts["id_map"]
    if id_map != expected_map:
        text = f"numbers users and items by another id map ({id_map[:12]}) than {expected.ref} ({expected_map[:12]})"
        return [Finding("leak", artifact.ref, text)]
    text = f"it and everything that it was made from come from {expected.ref} alone, with one id map ({id_map[:12]})"
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


def _text(blocks: Iterable[Block]) -> str:
    """The names of blocks: 'cloud, device:2/3'."""
    return ", ".join(dict.fromkeys(map(str, blocks)))


def events_learned(artifact: Artifact, timeline: Timeline) -> list[Finding]:
    """Did it learn from as many events as its blocks hold?"""
    blocks = _blocks(artifact)
    rows = timeline.rows(*blocks)
    said, users = artifact.facts.get("trained_on_events"), ""
    if artifact.kind == "patches":
        table = artifact.read_table("users.parquet")
        mine = np.bincount(timeline.user[rows], minlength=timeline.dataset.users.height)[table["user_index"].to_numpy()]
        wrong = np.flatnonzero(mine != table["events"].to_numpy())
        if len(wrong):
            at = int(wrong[0])
            text = (
                f"the patch of user {table['user_id'][at]!r} learned from {table['events'][at]} events, but the user has "
                f"{mine[at]} in {_text(blocks)}"
            )
            return [Finding("leak", artifact.ref, text)]
        rows = rows[np.isin(timeline.user[rows], table["user_index"].to_numpy())]
        said, users = artifact.facts["events"], f" of its {table.height:,} users"
    if said is not None and said > len(rows) and artifact.facts.get("forgotten"):
        return [_forgotten(artifact, f"it learned from {said:,} events, {said - len(rows):,} of them")]
    if said != len(rows):
        text = f"says that it learned from {said} events, but {_text(blocks)} holds {len(rows):,}{users}"
        return [Finding("leak", artifact.ref, text)]
    return [Finding("proven", artifact.ref, f"learned from the {len(rows):,} events of {_text(blocks)}{users}")]


def _forgotten(artifact: Artifact, what: str) -> Finding:
    """What an artifact still holds of users that `artifacts forget` took out of the dataset."""
    text = f"{what} of users that were forgotten since; to be rid of these too: {remake(artifact.manifest)}"
    return Finding("remark", artifact.ref, text)


def events_remembered(memory: Artifact, timeline: Timeline) -> list[Finding]:
    """Do the items on every device, and the counts of all users, come from exactly the events up to the memory's end?"""
    rows, what = _rows(memory, timeline)
    rows = rows[timeline.label[rows] > 0]
    log, size = timeline.dataset.log, memory.config["size"]
    held = dict(memory.read_table("memory.parquet").select("user_index", "items").iter_rows())
    bounds = np.searchsorted(timeline.user[rows], np.arange(log.n_users + 1))
    for user in range(log.n_users):
        own = timeline.item[rows[bounds[user] : bounds[user + 1]]]
        if held.get(user, []) != own[::-1][:size].tolist():
            name = timeline.dataset.users["user_id"][user]
            text = f"the device of user {name!r} does not hold the user's newest {size:,} items of {what}"
            return [Finding("leak", memory.ref, text)]
    counts = np.bincount(timeline.item[rows], minlength=log.n_items)
    share = memory.read_tensors("statistics.safetensors")["item_share"].numpy().astype(np.float64)
    expected = (counts + 0.5) / (counts.sum() + 0.5 * log.n_items)
    wrong = np.flatnonzero(~np.isclose(share, expected, rtol=1e-5, atol=0))
    if len(wrong) and memory.facts.get("forgotten"):
        return [_forgotten(memory, "its statistics count events")]
    if len(wrong):
        at = int(wrong[0])
        text = (
            f"its statistics were not counted over {what}: the share of item {timeline.dataset.items['item_id'][at]!r} "
            f"is {share[at]:.3g}, but {counts[at]:,} of the {counts.sum():,} positive events make {expected[at]:.3g}"
        )
        return [Finding("leak", memory.ref, text)]
    text = f"holds and counts the {len(rows):,} positive events of {what}, on {len(held):,} devices"
    return [Finding("proven", memory.ref, text)]


def learned_with_unseen_models(patches: Artifact, family: dict[str, Artifact], timeline: Timeline) -> list[Finding]:
    """Were the cloud models that patches were learned with (facts `learned_with`) trained without the patches' events?"""
    findings = []
    for said in patches.facts.get("learned_with", []):
        id, _, name = said.partition(" on ")
        block = Block.parse(name)
        text = f"was learned from {block} with "
        if id not in family:
            text += f"the cloud model {id[:12]}, which is not in its lineage"
            findings.append(Finding("leak", patches.ref, text))
            continue
        known = [_rows(each, timeline)[0] for each in _learned_ancestors(family[id])]
        shared = np.intersect1d(np.concatenate(known), timeline.rows(block))
        some = f"{len(shared):,} of those events, e.g. {timeline.named(int(shared[0]))}" if len(shared) else ""
        text += f"{family[id].ref}, which was trained on {some or 'none of those events'}"
        findings.append(Finding("leak" if some else "proven", patches.ref, text))
    return findings


def seen_before_scoring(
    about: Artifact, subject: Artifact, block: Block, family: dict[str, Artifact], timeline: Timeline
) -> list[Finding]:
    """Did the subject, or anything that it was made from, learn from what it is scored on, or from what came later?

    Args:
        about: the artifact that the findings are about: the evaluation; or the subject itself, for the test period.
        subject: a trained artifact. block: what it is scored on.
    """
    target = timeline.rows(block)
    findings: list[Finding] = []
    learned: dict[str, Ints] = {}
    looked: list[str] = []
    whom = "" if about is subject else f"{subject.ref}: "
    for each in _learned_ancestors(subject):
        rows, what = _rows(each, timeline)
        learned[what] = rows
        itself = "it" if each is subject and about is subject else each.ref
        shared = np.intersect1d(rows, target)
        late = timeline.not_before(rows, target)
        if len(shared):
            text = f"{whom}{itself} learned from {what}, and {len(shared):,} of those events are in {block}"
            findings.append(Finding("leak", about.ref, f"{text}, e.g. {timeline.named(int(shared[0]))}"))
        elif len(late):
            text = f"{whom}{itself} learned from {what}, where {len(late):,} events are not before {block}"
            findings.append(Finding("leak", about.ref, f"{text}, e.g. {timeline.named(int(late[0]))}"))
        if LEARNING.get(each.manifest["stage"], False) and each.facts["epochs"]:  # a counted model has no epochs
            valid = timeline.rows(Block(VALID))
            if len(np.intersect1d(valid, target)) or len(timeline.not_before(valid, target)):
                looked.append(each.ref)
    if findings:
        return findings
    rows = np.unique(np.concatenate(list(learned.values())))
    if len(rows) and len(target):
        if timeline.one_timeline:
            last, first = int(timeline.time[rows].max()), int(timeline.time[target].min())
            how = f"the last at {timeline.shown(last)}, before {block} begins at {timeline.shown(first)}"
        else:
            how = f"each before all of {block} of the same user ({len(target):,} events)"
        names = ", ".join(dict.fromkeys(name for what in learned for name in what.split(", ")))
        text = f"{whom}it and what it was made from learned from {len(rows):,} events ({names}), {how}"
        findings.append(Finding("proven", about.ref, text))
    if looked:
        text = (
            f"{whom}{', '.join(looked)} chose the best epoch by the valid period, which does not end before "
            f"{block}: metrics on {block} are a little too good"
        )
        findings.append(Finding("remark", about.ref, text))
    return findings


def events_scored(evaluation: Artifact, timeline: Timeline) -> list[Finding]:
    """Did it score exactly the events of its block, for every subject?"""
    block = Block.parse(evaluation.config["on"])
    rows, what = timeline.rows(block), f"{block}{targets_in_words(evaluation.config)}"
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
