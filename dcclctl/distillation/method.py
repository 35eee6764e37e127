"""What a distillation method is, and the table of all methods. A new method is one file and one row."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, TypeVar

from pydantic import Field

from dcclctl.config import Count, DistillConfig, Positive, Rate, Section, Variant, rarely
from dcclctl.models.settings import Share

if TYPE_CHECKING:
    import torch

    from dcclctl.artifacts import CloudModel, PatchSet
    from dcclctl.compute import OnProgress
    from dcclctl.events.log import Block, EventLog
    from dcclctl.models.trainable import Trainable
    from dcclctl.models.training import Objective
    from dcclctl.store.work import Work

#: `distill --method` → where it is, and what it is
METHODS: Mapping[str, Variant] = {
    "momodistill": Variant(
        "dcclctl.distillation.momodistill:MoMoDistill",
        "the paper's: the teachers are asked about labelled events; also learns the basis Θ and the encoder U",
    ),
    "from-memory": Variant(
        "dcclctl.distillation.from_memory:FromMemory",
        "the teachers are asked about items that nobody has labelled; for teachers that have counted the events themselves",
    ),
}


class TeachingSettings(Section):
    """What every distillation method has."""

    beta: Annotated[float, Field(ge=0.0)] = Field(0.1, description="β: weight of the teachers against the labels.")
    epochs: Positive = Field(3, description="Passes over the events for the cloud weights, at most.")
    patience: Count = Field(
        0, description="Epochs without a higher AUC on valid after which training stops; 0 never stops early."
    )
    learning_rate: Rate = Field(0.002, description="Adam's step size for the cloud weights.")
    weight_decay: Annotated[float, Field(ge=0.0)] = rarely(1e-5, "L2 penalty on the embeddings in a batch.")
    dropout: Share = rarely(0.2, "Dropout on the hidden layers.")
    negatives: Count = rarely(
        0, "Sampled negatives for each positive event; 0: as many as the student was trained with."
    )
    batch_size: Positive = Field(1024, description="Events per step, each with its negatives.")


SettingsT = TypeVar("SettingsT", bound=TeachingSettings)


@dataclass(frozen=True)
class DistillTask(Generic[SettingsT]):
    """One distillation.

    Attributes:
        patches: the teachers. student: where the cloud weights start. block: the events that are distilled.
        config: settings that all methods read. settings: the method's own, with `negatives` filled in.
        device: where to compute. work: gets the files. on_progress: see compute.OnProgress.
    """

    patches: "PatchSet"
    student: "CloudModel"
    block: "Block"
    config: DistillConfig
    settings: SettingsT
    device: "torch.device"
    work: "Work"
    on_progress: "OnProgress"

    @property
    def log(self) -> "EventLog":
        return self.student.dataset.log

    @property
    def seed(self) -> int:
        return self.config.seed


class DistillationMethod(ABC, Generic[SettingsT]):
    """How patched models teach a cloud model."""

    Settings: ClassVar[type[Section]]

    @abstractmethod
    def check(self, patches: "PatchSet", block: "Block", config: DistillConfig) -> None:
        """Refuse teachers that cannot teach the events of the block.

        Raises:
            UsageError: with the remedy.
        """

    def histories(self, task: DistillTask[SettingsT]) -> "EventLog":
        """The log that student and teachers see."""
        return task.log

    @abstractmethod
    def objective(self, task: DistillTask[SettingsT], log: "EventLog") -> "Objective":
        """What the student minimises.

        Args:
            log: from `histories`.
        """

    def after(self, task: DistillTask[SettingsT], model: "Trainable", objective: "Objective") -> dict[str, Any]:
        """What follows once the cloud weights are learned; returns what else the manifest says.

        Args:
            model: the student with its new weights.
        """
        return {"basis_losses": [], "no_basis": "this method learns no basis Θ and no encoder U"}


def method_of(name: str) -> DistillationMethod[Any]:
    """The method with this name."""
    method: DistillationMethod[Any] = METHODS[name].load()()
    return method


def default_method(patches: "PatchSet") -> str:
    """The method for some teachers: those with a memory have counted the events that they would be asked about."""
    return "from-memory" if patches.memory is not None else "momodistill"
