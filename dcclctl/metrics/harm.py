"""Which users a new model makes worse off, and by how much. A higher average can hide many users who lose."""

import numpy as np
import polars as pl

from dcclctl.metrics.groups import members, metric_columns
from dcclctl.metrics.metric import lower_is_better
from dcclctl.tables import HARM, MAIN_GROUPS

#: A smaller change is a rounding error of floats, not a better or worse ranking.
UNCHANGED = 1e-9


def _gain(metric: str) -> pl.Expr:
    """A metric's difference with the sign that makes more better."""
    return -pl.col(metric) if lower_is_better(metric) else pl.col(metric)


def harm(differences: pl.DataFrame, groups: tuple[str, ...] = MAIN_GROUPS) -> pl.DataFrame:
    """Shares of users who gain and who lose, and the size of the losses.

    Args:
        differences: what `groups.paired_differences` returned.
        groups: names from `tables.GROUP_NAMES`.

    Returns:
        A HARM table without its subject, see tables.py.
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
    schema = {name: kind for name, kind in HARM.schema().items() if name != "subject"}
    return pl.DataFrame(rows, schema=schema, orient="row")


def worst_users(differences: pl.DataFrame, metric: str, count: int = 10) -> pl.DataFrame:
    """The users who lose most by one metric, the largest loss first.

    Args:
        differences: what `groups.paired_differences` returned.
        metric: name of one of its metrics.
        count: largest number of users; users without a loss are left out.

    Returns:
        user_index, user_id, group, activity_group, and the metric's difference. Ties by user_index.
    """
    return (
        differences.filter(_gain(metric) < -UNCHANGED)
        .sort(_gain(metric), "user_index")
        .head(count)
        .select("user_index", "user_id", "group", "activity_group", metric)
    )
