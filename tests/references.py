"""The plain forms of what is fast in the package: tests compare results with them, and benchmarks compare times."""

from collections.abc import Iterator

import numpy as np
import polars as pl
import torch
from torch import Tensor

from dcclctl.devices.memory.statistics import StatisticsSettings
from dcclctl.events.log import EventLog
from dcclctl.events.sampling import Ints, PairSet, ranges
from dcclctl.models.din import DinBackbone
from dcclctl.models.sequence import SequenceBackbone


def dense_neighbours(log: EventLog, rows: Ints, settings: StatisticsSettings) -> tuple[Tensor, Tensor]:
    """Each item's nearest items and their similarities, from a table of all pairs of items, whole rows sorted."""
    pairs = np.unique(log.user[rows] * log.n_items + log.item[rows])
    users, items = pairs // max(log.n_items, 1), pairs % max(log.n_items, 1)
    degree = np.bincount(users, minlength=log.n_users)
    owners = np.bincount(items, minlength=log.n_items)
    count = min(settings.neighbours, max(log.n_items - 1, 1))
    near = torch.zeros(log.n_items, count, dtype=torch.int64)
    similarity = torch.zeros(log.n_items, count)
    root = torch.from_numpy(np.sqrt(owners)).clamp(min=1)
    for first, shared in _dense_co_occurrences(users, items, log.n_items, 1 / np.log2(2 + degree)):
        here = torch.arange(len(shared))
        cosine = shared / (root[first : first + len(shared), None] * root + settings.shrinkage)
        cosine[here, here + first] = 0
        order = torch.argsort(cosine, dim=1, descending=True, stable=True)[:, :count]
        near[first : first + len(shared), : order.shape[1]] = order
        similarity[first : first + len(shared), : order.shape[1]] = cosine.gather(1, order).float()
    return near, similarity


def _dense_co_occurrences(users: Ints, items: Ints, n_items: int, weights: np.ndarray) -> Iterator[tuple[int, Tensor]]:
    """Rows of XᵀWX, block by block: the block's first item, and its rows. (P,) distinct pairs; (U,) weights."""
    by_user, by_item = np.argsort(users, kind="stable"), np.argsort(items, kind="stable")
    items_of_user, sorted_users = items[by_user], users[by_user]
    owners, sorted_items = users[by_item], items[by_item]
    step = max(1, (1 << 23) // max(n_items, 1))
    for first in range(0, n_items, step):
        last = min(first + step, n_items)
        part = slice(*np.searchsorted(sorted_items, [first, last]))
        begins, ends = (np.searchsorted(sorted_users, owners[part], side) for side in ("left", "right"))
        others = items_of_user[ranges(begins, ends)]
        cells = np.repeat(sorted_items[part] - first, ends - begins) * n_items + others
        weight = np.repeat(weights[owners[part]], ends - begins)
        counts = np.bincount(cells, weight, minlength=(last - first) * n_items).reshape(-1, n_items)
        yield first, torch.from_numpy(counts).float()


def contains_by_search(pairs: PairSet, owners: Ints, items: Ints) -> np.ndarray:
    """`PairSet.contains` by binary search of every pair."""
    wanted = owners.astype(np.int64) * pairs.n_items + items
    if len(pairs._keys) == 0:
        return np.zeros(wanted.shape, dtype=bool)
    at = np.minimum(np.searchsorted(pairs._keys, wanted), len(pairs._keys) - 1)
    return np.asarray(pairs._keys[at] == wanted)


def user_auc_by_two_sorts(user_index: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> pl.DataFrame:
    """`user_auc` by a sort of all scores, and a sort of their ranks within users."""
    positive = labels == 1
    rows = len(user_index)

    # One plain sort of integers that pack (user, rank of the score among all scores, label): several times faster
    # than an indirect sort by two keys. User and rank are below 2³¹, so 63 bits hold all three.
    order = np.argsort(scores)
    values = scores[order]
    place = np.zeros(rows, dtype=np.int64)
    np.cumsum(values[1:] != values[:-1], out=place[1:])
    packed = (user_index[order].astype(np.int64) << 32) | (place << 1) | positive[order]
    packed.sort()
    users = packed >> 32
    hits = (packed & 1).astype(np.float64)
    new_user = np.ones(rows, dtype=bool)
    new_user[1:] = users[1:] != users[:-1]
    new_tie = np.ones(rows, dtype=bool)
    new_tie[1:] = packed[1:] >> 1 != packed[:-1] >> 1

    # A run of ties from a to b (rows within one user, from 0) has the mid-rank (a + b) / 2 + 1.
    user_start = np.flatnonzero(new_user)
    user_rows = np.diff(user_start, append=rows)
    tie_start = np.flatnonzero(new_tie)
    tie_rows = np.diff(tie_start, append=rows)
    first = np.repeat(tie_start, tie_rows) - np.repeat(user_start, user_rows)
    mid_rank = first + (np.repeat(tie_rows, tie_rows) + 1) / 2.0

    positives, rank_sum = (
        np.add.reduceat(values, user_start) if rows else np.empty(0) for values in (hits, hits * mid_rank)
    )
    pairs = positives * (user_rows - positives)
    with np.errstate(invalid="ignore", divide="ignore"):
        auc = (rank_sum - positives * (positives + 1) / 2) / pairs
    return pl.DataFrame(
        {"user_index": users[user_start], "auc": auc}, schema={"user_index": pl.Int32, "auc": pl.Float64}
    ).with_columns(pl.when(pl.Series(pairs > 0)).then("auc").alias("auc"))


@torch.no_grad()
def activations_event_by_event(backbone: DinBackbone, events: Ints) -> Tensor:
    """DIN's activations of the whole catalogue, with the attention of every item computed for each event."""
    model, log, embeddings = backbone.model, backbone.log, backbone.embeddings
    history, mask = log.histories(events, backbone.limit)
    query = embeddings.expand(len(events), -1, -1)
    profile = model.embed_profile(log.profile[torch.from_numpy(log.user[events])])
    return model.first_layer(query, model.interest_of_many(query, embeddings[history], mask), profile)


@torch.no_grad()
def sequence_logits_event_by_event(backbone: SequenceBackbone, events: Ints, candidates: Tensor) -> Tensor:
    """A sequence model's logits of candidates (B, C), with a window of its own for each event's history."""
    model, baskets, stop = backbone.model, backbone.baskets, backbone.log.history_end[events]
    first, end = baskets.before(backbone.log, events)
    first = np.maximum(first, end - model.sizes.history)
    bags = baskets.bags(first, end, stop)
    states = model.states(model.steps(bags, backbone.embeddings[bags.items]))
    last = states[torch.arange(len(events)), torch.from_numpy(end - first)]
    return (backbone.embeddings[candidates] @ last.unsqueeze(-1)).squeeze(-1) + model.item_bias[candidates]
