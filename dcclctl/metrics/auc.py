"""AUC of each user, for all users at once, and GAUC."""

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dcclctl.errors import DataError


def user_auc(user_index: NDArray[Any], labels: NDArray[Any], scores: NDArray[Any]) -> pl.DataFrame:
    """Each user's AUC: the chance that a positive of the user scores above a negative of the same user; ties count half.

    One sort for all users (Mann–Whitney): AUC = (Σ mid-ranks of positives − P(P+1)/2) / (P·N).

    Args:
        user_index: (rows,) the row's user, in any order.
        labels: (rows,) 1 positive, 0 negative.
        scores: (rows,) a larger score means that a positive is likelier.

    Returns:
        One row a user, sorted: user_index Int32, auc Float64 (null where the user's labels are all equal).

    Raises:
        DataError: a score is NaN, or a label is neither 0 nor 1.
    """
    if np.isnan(scores).any():
        raise DataError("a score is NaN, so AUC has no value", "Train again with a smaller learning rate.")
    positive = labels == 1
    if not (positive | (labels == 0)).all():
        raise DataError("AUC needs labels 0 and 1", "Check --label at ingest.")
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


def gauc(aucs: pl.DataFrame) -> tuple[float | None, int]:
    """GAUC: the unweighted mean of the users' AUCs.

    Args:
        aucs: what `user_auc` returned.

    Returns:
        The mean over users with a value (None, not 0.5, if no user has one), and the number of these users.
    """
    values = aucs["auc"].drop_nulls().to_numpy()
    return (float(values.mean()) if len(values) else None), len(values)
