"""Averages over groups of users. The per-user table names each user's groups, which are fixed at ingest."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dcclctl.errors import DataError
from dcclctl.tables import AGGREGATE, GROUP_NAMES


def metric_columns(per_user: pl.DataFrame) -> list[str]:
    """Names of the metrics in a per-user table: its Float64 columns, in their order."""
    return [name for name, kind in per_user.schema.items() if kind == pl.Float64]


def members(users: pl.DataFrame) -> dict[str, NDArray[np.bool_]]:
    """Which users belong to each group. Every user is in `all` and in at most two other groups.

    Args:
        users: a table with the columns group and activity_group, one row a user.

    Returns:
        name, in the order of `tables.GROUP_NAMES` → (users,) mask.
    """
    group = users["group"].to_numpy()
    activity = users["activity_group"].fill_null(-1).to_numpy()
    masks = {}
    for name in GROUP_NAMES:
        kind, _, number = name.partition("-")
        own = activity == int(number) if number else (group == kind) | (kind == "all")
        masks[name] = np.asarray(own, dtype=bool)
    return masks


def aggregate(per_user: pl.DataFrame) -> pl.DataFrame:
    """Unweighted mean over users of every metric, for every subject and group.

    Args:
        per_user: one row per (subject, user) with subject, user_index, group, activity_group, and Float64 metric
            columns in which null means that the user has no value. The order of the rows does not change the means.

    Returns:
        An AGGREGATE table with every subject (in order of first appearance), group and metric (in column order).

    Raises:
        DataError: a metric is NaN for some user.
    """
    metrics = metric_columns(per_user)
    for metric in metrics:
        if per_user[metric].is_nan().any():
            raise DataError(f"the per-user table has NaN in {metric!r}", "A user without a value is null, not NaN.")
    rows: list[tuple[str, str, str, float | None, int]] = []
    for subject in per_user["subject"].unique(maintain_order=True):
        # Sorted, so that the sums of floats are the same for any order of rows.
        users = per_user.filter(pl.col("subject") == subject).sort("user_index")
        values = users.select(metrics).to_numpy()
        for group, mask in members(users).items():
            for column, metric in enumerate(metrics):
                known = values[mask, column]
                known = known[~np.isnan(known)]
                rows.append((subject, group, metric, float(known.mean()) if len(known) else None, len(known)))
    return pl.DataFrame(rows, schema=AGGREGATE.schema(), orient="row")


def paired_differences(per_user: pl.DataFrame, subject: str, against: str) -> pl.DataFrame:
    """Each user's metric under `subject` minus the same user's under `against`.

    Args:
        per_user: a per-user table that holds both subjects. subject: the new model. against: the baseline.

    Returns:
        One row a user, sorted by user_index: user_index, user_id, group, activity_group, and each metric's difference
        (null where either side has no value).

    Raises:
        DataError: the two were not scored on the same users.
    """
    new, old = (per_user.filter(pl.col("subject") == name).sort("user_index") for name in (subject, against))
    if new.is_empty() or old.is_empty() or not new["user_index"].equals(old["user_index"]):
        raise DataError(
            f"{subject} and {against} were not scored on the same users, so they cannot be paired",
            f"Score them together: dcclctl evaluate {subject} {against}",
        )
    return new.select("user_index", "user_id", "group", "activity_group").with_columns(
        (new[metric] - old[metric]).alias(metric) for metric in metric_columns(per_user)
    )
