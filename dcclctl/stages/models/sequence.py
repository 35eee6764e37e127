"""SASRec and GRU4Rec: models of the order of things, cheap to rank everything with."""

from typing import Any

import torch

from dcclctl.algorithm import sequence_training, training
from dcclctl.algorithm.eventlog import Block, EventLog
from dcclctl.algorithm.sampling import stream
from dcclctl.algorithm.sequence import KINDS, Moments, SequenceBackbone, SequenceModel, SequenceSizes
from dcclctl.config import ComputeSection, TrainConfig
from dcclctl.errors import DataError
from dcclctl.stages.compute import OnProgress, torch_device
from dcclctl.stages.handles import CloudModel, Dataset
from dcclctl.stages.models.din import Pass, fit_epochs, fit_facts, train_settings
from dcclctl.store.store import Work

SIZES = ("model", "history", "item_size", "category_size")


def backbone(cloud: CloudModel, config: ComputeSection, log: EventLog) -> SequenceBackbone:
    """The model up to its states."""
    return SequenceBackbone(module(cloud, config), log, Moments(cloud.dataset.log))


def module(cloud: CloudModel, config: ComputeSection) -> SequenceModel:
    """A fresh copy of the cloud model, on the stage's device."""
    model = _new_model(cloud.settings, cloud.dataset, 0)
    training.restore(model, cloud.artifact.read_tensors("model.safetensors"))
    return model.to(torch_device(config))


def fit(
    dataset: Dataset, config: TrainConfig, work: Work, on_progress: OnProgress, parent: CloudModel | None
) -> dict[str, object]:
    """Train the model and write its weights.

    Raises:
        DataError: no events in the blocks, or none in valid.
    """
    blocks = [Block.parse(text) for text in config.on]
    seed = stream(config.seed, f"train/weights/{config.model}")
    model = module(parent, config) if parent else _new_model(config.model_dump(), dataset, seed)
    model.to(torch_device(config))
    log, moments = dataset.log, Moments(dataset.log)
    settings = train_settings(config)

    def evaluate(valid: training.Samples) -> training.Judged:
        return sequence_training.judge(model, moments, log, valid)

    def epoch(part: Pass, state: training.FitState, on_step: training.OnStep) -> training.FitState:
        return sequence_training.train_epoch(
            model, moments, log, part.events, part.catalogue, part.excluded, part.valid, settings, state, on_step
        )

    state = fit_epochs(model, dataset, blocks, settings, work, on_progress, "train", evaluate, epoch)
    work.write_tensors("model.safetensors", state.best)
    return {"parameters": sum(weight.numel() for weight in state.best.values()), **fit_facts(dataset, blocks, state)}


def _new_model(settings: dict[str, Any], dataset: Dataset, seed: int) -> SequenceModel:
    log = dataset.log
    if not log.n_items:
        raise DataError(f"{dataset.artifact.ref} has no items", "Ingest a log with events.")
    sizes = SequenceSizes(
        log.n_items,
        log.n_categories,
        window=settings["history"],
        item_size=settings["item_size"],
        category_size=settings["category_size"],
    )
    return KINDS[settings["model"]](sizes, log.item_categories, torch.Generator().manual_seed(seed))
