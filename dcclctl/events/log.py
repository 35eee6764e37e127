"""All users' events as arrays, each with the history before it.

An event's history holds the user's positive events at a *strictly earlier* time. A *basket* is the events of one user
at one time (one day, in a log that knows days only). Events of one basket are not in each other's history, so the order
of rows in a file has no effect.
"""

import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dcclctl.errors import UsageError
from dcclctl.events.periods import PERIOD_NAMES, ItemPeriods, shares
from dcclctl.events.sampling import Ints, PairSet, ranges

#: period codes, as in the events table
CLOUD, DEVICE, VALID, TEST = range(len(PERIOD_NAMES))


@dataclass(frozen=True)
class Block:
    """A period, or one of its parts: `device`, or `device:2/3` for the second third of the device period."""

    period: int
    part: int = 1
    parts: int = 1

    @classmethod
    def parse(cls, text: str) -> "Block":
        """Read `device` or `device:2/3`.

        Raises:
            UsageError: the text has another form, or there is no such part.
        """
        read = re.fullmatch(rf"({'|'.join(PERIOD_NAMES)})(?::([0-9]{{1,9}})/([0-9]{{1,9}}))?", text)
        if read is None:
            raise UsageError(
                f"{text!r} is not a period", "Use cloud, device, valid or test, or a part such as device:2/3."
            )
        name, part, parts = read.groups(default="1")
        block = cls(PERIOD_NAMES.index(name), int(part), int(parts))
        if not 1 <= block.part <= block.parts:
            raise UsageError(
                f"{text!r}: there is no part {block.part} of {block.parts}", f"Use {name}:1/{max(block.parts, 1)}."
            )
        return block

    @classmethod
    def of(cls, block: "Block | int") -> "Block":
        """The block itself; a period code stands for the whole period."""
        return block if isinstance(block, Block) else cls(block)

    def __lt__(self, other: "Block") -> bool:
        """By when they begin, then by when they end."""
        return (self.period, self.start, self.end) < (other.period, other.start, other.end)

    @classmethod
    def first(cls, *blocks: "Block | int") -> "Block":
        """The block that begins first."""
        return min(map(cls.of, blocks))

    @classmethod
    def last(cls, *blocks: "Block | int") -> "Block":
        """The block that ends last."""
        return max(map(cls.of, blocks), key=lambda block: (block.period, block.end))

    def overlaps(self, other: "Block") -> bool:
        """Whether some time belongs to both blocks."""
        return self.period == other.period and self.start < other.end and other.start < self.end

    def __str__(self) -> str:
        whole = PERIOD_NAMES[self.period]
        return whole if self.parts == 1 else f"{whole}:{self.part}/{self.parts}"

    @property
    def start(self) -> float:
        return (self.part - 1) / self.parts

    @property
    def end(self) -> float:
        return self.part / self.parts


class EventColumns(NamedTuple):
    """(N,) each: user, item, time, label (1 positive, 0 negative), and period code of every event; share, if it is known."""

    user: npt.NDArray[np.integer[Any]]
    item: npt.NDArray[np.integer[Any]]
    time: npt.NDArray[np.integer[Any]]
    label: npt.NDArray[np.integer[Any]]
    period: npt.NDArray[np.integer[Any]]
    share: npt.NDArray[np.float64] | None = None


@dataclass(frozen=True)
class EventLog:
    """Events sorted by (user, time), with items' categories and users' profiles.

    It may hold the events of some users only, a *part*. Users and items then have the numbers that they have in the whole
    log, and draws depend on the place of an event in the whole log, so that all parts together are as the whole.

    Attributes:
        user, item, period: (N,) int64. label: (N,) int64, 1 positive, 0 negative.
        share: (N,) how far into its period an event is, 0 ≤ share < 1, by rank of time (see `build`).
        sequence: (S,) items of the positive events, same order.
        history_start, history_end: (N,) each event's history is sequence[start:end], oldest first. `history_end` also
            numbers the baskets: positive events have the same number only if they are of one basket.
        item_categories: (I, M) category codes, padded with `n_categories`.
        profile: (U, F) profile codes, 0 = missing; F ≥ 1 (a log without profiles has one column of zeros).
        profile_sizes: number of codes of each profile column.
        repeats: a user may have several events with one item; if False, the log holds one event of each (user, item).
        place: (N,) place of each event in the whole log; None: this is the whole log.
        users: from the first to the last user whose events are here, or None for all.
        item_periods: of all users; None where these are all users.
    """

    user: Ints
    item: Ints
    label: Ints
    period: Ints
    share: npt.NDArray[np.float64]
    sequence: Int[Tensor, "S"]
    history_start: Ints
    history_end: Ints
    n_users: int
    n_items: int
    item_categories: Int[Tensor, "I M"]
    n_categories: int
    profile: Int[Tensor, "U F"]
    profile_sizes: tuple[int, ...]
    repeats: bool = True
    place: Ints | None = None
    users: range | None = None
    item_periods: ItemPeriods | None = None

    @classmethod
    def build(
        cls,
        events: EventColumns,
        item_categories: Int[Tensor, "I M"],
        n_categories: int,
        profile: Int[Tensor, "U F"],
        profile_sizes: tuple[int, ...],
        one_timeline: bool = True,
        repeats: bool = True,
    ) -> "EventLog":
        """Compute every event's history, and how far into its period it is.

        Args:
            events: sorted by (user, time).
            one_timeline: `share` counts the earlier events of all users in the period (a global split); if False, those
                of the same user (periods that are cut on each user's own timeline).
        """
        user, item, time, label, period = (np.asarray(x, dtype=np.int64) for x in events[:5])
        positives_before = np.concatenate([[0], np.cumsum(label)])  # (N+1,) positives among the first n events
        new_basket = np.ones(len(user), dtype=bool)
        new_basket[1:] = (user[1:] != user[:-1]) | (time[1:] != time[:-1])
        basket_start = np.maximum.accumulate(np.where(new_basket, np.arange(len(user)), 0))
        new_user = np.diff(user, prepend=-1) > 0
        user_start = np.maximum.accumulate(np.where(new_user, np.arange(len(user)), 0))
        return cls(
            user=user,
            item=item,
            label=label,
            period=period,
            share=shares(user, time, period, one_timeline) if events.share is None else events.share,
            sequence=torch.from_numpy(item[label > 0].copy()),
            history_start=positives_before[user_start],
            history_end=positives_before[basket_start],
            n_users=len(profile),
            n_items=len(item_categories),
            item_categories=item_categories,
            n_categories=n_categories,
            profile=profile,
            profile_sizes=profile_sizes,
            repeats=repeats,
        )

    def events_in(self, *blocks: "Block | int") -> Ints:
        """Row numbers of the events in the given blocks (or period codes), ascending."""
        wanted = np.zeros(len(self.user), dtype=bool)
        for part in map(Block.of, blocks):
            wanted |= (self.period == part.period) & (self.share >= part.start) & (self.share < part.end)
        return np.flatnonzero(wanted)

    def events_of(self, user: int) -> Ints:
        """Row numbers of a user's events, oldest first."""
        return np.arange(*np.searchsorted(self.user, [user, user + 1]))

    def history_lengths(self, events: Ints, limit: int) -> Ints:
        """(B,) length of each event's history, at most `limit`."""
        lengths: Ints = np.minimum(self.history_end[events] - self.history_start[events], limit)
        return lengths

    def history_places(self, events: Ints) -> tuple[Ints, Ints]:
        """The events' whole histories, one after the other, oldest first.

        Returns:
            (H,) which of the events (B,) each belongs to, 0 to B − 1, and (H,) its place in `sequence`.
        """
        begins, ends = self.history_start[events], self.history_end[events]
        return np.repeat(np.arange(len(events)), ends - begins), ranges(begins, ends)

    def histories(self, events: Ints, limit: int) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """Items of each event's history, newest first.

        Args:
            events: (B,) row numbers. limit: L, how many items of a history are used at most.

        Returns:
            Items (B, L'), and a mask that is False for padding; 1 ≤ L' ≤ limit, the batch's longest history.
        """
        width = max(1, int(self.history_lengths(events, limit).max(initial=0)))
        at = torch.from_numpy(self.history_end[events])[:, None] - 1 - torch.arange(width)
        mask = at >= torch.from_numpy(self.history_start[events])[:, None]
        if len(self.sequence) == 0:
            return torch.zeros_like(at), mask
        return torch.where(mask, self.sequence[at.clamp(min=0)], 0), mask

    def truncate_history(self, events: Ints, keep: Ints) -> "EventLog":
        """The same log, in which events (B,) keep only the newest `keep` (B,) items of their history."""
        starts = self.history_start.copy()
        starts[events] = np.maximum(starts[events], self.history_end[events] - keep)
        return replace(self, history_start=starts)

    @cached_property
    def basket_starts(self) -> Ints:
        """(M,) where each basket of positive events begins in `sequence`."""
        starts: Ints = np.unique(self.history_end[self.label > 0])
        return starts

    def whole_baskets(self, events: Ints, keep: Ints) -> Ints:
        """(B,) how many of the newest items of each history to keep so that no basket is cut: at least `keep` (B,) ≥ 1, or all.

        Models that read whole baskets leave out one that is cut.
        """
        ends = self.history_end[events]
        first = np.maximum(ends - keep, self.history_start[events])
        basket = np.searchsorted(self.basket_starts, first, side="right") - 1
        whole: Ints = ends - np.maximum(self.basket_starts[basket], self.history_start[events])
        return whole

    def interacted_before(self, events: Ints) -> npt.NDArray[np.bool_]:
        """(B,) whether the event's user has a positive event of the same item at a strictly earlier time."""
        positive, basket = self.label > 0, self.history_end
        pairs, pair = np.unique(self.user * self.n_items + self.item, return_inverse=True)
        first = np.full(len(pairs), len(self.sequence))  # larger than the number of every basket
        np.minimum.at(first, pair[positive], basket[positive])
        again: npt.NDArray[np.bool_] = first[pair[events]] < basket[events]
        return again

    def never_negative(self, *blocks: "Block | int") -> PairSet:
        """Pairs that may not be drawn as negatives for events of the given blocks.

        In a log without repeats: items that are positive by the end of the last block, and items of the user's earlier events,
        positive or not. Such an item cannot be the user's next event, so it is no candidate when the model is used, and
        as a negative it would teach that the user dislikes it. Items that become positive later stay candidates.

        In a log with repeats: only the items that are positive in the same basket. All other items that the user
        interacted with stay candidates. Leaving them out would leak the label to a model that counts a user's events,
        because such items would then occur as positives only.
        """
        if self.repeats:
            rows = self.events_in(*blocks)
            rows = rows[self.label[rows] > 0]
            return PairSet(self.history_end[rows], self.item[rows], self.n_items, by_basket=True)
        earlier, positive = self.before(Block.first(*blocks)), self.label > 0
        rows = np.flatnonzero(earlier | (positive & self.up_to(Block.last(*blocks))))
        return PairSet(self.user[rows], self.item[rows], self.n_items)

    def owners(self, events: Ints, pairs: PairSet) -> Ints:
        """(B,) the first number of each event's pairs: its user, or its basket.

        An event of label 0 is in no basket of positive events; it has the number of the next one.
        """
        owners: Ints = self.history_end[events] if pairs.by_basket else self.user[events]
        return owners

    def up_to(self, last: Block) -> npt.NDArray[np.bool_]:
        """(N,) events before the end of a block."""
        return self._earlier(last.period, last.end)

    def before(self, first: Block) -> npt.NDArray[np.bool_]:
        """(N,) events before the start of a block."""
        return self._earlier(first.period, first.start)

    def _earlier(self, period: int, share: float) -> npt.NDArray[np.bool_]:
        past: npt.NDArray[np.bool_] = (self.period < period) | ((self.period == period) & (self.share < share))
        return past

    def catalogue(self, last: "Block | int") -> Ints:
        """Items with an event by the end of a block: those that can be shown or drawn then."""
        last = Block.of(last)
        if self.item_periods is None:
            return np.unique(self.item[self.up_to(last)])
        item, period, share, _ = self.item_periods
        seen = (period < last.period) | ((period == last.period) & (share < last.end))
        return np.unique(item[seen]).astype(np.int64)

    def positives_before(self, period: int) -> Ints:
        """(I,) positive events of each item, of all users, in the periods before this one."""
        if self.item_periods is None:
            counts: Ints = np.bincount(self.item[(self.period < period) & (self.label > 0)], minlength=self.n_items)
            return counts
        item, periods, _, positives = self.item_periods
        past = periods < period
        return np.bincount(item[past], positives[past], self.n_items).astype(np.int64)

    def places(self, events: Ints) -> Ints:
        """(B,) places of events in the whole log: what random draws depend on."""
        return events if self.place is None else self.place[events]
