"""Significance over training seeds and users: a two-level bootstrap of several trainings, scored on the same users."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dcclctl.metrics.groups import members, metric_columns
from dcclctl.metrics.significance import (
    CONFIDENCE,
    RESAMPLES,
    bootstrap_means,
    holm,
    interval,
    significance_table,
    with_two_more_users,
)
from dcclctl.tables import MAIN_GROUPS

Floats = NDArray[np.float64]
#: 97.5 % points of Student's t with 1, 2, … degrees of freedom
_STUDENT = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)


def student(degrees: int) -> float:
    """The 97.5 % point of Student's t; above 9 degrees of freedom by Cornish and Fisher's expansion."""
    if degrees <= len(_STUDENT):
        return _STUDENT[degrees - 1]
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def widening(seeds: int) -> float:
    """How much farther from their mean the drawn seeds are put: a resample of a few of them varies too little.

    √(n / (n − 1)) undoes the bootstrap's variance, which is that of a sample; Student's t over the normal's quantile is for
    a spread that is itself measured on a few seeds. With five seeds it is 1.58. Users need none of it: there are many.

    Source: Hesterberg, The American Statistician 2015, section 4 (expanded percentile interval), here for the seeds alone.
    """
    return math.sqrt(seeds / (seeds - 1)) * student(seeds - 1) / NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


def two_level_means(
    values: Floats, masks: NDArray[np.bool_], seed: int = 0, resamples: int = RESAMPLES
) -> NDArray[np.float64]:
    """Means over seeds and users in every resample, for all groups and metrics from the same draws.

    A resample draws as many seeds as there are, with replacement, then as many users as there are. The same users are
    scored under each seed, so one draw of users serves all drawn seeds: with users drawn anew for each seed, five seeds
    would count as five times as many users. The drawn seeds' shares are moved away from equal shares by `widening`, and
    towards them by the part of the seeds' spread that comes from the users alone, see `_own_spread`.

    Args:
        values: (seeds, users, metrics) one figure per seed and user, e.g. a difference; NaN: the user has none.
        masks: (groups, users) membership. seed: of the draws. resamples: number of resamples.

    Returns:
        (resamples, groups, metrics) means; NaN where no user with a value was drawn.
    """
    seeds, users, metrics = values.shape
    side_by_side = values.transpose(1, 0, 2).reshape(users, seeds * metrics)
    means = bootstrap_means(side_by_side, masks, seed, resamples).reshape(resamples, len(masks), seeds, metrics)
    if seeds == 1:
        return means[:, :, 0]
    rng = np.random.default_rng([seed, seeds])  # other draws than the users'
    shares = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds - 1 / seeds
    factors = widening(seeds) * _own_spread(values, masks)
    found: Floats = means.mean(2) + factors * np.einsum("rs,rgsm->rgm", shares, means)
    return found


def _own_spread(values: Floats, masks: NDArray[np.bool_]) -> Floats:
    """Of the spread of the seeds' means the share that is the seeds' own, 0 to 1, as a factor on deviations: (groups, metrics).

    A seed moves each user by some amount of that user's own, e.g. which of two items comes first. These amounts do not
    average out over a finite number of users, so the seeds' means differ by them even if no seed is better than another.
    The draws of users hold that part already; here it is estimated from the residuals and taken off.

    Source: the two-way analysis of variance without replication, σ̂²(seeds) = max(0, s² − residual variance / users).
    """
    seeds = len(values)
    found = np.ones((len(masks), values.shape[2]))
    for g, mask in enumerate(masks):
        for m in range(values.shape[2]):
            own = values[:, mask, m]
            own = own[:, ~np.isnan(own).any(0)]
            users = own.shape[1]
            if users < 2:
                continue
            means = own.mean(1, keepdims=True)
            spread = float(means.var(ddof=1))
            residuals = own - own.mean(0, keepdims=True) - means + means.mean()
            noise = float((residuals**2).sum()) / ((seeds - 1) * (users - 1)) / users
            found[g, m] = math.sqrt(max(0.0, 1 - noise / spread)) if spread > 0 else 0.0
    return found


def compare_seeds(
    differences: Sequence[pl.DataFrame],
    groups: tuple[str, ...] = MAIN_GROUPS,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> pl.DataFrame:
    """Compare two models that were each trained with several seeds, paired by seed and user.

    Args:
        differences: for each seed what `groups.paired_differences` returned, over the same users.
        groups: names from `tables.GROUP_NAMES`. seed: of the draws. resamples: number of resamples.

    Returns:
        One row per (group, metric): group, metric, users, difference (mean over seeds of the mean over users), low, high,
        p_value, p_holm, as `significance.compare` has them; of seeds and users.
    """
    metrics, values, masks, drawn = _resampled(differences, groups, seed, resamples)
    rows: list[tuple[object, ...]] = []
    for g, group in enumerate(groups):
        facts = [_facts(values[:, masks[g], m], drawn[:, g, m]) for m in range(len(metrics))]
        corrected = holm(np.array([fact[-1] for fact in facts]))
        rows += [(group, name, *fact, float(p)) for name, fact, p in zip(metrics, facts, corrected, strict=True)]
    return significance_table(rows, ("group", "metric"))


def contrast_seeds(
    differences: Sequence[pl.DataFrame], one: str, other: str, seed: int = 0, resamples: int = RESAMPLES
) -> pl.DataFrame:
    """Compare what a change does for two groups of users, over several seeds; columns as of `significance.contrast`."""
    metrics, values, masks, drawn = _resampled(differences, (one, other), seed, resamples)
    facts: list[tuple[object, ...]] = []
    for m in range(len(metrics)):
        mine, theirs = (_facts(values[:, mask, m], drawn[:, g, m]) for g, mask in enumerate(masks))
        spread = interval(drawn[:, 0, m] - drawn[:, 1, m], min(mine[0], theirs[0]))
        facts.append((mine[0] + theirs[0], mine[1] - theirs[1], *spread))
    corrected = holm(np.array([fact[-1] for fact in facts], dtype=np.float64))
    rows: list[tuple[object, ...]] = [
        (name, *fact, float(p)) for name, fact, p in zip(metrics, facts, corrected, strict=True)
    ]
    return significance_table(rows, ("metric",))


def without_seeds(difference: float, of_seeds: Sequence[float], confidence: float) -> float:
    """The difference that users alone would have to settle: √(difference² − (z · standard error of the seeds)²), or 0.

    Args:
        of_seeds: each seed's difference; fewer than two: the difference as it is. confidence: of the interval.
    """
    if len(of_seeds) < 2:
        return difference
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    return math.sqrt(max(0.0, difference**2 - (z * seeds_error(of_seeds)) ** 2))


def seeds_error(of_seeds: Sequence[float]) -> float:
    """The standard error of a mean of seeds, as far as the interval over few seeds spreads it; 0 for fewer than two.

    See `widening`: in place of the normal's quantile stands that of Student's t.
    """
    seeds = len(of_seeds)
    return float(np.std(of_seeds)) / math.sqrt(seeds) * widening(seeds) if seeds > 1 else 0.0


def _resampled(
    differences: Sequence[pl.DataFrame], groups: tuple[str, ...], seed: int, resamples: int
) -> tuple[list[str], Floats, NDArray[np.bool_], Floats]:
    """Names of the metrics, (seeds, users, metrics) differences, (groups, users) membership, and resampled means."""
    tables = [each.sort("user_index") for each in differences]
    metrics = metric_columns(tables[0])
    values = np.stack([each.select(metrics).to_numpy().astype(np.float64) for each in tables])
    membership = members(tables[0])
    masks = np.stack([membership[group] for group in groups])
    means = two_level_means(values, masks, seed, resamples)
    return metrics, values, masks, with_two_more_users(means, values.mean(0), masks, seed)


def _facts(values: Floats, drawn: Floats) -> tuple[int, float, float, float, float]:
    """Users with a value, mean, low, high and p-value of (seeds, users) differences and their resampled means."""
    users = int((~np.isnan(values)).any(0).sum())
    mean = float(np.mean([np.nanmean(each) for each in values])) if users else math.nan
    return users, mean, *interval(drawn, users)
