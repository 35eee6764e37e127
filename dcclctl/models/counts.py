"""Models that are counted, without training epochs: popularity, recent, gp-topfreq, item-knn, ease."""

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dcclctl.compute import memory_limit
from dcclctl.config import Positive, Section, tuned
from dcclctl.errors import DataError, UsageError
from dcclctl.events.log import EventLog
from dcclctl.models.kind import CloudModelKind, FitTask
from dcclctl.models.neighbours import (
    HistoryBackbone,
    ItemWeights,
    Neighbours,
    OwnCounts,
    add_co_occurrences,
    ease,
    item_knn,
)
from dcclctl.models.popularity import PopularityBackbone, log_odds, newest_of_users, start_of_newest
from dcclctl.models.positives import PositiveEvents, Selection, count_matrix
from dcclctl.models.scoring import Backbone
from dcclctl.models.settings import ModelSettings

if TYPE_CHECKING:
    from dcclctl.artifacts.cloud import CloudModel
    from dcclctl.store.contents import Tensors

#: bytes that EASE needs for each pair of items: three tables of 8 bytes while it inverts one of them
_EASE_BYTES = 24

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
    """A kind whose model is computed from the positive events, which are read part by part of the users."""

    Settings: ClassVar[type[Section]] = ModelSettings
    #: which of the periods' events are counted, as a message says it
    selected: ClassVar[str] = ""

    @abstractmethod
    def tensors(self, task: FitTask[SettingsT], counted: PositiveEvents) -> dict[str, Tensor]:
        """The model's tensors."""

    def settings_of(self, cloud: "CloudModel") -> SettingsT:
        """The settings that a committed model was made with."""
        settings: SettingsT = self.Settings(**cloud.config[cloud.model])  # type: ignore[assignment]
        return settings

    def check(self, task: FitTask[SettingsT]) -> None:
        """Refuse a log that is too large for the model, before it is read."""

    def selection(self, task: FitTask[SettingsT]) -> Selection:
        """Which events of the periods are counted, if they are positive; by default all."""
        return lambda log, users, events: events

    def fit(self, task: FitTask[SettingsT]) -> dict[str, Any]:
        """Count the positive events of the periods, and write the model's tensors.

        Raises:
            UsageError: there is a model to start from, or the log is too large for the model.
            DataError: the periods have no positive event.
        """
        if task.start is not None:
            raise UsageError(
                f"--continue: {task.start.ref} is a {task.start.model} model, which learns from all events at once",
                f"Count both periods at once: dcclctl train --model {task.start.model} --on cloud,device",
            )
        self.check(task)
        counted = PositiveEvents.of(task.dataset, task.blocks, self.selection(task), task.on_progress)
        if not counted.item_counts.any():
            raise DataError(
                f"{task.dataset.ref} has no positive events in {','.join(map(str, task.blocks))}{self.selected}",
                "Choose other periods with --on, or ingest with other --periods or another --label.",
            )
        tensors = self.tensors(task, counted)
        task.work.write_tensors("model.safetensors", tensors)
        return {
            "parameters": sum(tensor.numel() for tensor in tensors.values()),
            "negatives": task.settings.negatives,
            "trained_on_events": counted.events,
            "trained_on_users": counted.users,
            "counted_events": int(counted.item_counts.sum()),
            "epochs": [],
            "best_epoch": 0,
            "best_valid_loss": None,
            "best_valid_auc": None,
        }


class PopularityKind(CountedKind[SettingsT]):
    def tensors(self, task: FitTask[SettingsT], counted: PositiveEvents) -> dict[str, Tensor]:
        return {"logits": log_odds(counted.item_counts, task.settings.negatives)}

    def open(self, cloud: "CloudModel", device: torch.device, log: EventLog) -> Backbone:
        return PopularityBackbone(read_tables(cloud, log, "logits")["logits"].to(device), log)


class RecentKind(PopularityKind[RecentSettings]):
    Settings = RecentSettings
    selected = " among the newest share that the setting train.recent.newest names"

    def selection(self, task: FitTask[RecentSettings]) -> Selection:
        """The newest share of the events; of each user's events if only the order of each user's events is known."""
        dataset, newest = task.dataset, task.settings.newest
        if dataset.facts["time_kind"] == "ordinal":
            return lambda log, users, events: newest_of_users(log, events, dataset.times(users)[events], newest)
        inside = [dataset.times(users)[dataset.log_part(users).events_in(*task.blocks)] for users in dataset.parts]
        time = np.concatenate(inside or [np.zeros(0, dtype=np.int64)])
        if not len(time):
            return lambda log, users, events: events
        start = start_of_newest(time, newest)
        return lambda log, users, events: events[dataset.times(users)[events] >= start]


class GpTopfreqKind(CountedKind[ModelSettings]):
    def tensors(self, task: FitTask[ModelSettings], counted: PositiveEvents) -> dict[str, Tensor]:
        return popularity_of(counted)

    def open(self, cloud: "CloudModel", device: torch.device, log: EventLog) -> Backbone:
        return HistoryBackbone(OwnCounts(log.n_items), log, read_tables(cloud, log, "popularity")["popularity"])


class ItemKnnKind(CountedKind[ItemKnnSettings]):
    Settings = ItemKnnSettings

    def tensors(self, task: FitTask[ItemKnnSettings], counted: PositiveEvents) -> dict[str, Tensor]:
        own = task.settings
        near = item_knn(counted.pairs(), own.neighbours, own.shrinkage, counted.repeats, task.on_progress)
        return {"start": near.start, "target": near.target, "value": near.value, **popularity_of(counted)}

    def open(self, cloud: "CloudModel", device: torch.device, log: EventLog) -> Backbone:
        tensors = read_tables(cloud, log, "popularity")
        near = Neighbours(tensors["start"], tensors["target"], tensors["value"])
        return HistoryBackbone(near.faster(), log, tensors["popularity"], self.settings_of(cloud).decay)


class EaseKind(CountedKind[EaseSettings]):
    Settings = EaseSettings

    def check(self, task: FitTask[EaseSettings]) -> None:
        """Refuse more items than the memory of this machine has room for.

        Raises:
            UsageError: there are.
        """
        n_items = int(task.dataset.facts["items"])
        needed = _EASE_BYTES * n_items**2
        if needed > memory_limit():
            raise UsageError(
                f"--model ease: {task.dataset.ref} has {n_items:,} items, and EASE inverts a matrix of items × items: it "
                f"needs {needed / 2**30:,.1f} GiB of memory, and there are {memory_limit() / 2**30:,.1f}",
                "Use --model item-knn, or leave rare items out: dcclctl ingest --min-item-events N",
            )

    def tensors(self, task: FitTask[EaseSettings], counted: PositiveEvents) -> dict[str, Tensor]:
        gram = torch.zeros(counted.n_items, counted.n_items, dtype=torch.float64)
        for log, rows in counted.open():
            _, pairs = count_matrix(log, rows)
            pairs.data[:] = 1
            add_co_occurrences(gram, pairs)
        weights = ease(gram, task.settings.ridge, task.on_progress).weights
        return {"weights": weights, **popularity_of(counted)}

    def open(self, cloud: "CloudModel", device: torch.device, log: EventLog) -> Backbone:
        square = {"weights": torch.empty(log.n_items, log.n_items)}
        tensors = read_tables(cloud, log, "popularity") | cloud.artifact.read_weights("model.safetensors", square)
        return HistoryBackbone(ItemWeights(tensors["weights"].to(device)), log, tensors["popularity"].to(device))


def read_tables(cloud: "CloudModel", log: EventLog, *names: str) -> "Tensors":
    """The model's tensors, of which those with these names have one number an item."""
    return cloud.artifact.read_weights("model.safetensors", {name: torch.empty(log.n_items) for name in names})


def popularity_of(counted: PositiveEvents) -> dict[str, Tensor]:
    """Number of each item's events, which breaks ties."""
    return {"popularity": torch.from_numpy(counted.item_counts).float()}
