"""Every scored model against one baseline, paired by user: is the difference real, and whom does it hurt?

The figures come from an evaluation's per-user table and from nothing else, so that any two people who hold the artifact
get the same verdict.
"""

from typing import Final

import polars as pl

from dcclctl.artifacts import Evaluation
from dcclctl.errors import UsageError
from dcclctl.metrics.groups import members, metric_columns, paired_differences
from dcclctl.metrics.harm import harm, worst_users
from dcclctl.metrics.metric import MEAN_NAMES, lower_is_better
from dcclctl.metrics.significance import CONFIDENCE, RESAMPLES, compare, contrast, users_to_settle
from dcclctl.tables import COMPARISON, MAIN_GROUPS

#: A difference is called real if p_holm, corrected for all metrics of its group, is at most this.
LEVEL: Final = 1 - CONFIDENCE
WORST_USERS: Final = 20
_RESAMPLES_PER_METRIC: Final = 100


def compare_evaluation(
    evaluation: Evaluation,
    against: str,
    groups: tuple[str, ...] = MAIN_GROUPS,
    resamples: int = RESAMPLES,
) -> pl.DataFrame:
    """Compare every other subject of an evaluation with one of them; a baseline that stands alone with itself.

    Args:
        evaluation: an evaluation artifact of two subjects or more.
        against: the baseline's name in the artifact's tables, e.g. cloud@3fa9c2d1.
        groups: names from `tables.GROUP_NAMES`.
        resamples: of the bootstrap, at least; its draws follow the evaluation's seed.

    Returns:
        A COMPARISON table, see tables.py.

    Raises:
        UsageError: the evaluation did not score the baseline.
    """
    return comparison(evaluation.per_user, against, evaluation.artifact.seed, groups, resamples)


def comparison(
    per_user: pl.DataFrame,
    against: str,
    seed: int,
    groups: tuple[str, ...] = MAIN_GROUPS,
    resamples: int = RESAMPLES,
) -> pl.DataFrame:
    """The same from a PER_USER table; see `compare_evaluation`."""
    tables = []
    for subject, differences in _paired(per_user, against):
        facts = compare(differences, groups, seed, _enough(differences, resamples))
        settled = {(group, metric): users for group, metric, users in _settling(differences, groups)}
        means = _paired_means(per_user, subject, against, groups)
        verdict = _verdict("better", "worse", metric_columns(differences))
        open_cases = pl.Series(
            "settled", [settled[key] for key in facts.select("group", "metric").iter_rows()], pl.Int64
        )
        tables.append(
            facts.join(means, on=["group", "metric"], how="left", maintain_order="left")
            .with_columns(pl.lit(subject).alias("subject"), verdict.alias("verdict"))
            .with_columns(
                pl.when((pl.col("verdict") == "inconclusive") & pl.col("low").is_not_null())
                .then(open_cases)
                .alias("users_to_settle")
            )
            .select(*COMPARISON.columns)
        )
    return pl.concat(tables)


def harms(
    per_user: pl.DataFrame, against: str, groups: tuple[str, ...] = MAIN_GROUPS
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Whom every other subject makes worse than the baseline.

    Returns:
        A HARM and a WORST_USERS table, see tables.py.

    Raises:
        UsageError: the evaluation did not score the baseline.
    """
    shares, worst = [], []
    for subject, differences in _paired(per_user, against):
        shares.append(harm(differences, groups).select(pl.lit(subject).alias("subject"), pl.all()))
        for metric in metric_columns(differences):
            named = worst_users(differences, metric, WORST_USERS).rename({metric: "difference"})
            worst.append(named.select(pl.lit(subject).alias("subject"), pl.lit(metric).alias("metric"), pl.all()))
    return pl.concat(shares), pl.concat(worst)


def tail_minus_head(per_user: pl.DataFrame, against: str, seed: int, resamples: int = RESAMPLES) -> pl.DataFrame:
    """Does every other subject do more for tail users than for head users, compared with the baseline?

    Args:
        per_user: PER_USER table. against: the baseline's name in it. seed: of the draws. resamples: at least.

    Returns:
        A TAIL_MINUS_HEAD table, see tables.py.

    Raises:
        UsageError: the evaluation did not score the baseline.
    """
    tables = [
        contrast(differences, "tail", "head", seed, _enough(differences, resamples)).select(
            pl.lit(subject).alias("subject"),
            pl.all(),
            _verdict("tail", "head", metric_columns(differences)).alias("verdict"),
        )
        for subject, differences in _paired(per_user, against)
    ]
    return pl.concat(tables)


def _enough(differences: pl.DataFrame, resamples: int) -> int:
    """A p-value is at least 2 / (resamples + 1), and Holm multiplies it by the number of metrics: with many cut-offs
    2,000 resamples could not call anything real."""
    return max(resamples, _RESAMPLES_PER_METRIC * len(metric_columns(differences)))


def _verdict(above: str, below: str, metrics: list[str]) -> pl.Expr:
    """What a difference is called where it is real: `above` if it is a gain, whichever way the metric points."""
    lower = [metric for metric in metrics if lower_is_better(metric)]
    gain = pl.when(pl.col("metric").is_in(lower)).then(-pl.col("difference")).otherwise("difference")
    return (
        pl.when(pl.col("p_holm").is_null() | (pl.col("p_holm") > LEVEL))
        .then(pl.lit("inconclusive"))
        .when(gain > 0)
        .then(pl.lit(above))
        .otherwise(pl.lit(below))
    )


def main_metrics(metrics: list[str]) -> list[str]:
    """The few metrics that a summary shows: GAUC, HR@k and NDCG@k of the middle k, MRR; those of them that there are.

    Args:
        metrics: names as in the tables, e.g. ndcg@10 or ndcg@10/1000.
    """
    cuts = sorted({int(name.partition("@")[2].partition("/")[0]) for name in metrics if "@" in name})
    middle = cuts[len(cuts) // 2] if cuts else 0
    wanted = ("gauc", f"hr@{middle}", f"ndcg@{middle}", "mrr")
    plain = {name.partition("/")[0]: name for name in metrics}
    return [plain[name] for name in wanted if name in plain]


def harm_metric(metrics: list[str]) -> str:
    """The one metric that harm is summed up by: NDCG@k of the middle k."""
    return next((name for name in main_metrics(metrics) if name.startswith("ndcg@")), metrics[0])


def _paired(per_user: pl.DataFrame, against: str) -> list[tuple[str, pl.DataFrame]]:
    """(subject, its users' differences) for every subject but the baseline. The mean of `auc` over users is `gauc`."""
    subjects = per_user["subject"].unique(maintain_order=True).to_list()
    if against not in subjects:
        raise UsageError(f"{against} was not scored in this evaluation", f"Its models are {', '.join(subjects)}.")
    # A candidate that is the baseline itself is compared with itself: a gate over an unchanged model is no mistake.
    others = [subject for subject in subjects if subject != against] or [against]
    renamed = per_user.rename(MEAN_NAMES, strict=False)
    return [(subject, paired_differences(renamed, subject, against)) for subject in others]


def _settling(differences: pl.DataFrame, groups: tuple[str, ...]) -> list[tuple[str, str, int | None]]:
    """(group, metric, users that would settle it) as the first of all metrics of the group, which Holm asks most of."""
    metrics, membership = metric_columns(differences), members(differences)
    confidence = 1 - LEVEL / max(len(metrics), 1)
    found: list[tuple[str, str, int | None]] = []
    for group in groups:
        own = differences.filter(pl.Series(membership[group]))
        for metric in metrics:
            gains = own[metric].drop_nulls().to_numpy()
            known = len(gains) > 1
            mean, deviation = (float(gains.mean()), float(gains.std(ddof=1))) if known else (0.0, 0.0)
            found.append((group, metric, users_to_settle(mean, deviation, confidence=confidence)))
    return found


def _paired_means(per_user: pl.DataFrame, subject: str, against: str, groups: tuple[str, ...]) -> pl.DataFrame:
    """group, metric, value, baseline: means of both sides over the users who have a value on both."""
    renamed = per_user.rename(MEAN_NAMES, strict=False)
    new, old = (renamed.filter(pl.col("subject") == name).sort("user_index") for name in (subject, against))
    membership = members(new)
    rows = []
    for group in groups:
        mask = pl.Series(membership[group])
        for metric in metric_columns(renamed):
            both = pl.DataFrame({"new": new[metric], "old": old[metric]}).filter(mask).drop_nulls()
            rows.append((group, metric, both["new"].mean(), both["old"].mean()))
    schema = {"group": pl.String, "metric": pl.String, "value": pl.Float64, "baseline": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")
