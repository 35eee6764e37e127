"""Significance of a difference between two models: paired bootstrap over users, Holm's correction, sample size.

Users are drawn with replacement. All metrics of both models are drawn with the user, so every comparison is paired.
Where few users differ, a plain bootstrap cannot draw the rare user that the sample missed, and its intervals are too
narrow. Two more users are therefore drawn with each group, whose differences are the largest of the group, up and down.
"""

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from dcclctl.metrics.groups import members, metric_columns
from dcclctl.tables import MAIN_GROUPS

Floats = NDArray[np.float64]
RESAMPLES = 2000
CONFIDENCE = 0.95
#: Groups of fewer users have no interval. From here on it covers the truth in at least 93 % of samples (docs/metrics.md).
MIN_USERS = 20
#: Where no user's value differs, this many users are needed to say so: a change of 3 % of users would have been seen.
MIN_UNCHANGED = 100
#: users, or random blocks of users, that a resample draws at most
MOST_UNITS = 20_000
_BLOCK_CELLS = 4_000_000
_MOST_USERS = 10**9
#: called with the number of resamples that have just been drawn
OnResamples = Callable[[int], None]
_FIGURES = ("difference", "low", "high", "p_value", "p_holm")


def bootstrap_means(
    values: Floats,
    masks: NDArray[np.bool_],
    seed: int = 0,
    resamples: int = RESAMPLES,
    on_resamples: OnResamples = lambda count: None,
) -> Floats:
    """Means over users in every resample, for all groups and metrics from the same draws.

    A resample draws as many users as there are, with replacement; a group's mean is over its members that were drawn and
    have a value. The draws depend on the seed and the number of users only. More than 20,000 users are put into 20,000
    blocks at random, and blocks are drawn: the variance is the same, and time and memory no longer grow with users × draws.

    Args:
        values: (users, metrics) one figure per user, e.g. a difference; NaN: the user has none.
        masks: (groups, users) membership.
        seed: of the draws. resamples: number of resamples.
        on_resamples: called with the number of resamples that have just been drawn.

    Returns:
        (resamples, groups, metrics) means; NaN where no user with a value was drawn.
    """
    (all_users, metrics), groups = values.shape, len(masks)
    inside = (masks[:, None, :] & ~np.isnan(values).T[None, :, :]).reshape(groups * metrics, all_users)
    # sums and counts of all groups become two matrix products with the draws, made by torch: it keeps to --threads,
    # while numpy's threads compete on a busy machine (measured: ten times slower)
    counted, summed = map(torch.from_numpy, _of_units(inside, np.nan_to_num(values).T, seed))
    users = counted.shape[1]

    rng = np.random.default_rng(seed)
    means = np.full((resamples, groups * metrics), math.nan)
    block = max(1, _BLOCK_CELLS // max(users, 1))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = rng.integers(users, size=(rows, users)) if users else np.empty((rows, 0), dtype=np.int64)
        counts = [np.bincount(row, minlength=users) for row in drawn]
        times = torch.from_numpy(np.stack(counts).astype(np.float64)).T
        sums, numbers = (summed @ times).T.numpy(), (counted @ times).T.numpy()
        np.divide(sums, numbers, out=means[start : start + rows], where=numbers > 0)
        on_resamples(rows)
    return means.reshape(resamples, groups, metrics)


def _of_units(inside: NDArray[np.bool_], values: Floats, seed: int) -> tuple[Floats, Floats]:
    """(rows, units) how many users with a value there are in each unit of a draw, and the sum of their values.

    Args:
        inside: (groups · metrics, users) whether a user counts. values: (metrics, users).
    """
    rows, users = inside.shape
    if users <= MOST_UNITS:
        counts = inside.astype(np.float64)
        return counts, counts * np.tile(values, (rows // max(len(values), 1), 1))
    unit = np.random.default_rng([seed, 3]).permutation(users) % MOST_UNITS
    numbers = [np.bincount(unit, own, MOST_UNITS) for own in inside]
    sums = [np.bincount(unit, own * values[row % len(values)], MOST_UNITS) for row, own in enumerate(inside)]
    return np.stack(numbers), np.stack(sums)


def holm(p_values: Floats) -> Floats:
    """Correct the p-values of several comparisons; NaN stays NaN and does not count.

    Source: Holm, Scandinavian Journal of Statistics 1979. Adjusted p₍ᵢ₎ = max over j ≤ i of min(1, (m − j + 1) · p₍ⱼ₎).

    Args:
        p_values: (comparisons,) all comparisons that are corrected together.
    """
    adjusted = np.full(len(p_values), math.nan)
    order = np.argsort(p_values)[: np.count_nonzero(~np.isnan(p_values))]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * p_values[order]))
    return adjusted


def users_to_settle(
    difference: float, deviation: float, threshold: float = 0.0, confidence: float = CONFIDENCE, power: float = 0.8
) -> int | None:
    """Number of users needed to tell the difference from a threshold, if it is as large as measured.

    n = ((z₁ + z₂) · deviation / (difference − threshold))², z₁ of the two-sided confidence, z₂ of the power.

    Args:
        difference, deviation: mean and standard deviation of the users' differences.
        threshold: what the difference is compared with: 0, or the drop that a gate allows.
        confidence: of the interval.
        power: probability that a comparison of that many users is conclusive.

    Returns:
        Number of users, or None above a billion: the difference is too close to the threshold.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2) + NormalDist().inv_cdf(power)
    distance = abs(difference - threshold)
    if z * deviation > distance * math.sqrt(_MOST_USERS) or distance == 0:
        return None
    return max(2, math.ceil((z * deviation / distance) ** 2))


def compare(
    differences: pl.DataFrame,
    groups: tuple[str, ...] = MAIN_GROUPS,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    on_resamples: OnResamples = lambda count: None,
) -> pl.DataFrame:
    """Compare two models, paired by user, for every group and metric.

    Args:
        differences: what `groups.paired_differences` returned.
        groups: names from `tables.GROUP_NAMES`.
        seed: of the draws. resamples: number of bootstrap resamples. confidence: of the interval, e.g. 0.95.

    Returns:
        One row per (group, metric): group, metric, users Int64 (with a value from both models), difference Float64 (mean,
        null without users), low, high (percentile interval), p_value (two-sided, at least 2 / (resamples + 1)) and p_holm
        (over the metrics of the group). Interval and p-values are null for fewer than `MIN_USERS` users, or
        `MIN_UNCHANGED` users where no value differs. The interval is for this comparison alone; p_holm is for all metrics.
    """
    metrics, values, masks, means = _resampled(differences, groups, seed, resamples, on_resamples)

    rows: list[tuple[object, ...]] = []
    for g, group in enumerate(groups):
        facts = []
        for m in range(len(metrics)):
            own = values[masks[g], m]
            own = own[~np.isnan(own)]
            facts.append((own, *interval(means[:, g, m], len(own), confidence)))
        corrected = holm(np.array([fact[3] for fact in facts]))
        for metric, (own, low, high, p_value), p_holm in zip(metrics, facts, corrected, strict=True):
            mean = float(own.mean()) if len(own) else math.nan
            rows.append((group, metric, len(own), mean, low, high, p_value, float(p_holm)))
    return significance_table(rows, ("group", "metric"))


def contrast(
    differences: pl.DataFrame,
    one: str = "tail",
    other: str = "head",
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    on_resamples: OnResamples = lambda count: None,
) -> pl.DataFrame:
    """Compare what a change does for two groups: the mean difference of `one` minus that of `other`.

    The two models are paired by user; the two groups are not, because they share no user. Both means come from the same
    resamples of all users, as in `compare`.

    Args:
        differences: what `groups.paired_differences` returned.
        one, other: names from `tables.GROUP_NAMES`, of groups without a common user.
        seed: of the draws. resamples: number of bootstrap resamples. confidence: of the interval, e.g. 0.95.

    Returns:
        One row per metric: metric, users Int64 (of both groups, with a value), difference Float64 (null if a group has
        no user), low, high, p_value and p_holm (over the metrics), which are null if a group has fewer than `MIN_USERS`
        users.
    """
    metrics, values, masks, means = _resampled(differences, (one, other), seed, resamples, on_resamples)
    facts: list[tuple[Any, ...]] = []
    for m in range(len(metrics)):
        mine, theirs = (values[mask & ~np.isnan(values[:, m]), m] for mask in masks)
        mean = float(mine.mean() - theirs.mean()) if len(mine) and len(theirs) else math.nan
        drawn = means[:, 0, m] - means[:, 1, m]
        users = len(mine) + len(theirs)
        facts.append((metrics[m], users, mean, *interval(drawn, min(len(mine), len(theirs)), confidence)))
    corrected = holm(np.array([fact[-1] for fact in facts]))
    rows = [(*fact, float(p_holm)) for fact, p_holm in zip(facts, corrected, strict=True)]
    return significance_table(rows, ("metric",))


def _resampled(
    differences: pl.DataFrame, groups: tuple[str, ...], seed: int, resamples: int, on_resamples: OnResamples
) -> tuple[list[str], Floats, NDArray[np.bool_], Floats]:
    """Names of the metrics, (users, metrics) differences, (groups, users) membership, and resampled means."""
    metrics = metric_columns(differences)
    table = differences.sort("user_index")
    values = table.select(metrics).to_numpy().astype(np.float64).reshape(len(table), len(metrics))
    membership = members(table)
    masks = np.stack([membership[group] for group in groups])
    return (
        metrics,
        values,
        masks,
        with_two_more_users(bootstrap_means(values, masks, seed, resamples, on_resamples), values, masks, seed),
    )


def with_two_more_users(means: Floats, values: Floats, masks: NDArray[np.bool_], seed: int) -> Floats:
    """Widen resampled means as if each group had two more users, with the largest difference of the group up and down.

    Each of the two is drawn about once a resample, like any user. For differences in {−1, 0, 1} this adds one user to
    the winners and one to the losers. Where no user's value differs nothing is added; for fewer than `MIN_UNCHANGED`
    users the means become NaN, because nothing is known of the size of a change that the sample missed.

    Source: pseudo-counts of Agresti and Min, Statistics in Medicine 2005 (paired proportions).
    Differs: differences of any size, and a bootstrap in place of the normal interval.

    Args:
        means: (resamples, groups, metrics) from `bootstrap_means`. values, masks, seed: as there.
    """
    users = masks.astype(np.int64) @ ~np.isnan(values)  # (groups, metrics)
    sizes = np.abs(np.nan_to_num(values))
    largest = np.stack([sizes[mask].max(0, initial=0.0) for mask in masks])
    drawn = np.random.default_rng([seed, 2]).poisson(1, size=(2, len(means), len(masks), 1))
    widened: Floats = (means * users + largest * (drawn[0] - drawn[1])) / (users + drawn.sum(0))
    widened[:, (largest == 0) & (users < MIN_UNCHANGED)] = math.nan
    return widened


def interval(drawn: Floats, users: int, confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """Low and high of the percentile interval, and two-sided p-value; NaN for too few users.

    Args:
        drawn: (resamples,) means from `with_two_more_users`. users: with a value.
    """
    if users < MIN_USERS or np.isnan(drawn).all():
        return math.nan, math.nan, math.nan
    low, high = (float(bound) for bound in np.nanquantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2]))
    below, above = np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0)
    return low, high, min(1.0, 2 * (min(below, above) + 1) / (len(drawn) + 1))


def significance_table(rows: list[tuple[Any, ...]], names: tuple[str, ...]) -> pl.DataFrame:
    """Rows of a comparison: names, then users, difference, low, high, p_value and p_holm, null where they are NaN."""
    schema: dict[str, type[pl.DataType]] = {
        **dict.fromkeys(names, pl.String),
        "users": pl.Int64,
        **dict.fromkeys(_FIGURES, pl.Float64),
    }
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(pl.col(_FIGURES).fill_nan(None))
