"""Every scored model against one baseline, paired by user: is the difference real, and whom does it hurt?

The figures come from an evaluation's per-user table and from nothing else, so that any two people who hold the artifact
get the same verdict.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import polars as pl

from dcclctl.artifacts import Evaluation
from dcclctl.compute import OnProgress, Phase, no_progress
from dcclctl.errors import UsageError
from dcclctl.metrics.groups import members, metric_columns, paired_differences
from dcclctl.metrics.harm import harm, worst_users
from dcclctl.metrics.metric import MEAN_NAMES, METRICS, RankMetric, lower_is_better
from dcclctl.metrics.seeds import compare_seeds, contrast_seeds, without_seeds
from dcclctl.metrics.significance import CONFIDENCE, RESAMPLES, compare, contrast, users_to_settle
from dcclctl.tables import COMPARISON, MAIN_GROUPS

#: A difference is called real if p_holm, corrected for all metrics of its group, is at most this.
LEVEL: Final = 1 - CONFIDENCE
WORST_USERS: Final = 20
#: GAUC of a model that knows nothing
CHANCE: Final = 0.5
_RESAMPLES_PER_METRIC: Final = 100


class Comparison:
    """Every subject of a per-user table against one of them, paired by user. A baseline alone is compared with itself.

    Args:
        per_user: PER_USER table. against: the baseline's name in it, e.g. cloud@3fa9c2d1.
        seed: of the bootstrap's draws. resamples: of the bootstrap, at least.
        seeds: PER_USER tables of several trainings of the same subjects, of which per_user is the mean; intervals are then
            over seeds and users.

    Raises:
        UsageError: the table does not hold the baseline.
    """

    def __init__(
        self,
        per_user: pl.DataFrame,
        against: str,
        seed: int,
        resamples: int = RESAMPLES,
        on_progress: OnProgress = no_progress,
        seeds: Sequence[pl.DataFrame] = (),
    ) -> None:
        self._on_progress = on_progress
        self.per_user, self.against, self.seed = per_user.rename(MEAN_NAMES, strict=False), against, seed
        self.metrics = metric_columns(self.per_user)
        # a p-value is at least 2 / (resamples + 1), and Holm multiplies it by the number of metrics: with many cut-offs
        # 2,000 resamples could not call anything real
        self.resamples = max(resamples, _RESAMPLES_PER_METRIC * len(self.metrics))
        subjects = per_user["subject"].unique(maintain_order=True).to_list()
        if against not in subjects:
            raise UsageError(f"{against} was not scored in this evaluation", f"Its models are {', '.join(subjects)}.")
        # a candidate that is the baseline itself is compared with itself: a gate over an unchanged model is no mistake
        others = [subject for subject in subjects if subject != against] or [against]
        #: (subject, each user's difference to the baseline)
        self.paired = [(subject, paired_differences(self.per_user, subject, against)) for subject in others]
        self._seeds = [each.rename(MEAN_NAMES, strict=False) for each in seeds]
        #: subject → the same for each seed; [] without seeds
        self.by_seed = {
            subject: [paired_differences(each, subject, against) for each in self._seeds] for subject in others
        }

    @classmethod
    def of(cls, evaluation: Evaluation, against: str) -> "Comparison":
        """The subjects of an evaluation against one of them."""
        seeds = [table for _, table in evaluation.per_user_by_seed()]
        return cls(evaluation.per_user, against, evaluation.artifact.seed, seeds=seeds)

    def of_metric(self, metric: str) -> "Comparison":
        """The same comparison by one metric alone, so that Holm's correction has nothing to correct."""
        others = [name for name in self.metrics if name != metric]
        seeds = [table.drop(others) for table in self._seeds]
        return Comparison(self.per_user.drop(others), self.against, self.seed, seeds=seeds)

    def table(self, groups: tuple[str, ...] = MAIN_GROUPS) -> pl.DataFrame:
        """Difference, interval and verdict of each subject, group and metric: a COMPARISON table, see tables.py.

        Args:
            groups: names from `tables.GROUP_NAMES`.
        """
        tables, phase = [], self._phase("compare")
        for subject, differences in self.paired:
            by_seed = self.by_seed[subject]
            facts = (
                compare_seeds(by_seed, groups, self.seed, self.resamples)
                if by_seed
                else compare(differences, groups, self.seed, self.resamples, on_resamples=phase.add)
            )
            settled = {(group, metric): users for group, metric, users in _settling(differences, groups, by_seed)}
            means = _paired_means(self.per_user, subject, self.against, groups)
            open_cases = pl.Series(
                [settled[key] for key in facts.select("group", "metric").iter_rows()], dtype=pl.Int64
            )
            is_open = (pl.col("verdict") == "inconclusive") & pl.col("low").is_not_null()
            tables.append(
                facts.join(means, on=["group", "metric"], how="left", maintain_order="left")
                .with_columns(pl.lit(subject).alias("subject"), self._verdict("better", "worse").alias("verdict"))
                .with_columns(pl.when(is_open).then(open_cases).alias("users_to_settle"))
                .select(*COMPARISON.columns)
            )
        return pl.concat(tables)

    def tail_minus_head(self) -> pl.DataFrame:
        """Does each subject gain more for tail users than for head users? A TAIL_MINUS_HEAD table, see tables.py."""
        phase, found = self._phase("compare tail and head"), []
        for subject, differences in self.paired:
            by_seed = self.by_seed[subject]
            table = (
                contrast_seeds(by_seed, "tail", "head", self.seed, self.resamples)
                if by_seed
                else contrast(differences, "tail", "head", self.seed, self.resamples, on_resamples=phase.add)
            )
            verdict = self._verdict("tail", "head").alias("verdict")
            found.append(table.select(pl.lit(subject).alias("subject"), pl.all(), verdict))
        return pl.concat(found)

    def harm(self, groups: tuple[str, ...] = MAIN_GROUPS) -> pl.DataFrame:
        """Which share of users each subject makes worse, and by how much: a HARM table, see tables.py."""
        return pl.concat(
            harm(differences, groups).select(pl.lit(subject).alias("subject"), pl.all())
            for subject, differences in self.paired
        )

    def worst_users(self) -> pl.DataFrame:
        """The users who lose most: a WORST_USERS table, see tables.py."""
        return pl.concat(
            worst_users(differences, metric, WORST_USERS)
            .rename({metric: "difference"})
            .select(pl.lit(subject).alias("subject"), pl.lit(metric).alias("metric"), pl.all())
            for subject, differences in self.paired
            for metric in metric_columns(differences)
        )

    def _phase(self, what: str) -> Phase:
        return Phase(self._on_progress, what, len(self.paired) * self.resamples, "resamples")

    def _verdict(self, above: str, below: str) -> pl.Expr:
        """What a difference is called where it is real: `above` if it is a gain, whichever way the metric points."""
        lower = [metric for metric in self.metrics if lower_is_better(metric)]
        gain = pl.when(pl.col("metric").is_in(lower)).then(-pl.col("difference")).otherwise("difference")
        return (
            pl.when(pl.col("p_holm").is_null() | (pl.col("p_holm") > LEVEL))
            .then(pl.lit("inconclusive"))
            .when(gain > 0)
            .then(pl.lit(above))
            .otherwise(pl.lit(below))
        )


def at_chance(per_user: pl.DataFrame, seed: int) -> list[tuple[str, float, float]]:
    """(subject, low, high) of each model whose GAUC over all users is not shown to be above chance, 0.5.

    Args:
        per_user: PER_USER table. seed: of the bootstrap's draws. low and high: 95 % interval of the GAUC.
    """
    found = []
    for (subject,), own in per_user.group_by("subject", maintain_order=True):
        above = own.select("user_index", "group", "activity_group", pl.col("auc") - CHANCE)
        row = compare(above, ("all",), seed).row(0, named=True)
        if row["low"] is not None and row["low"] <= 0:
            found.append((str(subject), CHANCE + row["low"], CHANCE + row["high"]))
    return found


def users_with_a_rank(aggregate: pl.DataFrame) -> int:
    """Users with a ranking metric: those with a positive event that has another candidate."""
    ranked = [f"{name}@" if metric.at_k else name for name, metric in METRICS.items() if isinstance(metric, RankMetric)]
    of_all = aggregate.filter(pl.col("metric").str.contains(f"^({'|'.join(ranked)})"), group="all")
    return int(of_all["users"].max() or 0)  # type: ignore[arg-type]


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


def with_what_is_worse(metrics: list[str], comparison: pl.DataFrame) -> list[str]:
    """The metrics, and each of another kind by which a model is worse in one of the main groups, so that no summary hides it.

    HR@5 and HR@10 are of one kind.
    """
    kinds = {metric.partition("@")[0] for metric in metrics}
    lost = comparison.filter(pl.col("group").is_in(MAIN_GROUPS), verdict="worse")["metric"].unique(maintain_order=True)
    return [*metrics, *(metric for metric in lost if metric.partition("@")[0] not in kinds)]


def harm_metric(metrics: list[str]) -> str:
    """The one metric that harm is summed up by: NDCG@k of the middle k."""
    return next((name for name in main_metrics(metrics) if name.startswith("ndcg@")), metrics[0])


def _settling(
    differences: pl.DataFrame, groups: tuple[str, ...], by_seed: Sequence[pl.DataFrame]
) -> list[tuple[str, str, int | None]]:
    """(group, metric, users that would settle it) as the first of all metrics of the group, which Holm asks most of.

    More users do not lessen the spread of the seeds: None if that alone leaves the difference open.
    """
    metrics, membership = metric_columns(differences), members(differences)
    confidence = 1 - LEVEL / max(len(metrics), 1)
    found: list[tuple[str, str, int | None]] = []
    for group in groups:
        own = differences.filter(pl.Series(membership[group]))
        for metric in metrics:
            gains = own[metric].drop_nulls().to_numpy()
            known = len(gains) > 1
            mean, deviation = (float(gains.mean()), float(gains.std(ddof=1))) if known else (0.0, 0.0)
            mask = pl.Series(membership[group])
            of_seeds = [float(np.nanmean(each.filter(mask)[metric].to_numpy())) for each in by_seed] if known else []
            mean = without_seeds(mean, of_seeds, confidence)
            found.append((group, metric, users_to_settle(mean, deviation, confidence=confidence)))
    return found


def _paired_means(per_user: pl.DataFrame, subject: str, against: str, groups: tuple[str, ...]) -> pl.DataFrame:
    """group, metric, value, baseline: means of both sides over the users who have a value on both."""
    new, old = (per_user.filter(pl.col("subject") == name).sort("user_index") for name in (subject, against))
    membership = members(new)
    rows = []
    for group in groups:
        mask = pl.Series(membership[group])
        for metric in metric_columns(per_user):
            both = pl.DataFrame({"new": new[metric], "old": old[metric]}).filter(mask).drop_nulls()
            rows.append((group, metric, both["new"].mean(), both["old"].mean()))
    schema = {"group": pl.String, "metric": pl.String, "value": pl.Float64, "baseline": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")
