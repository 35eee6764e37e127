"""`audit`: prove from the events themselves that nothing trained has seen what it is judged on.

Nothing is taken on trust but the bytes of the committed tables: hashes are checked again, periods are cut again, the
events behind every trained artifact are looked up again from its configuration, and histories are counted a second way.
What was changed in a log before it was ingested cannot be seen here.
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from dcclctl.algorithm.eventlog import TEST, VALID, Block
from dcclctl.algorithm.sampling import Ints
from dcclctl.config import PERIODS
from dcclctl.errors import ArtifactError
from dcclctl.logs.split import iso, leave_one_out, new_users, per_user, shares_of
from dcclctl.stages.cold import targets_in_words
from dcclctl.stages.handles import Dataset
from dcclctl.stages.models import MODULES
from dcclctl.store.store import Artifact, Store

#: Stages that learn, and whether they also choose their best epoch by the valid period.
LEARNING = {"train": True, "distill": True, "patch": False, "memory": False}
#: Kinds that stand between the events and a judgement.
_LEARNED = ("cloud", "patches", "memory")
_VALID = Block(VALID)
_TEST = Block(TEST)


@dataclass(frozen=True)
class Finding:
    """One thing that the audit found.

    Attributes:
        kind: proven; remark (true, and worth knowing, but no leak); or leak.
        artifact: reference of the artifact that it is about.
        text: one sentence with its figures.
    """

    kind: Literal["proven", "remark", "leak"]
    artifact: str
    text: str


def audit(artifact: Artifact, store: Store) -> list[Finding]:
    """Audit an artifact and everything that it was made from; of a dataset, everything that was made from it.

    Args:
        artifact: any kind.
        store: where its lineage is.

    Returns:
        Findings, those on inputs before those on what was made from them. It passed if none is a leak.

    Raises:
        ArtifactError: an artifact of the lineage is gone, or its manifest is damaged.
    """
    family: dict[str, Artifact] = {}
    members = [artifact]
    if artifact.kind == "dataset":
        made = [each for each in store.artifacts() if each.kind != "dataset"]
        members += [each for each in made if artifact.as_input() in each.inputs.values()]
    for member in members:
        _collect(member, store, family)
    findings: list[Finding] = []
    damaged = _hashes(family.values(), findings)
    if damaged:
        # Nothing can be proven with tables that are not what was committed.
        return findings
    timelines = {id: Timeline(each) for id, each in family.items() if each.kind == "dataset"}
    for timeline in timelines.values():
        findings += timeline.findings()
    for each in family.values():
        if each.kind != "dataset":
            findings += _one_dataset(each, family)
    for each in family.values():
        timeline_of = timelines.get(_dataset_id(each))
        if timeline_of is None or each.kind == "dataset":
            continue
        if each.kind in _LEARNED and each.manifest["stage"] not in LEARNING:
            text = f"was made by {each.manifest['stage']!r}, so what it learned from is not known"
            findings.append(Finding("leak", each.ref, text))
        if each.manifest["stage"] in LEARNING:
            if each.kind == "memory":
                findings += _remembered(each, timeline_of)
            else:
                findings += _learned(each, timeline_of)
            findings += _fresh_to_its_teachers(each, family, timeline_of)
            # a memory may not even know the valid period: settings are chosen there (stages/memory.py)
            first = _VALID if each.kind == "memory" else _TEST
            findings += _judged(each, each, first, family, timeline_of)
        if each.kind == "evaluation":
            findings += _scored(each, timeline_of)
            block = Block.parse(each.config["on"])
            for role, given in each.inputs.items():
                if role.startswith("subject-"):
                    findings += _judged(each, family[given.id], block, family, timeline_of)
    return findings


def _collect(artifact: Artifact, store: Store, family: dict[str, Artifact]) -> None:
    """Add an artifact's inputs, then the artifact."""
    if artifact.id in family:
        return
    for given in artifact.inputs.values():
        if given.kind != "raw":
            _collect(store.find(given.kind, given.id), store, family)
    family[artifact.id] = artifact


def _hashes(family: Iterable[Artifact], findings: list[Finding]) -> bool:
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


def _dataset_id(artifact: Artifact) -> str:
    given = artifact.inputs.get("dataset")
    return given.id if given else ""


def _ancestors(artifact: Artifact, family: dict[str, Artifact]) -> list[Artifact]:
    """The artifact and every model and memory it was made from, each once, the oldest first."""
    found: dict[str, Artifact] = {}
    for given in artifact.inputs.values():
        if given.kind in _LEARNED:
            found |= {each.id: each for each in _ancestors(family[given.id], family)}
    return [*found.values(), artifact]


def _one_dataset(artifact: Artifact, family: dict[str, Artifact]) -> list[Finding]:
    """Is all of its lineage of one dataset, with one numbering of users and items?"""
    datasets = {id: each for each in _ancestors(artifact, family) if (id := _dataset_id(each))}
    expected = family[_dataset_id(artifact)] if _dataset_id(artifact) else None
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


class Timeline:
    """The events of one dataset, and which of them come before which."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.dataset = Dataset(artifact)
        events = artifact.read_table("events.parquet")
        self.user, self.item, self.time, self.label, self.period = (
            events[name].to_numpy().astype(np.int64)
            for name in ("user_index", "item_index", "time_us", "label", "period")
        )
        self.one_timeline = artifact.facts["split"] == "global"
        self._rows: dict[Block, Ints] = {}

    def rows(self, *blocks: Block) -> Ints:
        """Rows of the events in some blocks, ascending."""
        for block in blocks:
            if block not in self._rows:
                self._rows[block] = self.dataset.log.events_in(block)
        parts = [self._rows[block] for block in blocks]
        return np.unique(np.concatenate(parts)) if parts else np.empty(0, dtype=np.int64)

    def shown(self, time: int) -> str:
        return str(time) if self.artifact.facts["time_kind"] == "ordinal" else iso(time)

    def named(self, row: int) -> str:
        """An event for people: who, what, when."""
        user = self.dataset.users["user_id"][int(self.user[row])]
        item = self.dataset.items["item_id"][int(self.item[row])]
        return (
            f"user {user!r}, item {item!r}, time {self.shown(int(self.time[row]))} (period {PERIODS[self.period[row]]})"
        )

    def not_before(self, earlier: Ints, later: Ints) -> Ints:
        """Those of the earlier rows that are not before the later ones: of all users, or of the same user.

        Within one user's own timeline equal times go by the order in the log, which is the order of rows.
        """
        if not len(earlier) or not len(later):
            return earlier[:0]
        if self.one_timeline:
            not_over: Ints = earlier[self.time[earlier] >= self.time[later].min()]
            return not_over
        first = np.full(self.dataset.users.height, len(self.user))
        np.minimum.at(first, self.user[later], later)
        late: Ints = earlier[earlier >= first[self.user[earlier]]]
        return late

    def late_of_new_users(self, rows: Ints, least: int, most: float = math.inf) -> Ints:
        """Those rows whose user has no event before test, and from `least` to `most` positive ones at earlier times."""
        known = np.zeros(self.dataset.users.height, np.bool_)
        known[self.user[self.period < TEST]] = True
        earlier = self.positives_before()[rows]
        late: Ints = rows[~known[self.user[rows]] & (earlier >= least) & (earlier <= most)]
        return late

    def positives_before(self) -> Ints:
        """(N,) for each event, how many positive events its user has at strictly earlier times."""
        moments = np.unique(self.time, return_inverse=True)[1]
        stride = int(moments.max(initial=0)) + 1
        keys = self.user * stride + moments
        positive = np.sort(keys[self.label > 0])
        earlier: Ints = np.searchsorted(positive, keys) - np.searchsorted(positive, self.user * stride)
        return earlier

    def repeated(self) -> npt.NDArray[np.bool_]:
        """(N,) for each event, whether its user had its item at a strictly earlier time."""
        events = pl.DataFrame({"user": self.user, "item": self.item, "time": self.time})
        first = events.filter(self.label > 0).group_by("user", "item").agg(pl.col("time").min().alias("first"))
        joined = events.join(first, on=["user", "item"], how="left", maintain_order="left")
        again: npt.NDArray[np.bool_] = (
            joined.select((pl.col("first") < pl.col("time")).fill_null(False)).to_series().to_numpy()
        )
        return again

    def findings(self) -> list[Finding]:
        """What is true of the dataset itself."""
        return [
            *self._order(),
            *self._cuts_again(),
            *self._periods(),
            *self._copies(),
            *self._histories(),
            *self._ids(),
        ]

    def _finding(self, text: str, bad: "Ints | None" = None) -> Finding:
        if bad is None or not len(bad):
            return Finding("proven", self.artifact.ref, text)
        more = f" and {len(bad) - 1:,} more" if len(bad) > 1 else ""
        return Finding("leak", self.artifact.ref, f"{text}: {self.named(int(bad[0]))}{more}")

    def _order(self) -> list[Finding]:
        same = self.user[1:] == self.user[:-1]
        bad = 1 + np.flatnonzero((self.user[1:] < self.user[:-1]) | (same & (self.time[1:] < self.time[:-1])))
        if len(bad):
            return [self._finding("an event does not stand in the order of its user's times", bad)]
        return []

    def _periods(self) -> list[Finding]:
        """Every period before the next ones."""
        findings = []
        whose = "of all events" if self.one_timeline else "on every user's own timeline"
        for number in range(len(PERIODS) - 1):
            earlier, later = np.flatnonzero(self.period <= number), np.flatnonzero(self.period > number)
            bad = self.not_before(earlier, later)
            if len(bad):
                text = f"an event learned from before {PERIODS[number + 1]} is not before all events after it"
                findings.append(self._finding(text, bad))
        if not findings:
            if self.one_timeline:
                spans = [self._span(number) for number in range(len(PERIODS)) if (self.period == number).any()]
                findings.append(self._finding(f"{whose}, every period ends before the next begins: {'; '.join(spans)}"))
            else:
                counts = ", ".join(f"{name} {int((self.period == at).sum()):,}" for at, name in enumerate(PERIODS))
                findings.append(self._finding(f"{whose}, every period ends before the next begins: {counts} events"))
                findings += self._leaks_of_trends()
        return findings

    def _span(self, number: int) -> str:
        times = self.time[self.period == number]
        return (
            f"{PERIODS[number]} {self.shown(int(times.min()))} … {self.shown(int(times.max()))} ({len(times):,} events)"
        )

    def _leaks_of_trends(self) -> list[Finding]:
        """What a split per user cannot promise."""
        text = "users' periods overlap in time, so what others did later can be learned from (only a global split prevents it)"
        findings = [Finding("remark", self.artifact.ref, text)]
        ties = (
            (self.user[1:] == self.user[:-1]) & (self.time[1:] == self.time[:-1]) & (self.period[1:] > self.period[:-1])
        )
        if ties.any():
            text = f"{int(ties.sum()):,} cuts fall between two events of one moment; they are told apart by their order in the log"
            findings.append(Finding("remark", self.artifact.ref, text))
        return findings

    def _cuts_again(self) -> list[Finding]:
        """The same periods come out when the split is made again."""
        config, facts = self.artifact.config, self.artifact.facts
        users = self.user.astype(np.int32)
        again: npt.NDArray[np.int8]
        if self.one_timeline:
            again = np.searchsorted(np.array(facts["cut_times_us"], np.int64), self.time, side="right").astype(np.int8)
        elif facts["split"] == "per-user":
            again = per_user(users, shares_of(config["periods"]))
        else:
            again = leave_one_out(users)
        made_new = new_users(self.dataset.users["user_id"].to_list(), config.get("new_users", 0.0), self.artifact.seed)
        if self.one_timeline:
            known = np.zeros(len(made_new), np.bool_)
            known[self.user[self.period < TEST]] = True
            tested = np.zeros(len(made_new), np.bool_)
            tested[self.user[self.period == TEST]] = True
            seen = np.flatnonzero((made_new & known & tested)[self.user] & (self.period < TEST))
            if len(seen):
                return [self._finding("an event before test is kept of a user that --new-users made new", seen)]
        else:
            again[made_new[self.user]] = TEST
        bad = np.flatnonzero(again != self.period)
        if len(bad):
            right = PERIODS[again[bad[0]]]
            text = (
                f"an event of {right}, by the {facts['split']} split, is kept as one of {PERIODS[self.period[bad[0]]]}"
            )
            return [self._finding(text, bad)]
        text = (
            f"the {facts['split']} split, made again, puts each of the {len(self.user):,} events in the period it is in"
        )
        findings = [self._finding(text)]
        if made_new.any():
            text = (
                f"--new-users {config['new_users']:g}, drawn again: who of them has a test event has none before test"
            )
            findings.append(self._finding(text))
        return findings

    def _copies(self) -> list[Finding]:
        """No event on two sides of a cut."""
        order = np.lexsort((self.period, self.time, self.item, self.user))
        keys = np.stack([self.user[order], self.item[order], self.time[order]])
        # Two behaviours at one moment are two rows; they may not be on two sides of a cut.
        periods = self.period[order]
        copies = order[1:][(keys[:, 1:] == keys[:, :-1]).all(axis=0) & (periods[1:] != periods[:-1])]
        if len(copies):
            return [self._finding("an event (user, item, time) stands in two periods", copies)]
        findings = [self._finding(f"none of the {len(self.user):,} events (user, item, time) stands in two periods")]
        if self.artifact.facts["repeats"] == "first":
            again = order[1:][(keys[:2, 1:] == keys[:2, :-1]).all(axis=0)]
            if len(again):
                return [self._finding("only first events were kept, but a user has an item twice", again)]
            findings.append(
                self._finding("no item of an event stands in its user's history: each user has an item once")
            )
        return findings

    def _histories(self) -> list[Finding]:
        """The history of an event is what its user did at a strictly earlier time, counted by a second way."""
        log, earlier = self.dataset.log, self.positives_before()
        bad = np.flatnonzero(earlier != log.history_end - log.history_start)
        if len(bad):
            return [self._finding("a history is not made of strictly earlier events", bad)]
        tested = self.period == TEST
        text = (
            f"every history holds strictly earlier events of its user only: {int(earlier.sum()):,} looked at, "
            f"{int(earlier[tested].sum()):,} of them before the {int(tested.sum()):,} test events"
        )
        return [self._finding(text)]

    def _ids(self) -> list[Finding]:
        ids = (self.dataset.users["user_id"].to_list(), self.dataset.items["item_id"].to_list())
        found = hashlib.sha256("\0\0".join("\0".join(part) for part in ids).encode("utf-8")).hexdigest()
        if found != self.dataset.id_map:
            text = f"its users and items are not those of its id map ({self.dataset.id_map[:12]})"
            return [Finding("leak", self.artifact.ref, text)]
        return [
            self._finding(f"the id map {found[:12]} is that of its {len(ids[0]):,} users and {len(ids[1]):,} items")
        ]


def _blocks(artifact: Artifact) -> list[Block]:
    """What a trained artifact itself learned from, by its configuration; [] for other artifacts."""
    if artifact.manifest["stage"] not in LEARNING or artifact.kind == "memory":
        return []
    on = artifact.config["on"]
    return [Block.parse(text) for text in ([on] if isinstance(on, str) else on)]


def _rows(artifact: Artifact, timeline: Timeline) -> tuple[Ints, str]:
    """The events that an artifact itself learned from or counted, by its configuration, and their name."""
    if artifact.kind == "memory":
        until = Block.parse(artifact.config["until"])
        earlier = [Block(period) for period in range(until.period)]
        return np.flatnonzero(timeline.dataset.log.up_to(until)), _text([*earlier, until])
    blocks = _blocks(artifact)
    return timeline.rows(*blocks), _text(blocks)


def _chose_by_valid(artifact: Artifact) -> bool:
    """Was its best epoch chosen by the valid period? A model in closed form has none."""
    closed = MODULES.get(artifact.config.get("model", "")) == "counts"
    return LEARNING.get(artifact.manifest["stage"], False) and not closed


def _text(blocks: Iterable[Block]) -> str:
    return ", ".join(
        dict.fromkeys(
            PERIODS[block.period] + (f":{block.part}/{block.parts}" if block.parts > 1 else "") for block in blocks
        )
    )


def _learned(artifact: Artifact, timeline: Timeline) -> list[Finding]:
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


def _remembered(memory: Artifact, timeline: Timeline) -> list[Finding]:
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


def _fresh_to_its_teachers(patches: Artifact, family: dict[str, Artifact], timeline: Timeline) -> list[Finding]:
    """Patches that the cloud learned with other models (facts `learned_with`): had those not been trained on the events?"""
    findings = []
    for text in patches.facts.get("learned_with", []):
        id, _, name = text.partition(" on ")
        block = Block.parse(name)
        if id not in family:
            said = f"was learned from {_text([block])} with the cloud model {id[:12]}, which is not in its lineage"
            findings.append(Finding("leak", patches.ref, said))
            continue
        known = [_rows(each, timeline)[0] for each in _ancestors(family[id], family)]
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


def _judged(
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
    for each in _ancestors(subject, family):
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
            valid = timeline.rows(_VALID)
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


def _scored(evaluation: Artifact, timeline: Timeline) -> list[Finding]:
    """Did it score exactly the events of its block, for every subject?"""
    block = Block.parse(evaluation.config["on"])
    rows, what = timeline.rows(block), _text([block]) + targets_in_words(evaluation.config)
    targets = evaluation.config.get("targets", "all")
    if targets != "all":
        rows = rows[timeline.repeated()[rows] == (targets == "repeat")]
    if evaluation.config.get("first_events"):
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


def leaks(findings: list[Finding]) -> ArtifactError | None:
    """The error that names every leak; None if there is none."""
    found = [finding for finding in findings if finding.kind == "leak"]
    if not found:
        return None
    more = f" ({len(found)} leaks in all)" if len(found) > 1 else ""
    return ArtifactError(
        f"{found[0].artifact}: {found[0].text}{more}",
        "Figures made from it cannot be trusted: make it again from a clean dataset, and forget what was made from it.",
    )


def default_artifact(store: Store) -> Artifact:
    """The newest evaluation; without one the newest of what comes before it.

    Raises:
        UsageError: an empty store.
    """
    kinds = ("evaluation", "patches", "cloud")
    return store.latest(next((kind for kind in kinds if store.numbers(kind)), "dataset"))


def as_rows(findings: list[Finding]) -> dict[str, list[dict[str, str]]]:
    """Findings by kind, for --json."""
    return {
        name: [{"artifact": each.artifact, "text": each.text} for each in findings if each.kind == kind]
        for name, kind in (("proven", "proven"), ("remarks", "remark"), ("leaks", "leak"))
    }
