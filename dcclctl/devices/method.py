"""What a device method is, and the table of all methods. A new method is one file and one row."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from dcclctl.config import PatchConfig, Section, Variant
from dcclctl.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import polars as pl
    import torch

    from dcclctl.artifacts import CloudModel, Memory, PatchSet
    from dcclctl.compute import OnProgress
    from dcclctl.devices.encoder import Encoder
    from dcclctl.events.log import Block, EventLog
    from dcclctl.events.sampling import Ints
    from dcclctl.models.scoring import Backbone, HeadFunction, PatchPoint
    from dcclctl.store.work import Work

#: `patch --method` → where it is, and what it is
METHODS: Mapping[str, Variant] = {
    "memory": Variant(
        "dcclctl.devices.memory.method:MemoryMethod",
        "conditioned on what the device remembers of its user's whole log; needs no training on the device",
    ),
    "metapatch": Variant(
        "dcclctl.devices.metapatch:MetaPatch",
        "the paper's: each device learns K numbers θ̂, which generate the weights of patches inside the model",
    ),
    "fine-tune": Variant(
        "dcclctl.devices.fine_tune:FineTune", "each device learns its own last layers (the strong control)"
    ),
}

SettingsT = TypeVar("SettingsT", bound=Section)


@dataclass(frozen=True)
class PatchTask(Generic[SettingsT]):
    """One run of a device method.

    Attributes:
        cloud: the frozen model. block: what the devices learn from.
        users: (U,) who gets a patch, ascending. config: settings that all methods read. settings: the method's own.
        device: where to compute. work: gets the patches' files. on_progress: see compute.OnProgress.
        memory: what the devices remember, for a method that uses it.
    """

    cloud: "CloudModel"
    block: "Block"
    users: "Ints"
    config: PatchConfig
    settings: SettingsT
    device: "torch.device"
    work: "Work"
    on_progress: "OnProgress"
    memory: "Memory | None" = None

    @property
    def log(self) -> "EventLog":
        return self.cloud.dataset.log

    @property
    def seed(self) -> int:
        return self.config.seed


@dataclass(frozen=True)
class Learned:
    """What a method made.

    Attributes:
        users: a PATCHED_USERS table. patch_size: K, numbers in a user's θ̂; 0 without any.
        bytes_per_user: what a device keeps. facts: what else the manifest says about the patches.
    """

    users: "pl.DataFrame"
    patch_size: int
    bytes_per_user: int
    facts: dict[str, Any]


@dataclass(frozen=True)
class Serving:
    """How patches are put on a model.

    Attributes:
        placebo: '' or one of serving.PLACEBOS. seed: of a placebo's draws.
        encoder: serves users without a patch; None: the cloud model does.
    """

    placebo: str = ""
    seed: int = 0
    encoder: "Encoder | None" = None


@dataclass(frozen=True)
class Served:
    """A model as it serves users.

    Attributes:
        head: logits from activations. by: (U,) what serves each user, one of tables.SERVED_BY.
    """

    head: "HeadFunction"
    by: "npt.NDArray[np.str_]"


class DeviceMethod(ABC, Generic[SettingsT]):
    """How patches are learned from users' own events, kept, and put on a cloud model.

    Attributes:
        Settings: its section.
        patch_points: where in a cloud model it can put a patch; empty: it works with every model.
        uses_memory: does it need what the devices remember?
        learns_locally: does it learn from a user's own events of the block? If not, users without any get a patch too.
        own_basis: does it bring what its users share, whatever basis the cloud model has?
    """

    Settings: ClassVar[type[Section]]
    patch_points: "ClassVar[tuple[PatchPoint, ...]]" = ()
    uses_memory: ClassVar[bool] = False
    learns_locally: ClassVar[bool] = True
    own_basis: ClassVar[bool] = True

    def adapt(self, settings: SettingsT, cloud: "CloudModel") -> SettingsT:
        """The settings, as far as the cloud model leaves a choice."""
        return settings

    @abstractmethod
    def learn(self, task: PatchTask[SettingsT]) -> Learned:
        """Learn the patches and write their tensors into the task's work."""

    @abstractmethod
    def open(self, patches: "PatchSet", backbone: "Backbone", serving: Serving) -> Served:
        """Put committed patches on a model. A user without a patch is served by the cloud model, or by the encoder."""

    def check(self, backbone: "Backbone", cloud: "CloudModel", method: str) -> None:
        """Refuse a cloud model without a place for the patch.

        Raises:
            UsageError: the model has no such place.
        """
        if self.patch_points and backbone.patch_point not in self.patch_points:
            fitting = {"hidden_layers": "--model din", "states": "--model sasrec or gru4rec"}
            wanted = " or ".join(fitting[point] for point in self.patch_points)
            raise UsageError(
                f"--method {method} cannot patch {cloud.ref}, a {cloud.model} model",
                f"Use --method memory, or train another cloud model: dcclctl train {wanted}",
            )


def method_of(name: str) -> DeviceMethod[Any]:
    """The method with this name."""
    method: DeviceMethod[Any] = METHODS[name].load()()
    return method
