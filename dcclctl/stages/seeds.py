"""Several trainings of one model that differ in the seed alone, addressed and evaluated together.

A group of seeds is a name: with seeds 0 to 4, cloud@base means cloud@base-0 … cloud@base-4.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from dcclctl.artifacts import Evaluation
from dcclctl.artifacts.evaluation import SEED_ROLE
from dcclctl.config import EvaluateConfig
from dcclctl.devices.serving import Subject, split_suffix
from dcclctl.errors import UsageError
from dcclctl.evaluation.comparison import Comparison
from dcclctl.metrics.groups import members, metric_columns, paired_differences
from dcclctl.metrics.metric import MEAN_NAMES
from dcclctl.stages.evaluate import evaluate, with_baseline, write_metrics
from dcclctl.stages.run import DEFAULT_RUN, NO_SETTINGS, RunOptions, Settings, named
from dcclctl.stages.settings import resolve
from dcclctl.store.store import Store
from dcclctl.tables import MAIN_GROUPS, PER_SEED

#: more than anyone trains; a slip such as 0..1000 is not worth a night
_MOST = 100


def parse_seeds(text: str) -> list[int]:
    """'0..4' or '0,1,7' → seeds.

    Raises:
        UsageError: not whole numbers from 0, one twice, or fewer than two.
    """
    found: list[int] = []
    for part in text.split(","):
        numbers = re.fullmatch(r"\s*(\d{1,9})(?:\.\.(\d{1,9}))?\s*", part)
        if numbers is None:
            raise UsageError(f"--seeds {text!r} is not a list of seeds", "Write e.g. --seeds 0..4 or --seeds 0,1,7")
        first, last = int(numbers[1]), int(numbers[2] or numbers[1])
        if not first <= last < first + _MOST:
            raise UsageError(f"--seeds {text!r}: {part.strip()} is no range", f"At most {_MOST} seeds, e.g. 0..4.")
        found += range(first, last + 1)
    if len(set(found)) != len(found) or len(found) < 2:
        raise UsageError(f"--seeds {text!r}: give two seeds or more, each once", "With one seed leave it to --seed.")
    return found


def seeded(reference: str, seeds: Sequence[int], store: Store) -> list[str]:
    """What a reference means under each seed, in the order of the seeds.

    Args:
        reference: of a group, e.g. cloud@base or patches@mine+mean; as many references as seeds, with commas between them;
            or one artifact, which then stands for every seed.

    Raises:
        UsageError: the group lacks a seed, or there are more or fewer references than seeds.
    """
    if "," in reference:
        parts = [part.strip() for part in reference.split(",")]
        if len(parts) != len(seeds):
            raise UsageError(
                f"{reference} names {len(parts)} artifacts for {len(seeds)} seeds", "Give one for each, in their order."
            )
        return parts
    plain, suffix = split_suffix(reference)
    kind, _, name = plain.partition("@")
    members_ = set(store.group(kind, name)) if name else set()
    if not members_:
        return [reference] * len(seeds)
    missing = [seed for seed in seeds if seed not in members_]
    if missing:
        raise UsageError(
            f"{plain} has no seed {', '.join(map(str, missing))}",
            f"It has {', '.join(map(str, sorted(members_)))}: make the others first, or leave them out of --seeds.",
        )
    return [f"{plain}-{seed}" + (suffix and f"+{suffix}") for seed in seeds]


def evaluate_seeds(
    models: Sequence[Sequence[Subject]],
    seeds: Sequence[int],
    settings: Settings = NO_SETTINGS,
    run: RunOptions = DEFAULT_RUN,
    against: Sequence[Subject] | None = None,
) -> Evaluation:
    """Score several trainings of each model: one evaluation for each seed, and one of them all.

    Args:
        models: for each model what to score under each seed, in the order of the seeds. seeds: at least two.
        settings: see EvaluateConfig; its seed draws the candidates, the same for all. run: how to run.
        against: the baseline under each seed; None: no comparison.

    Returns:
        The evaluation of all: a user's value is the mean over the seeds, and intervals are over seeds and users.

    Raises:
        UsageError: no model has another training under each seed, or the baseline is one of the seeds that are scored.
            Otherwise as `evaluate`.
    """
    rows: list[list[Subject]] = [list(row) for row in zip(*models, strict=True)]
    if against is not None:
        scored = [any(subject.name == own.name for subject in row) for row, own in zip(rows, against, strict=True)]
        if any(scored) and not all(scored):
            raise UsageError(
                f"--against {against[scored.index(True)].ref}: the model of one seed is scored itself, those of others are not",
                "Compare with a group that has every seed, or with a model that is in none.",
            )
        rows = [with_baseline(row, own) for row, own in zip(rows, against, strict=True)]
    if not any(len({subject.name for subject in column}) > 1 for column in zip(*rows, strict=True)):
        raise UsageError(
            "--seeds: every model is the same under all seeds",
            "Name a group, e.g. cloud@base after: dcclctl train --seeds 0..4 --name base",
        )
    settings = {key: value for key, value in settings.items() if key not in ("against", "evaluate.against")}
    config = resolve(EvaluateConfig, settings, run.config)
    if config.first_events:
        raise UsageError("--first-events makes an evaluation for each K, --seeds one for each seed", "Leave out one.")
    alone = replace(run, name="")
    made = [
        evaluate(row, {**settings, "against": against[at].name if against else None}, alone)
        for at, row in enumerate(rows)
    ]
    return _together(made, rows[0], seeds, run)


def _together(
    made: Sequence[Evaluation], first: Sequence[Subject], seeds: Sequence[int], run: RunOptions
) -> Evaluation:
    """The evaluation over several seeds, from the evaluation of each. Its subjects have the names of the first seed."""
    one = made[0]
    inputs = {name: one.artifact.inputs[name] for name in one.artifact.inputs}
    inputs |= {f"{SEED_ROLE}{seed}": each.artifact.as_input() for seed, each in zip(seeds, made, strict=True)}
    config = {**one.config, "seeds": list(seeds)}
    with one.store.begin("evaluate", "evaluation", config, one.artifact.seed, inputs, run.force) as work:
        if work.reused is not None:
            return named(Evaluation(work.reused), run)
        names = [subject.name for subject in first]
        own = [list(each.scored()) for each in made]
        tables = [
            each.per_user.with_columns(each.per_user["subject"].replace(mine, names))
            for each, mine in zip(made, own, strict=True)
        ]
        per_user = _mean_table(tables)
        compared = Comparison(per_user, one.against, one.artifact.seed, seeds=tables) if one.against else None
        write_metrics(work, per_user, compared)
        work.write_table("reliability.parquet", _pooled([each.artifact for each in made], own, names))
        work.write_table("per_seed.parquet", _per_seed(tables, seeds, own, names, one.against))
        about = {name: dict(one.facts["subjects"][name]) for name in names}
        for at, name in enumerate(names):
            for figure, value in about[name].items():
                if isinstance(value, float):
                    found = [each.facts["subjects"][mine[at]][figure] for each, mine in zip(made, own, strict=True)]
                    about[name][figure] = float(np.mean(found))
        return named(Evaluation(work.commit({**one.facts, "subjects": about})), run)


def _mean_table(tables: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Each user's mean over the seeds; the rest as under the first seed."""
    keys = ["subject", "user_index"]
    metrics = metric_columns(tables[0])
    means = pl.concat([table.select(*keys, *metrics) for table in tables]).group_by(keys).mean()
    others = tables[0].drop(metrics)
    return others.join(means, on=keys, how="left", maintain_order="left").select(tables[0].columns)


def _pooled(artifacts: Sequence[Any], own: Sequence[list[str]], names: list[str]) -> pl.DataFrame:
    """The reliability tables of all seeds as one: their rows together."""
    tables = [
        table.with_columns(table["subject"].replace(mine, names))
        for table, mine in zip((each.read_table("reliability.parquet") for each in artifacts), own, strict=True)
    ]
    keys, shares = ["subject", "lower", "upper"], ("predicted", "observed")
    sums: pl.DataFrame = (
        pl.concat(tables)
        .with_columns((pl.col(share) * pl.col("rows")).fill_null(0.0) for share in shares)
        .group_by(keys, maintain_order=True)
        .sum()
    )
    return sums.with_columns(
        pl.when(pl.col("rows") > 0).then(pl.col(share) / pl.col("rows")).alias(share) for share in shares
    ).select(tables[0].columns)


def _per_seed(
    tables: Sequence[pl.DataFrame], seeds: Sequence[int], own: Sequence[list[str]], names: list[str], against: str
) -> pl.DataFrame:
    """A PER_SEED table, see tables.py."""
    rows: list[dict[str, object]] = []
    for table, seed, mine in zip(tables, seeds, own, strict=True):
        table = table.rename(MEAN_NAMES)
        for name, artifact in zip(names, mine, strict=True):
            users = table.filter(subject=name)
            compared = paired_differences(table, name, against) if against and name != against else None
            groups = members(users)
            for group in MAIN_GROUPS:
                mask = pl.Series(groups[group])
                for metric in metric_columns(users):
                    difference = None if compared is None else compared.filter(mask)[metric].mean()
                    value = users.filter(mask)[metric].mean()
                    row = dict(subject=name, group=group, metric=metric, seed=seed, artifact=artifact)
                    rows.append({**row, "value": value, "difference": difference})
    return pl.DataFrame(rows, schema=PER_SEED.schema(), orient="row")
