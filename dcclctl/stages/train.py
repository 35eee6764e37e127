"""`train`: dataset → cloud model."""

import numpy as np
import torch

from dcclctl.algorithm import training
from dcclctl.algorithm.din import Din
from dcclctl.algorithm.eventlog import Block
from dcclctl.algorithm.sampling import stream
from dcclctl.config import TrainConfig
from dcclctl.errors import DataError, UsageError
from dcclctl.stages.compute import OnProgress, settle, torch_device
from dcclctl.stages.handles import CloudModel, Dataset, new_model
from dcclctl.store.store import Artifact, Store, Work

#: settings that a continued model takes over from the model it continues
SIZES = ("model", "history", "item_size", "category_size", "profile_size", "attention_size", "hidden_sizes")


def train(
    dataset: Dataset,
    config: TrainConfig,
    store: Store,
    on_progress: OnProgress,
    force: bool = False,
    parent: CloudModel | None = None,
) -> tuple[Artifact, bool]:
    """Train the cloud model, and keep the weights of the epoch with the lowest valid loss.

    Args:
        dataset: what to train on.
        config: settings; with `parent` its sizes are replaced by the parent's.
        store: where the model goes.
        on_progress: see compute.OnProgress.
        force: train even if the same model exists.
        parent: continue from this model's weights (the incremental control); its patch basis is not taken over.

    Returns:
        The cloud artifact, and whether it existed already.

    Raises:
        DataError: the chosen periods have no events. UsageError: valid or test in `on`. DivergedError: NaN loss.
    """
    config = settle(config)
    blocks = [Block.parse(text) for text in config.on]
    inputs = {"dataset": dataset.artifact.as_input()}
    if parent is not None:
        config = config.model_copy(
            update={name: parent.settings[name] for name in SIZES}
            | {"hidden_sizes": tuple(parent.settings["hidden_sizes"])}
        )
        inputs["cloud"] = parent.artifact.as_input()
    if any(block.period > 1 for block in blocks):
        raise UsageError("--on: the cloud model trains on cloud and device only", "valid decides when to stop.")
    with store.begin("train", "cloud", config.model_dump(mode="json"), config.seed, inputs, force) as work:
        if work.reused is not None:
            return work.reused, True
        settings = {name: value for name, value in config.model_dump(mode="json").items() if name in SIZES}
        model = parent.module(config) if parent else new_model(settings, dataset, _generator(config.seed))
        model.to(torch_device(config))
        fit = training.FitSettings(
            history=config.history,
            negatives=config.negatives,
            epochs=config.epochs,
            patience=config.patience,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            dropout=config.dropout,
            seed=config.seed,
            purpose="train/" + "+".join(config.on),
        )
        state = fit_model(model, dataset, blocks, fit, work, on_progress, "train")
        work.write_tensors("model.safetensors", state.best)
        work.write_json("model.json", settings)
        artifact = work.commit(
            {
                "id_map": dataset.id_map,
                "parameters": sum(weight.numel() for weight in state.best.values()),
                **fit_facts(dataset, blocks, state),
            }
        )
    return artifact, False


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(stream(seed, "train/weights"))


def fit_facts(dataset: Dataset, blocks: list[Block], state: training.FitState) -> dict[str, object]:
    """What a manifest says about a fit."""
    events = dataset.log.events_in(*blocks)
    best = min(state.history, key=lambda record: record["valid_loss"], default=None)
    started_best = best is None or not best["valid_loss"] <= state.best_loss
    return {
        "trained_on_events": len(events),
        "trained_on_users": len(np.unique(dataset.log.user[events])),
        "epochs": state.history,
        "best_epoch": 0 if started_best or best is None else int(best["epoch"]),
        "best_valid_loss": state.best_loss,
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
) -> training.FitState:
    """Train until finished, from the last checkpoint if there is one; the model is left with the best weights.

    Raises:
        DataError: no events in the blocks, or none in valid.
    """
    log = dataset.log
    events = log.events_in(*blocks)
    names = ", ".join(dict.fromkeys(("cloud", "device", "valid", "test")[block.period] for block in blocks))
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
    state = _resume(work)
    if state is None:
        state = training.start(model, training.evaluate_loss(model, log, valid, settings.history))

    def on_step(epoch: int, done: int, total: int, loss: float, rate: float) -> None:
        note = f"epoch {epoch}/{settings.epochs}  loss {loss:.4f}  {rate:,.0f} events/s"
        on_progress(what, epoch - 1 + done / total, settings.epochs, note)

    while not state.finished(settings):
        state = training.train_epoch(model, log, events, catalogue, excluded, valid, settings, state, teacher, on_step)
        work.record({"stage": what, **state.history[-1]})
        _save(work, state)
    training.restore(model, state.best)
    return state


def _save(work: Work, state: training.FitState) -> None:
    tensors = {
        f"{part}/{name}": tensor.cpu()
        for part, group in (("weights", state.weights), ("best", state.best), ("moments", state.moments))
        for name, tensor in group.items()
    }
    numbers = {"epoch": state.epoch, "steps": state.steps, "best_loss": state.best_loss}
    work.checkpoint(tensors, numbers | {"epochs_since_best": state.epochs_since_best, "history": state.history})


def _resume(work: Work) -> training.FitState | None:
    saved = work.load_checkpoint()
    if saved is None:
        return None
    tensors, numbers = saved

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}

    return training.FitState(weights=part("weights/"), best=part("best/"), moments=part("moments/"), **numbers)
