"""Rank of the held-out item among the candidates, and the metrics made of it: HR@k, NDCG@k, MRR.

Every event has exactly one relevant item. Ranks start at 1 and may end in ½: a tie counts half (see `ranks`).
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcclctl.errors import DataError

Floats = NDArray[np.float64]


def ranks(positive_scores: NDArray[Any], candidate_scores: NDArray[Any]) -> Floats:
    """Rank of each event's positive among its candidates.

    rank = 1 + #(candidates that score more) + ½ · #(candidates that score the same): the mean rank over all ways to
    break the ties. A model that gives all items the same score therefore ranks the positive in the middle, not first.

    Args:
        positive_scores: (events,) score of the item that came next; −inf where the model cannot score it.
        candidate_scores: (events, candidates) scores of the other items; −inf leaves a candidate out, e.g. an item the
            user has seen or the positive itself.

    Returns:
        (events,) ranks, 1 = best, in steps of ½; +inf where the positive cannot be scored.

    Raises:
        DataError: a score is NaN or +inf (the model has diverged), or the shapes do not fit together.
    """
    if candidate_scores.ndim != 2 or positive_scores.shape != candidate_scores.shape[:1]:
        raise DataError(
            f"scores of shape {positive_scores.shape} and {candidate_scores.shape} do not fit together",
            "Give (events,) positive scores and (events, candidates) candidate scores.",
        )
    # The maximum is NaN if any score is NaN; -inf is allowed.
    for scores in (positive_scores, candidate_scores):
        if scores.size and not float(scores.max()) < math.inf:
            raise DataError(
                "a score is NaN or infinite, so items cannot be ranked", "Train again with a smaller learning rate."
            )
    # Row by row: several times as fast as counting along an axis, which first makes integers of all flags.
    rows = list(zip(positive_scores, candidate_scores, strict=True))
    greater = np.array([np.count_nonzero(row > positive) for positive, row in rows], dtype=np.int64)
    equal = np.array([np.count_nonzero(row == positive) for positive, row in rows], dtype=np.int64)
    return np.where(positive_scores == -math.inf, math.inf, 1.0 + greater + 0.5 * equal)


def hit_ratio(rank: Floats, k: int) -> Floats:
    """HR@k: 1 where the positive is among the first k, else 0. A rank of k + ½ (a tie at the edge) is a miss.

    Args:
        rank: (events,) from `ranks`. k: length of the list, at least 1.
    """
    return (rank <= k).astype(np.float64)


def ndcg(rank: Floats, k: int) -> Floats:
    """NDCG@k with one relevant item: 1 / log₂(1 + rank) where rank ≤ k, else 0. The ideal list has DCG 1.

    A tied rank goes into the formula as it is, e.g. rank 1.5 gives 1 / log₂ 2.5 ≈ 0.757.

    Args:
        rank: (events,) from `ranks`. k: length of the list, at least 1.
    """
    return np.where(rank <= k, 1.0 / np.log2(1.0 + rank), 0.0)


def reciprocal_rank(rank: Floats) -> Floats:
    """1 / rank of (events,) ranks; its mean is the MRR. 0 where the rank is infinite."""
    return 1.0 / rank
