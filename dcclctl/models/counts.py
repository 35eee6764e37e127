"""Models that are counted, without training epochs: popularity, recent, gp-topfreq, item-knn, ease."""

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dcclctl.config import Positive, Section, tuned
from dcclctl.errors import DataError, UsageError
from dcclctl.events.log import EventLog
from dcclctl.events.sampling import Ints
from dcclctl.models.kind import CloudModelKind, FitTask
from dcclctl.models.neighbours import HistoryBackbone, ItemWeights, Neighbours, OwnCounts, ease, item_knn
from dcclctl.models.popularity import PopularityBackbone, item_counts, log_odds, newest_rows
from dcclctl.models.scoring import Backbone
from dcclctl.models.settings import ModelSettings

if TYPE_CHECKING:
    from dcclctl.artifacts.cloud import CloudModel
    from dcclctl.store.contents import Tensors

#: EASE inverts a matrix of items × items: with this many items it takes 10 GB
_EASE_ITEMS = 20_000

SettingsT = TypeVar("SettingsT", bound=ModelSettings)
#: a weight that shrinks by this factor from basket to basket
Decay = Annotated[float, Field(gt=0.0, le=1.0)]


class RecentSettings(ModelSettings):
    newest: Annotated[float, Field(gt=0.0, le=1.0)] = tuned(
        0.2, "Newest share of the training events that is counted.", search="0.01..1"
    )


class ItemKnnSettings(ModelSettings):
    neighbours: Positive = tuned(500, "Neighbours kept for each item.", search="20..1000")
    shrinkage: Annotated[float, Field(ge=0.0)] = tuned(
        100.0, "Added to the denominator of the cosine, against chance pairs of rare items.", search="1..1000"
    )
    decay: Decay = tuned(
        1.0, "Weight of an item of the history relative to one a basket later; 1: all weigh the same.", search="0.5..1"
    )


class EaseSettings(ModelSettings):
    ridge: Annotated[float, Field(gt=0.0)] = tuned(100.0, "λ, L2 penalty on the item weights.", search="1..5000")


class CountedKind(CloudModelKind[SettingsT]):
    """A kind whose model is computed from the positive events at once."""

    Settings: ClassVar[type[Section]] = ModelSettings

    @abstractmethod
    def tensors(self, task: FitTask[SettingsT], counted: Ints) -> dict[str, Tensor]:
        """The model's tensors, from the positive events (N,) in `counted`."""

    def settings_of(self, cloud: "CloudModel") -> SettingsT:
        """The settings that a committed model was made with."""
        settings: SettingsT = self.Settings(**cloud.config[cloud.model])  # type: ignore[assignment]
        return settings

    def select(self, task: FitTask[SettingsT], events: Ints) -> Ints:
        """The events that are counted."""
        return events

    def fit(self, task: FitTask[SettingsT]) -> dict[str, Any]:
        """Count the positive events of the periods, and write the model's tensors.

        Raises:
            UsageError: there is a model to start from. DataError: the periods have no positive event.
        """
        log = task.dataset.log
        if task.start is not None:
            raise UsageError(
                f"--continue: {task.start.ref} is a {task.start.model} model, which learns from all events at once",
                f"Count both periods at once: dcclctl train --model {task.start.model} --on cloud,device",
            )
        events = log.events_in(*task.blocks)
        counted = self.select(task, events)
        counted = counted[log.label[counted] > 0]
        if not len(counted):
            raise DataError(
                f"{task.dataset.ref} has no positive events in {','.join(map(str, task.blocks))}",
                "Choose other periods with --on, or ingest with other --periods or another --label.",
            )
        tensors = self.tensors(task, counted)
        task.work.write_tensors("model.safetensors", tensors)
        return {
            "parameters": sum(tensor.numel() for tensor in tensors.values()),
            "negatives": task.settings.negatives,
            "trained_on_events": len(events),
            "trained_on_users": len(np.unique(log.user[events])),
            "counted_events": len(counted),
            "epochs": [],
            "best_epoch": 0,
            "best_valid_loss": None,
            "best_valid_auc": None,
        }


class PopularityKind(CountedKind[SettingsT]):
    def tensors(self, task: FitTask[SettingsT], counted: Ints) -> dict[str, Tensor]:
        return {"logits": log_odds(item_counts(task.dataset.log, counted), task.settings.negatives)}

    def open(self, cloud: "CloudModel", device: torch.device, log: EventLog) -> Backbone:
        return PopularityBackbone(read_tables(cloud, log, "logits")["logits"].to(device), log)


class RecentKind(PopularityKind[RecentSettings]):
    Settings = RecentSettings

    def select(self, task: FitTask[RecentSettings], events: Ints) -> Ints:
        """The newest share of the events; of each user's events if only the order of each user's events is known."""
        time = task.dataset.events["time_us"].to_numpy().astype(np.int64)
        one_timeline = task.dataset.facts["time_kind"] != "ordinal"
        return newest_rows(task.dataset.log, events, time[events], task.settings.newest, one_timeline)


class GpTopfreqKind(CountedKind[ModelSettings]):
    def tensors(self, task: FitTask[ModelSettings], counted: Ints) -> dict[str, Tensor]:
        return popularity_of(task.dataset.log, counted)

    def open(self, cloud: "CloudModel", device: torch.device, log: EventLog) -> Backbone:
        return HistoryBackbone(OwnCounts(log.n_items), log, read_tables(cloud, log, "popularity")["popularity"])


class ItemKnnKind(CountedKind[ItemKnnSettings]):
    Settings = ItemKnnSettings

    def tensors(self, task: FitTask[ItemKnnSettings], counted: Ints) -> dict[str, Tensor]:
        log, own = task.dataset.log, task.settings
        pairs = _pairs(log, counted)
        near = item_knn(*pairs, log.n_items, own.neighbours, own.shrinkage, log.repeats, task.on_progress)
        return {"start": near.start, "target": near.target, "value": near.value, **popularity_of(log, counted)}

    def open(self, cloud: "CloudModel", device: torch.device, log: EventLog) -> Backbone:
        tensors = read_tables(cloud, log, "popularity")
        near = Neighbours(tensors["start"], tensors["target"], tensors["value"])
        return HistoryBackbone(near.faster(), log, tensors["popularity"], self.settings_of(cloud).decay)


class EaseKind(CountedKind[EaseSettings]):
    Settings = EaseSettings

    def select(self, task: FitTask[EaseSettings], events: Ints) -> Ints:
        """All events.

        Raises:
            UsageError: the square matrix of the items does not fit into memory.
        """
        if task.dataset.log.n_items > _EASE_ITEMS:
            raise UsageError(
                f"--model ease: {task.dataset.ref} has {task.dataset.log.n_items:,} items, and EASE inverts a matrix "
                f"of items × items (at most {_EASE_ITEMS:,})",
                "Use --model item-knn, or leave rare items out: dcclctl ingest --min-item-events N",
            )
        return events

    def tensors(self, task: FitTask[EaseSettings], counted: Ints) -> dict[str, Tensor]:
        log = task.dataset.log
        weights = ease(*_pairs(log, counted), log.n_items, task.settings.ridge, task.on_progress).weights
        return {"weights": weights, **popularity_of(log, counted)}

    def open(self, cloud: "CloudModel", device: torch.device, log: EventLog) -> Backbone:
        square = {"weights": torch.empty(log.n_items, log.n_items)}
        tensors = read_tables(cloud, log, "popularity") | cloud.artifact.read_weights("model.safetensors", square)
        return HistoryBackbone(ItemWeights(tensors["weights"].to(device)), log, tensors["popularity"].to(device))


def read_tables(cloud: "CloudModel", log: EventLog, *names: str) -> "Tensors":
    """The model's tensors, of which those with these names have one number an item."""
    return cloud.artifact.read_weights("model.safetensors", {name: torch.empty(log.n_items) for name in names})


def popularity_of(log: EventLog, counted: Ints) -> dict[str, Tensor]:
    """Number of each item's events, which breaks ties."""
    return {"popularity": torch.from_numpy(item_counts(log, counted)).float()}


def _pairs(log: EventLog, counted: Ints) -> tuple[Ints, Ints]:
    """Users and items of the distinct pairs."""
    pairs = np.unique(log.user[counted] * log.n_items + log.item[counted])
    return pairs // log.n_items, pairs % log.n_items
