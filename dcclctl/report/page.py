"""The content of a report: filled by `stages.report`, drawn by `report.html`."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

    from dcclctl.devices.bundle.spec import Measured


@dataclass(frozen=True)
class Model:
    """One scored model.

    Attributes:
        name: its name in the tables. ref: its reference in the store.
        role: what it is, for people: 'din trained on cloud', 'memory patches on cloud@1'.
        round: distillations in its cloud model's lineage. patched: whether it has patches.
        served_by: one of tables.SERVED_BY → users.
        ece: calibration error; None without rows. coverage: share of the catalogue that is shown; None if sampled.
        placebo: whether users are served with the mean patch, or with another user's.
    """

    name: str
    ref: str
    role: str
    round: int
    patched: bool
    served_by: dict[str, int]
    ece: float | None
    coverage: float | None
    placebo: bool = False


@dataclass(frozen=True)
class EvaluationPart:
    """One evaluation and its comparison with a baseline.

    Attributes:
        ref, id, on, dataset, split, seed: which evaluation, of which period. seeds: of the models' trainings; [] for one.
        log: names of the logs, and the days of the period. head_fraction: share of users that are called head.
        events, users, users_without_auc: how many were scored. candidates: 'all', or how many were sampled.
        negatives: sampled for each event for AUC and calibration; 0 where the log has observed labels.
        models: in the order they were given. baseline: the one that the others are compared with; None if there is
            nothing to compare. control: whether the baseline is a cloud model that was only trained further.
        metrics: those that the tables show first. metric: the metric of the verdict.
        aggregate, comparison, harm, reliability: tables, see tables.py. tail_minus_head: TAIL_MINUS_HEAD rows of `metric`.
        gains: model name → every user's difference in `metric` to the baseline, more is better.
        worst: WORST_USERS rows of `metric`.
        by_activity: COMPARISON rows of `metric` for the 20 groups by activity.
        at_chance: model name → 95 % interval of its GAUC, where that is not shown to be above chance.
    """

    ref: str
    id: str
    on: str
    dataset: str
    log: str
    head_fraction: float
    split: str
    seed: int
    events: int
    users: int
    users_without_auc: int
    candidates: int | str
    negatives: int
    models: list[Model]
    baseline: Model | None
    control: bool
    metrics: list[str]
    metric: str
    aggregate: "pl.DataFrame"
    comparison: "pl.DataFrame"
    harm: "pl.DataFrame"
    worst: "pl.DataFrame"
    tail_minus_head: "pl.DataFrame"
    reliability: "pl.DataFrame"
    by_activity: "pl.DataFrame"
    at_chance: dict[str, tuple[float, float]] = field(default_factory=dict)
    gains: dict[str, list[float]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Fit:
    """The training of one cloud model.

    Attributes:
        epochs: epoch, train_loss and valid_loss of each. best_epoch: the one that was kept; 0: start.
        best_valid_loss, best_valid_auc, best_valid_ndcg: of that epoch. It has the highest NDCG@10, or the highest AUC if
            `best_valid_ndcg` is None.
    """

    ref: str
    role: str
    epochs: list[dict[str, float]]
    best_epoch: int
    best_valid_loss: float
    best_valid_auc: float
    best_valid_ndcg: float | None = None


@dataclass(frozen=True)
class Round:
    """One distillation."""

    number: int
    cloud: str
    patches: str
    teachers: int
    events: int
    best_valid_loss: float


@dataclass(frozen=True)
class Step:
    """One artifact of the lineage.

    Attributes:
        ref, id, stage: which artifact, and its command. inputs: (role, reference or SHA-256 of a raw file).
        config: resolved configuration, dotted keys, with the seed. packages: their versions.
        command: the command line that makes it again.
    """

    ref: str
    id: str
    stage: str
    inputs: list[tuple[str, str]]
    config: dict[str, Any]
    packages: dict[str, str]
    command: str


@dataclass(frozen=True)
class BundlePart:
    """A bundle, in words, and what `export --measure` found of it."""

    name: str
    measured: "Measured"


@dataclass(frozen=True)
class Page:
    """The content of one report; each of `steps` comes after its inputs."""

    evaluations: list[EvaluationPart]
    fits: list[Fit]
    rounds: list[Round]
    steps: list[Step]
    bundle: BundlePart | None = None
