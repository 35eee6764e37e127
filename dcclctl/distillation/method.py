"""The interface of a distillation method, and the table of all methods. A new method is one file and one row."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, TypeVar

from pydantic import Field

from dcclctl.config import Count, DistillConfig, Positive, Rate, Section, Variant, rarely, tuned
from dcclctl.models.settings import PATIENCE, Share

if TYPE_CHECKING:
    import torch

    from dcclctl.artifacts import CloudModel, PatchSet
    from dcclctl.compute import OnProgress
    from dcclctl.events.log import Block, EventLog
    from dcclctl.models.training import Objective, Trainer
    from dcclctl.store.work import Work

#: `distill --method` → the code, and one line about the method
METHODS: Mapping[str, Variant] = {
    "momodistill": Variant(
        "dcclctl.distillation.momodistill:MoMoDistill",
        "the paper's: the teachers score labelled events; also learns the basis Θ and the encoder U",
    ),
    "from-memory": Variant(
        "dcclctl.distillation.from_memory:FromMemory",
        "the teachers rank items without labels; for teachers whose statistics count the events",
    ),
}


class TeachingSettings(Section):
    """Settings of every way of teaching."""

    beta: Annotated[float, Field(ge=0.0)] = tuned(
        0.1, "β: weight of the teachers against the labels.", search="0.01..3"
    )
    epochs: Positive = Field(3, description="Passes over the events for the cloud weights, at most.")
    patience: Count = Field(0, description=PATIENCE)
    learning_rate: Rate = tuned(0.002, "Adam's step size for the cloud weights.", search="1e-4..1e-2")
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
        patches: the teachers. student: start of the cloud weights. block: its events are distilled.
        config: settings of all methods. settings: the method's own, with `negatives` filled in.
        device: that computes. work: gets the files. on_progress: see compute.OnProgress.
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
    def seed(self) -> int:
        return self.config.seed


class DistillationMethod(ABC, Generic[SettingsT]):
    """How patched models teach a cloud model."""

    Settings: ClassVar[type[Section]]

    def check(self, patches: "PatchSet", block: "Block", config: DistillConfig) -> None:
        """Check that the teachers can teach the events of the block, and that all given settings are read.

        By default any patches can teach.

        Raises:
            UsageError: with the remedy.
        """

    @abstractmethod
    def objective(self, task: DistillTask[SettingsT], log: "EventLog") -> "Objective":
        """The student's objective on the events of some users."""

    def after(self, task: DistillTask[SettingsT], trainer: "Trainer") -> dict[str, Any]:
        """Further steps after the trainer's model has its new weights; returns further facts for the manifest."""
        return {"basis_losses": [], "no_basis": "this method learns no basis Θ and no encoder U"}


def method_of(name: str) -> DistillationMethod[Any]:
    """The method with this name."""
    method: DistillationMethod[Any] = METHODS[name].load()()
    return method


def default_method(patches: "PatchSet") -> str:
    """`from-memory` for teachers with a memory, whose statistics count the events; `momodistill` for all others."""
    return "from-memory" if patches.memory is not None else "momodistill"
