"""The device's memory: a user's newest M events, and what it says about a candidate.

The cloud model sees the last L events. The device holds its whole local log; here the newest M of it, as a ring of item
numbers (4·M bytes at most). A new event overwrites the oldest. From the ring and from statistics that the cloud ships with
its model (`Statistics`) every candidate gets F features: how often, how much more than expected and how recently the user
had the item and its categories, how near the candidate's neighbours in everybody's log are to what the ring holds, and how
often the candidate came soon after what the user had last.

A feature has the mean of a set of reference users taken off, item by item: what is the same for everybody is the cloud
model's business (an item that became popular has no features of anybody yet), and what is left is personal.

How far such features can be trusted differs from user to user, so a device also keeps a *track record*: the features that
each of its newest T items had when it was had, one byte a feature. Their mean, drawn towards 0 where there are few, stands
beside the features of every candidate: somebody whose items were near what the memory held will go on that way.

The features of old events are those that today's statistics give them: when the cloud ships new ones, a device judges its
newest events anew. Statistics that have counted an event flatter it (EXPERIMENTS.md, section 25). So the record of a user
whom they have not counted at all is on another scale than those that a patch has learned to read; until they do, the device
takes what is *typical*: the mean record that those whom they know had when they held as many events (section 27).

`Memories` computes all of it for whole batches from the log; `Ring` is the device's own form, event by event. Both give
the same numbers, which is tested.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dcclctl.algorithm.baselines.neighbours import co_occurrences, ranges
from dcclctl.algorithm.eventlog import EventLog
from dcclctl.algorithm.sampling import Ints, hashes

#: features of a candidate; the first says how much the memory holds and is the same for all candidates
FEATURES = (
    "size",
    "item count",
    "item lift",
    "item recency",
    "category count, mean",
    "category count, largest",
    "category lift, mean",
    "category lift, largest",
    "category recency, mean",
    "category recency, largest",
    "similarity, sum",
    "similarity, largest",
    "similarity, recent",
)
#: and where it is known what came soon after what
ORDER_FEATURES = ("order, sum", "order, largest")
#: events after which recency has fallen to a half
_HALF = 20.0
#: what an event counts for as the one that led to a candidate, to what the one after it counts for
_LEADS = 0.8
#: a byte of the track record is a feature times this
_STEPS = 32
#: events that a track record without any is taken for
_UNTRACKED = 3
#: lift of an item without a category
_NO_LIFT = -8.0
#: events whose features are computed at once, at most; and numbers in a table of theirs, about
_EVENTS, _CELLS = 128, 1 << 24
#: pairs of events that are counted at once, about
_PAIRS = 1 << 24
#: events of other users whose memories are the reference; users whose track records are typical
_REFERENCES, _TYPICAL = 300, 1000


@dataclass(frozen=True)
class Statistics:
    """What the cloud ships to every device, counted over everybody's positive events up to some time.

    Attributes:
        item_share: (I,) share of the events. category_share: (G + 1,) the same by category, the last for padding.
        neighbours, similarity: (I, N) each item's nearest items by co-occurrence; similarity 0 for padding.
        predecessors, lead: (I, Q) the items that each was had soon after, and how much more often than others; 0 for padding,
            Q = 0 if order does not count.
        mean: (I, F) mean feature of an item over the reference users. scale: (F,) standard deviation of what is left.
    """

    item_share: Float[Tensor, "I"]
    category_share: Float[Tensor, "G"]
    neighbours: Int[Tensor, "I N"]
    similarity: Float[Tensor, "I N"]
    predecessors: Int[Tensor, "I Q"]
    lead: Float[Tensor, "I Q"]
    mean: Float[Tensor, "I F"]
    scale: Float[Tensor, "F"]

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the F features that a candidate has."""
        return FEATURES + (ORDER_FEATURES if self.predecessors.shape[1] else ())

    @cached_property
    def popularity(self) -> Float[Tensor, "I"]:
        """How popular each item is: log of its share, standardised over the items."""
        log_share = torch.log(self.item_share)
        spread = log_share.std(correction=0)
        return (log_share - log_share.mean()) / (spread if spread > 0 else 1.0)

    @property
    def tracked(self) -> tuple[str, ...]:
        """Names of the R features whose track record may be kept: all that differ between candidates."""
        return self.features[1:]

    def columns(self, track: int) -> tuple[str, ...]:
        """Names of the F + R numbers of a candidate, where devices keep a track record of T = track events."""
        return self.features + (self.tracked if track else ())

    def about_order(self, track: int) -> list[int]:
        """Which of the columns speak of order."""
        return [at for at, name in enumerate(self.columns(track)) if name in ORDER_FEATURES]

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @property
    def bytes_per_candidate(self) -> int:
        """What a candidate brings along when it is sent to a device: share, neighbours and predecessors (4 + 4 bytes each), means."""
        return 4 + 8 * (self.neighbours.shape[1] + self.predecessors.shape[1]) + 4 * self.mean.shape[1]


@dataclass(frozen=True)
class Counting:
    """How everybody's events are counted.

    Attributes:
        size: M, as it will be on the devices. neighbours: nearest items, and predecessors, kept for each item.
        shrinkage: added to the denominators, so that one shared user does not make two rare items twins.
        lookback: events before an item that may have led to it; 0: order does not count.
    """

    size: int
    neighbours: int
    shrinkage: float
    lookback: int

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Counting":
        """What a memory's settings say of it, as `dcclctl memory` is told them and its artifact records them."""
        return cls(**{field.name: settings[field.name] for field in fields(cls)})


def count_statistics(log: EventLog, before: npt.NDArray[np.bool_], counting: Counting, seed: int) -> Statistics:
    """Count everything that devices need to know of everybody, from the positive events in `before`.

    Args:
        log: the log. before: (N,) which of its events may be counted. counting: how.
        seed: of the choice of reference events.

    Similarity of i and j: Σ_u w_u / (√(n_i·n_j) + shrinkage) over the users that have both, w_u = 1 / log₂(2 + items of u).
    Lead of i to j: Σ 1/d / (√(m_i·m_j) + shrinkage) over the events of j that have i as their d-th event before (a moment's
    events come after all of an earlier one); m: events of an item.
    """
    rows = np.flatnonzero(before & (log.label > 0))
    counts = np.bincount(log.item[rows], minlength=log.n_items)
    share = torch.from_numpy((counts + 0.5) / (counts.sum() + 0.5 * log.n_items)).float()
    categories = log.item_categories
    by_category = torch.zeros(log.n_categories + 1)
    by_category.scatter_add_(0, categories.flatten(), share[:, None].expand_as(categories).flatten())
    near, similarity = _neighbours(log, rows, counting)
    predecessors, lead = _predecessors(log, rows, counting)
    width = len(FEATURES) + (len(ORDER_FEATURES) if counting.lookback else 0)
    nothing, one = torch.zeros(log.n_items, width), torch.ones(width)
    plain = Statistics(share, by_category, near, similarity, predecessors, lead, nothing, one)
    mean, scale = _reference(log, plain, np.flatnonzero(before), counting.size, seed)
    return replace(plain, mean=mean, scale=scale)


def _neighbours(log: EventLog, rows: Ints, counting: Counting) -> tuple[Tensor, Tensor]:
    pairs = np.unique(log.user[rows] * log.n_items + log.item[rows])
    users, items = pairs // max(log.n_items, 1), pairs % max(log.n_items, 1)
    degree = np.bincount(users, minlength=log.n_users)
    owners = np.bincount(items, minlength=log.n_items)
    count = min(counting.neighbours, max(log.n_items - 1, 1))
    near = torch.zeros(log.n_items, count, dtype=torch.int64)
    similarity = torch.zeros(log.n_items, count)
    # an item without users has nothing to divide: by what does not matter, but it may not be 0
    root = torch.from_numpy(np.sqrt(owners)).clamp(min=1)
    for first, shared in co_occurrences(users, items, log.n_items, 1 / np.log2(2 + degree)):
        here = torch.arange(len(shared))
        cosine = shared / (root[first : first + len(shared), None] * root + counting.shrinkage)
        cosine[here, here + first] = 0
        # a stable order: equal similarities by item number
        order = torch.argsort(cosine, dim=1, descending=True, stable=True)[:, :count]
        near[first : first + len(shared), : order.shape[1]] = order
        similarity[first : first + len(shared), : order.shape[1]] = cosine.gather(1, order).float()
    return near, similarity


def _predecessors(log: EventLog, rows: Ints, counting: Counting) -> tuple[Tensor, Tensor]:
    """Each item's predecessors with the largest lead, and the lead; equal ones by item number."""
    lookback = counting.lookback
    count = min(counting.neighbours, log.n_items) if lookback else 0
    best, leads = torch.zeros(log.n_items, count, dtype=torch.int64), torch.zeros(log.n_items, count)
    rows = rows[np.argsort(log.item[rows], kind="stable")]
    items = log.item[rows]
    root = np.sqrt(np.bincount(items, minlength=log.n_items))
    sequence, back = log.sequence.numpy(), np.arange(1, lookback + 1)
    first = 0
    while count and first < len(rows):
        # some items at a time: all events of an item are in one part
        last = int(np.searchsorted(items, items[min(first + _PAIRS // lookback, len(rows) - 1)], "right"))
        part, targets = rows[first:last], items[first:last, None]
        at = log.history_end[part][:, None] - back
        there = at >= log.history_start[part][:, None]
        cells, weights = np.broadcast_to(targets * log.n_items, at.shape), np.broadcast_to(1 / back, at.shape)
        pairs, inverse = np.unique(cells[there] + sequence[at[there]], return_inverse=True)
        item, source = pairs // log.n_items, pairs % log.n_items
        lead = np.bincount(inverse, weights[there], len(pairs)) / (root[item] * root[source] + counting.shrinkage)
        order = np.lexsort((source, -lead, item))
        rank = np.arange(len(order)) - np.searchsorted(item[order], item[order])
        order, rank = order[rank < count], rank[rank < count]
        best[item[order], rank] = torch.from_numpy(source[order])
        leads[item[order], rank] = torch.from_numpy(lead[order]).float()
        first = last
    return best, leads


def _reference(log: EventLog, statistics: Statistics, rows: Ints, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Mean features of every item over the memories at some of the newest events, and the spread around them."""
    if not len(rows):
        return statistics.mean, statistics.scale
    newest = rows[np.lexsort((log.share[rows], log.period[rows]))[-max(len(rows) // 4, 1) :]]
    chosen = newest[np.argsort(hashes(seed, "memory/reference", newest), kind="stable")[:_REFERENCES]]
    total, squares = (torch.zeros(statistics.mean.shape, dtype=torch.float64) for _ in range(2))
    for at in range(0, len(chosen), 8):
        found = _of_batch(log, chosen[at : at + 8], None, statistics, size).double()
        total += found.sum(0)
        squares += found.square().sum(0)
    mean = total / len(chosen)
    spread = (squares / len(chosen) - mean.square()).clamp(min=0).mean(0).sqrt()
    mean[:, 0], spread[0] = 0, 1  # the size of the memory is not a matter of the item
    return mean.float(), (spread + 1e-2).float()


class Memories:
    """What every device of a log remembers, and what it says of candidates, for whole batches of events.

    Args:
        log: its histories are what the devices have seen. statistics: what the cloud ships to them.
        size: M. track: T; 0 keeps no track record.
        counted: (N,) events that the statistics have counted; users without any have a typical track record. None: every
            device keeps its own.
    """

    def __init__(
        self,
        log: EventLog,
        statistics: Statistics,
        size: int,
        track: int,
        counted: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        self.log, self.statistics, self.size, self.track = log, statistics, size, track
        self._counted = counted
        self._rows = np.flatnonzero(log.label > 0)  # of the events of log.sequence
        owners = log.user[self._rows]
        self._starts = np.searchsorted(owners, owners)  # where each event's user begins in log.sequence
        self._kept = torch.zeros(len(owners) if track else 0, len(statistics.tracked), dtype=torch.int8)
        self._known = np.zeros(len(owners), dtype=bool)

    @property
    def width(self) -> int:
        """F + R."""
        return len(self.statistics.columns(self.track))

    @torch.no_grad()
    def features(self, events: Ints, candidates: Int[Tensor, "B C"] | None) -> Float[Tensor, "B C FR"]:
        """Features of the candidates at each event, and the track record, which is the same for all of them.

        Args:
            events: (B,) row numbers. candidates: items; None is every item.

        Returns:
            F + R numbers for each candidate; nothing of the event's own moment or later is in them.
        """
        own = _of_batch(self.log, events, candidates, self.statistics, self.size)
        if not self.track:
            return own
        record = self._record(events).unsqueeze(1).expand(-1, own.shape[1], -1)
        return torch.cat([own, record], -1)

    @cached_property
    def typical(self) -> Float[Tensor, "T1 R"]:
        """Mean track record of counted users when their devices held 0, 1, … T events: the cloud ships it with the statistics."""
        assert self._counted is not None
        counted = self._counted[self._rows]
        owners = self.log.user[self._rows]
        users = np.unique(owners[counted])
        users = users[np.argsort(hashes(0, "memory/typical", users), kind="stable")[:_TYPICAL]]
        place = np.arange(len(owners)) - self._starts  # in the user's log
        at = np.flatnonzero(counted & (place < self.track) & np.isin(owners, users))
        held = torch.from_numpy(place[at] + 1)
        kept = self._judged(at, self._starts[at]).float()
        sums = kept.cumsum(0)
        first = torch.from_numpy(np.arange(len(at)) - place[at])  # where the user's events begin in `at`
        records = _mean_record(sums - sums[first] + kept[first], held)
        total = torch.zeros(self.track + 1, kept.shape[1]).index_add_(0, held, records)
        users_of = torch.bincount(held, minlength=self.track + 1)
        most = int(held.max()) if len(at) else 0  # nobody had more
        return (total / users_of.clamp(min=1).unsqueeze(1))[torch.arange(self.track + 1).clamp(max=most)]

    @cached_property
    def _strangers(self) -> npt.NDArray[np.bool_]:
        """(U,) users of whom the statistics have counted nothing."""
        if self._counted is None:
            return np.zeros(self.log.n_users, dtype=bool)
        strangers = np.ones(self.log.n_users, dtype=bool)
        strangers[self.log.user[self._rows[self._counted[self._rows]]]] = False
        return strangers

    def _record(self, events: Ints) -> Float[Tensor, "B R"]:
        """Each event's track record, the user's own or a typical one."""
        strange = self._strangers[self.log.user[events]]
        if not strange.any():
            return self._own_record(events)
        record = torch.empty(len(events), self._kept.shape[1])
        record[torch.from_numpy(~strange)] = self._own_record(events[~strange])
        held = self.log.history_lengths(events[strange], self.track)
        record[torch.from_numpy(strange)] = self.typical[torch.from_numpy(held)]
        return record

    def _own_record(self, events: Ints) -> Float[Tensor, "B R"]:
        """What each device has kept of its newest events."""
        log = self.log
        start, end = log.history_start[events], log.history_end[events]
        lengths = np.minimum(end - start, self.track)
        asked = np.repeat(np.arange(len(events)), lengths)
        at = ranges(end - lengths, end)
        # what a device whose log begins later (see EventLog.shortened) kept of an event is no other's
        whole = start[asked] == self._starts[at]
        new = np.unique(at[whole])
        new = new[~self._known[new]]
        self._kept[torch.from_numpy(new)] = self._judged(new, self._starts[new])
        self._known[new] = True
        kept = torch.empty(len(at), self._kept.shape[1], dtype=torch.int8)
        kept[torch.from_numpy(whole)] = self._kept[torch.from_numpy(at[whole])]
        kept[torch.from_numpy(~whole)] = self._judged(at[~whole], start[asked[~whole]])
        sums = torch.zeros(len(events), kept.shape[1]).index_add_(0, torch.from_numpy(asked), kept.float())
        return _mean_record(sums, torch.from_numpy(lengths))

    def _judged(self, at: Ints, starts: Ints) -> Int[Tensor, "B R"]:
        """What a device keeps of some events of log.sequence, whose log begins with the events `starts`."""
        rows = self._rows[at]
        view = replace(self.log, history_start=starts, history_end=self.log.history_end[rows])
        items = torch.from_numpy(self.log.item[rows]).unsqueeze(1)
        return _in_bytes(_of_batch(view, np.arange(len(rows)), items, self.statistics, self.size)[:, 0])


def _in_bytes(found: Float[Tensor, "... F"]) -> Int[Tensor, "... R"]:
    """What a device keeps of the features that an item had when it was had."""
    return (found[..., 1:] * _STEPS).round().clamp(-127, 127).to(torch.int8)


def _mean_record(sums: Float[Tensor, "B R"], counts: Int[Tensor, "B"]) -> Float[Tensor, "B R"]:
    return sums / _STEPS / (counts.unsqueeze(1) + _UNTRACKED)


@torch.no_grad()
def _of_batch(
    log: EventLog, events: Ints, candidates: Int[Tensor, "B C"] | None, statistics: Statistics, size: int
) -> Float[Tensor, "B C F"]:
    """Features of the candidates (None: of every item) at each event."""
    if candidates is None:
        candidates = torch.arange(log.n_items).expand(len(events), -1)
    parts = []
    numbers = candidates.shape[1] * (statistics.neighbours.shape[1] + statistics.predecessors.shape[1])
    step = max(1, min(_EVENTS, _CELLS // max(numbers, 1)))
    for at in range(0, len(events), step):
        some = slice(at, at + step)
        held, mask = log.histories(events[some], size)
        parts.append(_features(held, mask.float(), candidates[some], log.item_categories, statistics))
    return torch.cat(parts) if parts else torch.zeros(*candidates.shape, statistics.mean.shape[1])


def _features(
    held: Int[Tensor, "B M"],
    mask: Float[Tensor, "B M"],
    candidates: Int[Tensor, "B C"],
    item_categories: Int[Tensor, "I S"],
    statistics: Statistics,
) -> Float[Tensor, "B C F"]:
    """Features from the items in memory, newest first; `mask` is 0 where there is none."""
    b, n_items = len(held), len(item_categories)
    # tables over the items that somebody here holds, all others in one last column of zeros; as a whole where all are asked for
    place = None
    if candidates.shape[1] < n_items:
        some = torch.unique(held[mask > 0])
        place = torch.full((n_items,), len(some))
        place[some] = torch.arange(len(some))
        n_items = len(some) + 1

    def column(items: Tensor) -> Tensor:
        return items if place is None else place[items]

    here, asked = column(held), column(candidates)
    n = mask.sum(1, keepdim=True)  # (B, 1)
    freshness = mask / (1 + torch.arange(held.shape[1]) / _HALF)
    count = torch.zeros(b, n_items).scatter_add_(1, here, mask)
    recency = torch.zeros(b, n_items).scatter_reduce_(1, here, freshness, "amax")
    own = count.gather(1, asked)
    columns = [
        torch.log1p(n).expand_as(own) / 5,
        torch.log1p(own),
        torch.log((own + 1) / (n * statistics.item_share[candidates] + 1)),
        recency.gather(1, asked),
        *_category_columns(held, mask, freshness, candidates, item_categories, statistics),
    ]
    near, similarity = statistics.neighbours[candidates], statistics.similarity[candidates]  # (B, C, N)
    at = column(near).flatten(1)
    fresh = recency.gather(1, at).view(near.shape)
    known = similarity * (fresh > 0)
    columns += [torch.log1p(10 * known.sum(-1)), 5 * known.amax(-1), 5 * (similarity * fresh).sum(-1)]
    if statistics.predecessors.shape[1]:
        newest = torch.zeros(b, n_items).scatter_reduce_(1, here, mask * _LEADS ** torch.arange(held.shape[1]), "amax")
        before = statistics.predecessors[candidates]
        led = statistics.lead[candidates] * newest.gather(1, column(before).flatten(1)).view(before.shape)
        columns += [torch.log1p(20 * led.sum(-1)), 10 * led.amax(-1)]
    return (torch.stack(columns, -1) - statistics.mean[candidates]) / statistics.scale


def _category_columns(
    held: Int[Tensor, "B M"],
    mask: Float[Tensor, "B M"],
    freshness: Float[Tensor, "B M"],
    candidates: Int[Tensor, "B C"],
    item_categories: Int[Tensor, "I S"],
    statistics: Statistics,
) -> list[Float[Tensor, "B C"]]:
    """Count, lift and recency of the candidate's categories: mean and largest of each."""
    padding = len(statistics.category_share) - 1
    slots = item_categories.shape[1]
    theirs = item_categories[held].flatten(1)  # (B, M·S)
    count = torch.zeros(len(held), padding + 1).scatter_add_(1, theirs, mask.repeat_interleave(slots, 1))
    recency = torch.zeros_like(count).scatter_reduce_(1, theirs, freshness.repeat_interleave(slots, 1), "amax")
    mine = item_categories[candidates]  # (B, C, S)
    real = (mine != padding).float()
    number = real.sum(-1).clamp(min=1)
    some = real.sum(-1) > 0
    n = mask.sum(1)[:, None, None]
    had = count.gather(1, mine.flatten(1)).view(mine.shape)
    fresh = recency.gather(1, mine.flatten(1)).view(mine.shape) * real
    counted = torch.log1p(had) * real
    lift = torch.log((had + 1) / (n * statistics.category_share[mine] + 1))
    largest = torch.where(real > 0, lift, _NO_LIFT).amax(-1)
    return [
        counted.sum(-1) / number,
        counted.amax(-1),
        (lift * real).sum(-1) / number,
        torch.where(some, largest, 0.0),
        fresh.sum(-1) / number,
        fresh.amax(-1),
    ]


class Ring:
    """One device's memory: the newest M items, 4 bytes each, in the order of the events, and the newest T of its track record.

    Args:
        size: M. items: had so far, oldest first; nothing is kept of their features. track: T. tracked: R.
    """

    def __init__(self, size: int, items: Iterable[int] = (), track: int = 0, tracked: int = 0) -> None:
        self.items = np.zeros(size, dtype=np.uint32)
        self.kept = np.zeros((track, tracked), dtype=np.int8)
        self.seen = 0
        for item in items:
            self.observe(item)

    def observe(self, item: int, found: Float[Tensor, "FR"] | None = None) -> None:
        """Take in one event: it overwrites the oldest. Constant time.

        Args:
            item: what was had. found: its features before that (see `features`), by the statistics that the device has now.
        """
        self.items[self.seen % len(self.items)] = item
        if len(self.kept):
            own = 1 + self.kept.shape[1]
            known = torch.zeros(own) if found is None else found[:own]
            self.kept[self.seen % len(self.kept)] = _in_bytes(known).numpy()
        self.seen += 1

    @property
    def bytes(self) -> int:
        """Bytes on the device: both rings as far as they are filled, and the counter."""
        return 4 * min(self.seen, len(self.items)) + self.kept.shape[1] * min(self.seen, len(self.kept)) + 8

    def newest_first(self) -> Ints:
        """Items held, newest first."""
        last = np.arange(self.seen - 1, max(self.seen - len(self.items), 0) - 1, -1)
        return self.items[last % len(self.items)].astype(np.int64)

    def features(
        self,
        candidates: Int[Tensor, "C"],
        item_categories: Int[Tensor, "I S"],
        statistics: Statistics,
        typical: Float[Tensor, "T1 R"] | None = None,
    ) -> Float[Tensor, "C FR"]:
        """The candidates' features and the track record, as the device computes them.

        Args:
            candidates: items. item_categories: of every item. statistics: what the cloud ships.
            typical: track records of others, for a device of which the statistics have counted nothing (see `Memories`).
        """
        held = torch.from_numpy(self.newest_first())[None]
        mask = torch.ones(held.shape)
        if not held.shape[1]:
            held, mask = torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1)
        own = _features(held, mask, candidates[None], item_categories, statistics)[0]
        if not len(self.kept):
            return own
        kept = min(self.seen, len(self.kept))
        if typical is None:
            sums = torch.from_numpy(self.kept.astype(np.float32)).sum(0, keepdim=True)
            record = _mean_record(sums, torch.tensor([kept]))
        else:
            record = typical[kept].unsqueeze(0)
        return torch.cat([own, record.expand(len(own), -1)], -1)
