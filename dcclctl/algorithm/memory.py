"""The device's memory: a user's newest M events, and what it says about a candidate.

The cloud model sees the last L events. The device holds its whole local log; here the newest M of it, as a ring of item
numbers (4·M bytes at most). A new event overwrites the oldest; nothing else is stored, so nothing else has to be kept in step.
From the ring and from statistics that the cloud ships with its model (`Statistics`) every candidate gets F features:
how often, how much more than expected and how recently the user had the item and its categories, and how near the
candidate's neighbours in everybody's log are to what the ring holds.

A feature has the mean of a set of reference users taken off, item by item: what is the same for everybody is the cloud
model's business (an item that became popular has no features of anybody yet), and what is left is personal.

`features` computes them for whole batches from the log; `Ring` is the device's own form, event by event. Both give the
same numbers, which is tested.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dcclctl.algorithm.baselines.neighbours import co_occurrences
from dcclctl.algorithm.eventlog import EventLog
from dcclctl.algorithm.sampling import Ints, hashes

#: F features; the first says how much the memory holds and is the same for all candidates
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
#: events after which recency has fallen to a half
_HALF = 20.0
#: lift of an item without a category
_NO_LIFT = -8.0
#: events whose features are computed at once
_EVENTS = 128
#: events of other users whose memories are the reference
_REFERENCES = 300


@dataclass(frozen=True)
class Statistics:
    """What the cloud ships to every device, counted over everybody's positive events up to some time.

    Attributes:
        item_share: (I,) share of the events. category_share: (G + 1,) the same by category, the last for padding.
        neighbours, similarity: (I, N) each item's nearest items by co-occurrence; similarity 0 for padding.
        mean: (I, F) mean feature of an item over the reference users. scale: (F,) standard deviation of what is left.
    """

    item_share: Float[Tensor, "I"]
    category_share: Float[Tensor, "G"]
    neighbours: Int[Tensor, "I N"]
    similarity: Float[Tensor, "I N"]
    mean: Float[Tensor, "I F"]
    scale: Float[Tensor, "F"]

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @property
    def bytes_per_candidate(self) -> int:
        """What a candidate brings along when it is sent to a device: shares, neighbours (4 + 4 bytes each), means."""
        return 4 + 8 * self.neighbours.shape[1] + 4 * self.mean.shape[1]


def count_statistics(
    log: EventLog, before: npt.NDArray[np.bool_], size: int, neighbours: int, shrinkage: float, seed: int
) -> Statistics:
    """Count everything that devices need to know of everybody, from the positive events in `before`.

    Args:
        log: the log. before: (N,) which of its events may be counted.
        size: M, as it will be on the devices.
        neighbours: nearest items kept for each item.
        shrinkage: added to the denominator of the cosine, so that one shared user does not make two rare items twins.
        seed: of the choice of reference events.

    Similarity of i and j: Σ_u w_u / (√(n_i·n_j) + shrinkage) over the users that have both, w_u = 1 / log₂(2 + items of u).
    """
    rows = np.flatnonzero(before & (log.label > 0))
    counts = np.bincount(log.item[rows], minlength=log.n_items)
    share = torch.from_numpy((counts + 0.5) / (counts.sum() + 0.5 * log.n_items)).float()
    categories = log.item_categories
    by_category = torch.zeros(log.n_categories + 1)
    by_category.scatter_add_(0, categories.flatten(), share[:, None].expand_as(categories).flatten())
    near, similarity = _neighbours(log, rows, neighbours, shrinkage)
    plain = Statistics(
        share, by_category, near, similarity, torch.zeros(log.n_items, len(FEATURES)), torch.ones(len(FEATURES))
    )
    mean, scale = _reference(log, plain, np.flatnonzero(before), size, seed)
    return Statistics(share, by_category, near, similarity, mean, scale)


def _neighbours(log: EventLog, rows: Ints, count: int, shrinkage: float) -> tuple[Tensor, Tensor]:
    pairs = np.unique(log.user[rows] * log.n_items + log.item[rows])
    users, items = pairs // max(log.n_items, 1), pairs % max(log.n_items, 1)
    degree = np.bincount(users, minlength=log.n_users)
    owners = np.bincount(items, minlength=log.n_items)
    count = min(count, max(log.n_items - 1, 1))
    near = torch.zeros(log.n_items, count, dtype=torch.int64)
    similarity = torch.zeros(log.n_items, count)
    # an item without users has nothing to divide: by what does not matter, but it may not be 0
    root = torch.from_numpy(np.sqrt(owners)).clamp(min=1)
    for first, shared in co_occurrences(users, items, log.n_items, 1 / np.log2(2 + degree)):
        here = torch.arange(len(shared))
        cosine = shared / (root[first : first + len(shared), None] * root + shrinkage)
        cosine[here, here + first] = 0
        # a stable order: equal similarities by item number
        order = torch.argsort(cosine, dim=1, descending=True, stable=True)[:, :count]
        near[first : first + len(shared), : order.shape[1]] = order
        similarity[first : first + len(shared), : order.shape[1]] = cosine.gather(1, order).float()
    return near, similarity


def _reference(log: EventLog, statistics: Statistics, rows: Ints, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Mean features of every item over the memories at some of the newest events, and the spread around them."""
    if not len(rows):
        return statistics.mean, statistics.scale
    newest = rows[np.lexsort((log.share[rows], log.period[rows]))[-max(len(rows) // 4, 1) :]]
    chosen = newest[np.argsort(hashes(seed, "memory/reference", newest), kind="stable")[:_REFERENCES]]
    total, squares = (torch.zeros(log.n_items, len(FEATURES), dtype=torch.float64) for _ in range(2))
    for at in range(0, len(chosen), 8):
        found = features(log, chosen[at : at + 8], None, statistics, size).double()
        total += found.sum(0)
        squares += found.square().sum(0)
    mean = total / len(chosen)
    spread = (squares / len(chosen) - mean.square()).clamp(min=0).mean(0).sqrt()
    mean[:, 0], spread[0] = 0, 1  # the size of the memory is not a matter of the item
    return mean.float(), (spread + 1e-2).float()


@torch.no_grad()
def features(
    log: EventLog, events: Ints, candidates: Int[Tensor, "B C"] | None, statistics: Statistics, size: int
) -> Float[Tensor, "B C F"]:
    """What each event's user remembers of each candidate, from the user's events at strictly earlier times.

    Args:
        events: (B,) rows of the log. candidates: items, or None for the whole catalogue.
        size: M, the newest events that a memory holds.

    Returns:
        The features with the reference users' mean taken off, in units of the spread (see Statistics).
    """
    if candidates is None:
        candidates = torch.arange(log.n_items).expand(len(events), -1)
    parts = []
    for at in range(0, len(events), _EVENTS):
        some = slice(at, at + _EVENTS)
        held, mask = log.histories(events[some], size)
        parts.append(_features(held, mask.float(), candidates[some], log.item_categories, statistics))
    return torch.cat(parts) if parts else torch.zeros(*candidates.shape, len(FEATURES))


def _features(
    held: Int[Tensor, "B M"],
    mask: Float[Tensor, "B M"],
    candidates: Int[Tensor, "B C"],
    item_categories: Int[Tensor, "I S"],
    statistics: Statistics,
) -> Float[Tensor, "B C F"]:
    """Features from the items in memory, newest first; `mask` is 0 where there is none."""
    b, n_items = len(held), len(item_categories)
    n = mask.sum(1, keepdim=True)  # (B, 1)
    freshness = mask / (1 + torch.arange(held.shape[1]) / _HALF)
    count = torch.zeros(b, n_items).scatter_add_(1, held, mask)
    recency = torch.zeros(b, n_items).scatter_reduce_(1, held, freshness, "amax")
    own = count.gather(1, candidates)
    columns = [
        torch.log1p(n).expand_as(own) / 5,
        torch.log1p(own),
        torch.log((own + 1) / (n * statistics.item_share[candidates] + 1)),
        recency.gather(1, candidates),
        *_category_columns(held, mask, freshness, candidates, item_categories, statistics),
    ]
    near, similarity = statistics.neighbours[candidates], statistics.similarity[candidates]  # (B, C, N)
    at = near.flatten(1)
    fresh = recency.gather(1, at).view(near.shape)
    known = similarity * (fresh > 0)
    columns += [torch.log1p(10 * known.sum(-1)), 5 * known.amax(-1), 5 * (similarity * fresh).sum(-1)]
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
    """One device's memory: the newest M items, 4 bytes each, in the order of the events."""

    def __init__(self, size: int, items: Iterable[int] = ()) -> None:
        self.items = np.zeros(size, dtype=np.uint32)
        self.seen = 0
        for item in items:
            self.observe(item)

    def observe(self, item: int) -> None:
        """Take in one event: it overwrites the oldest. Constant time."""
        self.items[self.seen % len(self.items)] = item
        self.seen += 1

    @property
    def bytes(self) -> int:
        """Bytes on the device: the ring as far as it is filled, and the counter."""
        return 4 * min(self.seen, len(self.items)) + 8

    def newest_first(self) -> Ints:
        """Items held, newest first."""
        last = np.arange(self.seen - 1, max(self.seen - len(self.items), 0) - 1, -1)
        return self.items[last % len(self.items)].astype(np.int64)

    def features(
        self, candidates: Int[Tensor, "C"], item_categories: Int[Tensor, "I S"], statistics: Statistics
    ) -> Float[Tensor, "C F"]:
        """The candidates' features, as the device computes them."""
        held = torch.from_numpy(self.newest_first())[None]
        mask = torch.ones(held.shape)
        if not held.shape[1]:
            held, mask = torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1)
        return _features(held, mask, candidates[None], item_categories, statistics)[0]
