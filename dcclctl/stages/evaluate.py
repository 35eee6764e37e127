"""`evaluate`: cloud models and patches, side by side on the same users → metrics per user and per group."""

from collections.abc import Sequence
from functools import partial

import polars as pl

from dcclctl.artifacts import Evaluation
from dcclctl.compute import Phase, compute_settings
from dcclctl.config import EvaluateConfig
from dcclctl.devices.serving import ENCODER, Subject, check_encoder
from dcclctl.errors import ArtifactError, UsageError
from dcclctl.evaluation.candidates import Candidates
from dcclctl.evaluation.comparison import Comparison
from dcclctl.evaluation.parts import FILES, Scored, count_targets, parts_of
from dcclctl.evaluation.targets import check_targets, one_each
from dcclctl.events.log import Block
from dcclctl.metrics.calibration import expected_calibration_error
from dcclctl.metrics.groups import aggregate
from dcclctl.metrics.metric import MEAN_NAMES
from dcclctl.scale.executor import Executor, for_each_shard
from dcclctl.scale.task import ShardTask
from dcclctl.stages.plan import events_of
from dcclctl.stages.run import DEFAULT_RUN, NO_SETTINGS, RunOptions, Settings, each_of, named
from dcclctl.stages.settings import resolve
from dcclctl.store.lineage import SUBJECT_ROLE
from dcclctl.store.store import Store
from dcclctl.store.work import Work


def evaluate(
    subjects: Sequence[Subject], settings: Settings = NO_SETTINGS, run: RunOptions = DEFAULT_RUN
) -> Evaluation:
    """Score every subject on the same events, candidates and users.

    Args:
        subjects: what to score, at least one; see `open_subjects`. settings: see EvaluateConfig. run: how to run.

    Raises:
        UsageError: no model, a model named twice, a setting out of its range, or a missing encoder.
        ArtifactError: two datasets. DataError: no events to score.
    """
    return _evaluate(*_resolved(subjects, resolve(EvaluateConfig, settings, run.config)), run)


def evaluate_first_events(
    subjects: Sequence[Subject], settings: Settings, run: RunOptions = DEFAULT_RUN
) -> list[Evaluation]:
    """One evaluation for each K of `first_events`, ascending; see evaluation/targets.py.

    Raises:
        DataError: a K without any event; nothing is scored then. Otherwise as `evaluate`.
    """
    subjects, config = _resolved(subjects, resolve(EvaluateConfig, settings, run.config))
    dataset = subjects[0].cloud.dataset
    for each in one_each(config):
        check_targets(dataset, count_targets(dataset, Block.parse(each.on), each)[0], each)
    return each_of(partial(_evaluate, subjects, each, run) for each in one_each(config))


def open_subjects(references: Sequence[str], store: Store, against: str = "") -> list[Subject]:
    """The models of some references; the baseline comes first if it is not among them."""
    found = [Subject.of(reference, store) for reference in references]
    return with_baseline(found, Subject.of(against, store)) if against else found


def with_baseline(subjects: Sequence[Subject], baseline: Subject) -> list[Subject]:
    """The models, with the baseline before them if it is not among them."""
    missing = baseline.name not in [subject.name for subject in subjects]
    return [*([baseline] if missing else []), *subjects]


def default_references(store: Store) -> list[str]:
    """The newest patches with the cloud model under them, and the newest cloud model; clouds alone without patches."""
    newest = store.latest("cloud")
    if not store.numbers("patches"):
        return [newest.ref]
    patches = store.latest("patches")
    under = patches.input("cloud")
    return list(dict.fromkeys([under.ref, patches.ref] + ([newest.ref] if newest.id != under.id else [])))


def _resolved(subjects: Sequence[Subject], config: EvaluateConfig) -> tuple[list[Subject], EvaluateConfig]:
    """The subjects, with the baseline among them, and settings that say the same in every store."""
    if not subjects:
        raise UsageError("there is nothing to evaluate", "Name a cloud model or patches.")
    against = ""
    if config.against:
        by_name = {subject.name: subject for subject in subjects}
        baseline = by_name.get(config.against) or Subject.of(config.against, subjects[0].cloud.store)
        subjects, against = with_baseline(subjects, baseline), baseline.name
    _check_together(subjects)
    for subject in subjects:
        if (config.unpatched == ENCODER and subject.patches is not None) or subject.suffix == ENCODER:
            check_encoder(subject)
    if config.targets_after != EvaluateConfig().targets_after and not config.first_events:
        raise UsageError(
            f"--targets-after {config.targets_after} is read with --first-events only",
            "Add --first-events 0,1,3, or leave it out.",
        )
    return list(subjects), config.model_copy(update={"k": sorted(set(config.k)), "against": against})


def _check_together(subjects: Sequence[Subject]) -> None:
    first = subjects[0]
    for at, subject in enumerate(subjects):
        if subject.name in [other.name for other in subjects[:at]]:
            raise UsageError(f"{subject.ref} is named twice", "Name each model once.")
        if subject.cloud.dataset.id != first.cloud.dataset.id:
            raise ArtifactError(
                f"{first.ref} and {subject.ref} come from different datasets ({first.cloud.dataset.ref}, "
                f"{subject.cloud.dataset.ref}), so their users do not match",
                "Evaluate them apart, or train both on one dataset.",
            )


def _evaluate(subjects: list[Subject], config: EvaluateConfig, run: RunOptions) -> Evaluation:
    dataset, block = subjects[0].cloud.dataset, Block.parse(config.on)
    inputs = {"dataset": dataset.artifact.as_input()}
    inputs |= {
        f"{SUBJECT_ROLE}{at:02d}:{subject.name}": subject.artifact.as_input() for at, subject in enumerate(subjects)
    }
    ranked = int(config.candidates) if config.candidates.isdecimal() else dataset.facts["items"]
    amount = events_of(dataset, [block]) * ranked * len(subjects)
    with (
        compute_settings(config, run.remark) as config,
        dataset.store.begin(
            "evaluate", "evaluation", config.recorded(), config.seed, inputs, run.force, amount
        ) as work,
    ):
        if work.reused is not None:
            return named(Evaluation(work.reused), run)
        events, to_rank = count_targets(dataset, block, config)
        check_targets(dataset, events, config)
        scored = _score(subjects, config, events, to_rank, work, run)
        run.on_progress("average", 0, 0, "")
        candidates = Candidates(dataset, block, config, dataset.log_part(dataset.parts[0]), to_rank)
        per_user, names = scored.per_user, [subject.name for subject in subjects]
        compared = None
        if config.against:
            compared = Comparison(per_user, config.against, config.seed, on_progress=run.on_progress)
        write_metrics(work, per_user, compared)
        bins = {name: scored.reliability(name) for name in names}
        work.write_table("reliability.parquet", pl.concat(bins.values()))
        about = {}
        for name in names:
            own = per_user.filter(pl.col("subject") == name)
            counts = own["served_by"].value_counts(sort=False).sort("served_by")
            about[name] = {
                "served_by": dict(counts.iter_rows()),
                "ece": expected_calibration_error(bins[name].drop("subject")),
                **scored.beyond_accuracy(name, dataset, block, candidates.catalogue),
            }
        facts = {
            "id_map": dataset.id_map,
            "on": config.on,
            "split": dataset.facts["split"],
            "first_events": config.first_events[0] if config.first_events else None,
            "events": scored.events,
            "users": per_user.height // len(subjects),
            "candidates": candidates.sampled or "all",
            "items": len(candidates.catalogue),
            "labels": "observed" if candidates.observed else "implicit",
            "users_without_auc": int(per_user["auc"].null_count()) // len(subjects),
            "subjects": about,
            "events_without_candidates": scored.few[0],
            "events_with_few_candidates": scored.few[1],
        }
        return named(Evaluation(work.commit(facts)), run)


def write_metrics(work: Work, per_user: pl.DataFrame, compared: Comparison | None) -> None:
    """Write an evaluation's per-user table, and the tables that are made from it."""
    work.write_table("per_user.parquet", per_user)
    work.write_table("aggregate.parquet", aggregate(per_user.rename(MEAN_NAMES)))
    if compared is not None:
        work.write_table("comparison.parquet", compared.table())
        work.write_table("tail_minus_head.parquet", compared.tail_minus_head())
        work.write_table("harm.parquet", compared.harm())
        work.write_table("worst_users.parquet", compared.worst_users())


def _score(
    subjects: list[Subject], config: EvaluateConfig, events: int, to_rank: int, work: Work, run: RunOptions
) -> Scored:
    """Score all subjects, part by part of the users.

    Args:
        events: of each subject. to_rank: see Candidates.
    """
    references = [f"{subject.artifact.kind}@{subject.artifact.id}" for subject in subjects]
    suffixes = [f"+{subject.suffix}" if subject.suffix else "" for subject in subjects]
    arguments = {
        "subjects": [reference + suffix for reference, suffix in zip(references, suffixes, strict=True)],
        "config": config.model_dump(mode="json"),
        "to_rank": to_rank,
    }
    store, parts = subjects[0].cloud.store, range(len(parts_of(subjects)))
    task = ShardTask.of(store, work, "dcclctl.evaluation.parts:part_scorer", arguments, FILES, config)
    clouds = len({subject.cloud.id for subject in subjects})
    phase = Phase(run.on_progress, "evaluate", clouds * events, "events")
    for_each_shard(
        store, work, task, parts, Executor.parse(run.executor), phase.add, lambda part: clouds * events / len(parts)
    )
    return Scored.of(work, [subject.name for subject in subjects], len(parts))
