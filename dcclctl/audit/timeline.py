"""The events of one dataset: is its split what it says, and which events come before which?

Everything is computed again from the committed events, by other code than that which made them.
"""

import hashlib
import math

import numpy as np
import numpy.typing as npt
import polars as pl

from dcclctl.artifacts import Dataset
from dcclctl.audit.finding import Finding
from dcclctl.config import PERIODS
from dcclctl.events.log import TEST, Block
from dcclctl.events.sampling import Ints
from dcclctl.logs.split import iso, leave_one_out, new_users, per_user, shares_of
from dcclctl.store.artifact import Artifact


class Timeline:
    """The events of one dataset, and which of them come before which."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.dataset = Dataset.of(artifact)
        events = self.dataset.events
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
        """Those of the earlier rows that are not before all later rows: of all users, or of the same user.

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
        """(N,) for each event, whether its user interacted with its item at a strictly earlier time."""
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
            return [self._finding("an event is not in the order of its user's times", bad)]
        return []

    def _periods(self) -> list[Finding]:
        """Does every period end before the next begins?"""
        findings = []
        for number in range(len(PERIODS) - 1):
            bad = self.not_before(np.flatnonzero(self.period <= number), np.flatnonzero(self.period > number))
            if len(bad):
                text = (
                    f"an event before {PERIODS[number + 1]} is not before all events of {PERIODS[number + 1]} and later"
                )
                findings.append(self._finding(text, bad))
        if findings:
            return findings
        inside = {name: self.time[self.period == at] for at, name in enumerate(PERIODS) if (self.period == at).any()}
        if self.one_timeline:
            spans = (
                f"{name} {self.shown(int(times.min()))} … {self.shown(int(times.max()))} ({len(times):,} events)"
                for name, times in inside.items()
            )
            return [self._finding(f"of all events, every period ends before the next begins: {'; '.join(spans)}")]
        counts = ", ".join(f"{name} {len(times):,}" for name, times in inside.items())
        text = f"on every user's own timeline, every period ends before the next begins: {counts} events"
        return [self._finding(text), *self._leaks_of_trends()]

    def _leaks_of_trends(self) -> list[Finding]:
        """What a split per user cannot promise."""
        text = (
            "users' periods overlap in time, so a model can learn from what other users did later (only a global split "
            "prevents it)"
        )
        findings = [Finding("remark", self.artifact.ref, text)]
        same = (self.user[1:] == self.user[:-1]) & (self.time[1:] == self.time[:-1])
        ties = int((same & (self.period[1:] > self.period[:-1])).sum())
        if ties:
            text = f"{ties:,} cuts fall between two events of one time, which are ordered as in the log"
            findings.append(Finding("remark", self.artifact.ref, text))
        return findings

    def _cuts_again(self) -> list[Finding]:
        """Do the same periods come out when the split is made again?"""
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
            tested = np.zeros(len(made_new), np.bool_)
            tested[self.user[self.period == TEST]] = True
            seen = np.flatnonzero((made_new & tested)[self.user] & (self.period < TEST))
            if len(seen):
                return [self._finding("a user that --new-users made new has an event before test", seen)]
        else:
            again[made_new[self.user]] = TEST
        bad = np.flatnonzero(again != self.period)
        if len(bad):
            right = PERIODS[again[bad[0]]]
            text = (
                f"an event of {right}, by the {facts['split']} split, is kept as one of {PERIODS[self.period[bad[0]]]}"
            )
            return [self._finding(text, bad)]
        text = f"the {facts['split']} split, made again, puts each of the {len(self.user):,} events in the same period"
        findings = [self._finding(text)]
        if made_new.any():
            text = (
                f"--new-users {config['new_users']:g}, drawn again: those with a test event have no event before test"
            )
            findings.append(self._finding(text))
        return findings

    def _copies(self) -> list[Finding]:
        """Is an event in two periods?"""
        order = np.lexsort((self.period, self.time, self.item, self.user))
        keys = np.stack([self.user[order], self.item[order], self.time[order]])
        # Two behaviours at one moment are two rows; they may not be on two sides of a cut.
        periods = self.period[order]
        copies = order[1:][(keys[:, 1:] == keys[:, :-1]).all(axis=0) & (periods[1:] != periods[:-1])]
        if len(copies):
            return [self._finding("an event (user, item, time) is in two periods", copies)]
        findings = [self._finding(f"none of the {len(self.user):,} events (user, item, time) is in two periods")]
        if self.artifact.facts["repeats"] == "first":
            again = order[1:][(keys[:2, 1:] == keys[:2, :-1]).all(axis=0)]
            if len(again):
                return [self._finding("only first events were kept, but a user has an item twice", again)]
            findings.append(self._finding("each user has an item once, so no scored item is in its user's history"))
        return findings

    def _histories(self) -> list[Finding]:
        """Does a history hold exactly what its user did at strictly earlier times, counted in a second way?"""
        log, earlier = self.dataset.log, self.positives_before()
        bad = np.flatnonzero(earlier != log.history_end - log.history_start)
        if len(bad):
            return [self._finding("a history is not made of strictly earlier events", bad)]
        tested = self.period == TEST
        text = (
            f"every history holds strictly earlier events of its user only: {int(earlier.sum()):,} events in histories, "
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
