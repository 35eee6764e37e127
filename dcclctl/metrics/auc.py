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
    # One plain sort of integers that pack (user: 31 bits, score: 32, label: 1): many times faster than an indirect sort
    # by two keys. Only the positives, which are few, are looked at afterwards.
    packed = user_index.astype(np.uint64)
    packed <<= np.uint64(32)
    packed |= _in_order(scores)
    packed <<= np.uint64(1)
    packed |= positive
    packed.sort()
    owners = (packed >> np.uint64(33)).astype(np.int32)
    new_user = np.ones(len(owners), dtype=bool)
    np.not_equal(owners[1:], owners[:-1], out=new_user[1:])
    user_start = np.flatnonzero(new_user)
    users, user_rows = owners[user_start], np.diff(user_start, append=len(packed))
    hits = packed[(packed.astype(np.uint8) & np.uint8(1)).view(bool)]
    # A run of ties from a to b (rows within one user, from 0) has the mid-rank (a + b) / 2 + 1.
    first = np.searchsorted(packed, hits & ~np.uint64(1))
    behind = np.searchsorted(packed, hits, side="right")
    owner = np.searchsorted(users, (hits >> np.uint64(33)).astype(np.int32))
    twice = first + behind + 1 - 2 * user_start[owner]
    positives = np.bincount(owner, minlength=len(users)).astype(np.float64)
    rank_sum = np.bincount(owner, twice, len(users)) / 2
    pairs = positives * (user_rows - positives)
    with np.errstate(invalid="ignore", divide="ignore"):
        auc = (rank_sum - positives * (positives + 1) / 2) / pairs
    return pl.DataFrame(
        {"user_index": users, "auc": auc}, schema={"user_index": pl.Int32, "auc": pl.Float64}
    ).with_columns(pl.when(pl.Series(pairs > 0)).then("auc").alias("auc"))


def _in_order(scores: NDArray[Any]) -> NDArray[np.uint32]:
    """Integers in the order of the scores; equal for equal scores."""
    if scores.dtype != np.float32:
        return np.unique(scores, return_inverse=True)[1].astype(np.uint32)
    bits = (scores + np.float32(0)).view(np.int32)  # −0 becomes 0
    # floats are ordered as their bits are, negative ones the other way round
    flipped = (bits >> 31) | np.int32(-(1 << 31))
    ordered: NDArray[np.uint32] = np.bitwise_xor(bits, flipped, out=flipped).view(np.uint32)
    return ordered


def gauc(aucs: pl.DataFrame) -> tuple[float | None, int]:
    """GAUC: the unweighted mean of the users' AUCs.

    Args:
        aucs: what `user_auc` returned.

    Returns:
        The mean over users with a value (None, not 0.5, if no user has one), and the number of these users.
    """
    values = aucs["auc"].drop_nulls().to_numpy()
    return (float(values.mean()) if len(values) else None), len(values)
