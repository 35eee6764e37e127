"""The table of all metrics, each defined by its value for one user. A new metric is one file and one row.

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
    """A metric of the rank of the item that came next. A user's value is the mean over the user's events.

    Attributes:
        of: (N,) ranks, and k if `at_k` → (N,) values.
        at_k: whether only the first k items count; then the metric has a column for each cut-off of `evaluate --k`.
        lower_is_better: whether a smaller value is better.
    """

    of: Callable[..., Floats]
    at_k: bool = False
    lower_is_better: bool = False


@dataclass(frozen=True)
class RowMetric:
    """A metric of all of a user's scored rows, positives and negatives.

    Attributes:
        of: (N,) user_index, (N,) labels 0 or 1, (N,) logits → one row a user: user_index Int32, and the value Float64
            (null where the user has none).
        lower_is_better: whether a smaller value is better.
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


#: other names of a metric where each event has one relevant item, as here: name → name in METRICS
SAME_AS: Final[Mapping[str, str]] = {"recall": "hr", "map": "mrr"}


def own_name(metric: str) -> str:
    """A metric by the name that the tables have: 'recall@10' → 'hr@10', 'map' → 'mrr'; others stay as they are."""
    name, at, k = metric.partition("@")
    return SAME_AS.get(name, name) + at + k


def metric_names(cuts: Iterable[int]) -> list[str]:
    """Names of all metrics in a table of means; `cuts` holds the k of `evaluate --k`."""
    names = []
    for name, metric in METRICS.items():
        at_k = isinstance(metric, RankMetric) and metric.at_k
        names += [f"{name}@{k}" for k in cuts] if at_k else [MEAN_NAMES.get(name, name)]
    return names


def lower_is_better(name: str) -> bool:
    """Whether a smaller value of this metric is better. The name may have a cut-off and a number of sampled items."""
    metric = METRICS.get(re.split("[@/]", name)[0])
    return metric is not None and metric.lower_is_better
