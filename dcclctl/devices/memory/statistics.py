"""The statistics that the cloud ships to devices: counts of all users' positive events, each item's related items, and factors.

Shapes: I items, G categories, N neighbours, Q preceding items, D numbers in a factor, F features of a candidate.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dcclctl.compute import OnProgress, Phase, no_progress
from dcclctl.devices.memory.factors import item_factors, sweeps
from dcclctl.devices.memory.features import FeatureTables, Statistics
from dcclctl.events.groups import UserGroups
from dcclctl.events.log import EventLog
from dcclctl.events.sampling import Ints, hashes
from dcclctl.models.neighbours import largest_of_rows, sparse_co_occurrences

#: log → (N,) its events that may be counted
Counted = Callable[[EventLog], npt.NDArray[np.bool_]]
#: pairs of events that are counted at once, about
_PAIRS = 1 << 24
#: events whose memories are the reference for a feature's mean and spread
_REFERENCES = 300


@dataclass(frozen=True)
class StatisticsSettings:
    """Settings of the statistics.

    Attributes:
        size: M, as on the devices. neighbours: nearest items, and preceding items, kept for each item.
        shrinkage: added to the denominators, so that one shared user does not make two rare items similar.
        transition_window: events before an item that count as preceding it; 0 ignores the order of events.
        factors: D, numbers in an item's factor; 0: none.
    """

    size: int
    neighbours: int
    shrinkage: float
    transition_window: int
    factors: int

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "StatisticsSettings":
        """From a memory's recorded settings."""
        return cls(**{field.name: settings[field.name] for field in fields(cls)})


def count_statistics(
    log: EventLog | UserGroups,
    counted: Counted,
    settings: StatisticsSettings,
    seed: int,
    on_progress: OnProgress = no_progress,
) -> Statistics:
    """Compute the statistics from all users' positive events that may be counted.

    Similarity of i and j: Σ_u w_u / (√(n_i·n_j) + shrinkage) over the users with both, w_u = 1 / log₂(2 + items of u).
    Transition score of i to j: Σ 1/d / (√(m_i·m_j) + shrinkage) over the events of j whose history has i at place
    d from its end; n: users of an item, m: events of an item.

    Args:
        log: the events, or groups of them, of which one is in memory at a time.
        counted: log → (N,) its events that may be counted: the oldest ones of each user.
        seed: of the choice of reference events. on_progress: see compute.OnProgress.
    """
    groups = UserGroups.of(log)
    events, references = _read(groups, counted, settings.transition_window, seed, on_progress)
    categories, n_categories = events.item_categories, events.n_categories
    counts = np.bincount(events.item, minlength=len(categories))
    share = torch.from_numpy((counts + 0.5) / (counts.sum() + 0.5 * len(categories))).float()
    by_category = torch.zeros(n_categories + 1)
    by_category.scatter_add_(0, categories.flatten(), share[:, None].expand_as(categories).flatten())
    near, similarity = _neighbours(events, settings, on_progress)
    predecessors, scores = _predecessors(events, settings, on_progress)
    factors, damping = _factors(events, settings.factors, seed, on_progress)
    unscaled = torch.zeros(len(categories), 0), torch.ones(0)
    plain = Statistics(share, by_category, near, similarity, predecessors, scores, factors, damping, *unscaled)
    width = len(plain.features)
    plain = replace(plain, mean=torch.zeros(len(categories), width), scale=torch.ones(width))
    mean, scale = _reference(groups, plain, references, settings.size, on_progress)
    return replace(plain, mean=mean, scale=scale)


@dataclass(frozen=True)
class _Events:
    """The counted positive events of all users, user by user and oldest first, in few bytes each.

    Attributes:
        user, item: (N,). back: (N,) places from an event back to the newest one of its history.
        held: (N,) events of its history, at most the transition window.
        item_categories, n_categories: as in EventLog. n_users: U.
    """

    user: npt.NDArray[np.int32]
    item: npt.NDArray[np.int32]
    back: npt.NDArray[np.int32]
    held: npt.NDArray[np.uint16]
    item_categories: Tensor
    n_categories: int
    n_users: int


def _read(
    groups: UserGroups, counted: Counted, window: int, seed: int, on_progress: OnProgress
) -> tuple[_Events, Ints]:
    """The events to count, and the places in the whole log of the reference events (see `_reference`)."""
    columns: list[tuple[Any, ...]] = []
    moments: list[npt.NDArray[np.float64]] = []
    places: list[Ints] = []
    phase = Phase(on_progress, "read events", groups.count, "groups of users")
    for number in range(groups.count):
        log = groups.open(number)
        allowed = counted(log)
        positive = log.label > 0
        # (N,) of the positive events: how many in the same basket come before it, and one
        distance = np.arange(len(log.sequence)) - log.history_end[positive] + 1
        chosen = allowed[positive]
        rows = np.flatnonzero(positive)[chosen]
        lengths = np.minimum(log.history_lengths(rows, window), np.iinfo(np.uint16).max)
        small = (log.user[rows], log.item[rows], distance[chosen])
        columns.append((*(each.astype(np.int32) for each in small), lengths.astype(np.uint16)))
        moments.append((log.period + log.share)[allowed])
        places.append(log.places(np.flatnonzero(allowed)))
        phase.at(number + 1)
    user, item, back, held = (np.concatenate(each) for each in zip(*columns, strict=True))
    events = _Events(user, item, back, held, log.item_categories, log.n_categories, log.n_users)
    return events, _newest(np.concatenate(moments), np.concatenate(places), seed)


def _newest(moment: npt.NDArray[np.float64], place: Ints, seed: int) -> Ints:
    """Places of some of the newest quarter of the events (N,), in a random order; of equal moments those in later places."""
    if not len(place):
        return place
    count = max(len(place) // 4, 1)
    least = np.partition(moment, len(moment) - count)[len(moment) - count]
    later, equal = place[moment > least], np.sort(place[moment == least])
    newest = np.concatenate([later, equal[len(equal) - (count - len(later)) :]])
    return newest[np.argsort(hashes(seed, "memory/reference", newest), kind="stable")[:_REFERENCES]]


def _neighbours(events: _Events, settings: StatisticsSettings, on_progress: OnProgress) -> tuple[Tensor, Tensor]:
    n_items = len(events.item_categories)
    pairs = np.unique(events.user * np.int64(max(n_items, 1)) + events.item)
    users, items = (each.astype(np.int32) for each in np.divmod(pairs, max(n_items, 1)))
    del pairs
    degree = np.bincount(users, minlength=events.n_users)
    owners = np.bincount(items, minlength=n_items)
    count = min(settings.neighbours, max(n_items - 1, 1))
    near = np.zeros((n_items, count), dtype=np.int64)
    similarity = np.zeros((n_items, count), dtype=np.float32)
    root = np.sqrt(owners)
    weights = 1 / np.log2(2 + degree)
    phase = Phase(on_progress, "count pairs of items", n_items, "items")
    for first, start, others, shared in sparse_co_occurrences(users, items, n_items, weights):
        n_rows = len(start) - 1
        divisor = np.repeat(root[first : first + n_rows], np.diff(start)) * root[others] + settings.shrinkage
        cosine = shared.astype(np.float32) / divisor
        cosine[others == np.repeat(np.arange(first, first + n_rows), np.diff(start))] = 0  # the item itself
        near[first : first + n_rows], similarity[first : first + n_rows] = largest_of_rows(start, others, cosine, count)
        phase.add(n_rows)
    return torch.from_numpy(near), torch.from_numpy(similarity)


def _predecessors(events: _Events, settings: StatisticsSettings, on_progress: OnProgress) -> tuple[Tensor, Tensor]:
    """Each item's preceding items with the largest transition scores, and the scores; ties in order of item numbers."""
    window, n_items = settings.transition_window, len(events.item_categories)
    count = min(settings.neighbours, n_items) if window else 0
    best, scores = torch.zeros(n_items, count, dtype=torch.int64), torch.zeros(n_items, count)
    rows = np.argsort(events.item, kind="stable").astype(np.int32)
    items = events.item[rows]
    root = np.sqrt(np.bincount(items, minlength=n_items))
    back = np.arange(window)
    first, phase = 0, Phase(on_progress, "count what precedes", len(rows), "events")
    while count and first < len(rows):
        # some items at a time, with all their events
        last = int(np.searchsorted(items, items[min(first + _PAIRS // window, len(rows) - 1)], "right"))
        part, targets = rows[first:last], items[first:last, None].astype(np.int64)
        at = (part - events.back[part])[:, None] - back
        exists = back < events.held[part][:, None]
        cells, weights = np.broadcast_to(targets * n_items, at.shape), np.broadcast_to(1 / (back + 1), at.shape)
        pairs, inverse = np.unique(cells[exists] + events.item[at[exists]], return_inverse=True)
        item, source = pairs // n_items, pairs % n_items
        found = np.bincount(inverse, weights[exists], len(pairs)) / (root[item] * root[source] + settings.shrinkage)
        order = np.lexsort((source, -found, item))
        rank = np.arange(len(order)) - np.searchsorted(item[order], item[order])
        order, rank = order[rank < count], rank[rank < count]
        best[item[order], rank] = torch.from_numpy(source[order])
        scores[item[order], rank] = torch.from_numpy(found[order]).float()
        first = last
        phase.at(last)
    return best, scores


def _factors(events: _Events, size: int, seed: int, on_progress: OnProgress) -> tuple[Tensor, Tensor]:
    n_items = len(events.item_categories)
    if not size:
        return torch.zeros(n_items, 0), torch.zeros(0)
    return item_factors(
        events.user, events.item, n_items, size, seed, Phase(on_progress, "learn factors", sweeps(), "sweeps")
    )


def _reference(
    groups: UserGroups, statistics: Statistics, places: Ints, size: int, on_progress: OnProgress
) -> tuple[Tensor, Tensor]:
    """Mean features of every item over the memories at some of the newest events, and the standard deviation.

    Args:
        places: (E,) of the events in the whole log.
    """
    if not len(places):
        return statistics.mean, statistics.scale
    total, squares = (torch.zeros(statistics.mean.shape, dtype=torch.float64) for _ in range(2))
    phase = Phase(on_progress, "usual features", len(places), "events")
    for number in range(groups.count):
        log = groups.open(number)
        tables = FeatureTables(statistics, log.item_categories)
        chosen = np.flatnonzero(np.isin(log.places(np.arange(len(log.user))), places))
        for at in range(0, len(chosen), 8):
            found = tables.of_events(log, chosen[at : at + 8], None, size).double()
            total += found.sum(0)
            squares += found.square().sum(0)
            phase.add(len(found))
    mean = total / len(places)
    spread = (squares / len(places) - mean.square()).clamp(min=0).mean(0).sqrt()
    mean[:, 0], spread[0] = 0, 1  # the size of the memory does not depend on the item
    return mean.float(), (spread + 1e-2).float()
