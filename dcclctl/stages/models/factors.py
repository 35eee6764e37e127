"""Factor models: bpr, fm, neumf. A user is a row of a table; users without training events keep a zero vector."""

from dataclasses import replace
from typing import Any

import torch

from dcclctl.algorithm import training
from dcclctl.algorithm.baselines.factors import (
    Bpr,
    FactorBackbone,
    FactorisationMachine,
    FactorModel,
    NeuMF,
    judge,
    train_epoch,
)
from dcclctl.algorithm.eventlog import VALID, Block, EventLog
from dcclctl.algorithm.sampling import stream
from dcclctl.config import ComputeSection, TrainConfig
from dcclctl.errors import DataError
from dcclctl.stages.compute import OnProgress, torch_device
from dcclctl.stages.handles import CloudModel, Dataset
from dcclctl.stages.models.din import Pass, fit_epochs, fit_facts, train_settings
from dcclctl.store.store import Work

SIZES = ("model", "history", "item_size", "hidden_sizes")


def _new(settings: dict[str, Any], log: EventLog, generator: torch.Generator) -> FactorModel:
    """A model with the sizes of `model.json`, freshly initialised."""
    size, limit = settings["item_size"], settings["history"]
    if settings["model"] == "bpr":
        return Bpr(log.n_users, log.n_items, size, generator)
    if settings["model"] == "fm":
        return FactorisationMachine(log, size, limit, generator)
    first, second = settings["hidden_sizes"]
    return NeuMF(log.n_users, log.n_items, size, (first, second), generator)


def _read(cloud: CloudModel, config: ComputeSection, log: EventLog) -> FactorModel:
    model = _new(cloud.settings, log, torch.Generator().manual_seed(0))
    training.restore(model, cloud.artifact.read_tensors("model.safetensors"))
    return model.to(torch_device(config))


def fit(
    dataset: Dataset, config: TrainConfig, work: Work, on_progress: OnProgress, parent: CloudModel | None
) -> dict[str, object]:
    """Train a factor model, and write the weights of its best epoch.

    Raises:
        DataError: no events to train on or to choose the best epoch by (for bpr: no positive ones).
    """
    log, blocks = dataset.log, [Block.parse(text) for text in config.on]
    if parent is not None:
        model = _read(parent, config, log)
    else:
        settings = {name: value for name, value in config.model_dump(mode="json").items() if name in SIZES}
        model = _new(settings, log, torch.Generator().manual_seed(stream(config.seed, "train/weights")))
        model.to(torch_device(config))
    if model.pairwise:
        for part in (blocks, [VALID]):
            rows = log.events_in(*part)
            if len(rows) and not log.label[rows].any():
                raise DataError(
                    f"{dataset.artifact.ref} has no positive events in {'valid' if part == [VALID] else ','.join(config.on)}, "
                    f"and {config.model} learns from positive ones only",
                    "Choose other periods with --on, or ingest with another --label.",
                )
    fitting = replace(train_settings(config), history=_limit(model), dropout=0.0)

    def evaluate(valid: training.Samples) -> training.Judged:
        return judge(model, log, valid)

    def epoch(part: Pass, state: training.FitState, on_step: training.OnStep) -> training.FitState:
        return train_epoch(model, log, part.events, part.catalogue, part.excluded, part.valid, fitting, state, on_step)

    state = fit_epochs(model, dataset, blocks, fitting, work, on_progress, "train", evaluate, epoch)
    work.write_tensors("model.safetensors", state.best)
    return {"parameters": sum(weight.numel() for weight in state.best.values()), **fit_facts(dataset, blocks, state)}


def backbone(cloud: CloudModel, config: ComputeSection, log: EventLog) -> FactorBackbone:
    """Logits of a trained factor model."""
    model = _read(cloud, config, log)
    return FactorBackbone(model, log, _limit(model))


def _limit(model: FactorModel) -> int:
    """L, of the history that the model reads; 0 where it reads none."""
    return model.limit if isinstance(model, FactorisationMachine) else 0
