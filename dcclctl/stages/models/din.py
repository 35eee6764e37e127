"""DIN, the model that MetaPatch and MoMoDistill are made for; `fit_model` also serves step 1 of distillation."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dcclctl.algorithm import training
from dcclctl.algorithm.din import Din
from dcclctl.algorithm.eventlog import PERIOD_NAMES, Block, EventLog
from dcclctl.algorithm.sampling import Ints, PairSet, stream
from dcclctl.algorithm.scoring import DinBackbone
from dcclctl.config import ComputeSection, DistillConfig, TrainConfig
from dcclctl.errors import DataError
from dcclctl.stages.compute import OnProgress, torch_device
from dcclctl.stages.handles import CloudModel, Dataset, new_model
from dcclctl.store.store import Work

SIZES = ("model", "history", "item_size", "category_size", "profile_size", "attention_size", "hidden_sizes")


def backbone(cloud: CloudModel, config: ComputeSection, log: EventLog) -> DinBackbone:
    """DIN up to its first hidden layer."""
    return DinBackbone(cloud.module(config), log, cloud.history)


def fit(
    dataset: Dataset, config: TrainConfig, work: Work, on_progress: OnProgress, parent: CloudModel | None
) -> dict[str, object]:
    """Train DIN and write its weights; see `fit_model` for what is raised."""
    blocks = [Block.parse(text) for text in config.on]
    settings = {name: value for name, value in config.model_dump(mode="json").items() if name in SIZES}
    model = parent.module(config) if parent else new_model(settings, dataset, _generator(config.seed))
    model.to(torch_device(config))
    state = fit_model(model, dataset, blocks, train_settings(config), work, on_progress, "train")
    work.write_tensors("model.safetensors", state.best)
    return {"parameters": sum(weight.numel() for weight in state.best.values()), **fit_facts(dataset, blocks, state)}


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(stream(seed, "train/weights"))


def train_settings(config: TrainConfig) -> training.FitSettings:
    """What `train`'s settings say about how to descend, the same for every kind of model that does."""
    return fit_settings(config, config.history, "train/" + "+".join(config.on))


def fit_settings(
    config: TrainConfig | DistillConfig, history: int, purpose: str, beta: float = 0.0
) -> training.FitSettings:
    """How to descend.

    Args:
        history: L of the model. purpose: names the random numbers. beta: weight of the teachers.
    """
    return training.FitSettings(
        history=history,
        negatives=config.negatives,
        epochs=config.epochs,
        patience=config.patience,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        dropout=config.dropout,
        seed=config.seed,
        purpose=purpose,
        beta=beta,
        criterion=config.criterion,
    )


def fit_facts(dataset: Dataset, blocks: list[Block], state: training.FitState) -> dict[str, object]:
    """What a manifest says about a fit."""
    events = dataset.log.events_in(*blocks)
    return {
        "trained_on_events": len(events),
        "trained_on_users": len(np.unique(dataset.log.user[events])),
        "epochs": state.history,
        "best_epoch": state.epoch - state.epochs_since_best,
        "best_valid_loss": state.best_loss,
        "best_valid_auc": state.best_auc,
    }


def fit_model(
    model: Din,
    dataset: Dataset,
    blocks: list[Block],
    settings: training.FitSettings,
    work: Work,
    on_progress: OnProgress,
    what: str,
    teacher: training.Teacher | None = None,
    trust: Float[Tensor, "U"] | None = None,
    unlabelled: training.Unlabelled | None = None,
    log: EventLog | None = None,
    untold: Bool[np.ndarray, "N"] | None = None,
) -> training.FitState:
    """Train until finished, from the last checkpoint if there is one; the model is left with the best weights.

    Args:
        teacher, trust, unlabelled, untold: see training.train_epoch.
        log: in place of the dataset's, with other histories.

    Raises:
        DataError: no events in the blocks, or none in valid.
    """

    histories = log or dataset.log

    def evaluate(valid: training.Samples) -> training.Judged:
        return training.judge(model, histories, valid, settings.history)

    def epoch(part: Pass, state: training.FitState, on_step: training.OnStep) -> training.FitState:
        return training.train_epoch(
            model,
            histories,
            part.events,
            part.catalogue,
            part.excluded,
            part.valid,
            settings,
            state,
            teacher,
            on_step,
            trust,
            unlabelled,
            untold,
        )

    return fit_epochs(model, dataset, blocks, settings, work, on_progress, what, evaluate, epoch)


@dataclass(frozen=True)
class Pass:
    """What every epoch is made from: rows to train on, items that may be negatives, pairs that may not, valid samples."""

    events: Ints
    catalogue: Ints
    excluded: PairSet
    valid: training.Samples


def fit_epochs(
    model: nn.Module,
    dataset: Dataset,
    blocks: list[Block],
    settings: training.FitSettings,
    work: Work,
    on_progress: OnProgress,
    what: str,
    evaluate: Callable[[training.Samples], training.Judged],
    epoch: Callable[[Pass, training.FitState, training.OnStep], training.FitState],
) -> training.FitState:
    """Any model's epochs until finished, from the last checkpoint if there is one; the best weights stay in the model.

    Args:
        evaluate: valid samples → loss and AUC. epoch: what to train on, state → state after one more epoch.

    Raises:
        DataError: no events in the blocks, or none in valid.
    """
    log = dataset.log
    events = log.events_in(*blocks)
    names = ", ".join(dict.fromkeys(PERIOD_NAMES[block.period] for block in blocks))
    if not len(events):
        raise DataError(
            f"{dataset.artifact.ref} has no events in {names}",
            "Choose other periods with --on, or ingest with other --periods.",
        )
    valid = training.valid_samples(log, settings.negatives, settings.seed)
    if not len(valid.events):
        raise DataError(
            f"{dataset.artifact.ref} has no valid events to choose the best epoch by", "Ingest with other --periods."
        )
    catalogue, excluded = log.catalogue(max(blocks)), log.never_negative(*blocks)
    state = resume_state(work)
    if state is None:
        state = training.start(model, evaluate(valid))

    part = Pass(events, catalogue, excluded, valid)

    def on_step(number: int, done: int, total: int, loss: float, rate: float) -> None:
        note = f"epoch {number}/{settings.epochs}  loss {loss:.4f}  {rate:,.0f} events/s"
        on_progress(what, number - 1 + done / total, settings.epochs, note)

    while not state.finished(settings):
        state = epoch(part, state, on_step)
        work.record({"stage": what, **state.history[-1]})
        save_state(work, state)
    training.restore(model, state.best)
    return state


def save_state(work: Work, state: training.FitState) -> None:
    """Write the checkpoint that `resume_state` reads."""
    tensors = {
        f"{part}/{name}": tensor.cpu()
        for part, group in (("weights", state.weights), ("best", state.best), ("moments", state.moments))
        for name, tensor in group.items()
    }
    numbers = {"epoch": state.epoch, "steps": state.steps, "best_loss": state.best_loss, "best_auc": state.best_auc}
    work.checkpoint(tensors, numbers | {"epochs_since_best": state.epochs_since_best, "history": state.history})


def resume_state(work: Work) -> training.FitState | None:
    """The state after the last finished epoch of an earlier run; None without one."""
    saved = work.load_checkpoint()
    if saved is None:
        return None
    tensors, numbers = saved

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}

    return training.FitState(weights=part("weights/"), best=part("best/"), moments=part("moments/"), **numbers)
