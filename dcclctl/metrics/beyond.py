"""Coverage, concentration and novelty of the top-k lists, all computed from one count per item."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def exposure(top_items: NDArray[Any], items: int) -> NDArray[np.int64]:
    """Count how often each item stands in a top-k list. Counts of several batches may be added.

    Args:
        top_items: (lists, k) item_index of the shown items; a negative entry is an empty place (fewer than k items).
        items: number of items in the catalogue.

    Returns:
        (items,) counts.
    """
    shown = top_items.ravel()
    return np.bincount(shown[shown >= 0], minlength=items).astype(np.int64, copy=False)


def coverage(counts: NDArray[Any]) -> float | None:
    """Share of the catalogue that is shown at least once; None for an empty catalogue.

    Args:
        counts: (items,) from `exposure`.
    """
    return float(np.count_nonzero(counts)) / len(counts) if len(counts) else None


def gini(counts: NDArray[Any]) -> float | None:
    """Gini coefficient of exposure: 0 if every item is shown equally often, (n − 1)/n if only one is; None without lists.

    G = Σ_i (2i − n − 1) · c_i / (n · Σ c), with the counts c sorted and i from 1 to n.

    Args:
        counts: (items,) from `exposure`.
    """
    n, total = len(counts), float(counts.sum())
    if total == 0:
        return None
    weights = 2 * np.arange(1, n + 1) - n - 1
    return float(weights @ np.sort(counts).astype(np.float64)) / (n * total)


def novelty(counts: NDArray[Any], popularity: NDArray[Any]) -> float | None:
    """Mean self-information of a shown item, −log₂ p(item), in bits; None without lists.

    Source: Zhou et al., PNAS 2010. Differs: p = (events + 1) / (all events + items), so that the novelty of an item
    without events is finite.

    Args:
        counts: (items,) from `exposure`.
        popularity: (items,) events of each item before the scored period.
    """
    total = float(counts.sum())
    if total == 0:
        return None
    share = (popularity + 1.0) / (float(popularity.sum()) + len(popularity))
    return float(counts @ -np.log2(share)) / total
