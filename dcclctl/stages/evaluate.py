"""`evaluate`: cloud models and patches, side by side on the same users → per-user metrics and aggregates by group."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from dcclctl.algorithm.eventlog import Block, EventLog
from dcclctl.algorithm.sampling import Ints, draw_negatives
from dcclctl.algorithm.scoring import HeadFunction, score
from dcclctl.config import EvaluateConfig
from dcclctl.errors import ArtifactError, DataError, UsageError
from dcclctl.metrics.auc import user_auc
from dcclctl.metrics.beyond import coverage, exposure, gini, novelty
from dcclctl.metrics.calibration import expected_calibration_error, log_loss, reliability
from dcclctl.metrics.groups import aggregate
from dcclctl.metrics.ranking import hit_ratio, ndcg, ranks, reciprocal_rank
from dcclctl.stages.cold import of_new_users, scored_events, seen_by_models
from dcclctl.stages.compare import TAIL_MINUS_HEAD_FILE, comparison, harms, tail_minus_head
from dcclctl.stages.compute import OnProgress, settle
from dcclctl.stages.handles import CloudModel, Dataset, PatchSet
from dcclctl.stages.serve import SUFFIXES, Subject, encoder_of, serve, split_suffix
from dcclctl.store.store import Artifact, Store

#: `--candidates auto` ranks everything up to so many (event, item) pairs: about a minute on two cores
_AFFORDABLE_PAIRS = 20_000_000
_SAMPLED = 1000


def subject_name(reference: str, store: Store) -> str:
    """A reference that is the same in every store: kind and the start of the id."""
    plain, suffix = split_suffix(reference)
    artifact = store.resolve(plain)
    return f"{artifact.kind}@{artifact.id[:8]}{suffix}"


def open_subjects(references: list[str], store: Store, against: str = "") -> list[Subject]:
    """Resolve what to score; all must come from one dataset.

    Args:
        references: what was asked for.
        store: where it is.
        against: the baseline, if there is one; it is scored first where it is not among the references.

    Raises:
        UsageError: nothing to score, another kind of artifact, or one named twice.
        ArtifactError: two datasets.
    """
    if against and subject_name(against, store) not in [subject_name(reference, store) for reference in references]:
        references = [against, *references]
    subjects: list[Subject] = []
    for reference in references:
        plain, suffix = split_suffix(reference)
        artifact = store.resolve(plain)
        if suffix not in ("", *SUFFIXES.get(artifact.kind, ())) or artifact.kind not in SUFFIXES:
            raise UsageError(
                f"{reference} cannot be evaluated",
                "Give cloud models, cloud@N+encoder, patches, patches@N+mean, or patches@N+shuffled.",
            )
        if artifact.kind == "cloud":
            subject = Subject(artifact, CloudModel.load(artifact, store), None, suffix)
        else:
            patches = PatchSet.load(artifact, store)
            subject = Subject(artifact, patches.cloud, patches, suffix)
        if any(subject.name == other.name for other in subjects):
            raise UsageError(f"{reference} is named twice", "Name each model once.")
        first = subjects[0] if subjects else subject
        if subject.cloud.dataset.id_map != first.cloud.dataset.id_map or (
            subject.cloud.dataset.artifact.id != first.cloud.dataset.artifact.id
        ):
            raise ArtifactError(
                f"{first.artifact.ref} and {artifact.ref} come from different datasets "
                f"({first.cloud.dataset.artifact.ref}, {subject.cloud.dataset.artifact.ref}), so their users do not match",
                "Evaluate them apart, or train both on one dataset.",
            )
        subjects.append(subject)
    return subjects


def default_references(store: Store) -> list[str]:
    """The newest patches with the cloud model under them, and the newest cloud model; clouds alone without patches."""
    newest = store.latest("cloud")
    if not store.numbers("patches"):
        return [newest.ref]
    patches = store.latest("patches")
    under = store.find("cloud", patches.inputs["cloud"].id)
    return list(dict.fromkeys([under.ref, patches.ref] + ([newest.ref] if newest.id != under.id else [])))


@dataclass
class Tally:
    """What scoring one subject leaves: ranks of the positives, and scored rows for AUC and calibration."""

    events: list[Ints] = field(default_factory=list)
    ranks: list[npt.NDArray[np.float64]] = field(default_factory=list)
    row_users: list[Ints] = field(default_factory=list)
    row_labels: list[npt.NDArray[np.int8]] = field(default_factory=list)
    row_logits: list[npt.NDArray[np.float32]] = field(default_factory=list)
    top_items: list[Ints] = field(default_factory=list)


class Ranking:
    """The candidates of one evaluation: the same for every subject, drawn by (seed, event) and nothing else."""

    def __init__(self, dataset: Dataset, block: Block, config: EvaluateConfig) -> None:
        log = dataset.log
        self.log, self.config = log, config
        self.seen = seen_by_models(log, config)
        events = log.events_in(block)
        self.events = scored_events(dataset, events, config)
        self.observed = dataset.observed_labels
        self.catalogue = log.catalogue(block)
        self.in_catalogue = np.zeros(log.n_items, dtype=bool)
        self.in_catalogue[self.catalogue] = True
        self.excluded = log.never_negative(block)
        # the same for every K of --first-events and for all --targets, whose events need not be
        whole = of_new_users(dataset, events) if config.first_events else events
        self.sampled = self._number_of_candidates(config.candidates, len(whole))

    def _number_of_candidates(self, asked: str, n_events: int) -> int:
        """0: rank the whole catalogue; else so many sampled candidates beside the positive."""
        if asked == "auto":
            return 0 if n_events * self.log.n_items <= _AFFORDABLE_PAIRS else _SAMPLED
        if asked == "all":
            return 0
        if not asked.isdecimal() or int(asked) == 0:
            raise UsageError(f"--candidates {asked!r}", "Give all, auto, or a number such as 1000.")
        return int(asked) if int(asked) < len(self.catalogue) else 0

    def negatives(self, events: Ints, count: int) -> Ints:
        """(B, count): the first ones are the same whatever the count is."""
        log, seed = self.log, self.config.seed
        owners = log.owners(events, self.excluded)
        return draw_negatives(seed, "evaluate", events, owners, count, self.catalogue, self.excluded)

    def candidates(self, events: Ints) -> Tensor | None:
        """The event's own item, then the sampled ones; None for the whole catalogue."""
        if not self.sampled:
            return None
        drawn = self.negatives(events, max(self.sampled, self.config.auc_negatives))
        return torch.from_numpy(np.concatenate([self.log.item[events][:, None], drawn], axis=1))

    @property
    def width(self) -> int:
        """C, columns of logits."""
        return 1 + max(self.sampled, self.config.auc_negatives) if self.sampled else self.log.n_items

    def read(
        self,
        tally: Tally,
        events: Ints,
        logits: npt.NDArray[np.float32],
        unseen: npt.NDArray[np.bool_] | None,
        negatives: Ints | None,
    ) -> None:
        """Take ranks and rows from one batch of logits (B, C).

        Args:
            unseen: see `unseen`. negatives: (B, auc_negatives) items for AUC. Both None where candidates are sampled.
        """
        log, config = self.log, self.config
        positive = log.label[events] > 0
        own = log.item[events]
        if self.sampled:
            own_logits, others = logits[:, 0], logits[:, 1 : 1 + self.sampled]
            rows = logits[:, 1 : 1 + config.auc_negatives]
        else:
            own_logits = logits[np.arange(len(events)), own]
            assert unseen is not None and negatives is not None  # given with the whole catalogue
            others = np.where(unseen, logits, -np.inf)
            rows = np.take_along_axis(logits, negatives, axis=1)
            top = max(config.k)
            best = np.argpartition(-others, min(top, others.shape[1]) - 1, axis=1)[:, :top]
            # the positive itself is not among `others`: it enters the list where it beats the last of them
            edge = np.take_along_axis(others, best, axis=1)
            best = np.where(np.isfinite(edge), best, -1)
            worst = edge.argmin(axis=1)
            enters = own_logits > edge[np.arange(len(events)), worst]
            best[np.flatnonzero(enters), worst[enters]] = own[enters]
            tally.top_items.append(best[positive])
        tally.events.append(events[positive])
        tally.ranks.append(ranks(own_logits[positive], others[positive]))
        scores = own_logits[:, None] if self.observed else np.concatenate([own_logits[:, None], rows], axis=1)
        labels = np.zeros(scores.shape, dtype=np.int8)
        labels[:, 0] = log.label[events]
        tally.row_users.append(np.repeat(log.user[events], scores.shape[1]))
        tally.row_labels.append(labels.ravel())
        tally.row_logits.append(scores.ravel())

    def unseen(self, events: Ints) -> npt.NDArray[np.bool_] | None:
        """(B, I): may the item stand in the event's ranking beside the positive? None where candidates are sampled."""
        if self.sampled:
            return None
        items = np.arange(self.log.n_items)[None, :]
        users = self.log.owners(events, self.excluded)[:, None]
        return (
            ~self.excluded.contains(np.broadcast_to(users, (len(events), self.log.n_items)), items) & self.in_catalogue
        )


def evaluate(
    subjects: list[Subject], config: EvaluateConfig, store: Store, on_progress: OnProgress, force: bool = False
) -> tuple[Artifact, bool]:
    """Score every subject on the same events, candidates and users.

    Args:
        subjects: from `open_subjects`, at least one.
        config: settings.
        store: where the evaluation goes.
        on_progress: see compute.OnProgress.
        force: compute even if the same evaluation exists.

    Returns:
        The evaluation artifact, and whether it existed already.

    Raises:
        DataError: no events to score. UsageError: an encoder is asked for that a model does not have.
    """
    config = settle(config)
    against = subject_name(config.against, store) if config.against else ""
    config = config.model_copy(update={"k": sorted(set(config.k)), "against": against})
    dataset = subjects[0].cloud.dataset
    log, block = dataset.log, Block.parse(config.on)
    for subject in subjects:
        if (config.unpatched == "encoder" and subject.patches is not None) or subject.everyone_by_encoder:
            encoder_of(subject)
    inputs = {"dataset": dataset.artifact.as_input()}
    inputs |= {f"subject-{at:02d}:{subject.name}": subject.artifact.as_input() for at, subject in enumerate(subjects)}
    with store.begin("evaluate", "evaluation", config.recorded(), config.seed, inputs, force) as work:
        if work.reused is not None:
            return work.reused, True
        ranking = Ranking(dataset, block, config)
        if not len(ranking.events):
            raise DataError(f"{dataset.artifact.ref} has no events in {config.on}", "Choose another period with --on.")
        tallies, served = _score_all(subjects, ranking, config, on_progress)
        tables, reliabilities, facts = [], [], {}
        for subject in subjects:
            tally = tallies[subject.name]
            table = _per_user(dataset, ranking, tally, subject.name, served[subject.name])
            tables.append(table)
            bins = reliability(np.concatenate(tally.row_logits), np.concatenate(tally.row_labels))
            reliabilities.append(bins.select(pl.lit(subject.name).alias("subject"), pl.all()))
            counts = table["served_by"].value_counts(sort=False).sort("served_by")
            facts[subject.name] = {
                "served_by": dict(counts.iter_rows()),
                "ece": expected_calibration_error(bins),
                **_beyond(tally, log, ranking, block),
            }
        per_user = pl.concat(tables)
        work.write_table("per_user.parquet", per_user)
        work.write_table("aggregate.parquet", aggregate(per_user.rename({"auc": "gauc"})))
        work.write_table("reliability.parquet", pl.concat(reliabilities))
        if against:
            work.write_table("comparison.parquet", comparison(per_user, against, config.seed))
            work.write_table(TAIL_MINUS_HEAD_FILE, tail_minus_head(per_user, against, config.seed))
            shares, worst = harms(per_user, against)
            work.write_table("harm.parquet", shares)
            work.write_table("worst_users.parquet", worst)
        artifact = work.commit(
            {
                "id_map": dataset.id_map,
                "on": config.on,
                "split": dataset.artifact.facts["split"],
                "first_events": config.first_events[0] if config.first_events else None,
                "events": len(ranking.events),
                "users": tables[0].height,
                "candidates": ranking.sampled or "all",
                "items": len(ranking.catalogue),
                "labels": "observed" if ranking.observed else "implicit",
                "users_without_auc": int(per_user["auc"].null_count()) // len(subjects),
                "subjects": facts,
            }
        )
    return artifact, False


def _score_all(
    subjects: list[Subject], ranking: Ranking, config: EvaluateConfig, on_progress: OnProgress
) -> tuple[dict[str, Tally], dict[str, npt.NDArray[np.str_]]]:
    """Score all subjects; those over one cloud model share everything below the patches."""
    tallies = {subject.name: Tally() for subject in subjects}
    served: dict[str, npt.NDArray[np.str_]] = {}
    clouds = list(dict.fromkeys(subject.cloud.artifact.id for subject in subjects))
    total, before = len(clouds) * len(ranking.events), 0
    for cloud_id in clouds:
        group = [subject for subject in subjects if subject.cloud.artifact.id == cloud_id]
        backbone = group[0].cloud.backbone(config, ranking.seen)
        heads: list[HeadFunction] = []
        for subject in group:
            head, served[subject.name] = serve(subject, config, backbone)
            heads.append(head)
        batches = score(backbone, heads, ranking.events, ranking.candidates, ranking.width, config.batch_events)
        for events, _, logits in batches:
            unseen = ranking.unseen(events)
            negatives = None if ranking.sampled else ranking.negatives(events, config.auc_negatives)
            for subject, values in zip(group, logits, strict=True):
                ranking.read(tallies[subject.name], events, values.numpy(), unseen, negatives)
            before += len(events)
            on_progress("evaluate", before, total, group[0].cloud.artifact.ref)
    return tallies, served


def _per_user(
    dataset: Dataset, ranking: Ranking, tally: Tally, name: str, served: npt.NDArray[np.str_]
) -> pl.DataFrame:
    """One row per user with a scored event; metrics are means over the user's events, AUC over the user's rows."""
    log, config = dataset.log, ranking.config
    events, rank = np.concatenate(tally.events), np.concatenate(tally.ranks)
    order = np.argsort(events)  # sums of floats in one order, whatever the batches were
    events, rank = events[order], rank[order]
    row_users = np.concatenate(tally.row_users)
    row_labels, row_logits = np.concatenate(tally.row_labels), np.concatenate(tally.row_logits)
    rows = np.bincount(row_users, minlength=log.n_users)
    users = np.flatnonzero(rows)
    scored = np.bincount(log.user[ranking.events], minlength=log.n_users)[users]
    queries = np.bincount(log.user[events], minlength=log.n_users)[users]

    def mean(values: npt.NDArray[np.float64]) -> pl.Series:
        sums = np.bincount(log.user[events], weights=values, minlength=log.n_users)[users]
        return pl.Series(np.divide(sums, queries, out=np.full(len(users), np.nan), where=queries > 0)).fill_nan(None)

    suffix = f"/{ranking.sampled}" if ranking.sampled else ""
    columns: dict[str, pl.Series] = {}
    for k in config.k:
        columns[f"hr@{k}{suffix}"] = mean(hit_ratio(rank, k))
    for k in config.k:
        columns[f"ndcg@{k}{suffix}"] = mean(ndcg(rank, k))
    columns[f"mrr{suffix}"] = mean(reciprocal_rank(rank))
    losses = (
        np.bincount(row_users, weights=log_loss(row_logits, row_labels), minlength=log.n_users)[users] / rows[users]
    )
    about = dataset.users.select("user_index", "user_id", "group", "activity_group")
    table = about.filter(pl.Series(np.isin(about["user_index"].to_numpy(), users)))
    return (
        table.with_columns(
            pl.Series("events", scored.astype(np.int32)),
            pl.Series("served_by", served[users]),
            *(s.alias(n) for n, s in columns.items()),
        )
        .join(user_auc(row_users, row_labels, row_logits), on="user_index", how="left", maintain_order="left")
        .with_columns(pl.Series("log_loss", losses))
        .select(pl.lit(name).alias("subject"), pl.all())
    )


def _beyond(tally: Tally, log: EventLog, ranking: Ranking, block: Block) -> dict[str, float | None]:
    """Coverage, Gini of exposure and novelty of the top lists; None where candidates are sampled."""
    if not tally.top_items:
        return {"coverage": None, "gini": None, "novelty": None}
    counts = exposure(np.concatenate(tally.top_items), log.n_items)
    past = log.item[(log.period < block.period) & (log.label > 0)]
    popularity = np.bincount(past, minlength=log.n_items)
    return {
        "coverage": coverage(counts[ranking.catalogue]),
        "gini": gini(counts[ranking.catalogue]),
        "novelty": novelty(counts, popularity),
    }


def display_names(evaluation: Artifact, store: Store) -> Iterator[tuple[str, str]]:
    """(name in the tables, reference in this store) of every subject, in the order they were given."""
    for role, given in evaluation.inputs.items():
        if role.startswith("subject-"):
            name = role.split(":", 1)[1]
            yield name, store.find(given.kind, given.id).ref + split_suffix(name)[1]
