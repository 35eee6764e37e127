"""The plain forms of what is fast in the package: tests compare results with them, and benchmarks compare times."""

import numpy as np
import torch
from torch import Tensor

from dcclctl.devices.memory.statistics import StatisticsSettings
from dcclctl.events.log import EventLog
from dcclctl.events.sampling import Ints, PairSet
from dcclctl.models.neighbours import co_occurrences


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
    for first, shared in co_occurrences(users, items, log.n_items, 1 / np.log2(2 + degree)):
        here = torch.arange(len(shared))
        cosine = shared / (root[first : first + len(shared), None] * root + settings.shrinkage)
        cosine[here, here + first] = 0
        order = torch.argsort(cosine, dim=1, descending=True, stable=True)[:, :count]
        near[first : first + len(shared), : order.shape[1]] = order
        similarity[first : first + len(shared), : order.shape[1]] = cosine.gather(1, order).float()
    return near, similarity


def contains_by_search(pairs: PairSet, owners: Ints, items: Ints) -> np.ndarray:
    """`PairSet.contains` by binary search of every pair."""
    wanted = owners.astype(np.int64) * pairs.n_items + items
    if len(pairs._keys) == 0:
        return np.zeros(wanted.shape, dtype=bool)
    at = np.minimum(np.searchsorted(pairs._keys, wanted), len(pairs._keys) - 1)
    return np.asarray(pairs._keys[at] == wanted)
