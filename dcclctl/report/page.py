"""What a report says, before it has a form: filled by `stages.report`, drawn by `report.html`."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Model:
    """One scored model.

    Attributes:
        name: its name in the tables. ref: its reference in the store.
        role: what it is, for people: 'frozen cloud model', 'patches on cloud@1'.
        round: distillations that its cloud model has behind it. patched: are there patches on top?
        served_by: one of tables.SERVED_BY → users.
        ece: calibration error; None without rows. coverage: share of the catalogue that is shown; None if sampled.
        placebo: is everybody served with the mean patch, or another user's?
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
        ref, id, on, dataset, split, seed: which evaluation, of which period.
        events, users, users_without_auc: how many were scored. candidates: 'all', or how many were sampled.
        negatives: sampled beside each event for AUC and calibration; 0 where the log has observed labels.
        models: in the order they were given. baseline: the one that the others are compared with; None if there is
            nothing to compare. control: is the baseline a cloud model that was simply trained further?
        metrics: those that the tables show first. metric: the one that the verdict is about.
        aggregate, comparison, harm, reliability: tables, see tables.py. tail_minus_head: TAIL_MINUS_HEAD rows of `metric`.
        gains: model name → every user's difference in `metric` to the baseline, more is better.
        worst: WORST_USERS rows of `metric`.
    """

    ref: str
    id: str
    on: str
    dataset: str
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
    gains: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Fit:
    """How one cloud model learned: epochs of epoch, train_loss, valid_loss; best_epoch 0 is the start.

    Attributes:
        best_valid_loss, best_valid_auc: of the epoch that was kept, the one with the highest AUC.
    """

    ref: str
    role: str
    epochs: list[dict[str, float]]
    best_epoch: int
    best_valid_loss: float
    best_valid_auc: float


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
        ref, id, stage: which, and the command that made it. inputs: (role, reference or SHA-256 of a raw file).
        config: resolved configuration, dotted keys, with the seed. packages: versions that it was made with.
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
class Page:
    """Everything of one report; `steps` are in an order in which they can be made."""

    evaluations: list[EvaluationPart]
    fits: list[Fit]
    rounds: list[Round]
    steps: list[Step]
