"""What is checked of each artifact: its bytes, its dataset, and the events that it learned from or scored."""

from collections.abc import Collection, Iterable
from typing import Final

import numpy as np
import polars as pl

from dcclctl.audit.finding import Finding
from dcclctl.audit.part import Examples, Part, Rows
from dcclctl.audit.timeline import Timeline
from dcclctl.evaluation.targets import targets_in_words
from dcclctl.events.log import VALID, Block
from dcclctl.events.sampling import Ints
from dcclctl.store.artifact import Artifact
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


def _rows(artifact: Artifact) -> tuple[Rows, str]:
    """The events that an artifact itself learned from or counted, by its configuration, and their name."""
    if artifact.kind == "memory":
        last = Block.parse(artifact.config["counted_through"])
        return lambda part: part.up_to(last), _text([*(Block(period) for period in range(last.period)), last])
    blocks = _blocks(artifact)
    return lambda part: part.rows(*blocks), _text(blocks)


def _text(blocks: Iterable[Block]) -> str:
    """The names of blocks: 'cloud, device:2/3'."""
    return ", ".join(dict.fromkeys(map(str, blocks)))


def events_learned(artifact: Artifact, timeline: Timeline) -> list[Finding]:
    """Did it learn from as many events as its blocks hold?"""
    rows, what = _rows(artifact)
    counts = timeline.counts(rows)
    said, users, held = artifact.facts.get("trained_on_events"), "", int(counts.sum())
    if artifact.kind == "patches":
        table = artifact.read_table("users.parquet")
        mine = counts[table["user_index"].to_numpy()]
        wrong = np.flatnonzero(mine != table["events"].to_numpy())
        if len(wrong):
            at = int(wrong[0])
            text = (
                f"the patch of user {table['user_id'][at]!r} learned from {table['events'][at]} events, but the user has "
                f"{mine[at]} in {what}"
            )
            return [Finding("leak", artifact.ref, text)]
        own = counts[table["user_index"].unique().to_numpy()]
        held = int(own.sum())
        said, users = artifact.facts["events"], f" of {int((own > 0).sum()):,} users"
    if said is not None and said > held and artifact.facts.get("forgotten"):
        return [_forgotten(artifact, f"it learned from {said:,} events, {said - held:,} of them")]
    if said != held:
        text = f"says that it learned from {said} events, but {what} holds {held:,}{users}"
        return [Finding("leak", artifact.ref, text)]
    return [Finding("proven", artifact.ref, f"learned from the {held:,} events of {what}{users}")]


def _forgotten(artifact: Artifact, what: str) -> Finding:
    """What an artifact still holds of users that `artifacts forget` took out of the dataset."""
    text = f"{what} of users that were forgotten since; to be rid of these too: {artifact.command}"
    return Finding("remark", artifact.ref, text)


def events_remembered(memory: Artifact, timeline: Timeline) -> list[Finding]:
    """Do the items on every device, and the counts of all users, come from exactly the events up to the memory's end?"""
    (counted, what), size = _rows(memory), memory.config["size"]
    table = memory.read_table("memory.parquet").select("user_index", "items")
    owners, counts = table["user_index"].to_numpy(), np.zeros(timeline.n_items, dtype=np.int64)
    for part in timeline.parts():
        rows = counted(part)
        rows = rows[part.label[rows] > 0]
        first, last = np.searchsorted(owners, [part.users.start, part.users.stop])
        held = dict(table[int(first) : int(last)].iter_rows())
        bounds = np.searchsorted(part.user[rows], np.arange(part.users.start, part.users.stop + 1))
        for place, user in enumerate(part.users):
            own = part.item[rows[bounds[place] : bounds[place + 1]]]
            if held.get(user, []) != own[::-1][:size].tolist():
                name = timeline.dataset.users["user_id"][user]
                text = f"the device of user {name!r} does not hold the user's newest {size:,} items of {what}"
                return [Finding("leak", memory.ref, text)]
        counts += np.bincount(part.item[rows], minlength=len(counts))
    share = memory.read_tensors("statistics.safetensors")["item_share"].numpy().astype(np.float64)
    expected = (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
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
    text = f"holds and counts the {counts.sum():,} positive events of {what}, on {table.height:,} devices"
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
        known = [_rows(each)[0] for each in _learned_ancestors(family[id])]
        shared = Examples()
        for part in timeline.parts():
            shared.add(part, np.intersect1d(_together(rows(part) for rows in known), part.rows(block)))
        some = f"{shared.count:,} of those events, e.g. {shared.first}" if shared.count else ""
        text += f"{family[id].ref}, which was trained on {some or 'none of those events'}"
        findings.append(Finding("leak" if some else "proven", patches.ref, text))
    return findings


def _together(rows: Iterable[Ints]) -> Ints:
    """Rows that are in any of some lists, ascending."""
    return np.unique(np.concatenate([*rows, np.empty(0, dtype=np.int64)]))


def seen_before_scoring(
    about: Artifact, subject: Artifact, block: Block, family: dict[str, Artifact], timeline: Timeline
) -> list[Finding]:
    """Did the subject, or anything that it was made from, learn from what it is scored on, or from what came later?

    Args:
        about: the artifact that the findings are about: the evaluation; or the subject itself, for the test period.
        subject: a trained artifact. block: what it is scored on.
    """
    seen = _Seen(_learned_ancestors(subject), block, timeline)
    findings: list[Finding] = []
    whom = "" if about is subject else f"{subject.ref}: "
    for each, what, shared, late in zip(seen.learners, seen.names, seen.shared, seen.late, strict=True):
        itself = "it" if each is subject and about is subject else each.ref
        if shared.count:
            text = f"{whom}{itself} learned from {what}, and {shared.count:,} of those events are in {block}"
            findings.append(Finding("leak", about.ref, f"{text}, e.g. {shared.first}"))
        elif late.count:
            text = f"{whom}{itself} learned from {what}, where {late.count:,} events are not before {block}"
            findings.append(Finding("leak", about.ref, f"{text}, e.g. {late.first}"))
    if findings:
        return findings
    if seen.n_learned and seen.n_scored:
        if timeline.one_timeline:
            begin = timeline.start(block)
            assert begin is not None  # it has events
            how = f"the last at {timeline.shown(seen.last)}, before {block} begins at {timeline.shown(begin)}"
        else:
            how = f"each before all of {block} of the same user ({seen.n_scored:,} events)"
        names = ", ".join(dict.fromkeys(name for what in seen.names for name in what.split(", ")))
        text = f"{whom}it and what it was made from learned from {seen.n_learned:,} events ({names}), {how}"
        findings.append(Finding("proven", about.ref, text))
    if seen.valid_is_late:
        looked = [
            each.ref
            for each in seen.learners
            if LEARNING.get(each.manifest["stage"], False) and each.facts["epochs"]  # a counted model has no epochs
        ]
        if looked:
            text = (
                f"{whom}{', '.join(looked)} chose the best epoch by the valid period, which does not end before "
                f"{block}: metrics on {block} are a little too good"
            )
            findings.append(Finding("remark", about.ref, text))
    return findings


class _Seen:
    """What some artifacts learned from, compared with a block that is scored.

    Attributes:
        learners: the artifacts. names: what each learned from. shared: of these, events of the block.
        late: those that are not before the block. n_learned: distinct events that any of them learned from.
        last: the last time of these. n_scored: events of the block.
        valid_is_late: whether some event of the valid period is in the block, or not before it.
    """

    def __init__(self, learners: list[Artifact], block: Block, timeline: Timeline) -> None:
        self.learners = learners
        rows, names = zip(*map(_rows, learners), strict=True)
        self.names: tuple[str, ...] = names
        self.shared, self.late = ([Examples() for _ in learners] for _ in range(2))
        self.n_learned = self.n_scored = 0
        self.last = int(np.iinfo(np.int64).min)
        self.valid_is_late = False
        start = timeline.start(block)
        for part in timeline.parts():
            target = part.rows(block)
            for own, shared, late in zip(rows, self.shared, self.late, strict=True):
                learned = own(part)
                shared.add(part, np.intersect1d(learned, target))
                late.add(part, part.not_before(learned, target, start))
            valid = part.rows(Block(VALID))
            self.valid_is_late |= bool(len(np.intersect1d(valid, target)) or len(part.not_before(valid, target, start)))
            every = _together(own(part) for own in rows)
            self.last = max(self.last, int(part.time[every].max(initial=self.last)))
            self.n_learned, self.n_scored = self.n_learned + len(every), self.n_scored + len(target)


def events_scored(evaluation: Artifact, timeline: Timeline) -> list[Finding]:
    """Did it score exactly the events of its block, for every subject?"""
    block = Block.parse(evaluation.config["on"])
    what = f"{block}{targets_in_words(evaluation.config)}"
    targets, firsts, after = (evaluation.config[name] for name in ("targets", "first_events", "targets_after"))
    limits = () if not firsts else (firsts[0], firsts[0]) if after == "next" else (after,)
    if limits:
        what += f" by new users {'right ' if after == 'next' else ''}after their first {limits[0]} positive events"

    def scored(part: Part) -> Ints:
        rows = part.rows(block)
        if targets != "all":
            rows = rows[part.repeated()[rows] == (targets == "repeat")]
        return part.late_of_new_users(rows, *limits) if limits else rows

    counts = timeline.counts(scored)
    users, count = np.flatnonzero(counts), int(counts.sum())
    for (subject,), table in evaluation.read_table("per_user.parquet").group_by("subject", maintain_order=True):
        found = table.sort("user_index").select(pl.col("user_index", "events").cast(pl.Int64))
        if not np.array_equal(found["user_index"].to_numpy(), users) or not np.array_equal(
            found["events"].to_numpy(), counts[users]
        ):
            text = f"{subject} was not scored on the {count:,} events of {what}"
            return [Finding("leak", evaluation.ref, text)]
    text = f"every model was scored on the same {count:,} events of {what}, {len(users):,} users"
    return [Finding("proven", evaluation.ref, text)]
