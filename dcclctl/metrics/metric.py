"""What a metric of a user is, and the table of all of them. A new metric is one file and one row.

All averages, intervals, comparisons, gates and reports are made from the per-user values, so they need no change.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import polars as pl
from numpy.typing import NDArray

from dcclctl.metrics.auc import user_auc
from dcclctl.metrics.calibration import user_log_loss
from dcclctl.metrics.ranking import Floats, hit_ratio, ndcg, reciprocal_rank


@dataclass(frozen=True)
class RankMetric:
    """A figure of where the item that came next stands in the ranking. A user's value is the mean over the user's events.

    Attributes:
        of: (N,) ranks, and k if `at_k` → (N,) values. at_k: does it look at the first k only? Then it has a column for
            each cut-off of `evaluate --k`. lower_is_better: is a smaller value the better one?
    """

    of: Callable[..., Floats]
    at_k: bool = False
    lower_is_better: bool = False


@dataclass(frozen=True)
class RowMetric:
    """A figure of a user's scored rows, positives and negatives together.

    Attributes:
        of: (N,) user_index, (N,) labels 0 or 1, (N,) logits → one row a user: user_index Int32, and the value Float64
            (null where the user has none). lower_is_better: is a smaller value the better one?
    """

    of: Callable[[NDArray[Any], NDArray[Any], NDArray[Any]], pl.DataFrame]
    lower_is_better: bool = False


#: name of a user's value → how it is computed; the order is that of the columns
METRICS: Final[Mapping[str, RankMetric | RowMetric]] = {
    "hr": RankMetric(hit_ratio, at_k=True),
    "ndcg": RankMetric(ndcg, at_k=True),
    "mrr": RankMetric(reciprocal_rank),
    "auc": RowMetric(user_auc),
    "log_loss": RowMetric(user_log_loss, lower_is_better=True),
}
#: name of a user's value → name of its mean over users, where the two differ
MEAN_NAMES: Final[Mapping[str, str]] = {"auc": "gauc"}


def metric_names(cuts: Iterable[int]) -> list[str]:
    """Every metric of an evaluation as the tables of means name it.

    Args:
        cuts: the k of `evaluate --k`.
    """
    names = []
    for name, metric in METRICS.items():
        at_k = isinstance(metric, RankMetric) and metric.at_k
        names += [f"{name}@{k}" for k in cuts] if at_k else [MEAN_NAMES.get(name, name)]
    return names


def lower_is_better(name: str) -> bool:
    """Is a smaller value of this metric the better one? The name may have a cut-off and a number of sampled items."""
    metric = METRICS.get(re.split("[@/]", name)[0])
    return metric is not None and metric.lower_is_better
