"""Kinds of cloud models that learn by gradient descent."""

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from dcclctl.errors import DataError
from dcclctl.events.log import EventLog
from dcclctl.events.sampling import stream
from dcclctl.models.kind import CloudModelKind, FitTask
from dcclctl.models.settings import FitSettings, TrainedSettings
from dcclctl.models.trainable import Trainable
from dcclctl.models.training import ALONE, Trainer, restore

if TYPE_CHECKING:
    from dcclctl.artifacts.cloud import CloudModel

SettingsT = TypeVar("SettingsT", bound=TrainedSettings)


class TrainedKind(CloudModelKind[SettingsT]):
    """A kind whose model is a Trainable."""

    can_be_shared = True
    #: name of the draw of the initial weights
    weights_purpose = "train/weights"

    @abstractmethod
    def new(self, log: EventLog, settings: SettingsT, generator: torch.Generator) -> Trainable:
        """A freshly initialised model for the users and items of a log."""

    def module(self, cloud: "CloudModel", device: torch.device) -> Any:
        """A fresh copy of a committed model."""
        settings = self.Settings(**cloud.sizes)
        model = self.new(cloud.dataset.no_events, settings, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
        restore(model, cloud.artifact.read_weights("model.safetensors", dict(model.named_parameters())))
        return model.to(device)

    def fit(self, task: FitTask[SettingsT]) -> dict[str, Any]:
        """Train the model, and write the weights of its best epoch.

        Raises:
            DataError: there are no items, or no events to train on or to choose the best epoch by.
            DivergedError: the loss became infinite or NaN.
        """
        log = task.dataset.no_events
        if not log.n_items:
            raise DataError(f"{task.dataset.ref} has no items", "Ingest a log with events.")
        if task.start is not None:
            model = self.module(task.start, task.device)
        else:
            generator = torch.Generator().manual_seed(stream(task.seed, self.weights_purpose))
            model = self.new(log, task.settings, generator).to(task.device)
        purpose = "train/" + "+".join(map(str, task.blocks))
        settings, world = FitSettings.of(task.settings, task.seed, purpose), task.world or ALONE
        trainer = Trainer(model, task.dataset.groups, task.blocks, settings, world=world)
        state = trainer.fit(task.work, task.on_progress, "train")
        if world.leads:
            task.work.write_tensors("model.safetensors", state.best)
        return trainer.facts(state)
