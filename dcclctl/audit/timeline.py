"""The events of one dataset: is its split what it says, and which events come before which?

Everything is computed again from the committed events, by other code than that which made them, one part of the users
after the other.
"""

import hashlib
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import numpy.typing as npt

from dcclctl.artifacts import Dataset
from dcclctl.audit.finding import Finding
from dcclctl.audit.part import Examples, Part, Rows, shown
from dcclctl.config import PERIODS
from dcclctl.events.log import TEST, Block
from dcclctl.events.sampling import Ints
from dcclctl.logs.split import leave_one_out, new_users, per_user, shares_of
from dcclctl.store.artifact import Artifact

#: later than all times
_NEVER = int(np.iinfo(np.int64).max)


class Timeline:
    """The events of one dataset, and which of them come before which."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.dataset = Dataset(artifact)
        self.n_users, self.n_items = self.dataset.users.height, self.dataset.items.height
        self.one_timeline = artifact.facts["split"] == "global"
        self._starts: dict[Block, int | None] = {}

    def parts(self) -> Iterator[Part]:
        """All events, one part of the users in memory at a time."""
        if len(self.dataset.parts) == 1:
            yield self._only
            return
        for number, users in enumerate(self.dataset.parts):
            yield Part(self.dataset, users, self.dataset.events_of(number))

    @cached_property
    def _only(self) -> Part:
        return Part(self.dataset, self.dataset.parts[0], self.dataset.events_of(0))

    def start(self, block: Block) -> int | None:
        """The first time of a block; None if it has no event."""
        if block not in self._starts:
            times = (part.time[part.rows(block)].min(initial=_NEVER) for part in self.parts())
            first = min(map(int, times), default=_NEVER)
            self._starts[block] = None if first == _NEVER else first
        return self._starts[block]

    def counts(self, rows: Rows) -> Ints:
        """(U,) how many of these events each user has."""
        counts = np.zeros(self.n_users, dtype=np.int64)
        for part in self.parts():
            counts += np.bincount(part.user[rows(part)], minlength=self.n_users)
        return counts

    def shown(self, time: int) -> str:
        return shown(self.dataset, time)

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

    def _finding(self, text: str, bad: Examples | None = None) -> Finding:
        if bad is None or not bad.count:
            return Finding("proven", self.artifact.ref, text)
        more = f" and {bad.count - 1:,} more" if bad.count > 1 else ""
        return Finding("leak", self.artifact.ref, f"{text}: {bad.first}{more}")

    def _order(self) -> list[Finding]:
        bad = Examples()
        for part in self.parts():
            wrong = (part.user < part.users.start) | (part.user >= part.users.stop)
            same = part.user[1:] == part.user[:-1]
            wrong[1:] |= (part.user[1:] < part.user[:-1]) | (same & (part.time[1:] < part.time[:-1]))
            bad.add(part, np.flatnonzero(wrong))
        if bad.count:
            return [self._finding("an event is not in the order of its user's times", bad)]
        return []

    def _periods(self) -> list[Finding]:
        """Does every period end before the next begins?"""
        spans = self._spans()
        late = [Examples() for _ in PERIODS[1:]]
        starts = [
            min((first for period, (first, _, _) in spans.items() if period > number), default=None)
            for number in range(len(late))
        ]
        for part in self.parts():
            for number, bad in enumerate(late):
                earlier, later = (np.flatnonzero(each) for each in (part.period <= number, part.period > number))
                bad.add(part, part.not_before(earlier, later, starts[number]))
        findings = [
            self._finding(
                f"an event before {PERIODS[number + 1]} is not before all events of {PERIODS[number + 1]} and later",
                bad,
            )
            for number, bad in enumerate(late)
            if bad.count
        ]
        if findings:
            return findings
        if self.one_timeline:
            texts = (
                f"{PERIODS[period]} {self.shown(first)} … {self.shown(last)} ({count:,} events)"
                for period, (first, last, count) in spans.items()
            )
            return [self._finding(f"of all events, every period ends before the next begins: {'; '.join(texts)}")]
        counts = ", ".join(f"{PERIODS[period]} {count:,}" for period, (_, _, count) in spans.items())
        text = f"on every user's own timeline, every period ends before the next begins: {counts} events"
        return [self._finding(text), *self._leaks_of_trends()]

    def _spans(self) -> dict[int, tuple[int, int, int]]:
        """Each period that has events: its first and last time, and how many events it has."""
        found: dict[int, tuple[int, int, int]] = {}
        for part in self.parts():
            for period in np.unique(part.period).tolist():
                times = part.time[part.period == period]
                first, last, count = found.get(period, (_NEVER, -_NEVER, 0))
                found[period] = (min(first, int(times.min())), max(last, int(times.max())), count + len(times))
        return dict(sorted(found.items()))

    def _leaks_of_trends(self) -> list[Finding]:
        """What a split per user cannot promise."""
        text = (
            "users' periods overlap in time, so a model can learn from what other users did later (only a global split "
            "prevents it)"
        )
        findings = [Finding("remark", self.artifact.ref, text)]
        ties = 0
        for part in self.parts():
            same = (part.user[1:] == part.user[:-1]) & (part.time[1:] == part.time[:-1])
            ties += int((same & (part.period[1:] > part.period[:-1])).sum())
        if ties:
            text = f"{ties:,} cuts fall between two events of one time, which are ordered as in the log"
            findings.append(Finding("remark", self.artifact.ref, text))
        return findings

    def _cuts_again(self) -> list[Finding]:
        """Do the same periods come out when the split is made again?"""
        config, split = self.artifact.config, self.artifact.facts["split"]
        made_new = new_users(self.dataset.users["user_id"].to_list(), config.get("new_users", 0.0), self.artifact.seed)
        bad, seen, kept_as, count = Examples(), Examples(), "", 0
        for part in self.parts():
            again = self._split_again(part)
            if self.one_timeline:
                tested = np.zeros(len(made_new), np.bool_)
                tested[part.user[part.period == TEST]] = True
                seen.add(part, np.flatnonzero((made_new & tested)[part.user] & (part.period < TEST)))
            else:
                again[made_new[part.user]] = TEST
            wrong = np.flatnonzero(again != part.period)
            if len(wrong) and not bad.count:
                right, kept = PERIODS[again[wrong[0]]], PERIODS[part.period[wrong[0]]]
                kept_as = f"an event of {right}, by the {split} split, is kept as one of {kept}"
            bad.add(part, wrong)
            count += len(part)
        if seen.count:
            return [self._finding("a user that --new-users made new has an event before test", seen)]
        if bad.count:
            return [self._finding(kept_as, bad)]
        findings = [
            self._finding(f"the {split} split, made again, puts each of the {count:,} events in the same period")
        ]
        if made_new.any():
            text = (
                f"--new-users {config['new_users']:g}, drawn again: those with a test event have no event before test"
            )
            findings.append(self._finding(text))
        return findings

    def _split_again(self, part: Part) -> npt.NDArray[np.int8]:
        """(N,) the period of each event of a part, before users are made new."""
        facts, users = self.artifact.facts, part.user.astype(np.int32)
        if self.one_timeline:
            cuts = np.array(facts["cut_times_us"], np.int64)
            return np.searchsorted(cuts, part.time, side="right").astype(np.int8)
        if facts["split"] == "per-user":
            return per_user(users, shares_of(self.artifact.config["periods"]))
        return leave_one_out(users)

    def _copies(self) -> list[Finding]:
        """Is an event in two periods?"""
        copies, again, count = Examples(), Examples(), 0
        for part in self.parts():
            order = np.lexsort((part.period, part.time, part.item, part.user))
            keys = np.stack([part.user[order], part.item[order], part.time[order]])
            # Two behaviours at one moment are two rows; they may not be on two sides of a cut.
            periods = part.period[order]
            same = keys[:, 1:] == keys[:, :-1]
            copies.add(part, order[1:][same.all(axis=0) & (periods[1:] != periods[:-1])])
            again.add(part, order[1:][same[:2].all(axis=0)])
            count += len(part)
        if copies.count:
            return [self._finding("an event (user, item, time) is in two periods", copies)]
        findings = [self._finding(f"none of the {count:,} events (user, item, time) is in two periods")]
        if self.artifact.facts["repeats"] == "first":
            if again.count:
                return [self._finding("only first events were kept, but a user has an item twice", again)]
            findings.append(self._finding("each user has an item once, so no scored item is in its user's history"))
        return findings

    def _histories(self) -> list[Finding]:
        """Does a history hold exactly what its user did at strictly earlier times, counted in a second way?"""
        bad, held, held_by_tested, n_tested = Examples(), 0, 0, 0
        for part in self.parts():
            log, earlier, tested = part.log, part.positives_before(), part.period == TEST
            if len(log.user) == len(part):  # else some events are not in the file of their user, see `_order`
                bad.add(part, np.flatnonzero(earlier != log.history_end - log.history_start))
            held, held_by_tested = held + int(earlier.sum()), held_by_tested + int(earlier[tested].sum())
            n_tested += int(tested.sum())
        if bad.count:
            return [self._finding("a history is not made of strictly earlier events", bad)]
        text = (
            f"every history holds strictly earlier events of its user only: {held:,} events in histories, "
            f"{held_by_tested:,} of them before the {n_tested:,} test events"
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
