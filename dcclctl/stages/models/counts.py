"""Baselines in closed form: popularity, recent, gp-topfreq, item-knn, ease. Nothing is descended, so no epoch is chosen by `valid`."""

import numpy as np
import torch
from torch import Tensor

from dcclctl.algorithm.baselines.neighbours import HistoryBackbone, ItemWeights, Neighbours, OwnCounts, ease, item_knn
from dcclctl.algorithm.baselines.popularity import PopularityBackbone, item_counts, log_odds, newest_rows
from dcclctl.algorithm.eventlog import Block, EventLog
from dcclctl.algorithm.sampling import Ints
from dcclctl.algorithm.scoring import Backbone
from dcclctl.config import ComputeSection, TrainConfig
from dcclctl.errors import DataError, UsageError
from dcclctl.stages.compute import OnProgress, torch_device
from dcclctl.stages.handles import CloudModel, Dataset
from dcclctl.store.store import Work

SIZES = ("model", "history")
#: EASE inverts a matrix of items²: beyond this its numbers do not fit into a common machine's memory (10 GB)
_EASE_ITEMS = 20_000


def fit(
    dataset: Dataset, config: TrainConfig, work: Work, on_progress: OnProgress, parent: CloudModel | None
) -> dict[str, object]:
    """Count the positive events of the periods, and write what the scores are made of.

    Raises:
        UsageError: a parent, or more items than EASE can take. DataError: no positive event in the periods.
    """
    log = dataset.log
    if parent is not None:
        raise UsageError(
            f"--continue: {parent.artifact.ref} is a {config.model} model, which has no weights to train further",
            f"Count both periods at once: dcclctl train --model {config.model} --on cloud,device",
        )
    if config.model == "ease" and log.n_items > _EASE_ITEMS:
        raise UsageError(
            f"--model ease: {dataset.artifact.ref} has {log.n_items:,} items, and EASE inverts a matrix of items × items "
            f"(at most {_EASE_ITEMS:,})",
            "Use --model item-knn, or leave rare items out: dcclctl ingest --min-item-events N",
        )
    events = log.events_in(*[Block.parse(text) for text in config.on])
    counted = _newest(dataset, events, config.newest) if config.model == "recent" else events
    counted = counted[log.label[counted] > 0]
    if not len(counted):
        raise DataError(
            f"{dataset.artifact.ref} has no positive events in {', '.join(config.on)}",
            "Choose other periods with --on, or ingest with other --periods or another --label.",
        )
    on_progress("train", 0, 1, config.model)
    tensors = _tensors(log, counted, config)
    on_progress("train", 1, 1, config.model)
    work.write_tensors("model.safetensors", tensors)
    return {
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "trained_on_events": len(events),
        "trained_on_users": len(np.unique(log.user[events])),
        "counted_events": len(counted),
        "epochs": [],
        "best_epoch": 0,
        "best_valid_loss": None,
        "best_valid_auc": None,
    }


def _newest(dataset: Dataset, events: Ints, newest: float) -> Ints:
    """The newest share of the events; of each user's own where only a user's order is known."""
    time = dataset.artifact.read_table("events.parquet")["time_us"].to_numpy().astype(np.int64)
    one_timeline = dataset.artifact.facts["time_kind"] != "ordinal"
    return newest_rows(dataset.log, events, time[events], newest, one_timeline)


def _tensors(log: EventLog, counted: Ints, config: TrainConfig) -> dict[str, Tensor]:
    counts = item_counts(log, counted)
    if config.model in ("popularity", "recent"):
        return {"logits": log_odds(counts, config.negatives)}
    popularity = {"popularity": torch.from_numpy(counts).float()}
    if config.model == "gp-topfreq":
        return popularity
    pairs = np.unique(log.user[counted] * log.n_items + log.item[counted])
    users, items = pairs // log.n_items, pairs % log.n_items
    if config.model == "ease":
        return {"weights": ease(users, items, log.n_items, config.ridge).weights, **popularity}
    near = item_knn(users, items, log.n_items, config.neighbours, config.shrinkage, itself=log.repeats)
    return {"start": near.start, "target": near.target, "value": near.value, **popularity}


def backbone(cloud: CloudModel, config: ComputeSection, log: EventLog) -> Backbone:
    """Scores by popularity, from what the event's user had, or from what is near to that."""
    tensors, device = cloud.artifact.read_tensors("model.safetensors"), torch_device(config)
    if "logits" in tensors:
        return PopularityBackbone(tensors["logits"].to(device), log)
    if "weights" in tensors:
        return HistoryBackbone(ItemWeights(tensors["weights"].to(device)), log, tensors["popularity"].to(device))
    if "start" not in tensors:
        return HistoryBackbone(OwnCounts(log.n_items), log, tensors["popularity"])
    near = Neighbours(tensors["start"], tensors["target"], tensors["value"])
    return HistoryBackbone(near.faster(), log, tensors["popularity"])
