"""The events of some users, as they were committed: what is asked of each event is counted here a second way."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl

from dcclctl.artifacts import Dataset
from dcclctl.config import PERIODS
from dcclctl.events.log import TEST, Block, EventLog
from dcclctl.events.sampling import Ints
from dcclctl.logs.split import iso


@dataclass(frozen=True)
class Part:
    """One part of a dataset's users; a row is an event of theirs, numbered from 0.

    Attributes:
        dataset: the whole. users: who they are. table: an EVENTS table of them.
    """

    dataset: Dataset
    users: range
    table: pl.DataFrame

    def __len__(self) -> int:
        return self.table.height

    @cached_property
    def user(self) -> Ints:
        return self._column("user_index")

    @cached_property
    def item(self) -> Ints:
        return self._column("item_index")

    @cached_property
    def time(self) -> Ints:
        return self._column("time_us")

    @cached_property
    def label(self) -> Ints:
        return self._column("label")

    @cached_property
    def period(self) -> Ints:
        return self._column("period")

    @property
    def share(self) -> npt.NDArray[np.float64]:
        return self.table["share"].to_numpy()

    def _column(self, name: str) -> Ints:
        return self.table[name].to_numpy().astype(np.int64)

    @property
    def log(self) -> EventLog:
        """The same events as models read them."""
        return self.dataset.log_part(self.users)

    def rows(self, *blocks: Block) -> Ints:
        """Rows of the events in some blocks, ascending."""
        wanted = np.zeros(len(self), dtype=np.bool_)
        for block in blocks:
            wanted |= (self.period == block.period) & (self.share >= block.start) & (self.share < block.end)
        return np.flatnonzero(wanted)

    def up_to(self, last: Block) -> Ints:
        """Rows of the events before the end of a block, ascending."""
        inside = (self.period == last.period) & (self.share < last.end)
        return np.flatnonzero((self.period < last.period) | inside)

    def named(self, row: int) -> str:
        """An event for people: who, what, when."""
        user = self.dataset.users["user_id"][int(self.user[row])]
        item = self.dataset.items["item_id"][int(self.item[row])]
        time = shown(self.dataset, int(self.time[row]))
        return f"user {user!r}, item {item!r}, time {time} (period {PERIODS[self.period[row]]})"

    def not_before(self, earlier: Ints, later: Ints, start: int | None) -> Ints:
        """Those of the earlier rows that are not before all later rows: of all users, or of the same user.

        Within one user's own timeline equal times go by the order in the log, which is the order of rows.

        Args:
            start: of the later rows of all users the first time; None: they have none.
        """
        if start is None:
            return earlier[:0]
        if self.dataset.facts["split"] == "global":
            not_over: Ints = earlier[self.time[earlier] >= start]
            return not_over
        first = np.full(self.dataset.users.height, len(self))
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


#: a part → rows of it, ascending
Rows = Callable[[Part], Ints]


@dataclass
class Examples:
    """Events that were found part after part: how many, and the first of them for people."""

    count: int = 0
    first: str = ""

    def add(self, part: Part, rows: Ints) -> None:
        if len(rows) and not self.count:
            self.first = part.named(int(rows[0]))
        self.count += len(rows)


def shown(dataset: Dataset, time: int) -> str:
    """A time for people; a number in a log without times."""
    return str(time) if dataset.facts["time_kind"] == "ordinal" else iso(time)
