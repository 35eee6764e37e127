"""The statistics that the cloud ships to devices: counts of all users' positive events, and each item's related items.

Shapes: I items, G categories, N neighbours, Q preceding items, F features of a candidate.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dcclctl.compute import OnProgress, Phase, no_progress
from dcclctl.devices.memory.features import FEATURES, ORDER_FEATURES, FeatureTables, Statistics
from dcclctl.events.log import EventLog
from dcclctl.events.sampling import Ints, hashes
from dcclctl.models.neighbours import largest_of_rows, sparse_co_occurrences

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
    """

    size: int
    neighbours: int
    shrinkage: float
    transition_window: int

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "StatisticsSettings":
        """From a memory's recorded settings."""
        return cls(**{field.name: settings[field.name] for field in fields(cls)})


def count_statistics(
    log: EventLog,
    before: npt.NDArray[np.bool_],
    settings: StatisticsSettings,
    seed: int,
    on_progress: OnProgress = no_progress,
) -> Statistics:
    """Compute the statistics from the positive events in `before`.

    Similarity of i and j: Σ_u w_u / (√(n_i·n_j) + shrinkage) over the users with both, w_u = 1 / log₂(2 + items of u).
    Transition score of i to j: Σ 1/d / (√(m_i·m_j) + shrinkage) over the events of j whose history has i at place
    d from its end; n: users of an item, m: events of an item.

    Args:
        before: (N,) the log's events that may be counted. seed: of the choice of reference events.
        on_progress: see compute.OnProgress.
    """
    rows = np.flatnonzero(before & (log.label > 0))
    counts = np.bincount(log.item[rows], minlength=log.n_items)
    share = torch.from_numpy((counts + 0.5) / (counts.sum() + 0.5 * log.n_items)).float()
    categories = log.item_categories
    by_category = torch.zeros(log.n_categories + 1)
    by_category.scatter_add_(0, categories.flatten(), share[:, None].expand_as(categories).flatten())
    near, similarity = _neighbours(log, rows, settings, on_progress)
    predecessors, scores = _predecessors(log, rows, settings, on_progress)
    width = len(FEATURES) + (len(ORDER_FEATURES) if settings.transition_window else 0)
    nothing, one = torch.zeros(log.n_items, width), torch.ones(width)
    plain = Statistics(share, by_category, near, similarity, predecessors, scores, nothing, one)
    mean, scale = _reference(log, plain, np.flatnonzero(before), settings.size, seed, on_progress)
    return replace(plain, mean=mean, scale=scale)


def _neighbours(
    log: EventLog, rows: Ints, settings: StatisticsSettings, on_progress: OnProgress
) -> tuple[Tensor, Tensor]:
    pairs = np.unique(log.user[rows] * log.n_items + log.item[rows])
    users, items = pairs // max(log.n_items, 1), pairs % max(log.n_items, 1)
    degree = np.bincount(users, minlength=log.n_users)
    owners = np.bincount(items, minlength=log.n_items)
    count = min(settings.neighbours, max(log.n_items - 1, 1))
    near = np.zeros((log.n_items, count), dtype=np.int64)
    similarity = np.zeros((log.n_items, count), dtype=np.float32)
    root = np.sqrt(owners)
    weights = 1 / np.log2(2 + degree)
    phase = Phase(on_progress, "count pairs of items", log.n_items, "items")
    for first, start, others, shared in sparse_co_occurrences(users, items, log.n_items, weights):
        n_rows = len(start) - 1
        divisor = np.repeat(root[first : first + n_rows], np.diff(start)) * root[others] + settings.shrinkage
        cosine = shared.astype(np.float32) / divisor
        cosine[others == np.repeat(np.arange(first, first + n_rows), np.diff(start))] = 0  # the item itself
        near[first : first + n_rows], similarity[first : first + n_rows] = largest_of_rows(start, others, cosine, count)
        phase.add(n_rows)
    return torch.from_numpy(near), torch.from_numpy(similarity)


def _predecessors(
    log: EventLog, rows: Ints, settings: StatisticsSettings, on_progress: OnProgress
) -> tuple[Tensor, Tensor]:
    """Each item's preceding items with the largest transition scores, and the scores; ties in order of item numbers."""
    window = settings.transition_window
    count = min(settings.neighbours, log.n_items) if window else 0
    best, scores = torch.zeros(log.n_items, count, dtype=torch.int64), torch.zeros(log.n_items, count)
    rows = rows[np.argsort(log.item[rows], kind="stable")]
    items = log.item[rows]
    root = np.sqrt(np.bincount(items, minlength=log.n_items))
    sequence, back = log.sequence.numpy(), np.arange(1, window + 1)
    first, phase = 0, Phase(on_progress, "count what precedes", len(rows), "events")
    while count and first < len(rows):
        # some items at a time, with all their events
        last = int(np.searchsorted(items, items[min(first + _PAIRS // window, len(rows) - 1)], "right"))
        part, targets = rows[first:last], items[first:last, None]
        at = log.history_end[part][:, None] - back
        exists = at >= log.history_start[part][:, None]
        cells, weights = np.broadcast_to(targets * log.n_items, at.shape), np.broadcast_to(1 / back, at.shape)
        pairs, inverse = np.unique(cells[exists] + sequence[at[exists]], return_inverse=True)
        item, source = pairs // log.n_items, pairs % log.n_items
        found = np.bincount(inverse, weights[exists], len(pairs)) / (root[item] * root[source] + settings.shrinkage)
        order = np.lexsort((source, -found, item))
        rank = np.arange(len(order)) - np.searchsorted(item[order], item[order])
        order, rank = order[rank < count], rank[rank < count]
        best[item[order], rank] = torch.from_numpy(source[order])
        scores[item[order], rank] = torch.from_numpy(found[order]).float()
        first = last
        phase.at(last)
    return best, scores


def _reference(
    log: EventLog, statistics: Statistics, rows: Ints, size: int, seed: int, on_progress: OnProgress
) -> tuple[Tensor, Tensor]:
    """Mean features of every item over the memories at some of the newest events, and the standard deviation."""
    if not len(rows):
        return statistics.mean, statistics.scale
    newest = rows[np.lexsort((log.share[rows], log.period[rows]))[-max(len(rows) // 4, 1) :]]
    chosen = newest[np.argsort(hashes(seed, "memory/reference", newest), kind="stable")[:_REFERENCES]]
    total, squares = (torch.zeros(statistics.mean.shape, dtype=torch.float64) for _ in range(2))
    phase = Phase(on_progress, "usual features", len(chosen), "events")
    tables = FeatureTables(statistics, log.item_categories)
    for at in range(0, len(chosen), 8):
        found = tables.of_events(log, chosen[at : at + 8], None, size).double()
        total += found.sum(0)
        squares += found.square().sum(0)
        phase.at(min(at + 8, len(chosen)))
    mean = total / len(chosen)
    spread = (squares / len(chosen) - mean.square()).clamp(min=0).mean(0).sqrt()
    mean[:, 0], spread[0] = 0, 1  # the size of the memory does not depend on the item
    return mean.float(), (spread + 1e-2).float()
