"""The interface of a device method, and the table of all methods. A new method is one file and one row."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
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

#: `patch --method` → the code, and one line about the method
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
        cloud: the frozen model. block: the events that the devices learn from. users: (U,) that get a patch, ascending.
        config: settings of all methods. settings: the method's own. device: that computes.
        work: gets the patches' files. on_progress: see compute.OnProgress. memory: for a method that uses it.
        learn_with: cloud model to learn with in place of `cloud`; None: that one, or what it was continued from.
        part: the events of some users; None: of all users. executor: who works on shards, see scale/executor.py.
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
    learn_with: "CloudModel | None" = None
    part: "EventLog | None" = None
    executor: str = "local"

    @property
    def log(self) -> "EventLog":
        return self.cloud.dataset.log if self.part is None else self.part

    @property
    def seed(self) -> int:
        return self.config.seed


@dataclass(frozen=True)
class Learned:
    """The result of a method.

    Attributes:
        users: a PATCHED_USERS table. patch_size: K, numbers in a user's θ̂; 0 for a method without θ̂.
        bytes_per_user: size on a device. facts: further facts for the manifest.
    """

    users: "pl.DataFrame"
    patch_size: int
    bytes_per_user: int
    facts: dict[str, Any]


@dataclass(frozen=True)
class Serving:
    """How patches serve users.

    Attributes:
        placebo: '' or one of serving.PLACEBOS. seed: of a placebo's draws.
        encoder: serves users without a patch; None: the cloud model serves them.
    """

    placebo: str = ""
    seed: int = 0
    encoder: "Encoder | None" = None


@dataclass(frozen=True)
class Served:
    """A model that serves users.

    Attributes:
        head: logits from activations. by: (U,) what serves each user, one of tables.SERVED_BY.
        at: events (B,) → (B,) whether that serves the event's user then; the cloud model does where not. None: always.
    """

    head: "HeadFunction"
    by: "npt.NDArray[np.str_]"
    at: "Callable[[Ints], npt.NDArray[np.bool_]] | None" = None

    def by_event(self, log: "EventLog", events: "Ints") -> "npt.NDArray[np.str_]":
        """(B,) what serves each event's user at the event, one of tables.SERVED_BY."""
        by = self.by[log.user[events]]
        if self.at is not None:
            by[~self.at(events)] = "cloud"
        return by

    def by_user(self, log: "EventLog", events: "Ints") -> "npt.NDArray[np.str_]":
        """(U,) what serves each user at one of the events (B,) at least; the cloud model where nothing else does."""
        served = log.user[events[self.by_event(log, events) != "cloud"]]
        by = self.by.copy()
        by[:] = "cloud"
        by[served] = self.by[served]
        return by


class DeviceMethod(ABC, Generic[SettingsT]):
    """How patches are learned from users' own events, saved, and applied to a cloud model.

    Attributes:
        Settings: its section.
        patch_points: where in a cloud model its patch can stand; empty: it works with every model.
        uses_memory: whether it needs the devices' memories.
        learns_locally: whether it learns from a user's own events of the block; if not, all users get a patch.
        own_basis: whether its shared parameters are independent of the cloud model's basis.
    """

    Settings: ClassVar[type[Section]]
    patch_points: "ClassVar[tuple[PatchPoint, ...]]" = ()
    uses_memory: ClassVar[bool] = False
    learns_locally: ClassVar[bool] = True
    own_basis: ClassVar[bool] = True

    def adapt(self, settings: SettingsT, cloud: "CloudModel") -> SettingsT:
        """The settings, with those that the cloud model determines."""
        return settings

    @abstractmethod
    def learn(self, task: PatchTask[SettingsT]) -> Learned:
        """Learn the patches and write their tensors into the task's work."""

    @abstractmethod
    def open(self, patches: "PatchSet", backbone: "Backbone", serving: Serving) -> Served:
        """Apply committed patches to a model. Users without a patch are served by the cloud model or the encoder."""

    def check(self, backbone: "Backbone", cloud: "CloudModel", method: str) -> None:
        """Check that the cloud model has a place for the patch.

        Raises:
            UsageError: it has no such place.
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
