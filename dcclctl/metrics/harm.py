"""Whom a new model makes worse, and by how much: an average that rises can hide many users who lose."""

import numpy as np
import polars as pl

from dcclctl.metrics.groups import members, metric_columns
from dcclctl.metrics.metric import lower_is_better

#: A change smaller than this is rounding of floats, not a better or worse ranking.
UNCHANGED = 1e-9


def _gain(metric: str) -> pl.Expr:
    """A metric's difference, turned so that more is better."""
    return -pl.col(metric) if lower_is_better(metric) else pl.col(metric)


def harm(differences: pl.DataFrame, groups: tuple[str, ...] = ("all", "head", "tail", "new")) -> pl.DataFrame:
    """Shares of users made better and worse, and the size of the harm.

    Args:
        differences: what `groups.paired_differences` returned.
        groups: names from `groups.GROUP_NAMES`.

    Returns:
        One row per (group, metric): group, metric, users Int64 (with a value on both sides); better, worse, unchanged
        Float64 (fractions of them; null without users); harm_10, harm_50 Float64: the gain (below 0) that a tenth and
        a half of the users made worse lie below; null if nobody is.
    """
    metrics = metric_columns(differences)
    membership = members(differences)
    rows: list[tuple[object, ...]] = []
    for group in groups:
        own = differences.filter(pl.Series(membership[group]))
        for metric in metrics:
            gains = own.select(_gain(metric)).to_series().drop_nulls().to_numpy()
            lost = gains[gains < -UNCHANGED]
            users, worse, better = len(gains), len(lost), np.count_nonzero(gains > UNCHANGED)
            shares = [count / users if users else None for count in (better, worse, users - better - worse)]
            sizes = [float(np.quantile(lost, share)) if worse else None for share in (0.1, 0.5)]
            rows.append((group, metric, users, *shares, *sizes))
    figures = ("better", "worse", "unchanged", "harm_10", "harm_50")
    schema = {"group": pl.String, "metric": pl.String, "users": pl.Int64, **dict.fromkeys(figures, pl.Float64)}
    return pl.DataFrame(rows, schema=schema, orient="row")


def worst_users(differences: pl.DataFrame, metric: str, count: int = 10) -> pl.DataFrame:
    """The users who lose most by one metric, the hardest hit first; users who lose nothing are not among them.

    Args:
        differences: what `groups.paired_differences` returned.
        metric: name of one of its metrics.
        count: at most so many.

    Returns:
        user_index, user_id, group, activity_group, and the metric's difference. Ties by user_index.
    """
    return (
        differences.filter(_gain(metric) < -UNCHANGED)
        .sort(_gain(metric), "user_index")
        .head(count)
        .select("user_index", "user_id", "group", "activity_group", metric)
    )
