"""How well predicted probabilities agree with observed labels: log loss, reliability table, calibration error."""

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dcclctl.errors import DataError

BINS = 15


def log_loss(logits: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.float64]:
    """Cross-entropy of each row in nats. Computed from the logit, so it cannot overflow and needs no clipping.

    Args:
        logits: (rows,) log-odds of a positive.
        labels: (rows,) 1 positive, 0 negative.

    Returns:
        (rows,) log(1 + exp(logit)) − label · logit.

    Raises:
        DataError: a logit is NaN or infinite.
    """
    values = _finite(logits)
    return np.logaddexp(0.0, values) - labels * values


def user_log_loss(user_index: NDArray[Any], labels: NDArray[Any], logits: NDArray[Any]) -> pl.DataFrame:
    """Each user's mean cross-entropy, in nats.

    Args:
        user_index: (rows,) the row's user. labels, logits: (rows,) see `log_loss`.

    Returns:
        One row a user, sorted: user_index Int32, log_loss Float64.
    """
    sums, rows = np.bincount(user_index, weights=log_loss(logits, labels)), np.bincount(user_index)
    users = np.flatnonzero(rows)
    return pl.DataFrame({"user_index": users.astype(np.int32), "log_loss": sums[users] / rows[users]})


class Reliability:
    """Compares predicted and observed frequencies in equal-width bins of the predicted probability.

    Args:
        bins: number of bins; bin i holds probabilities in [i/bins, (i+1)/bins), the last one also 1.
    """

    def __init__(self, bins: int = BINS) -> None:
        self.rows = np.zeros(bins, dtype=np.int64)
        self.predicted, self.observed = np.zeros(bins), np.zeros(bins)

    def add(self, logits: NDArray[Any], labels: NDArray[Any]) -> None:
        """Count some rows.

        Args:
            logits: (rows,) log-odds of a positive. labels: (rows,) 1 positive, 0 negative.

        Raises:
            DataError: a logit is NaN or infinite.
        """
        bins = len(self.rows)
        values = _finite(logits)
        probabilities = np.exp(-np.logaddexp(0.0, -values))
        index = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
        self.rows += np.bincount(index, minlength=bins)
        self.predicted += np.bincount(index, weights=probabilities, minlength=bins)
        self.observed += np.bincount(index, weights=labels, minlength=bins)

    def sums(self) -> NDArray[np.float64]:
        """(3, bins) what was counted: rows, sum of probabilities, sum of labels."""
        return np.stack([self.rows, self.predicted, self.observed])

    def add_sums(self, sums: NDArray[np.float64]) -> None:
        """Add what another one has counted."""
        self.rows += sums[0].astype(np.int64)
        self.predicted += sums[1]
        self.observed += sums[2]

    def table(self) -> pl.DataFrame:
        """A RELIABILITY table without its subject, see tables.py."""
        edges = np.arange(len(self.rows) + 1) / len(self.rows)
        return pl.DataFrame(
            {
                "lower": edges[:-1],
                "upper": edges[1:],
                "rows": self.rows,
                "predicted": self.predicted,
                "observed": self.observed,
            }
        ).with_columns(
            pl.when(pl.col("rows") > 0).then(pl.col(name) / pl.col("rows")).alias(name)
            for name in ("predicted", "observed")
        )


def expected_calibration_error(table: pl.DataFrame) -> float | None:
    """ECE: the mean gap |predicted − observed| of the bins, weighted by their rows; None without rows.

    Source: Naeini et al., AAAI 2015; equal-width bins.

    Args:
        table: of a `Reliability`.
    """
    filled = table.filter(pl.col("rows") > 0)
    if filled.is_empty():
        return None
    gaps = np.abs(filled["predicted"].to_numpy() - filled["observed"].to_numpy())
    return float(np.average(gaps, weights=filled["rows"].to_numpy()))


def _finite(logits: NDArray[Any]) -> NDArray[np.float64]:
    values = logits.astype(np.float64)
    if not np.isfinite(values).all():
        raise DataError("a logit is NaN or infinite", "Train again with a smaller learning rate.")
    return values
