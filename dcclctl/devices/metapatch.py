"""MetaPatch: one small vector θ̂ per user generates the weights of patches inside the frozen cloud model.

Source: Yao et al. 2021, section 3.1. hidden_patch.py (inside a click model) and state_patch.py (after a sequence
encoder) define the patches, and say what differs from the paper.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from dcclctl.artifacts import CloudModel, PatchSet
from dcclctl.artifacts.cloud import BASIS_FILE
from dcclctl.config import Positive, Rate, rarely, tuned
from dcclctl.devices import hidden_patch, state_patch
from dcclctl.devices.basis import Layout, SharedBasis, learn_basis, new_basis
from dcclctl.devices.basis_files import PRIOR_FILE, basis_of, read_basis, read_prior_mean, write_basis
from dcclctl.devices.hidden import HiddenLearner
from dcclctl.devices.hidden_patch import DeviceRows, PatchShape
from dcclctl.devices.learner import CodeMethod, Learner
from dcclctl.devices.method import PatchTask
from dcclctl.devices.settings import LocalSettings
from dcclctl.devices.state_patch import StateRows, StateShape
from dcclctl.errors import UsageError
from dcclctl.events.sampling import Ints, ranges, stream
from dcclctl.models.din import DinBackbone
from dcclctl.models.kernels import rows_of
from dcclctl.models.kind import open_backbone
from dcclctl.models.scoring import Backbone, HeadFunction, PatchPoint
from dcclctl.models.sequence import SequenceBackbone

#: events whose states are computed at once
_BATCH_EVENTS = 512


class MetaPatchSettings(LocalSettings):
    patch_size: Positive = tuned(16, "K: numbers in a user's θ̂.", search="8,16,32")
    bottleneck: Positive = tuned(8, "Width of the bottleneck of each patch.", search="4,8,16")
    prior_mean: Literal["learned", "zero"] = Field(
        "learned",
        description="μ, the prior's mean of θ̂: learned from all users' events with Θ, or zero, the cloud model.",
    )
    basis_epochs: Positive = Field(15, description="Passes over all users' events that learn Θ and μ.")
    basis_learning_rate: Rate = rarely(0.01, "Adam's step size for Θ and μ.", search="1e-3..3e-2")


class _Shared:
    """Θ and μ of one run: the cloud model's, or learned from all users' events of the block.

    They are written once; a resumed run reads them.

    Args:
        events: of the block, of all users or many of them. logits: makes the function of basis.learn_basis, if it is needed.
    """

    def __init__(
        self, learner: Learner[MetaPatchSettings, Any], shape: Layout[Any], events: Ints, logits: Callable[[], Any]
    ) -> None:
        task, settings = learner.task, learner.settings
        if not (task.work.finished(PRIOR_FILE) and task.work.finished(BASIS_FILE)):
            given, learns_mean = basis_of(task.cloud), settings.prior_mean == "learned"
            basis = given or new_basis(shape, settings.patch_size, stream(task.seed, "patch/basis"))
            mean = torch.zeros(settings.patch_size)
            if given is None or learns_mean:
                what = "learn the mean patch" if given else "learn the basis"
                fit = learner.joint_fit(what, settings.basis_epochs, settings.basis_learning_rate, len(events))
                shared = learner.shared_events(events)
                basis, mean, _ = learn_basis(
                    basis.to(task.device), shared, logits(), fit, with_mean=learns_mean, fixed=given is not None
                )
            task.work.write_tensors(PRIOR_FILE, {"mean": mean})
            write_basis(task.work, basis)  # last, so that a basis always comes with a mean
        self.basis: SharedBasis[Any] = read_basis(task.work).to(task.device)
        self.mean: Float[Tensor, "K"] = read_prior_mean(task.work).to(task.device)


class HiddenDevices(HiddenLearner[MetaPatchSettings]):
    """Patches after the hidden layers of a click model."""

    def __init__(self, task: PatchTask[MetaPatchSettings], backbone: Backbone, events: Ints) -> None:
        super().__init__(task, backbone)
        second, first = self.head.weight_2.shape
        shape = PatchShape((first, second), task.settings.bottleneck)
        self.shared = _Shared(
            self, shape, events, lambda: hidden_patch.frozen_head(self.head, self.activations, events)
        )
        self.size = self.shared.basis.size

    def fit(self, rows: DeviceRows) -> Float[Tensor, "U K"]:
        return hidden_patch.fit_devices(self.head, self.shared.basis, rows, self.settings, self.shared.mean)

    def logits(self, rows: DeviceRows, codes: Float[Tensor, "U K"]) -> Float[Tensor, "U N"]:
        return hidden_patch.head_logits(self.head, rows.z1, self.shared.basis.patch(codes))


class StateDevices(Learner[MetaPatchSettings, StateRows]):
    """Patches after the state of a sequence model."""

    def __init__(self, task: PatchTask[MetaPatchSettings], backbone: Backbone, events: Ints) -> None:
        super().__init__(task)
        self.backbone = cast(SequenceBackbone, backbone)
        shape = StateShape(self.backbone.embeddings.shape[1], task.settings.bottleneck)
        self.shared = _Shared(self, shape, events, lambda: state_patch.frozen_states(self.states(events), self._items))
        self.size = self.shared.basis.size

    def states(self, events: Ints) -> Float[Tensor, "E D"]:
        """States before the events; events with histories of similar length are computed together."""
        states = torch.empty(len(events), self.backbone.embeddings.shape[1], device=self.device)
        order = np.argsort(self.backbone.lengths(events), kind="stable")
        for at in range(0, len(order), _BATCH_EVENTS):
            some = order[at : at + _BATCH_EVENTS]
            states[torch.from_numpy(some).to(self.device)] = self.backbone.activations(events[some], None)
        return states

    def fit(self, rows: StateRows) -> Float[Tensor, "U K"]:
        return state_patch.fit_devices(self.shared.basis, rows, self.settings, self.shared.mean)

    def without(self, rows: StateRows, left_out: Bool[Tensor, "U N"]) -> StateRows:
        return replace(rows, weights=rows.weights * ~left_out.to(self.device).unsqueeze(2))

    def losses(self, rows: StateRows, codes: Float[Tensor, "U K"]) -> tuple[Float[Tensor, "U"], Float[Tensor, "U"]]:
        return rows.losses(self.shared.basis.patch(codes)).double(), rows.weights.double().sum((1, 2))

    def rows(self, events: Ints, first: Ints, counts: Ints) -> StateRows:
        """Padded events of some users, oldest event first."""
        own = events[ranges(first, first + counts)]
        samples = self.sampler.draw(own)
        values = self.states(own), *self._items(samples.candidates), samples.labels, samples.weights
        return StateRows(*(self.padded(each, counts) for each in values))

    def _items(self, candidates: Int[Tensor, "E C"]) -> tuple[Float[Tensor, "E C D"], Float[Tensor, "E C"]]:
        """Embeddings of candidates and their biases, frozen."""
        wanted = candidates.to(self.device)
        return rows_of(self.backbone.embeddings, wanted), self.backbone.model.item_bias.detach()[wanted]


class MetaPatch(CodeMethod[MetaPatchSettings]):
    Settings = MetaPatchSettings
    patch_points: ClassVar[tuple[PatchPoint, ...]] = ("hidden_layers", "states")
    own_basis = False

    def adapt(self, settings: MetaPatchSettings, cloud: CloudModel) -> MetaPatchSettings:
        """The settings, with the sizes of the cloud model's basis if it has one.

        Raises:
            UsageError: other sizes are given.
        """
        basis = basis_of(cloud)
        if basis is None:
            return settings
        sizes = {"patch_size": basis.size, "bottleneck": basis.shape.bottleneck}
        for name, value in sizes.items():
            if name in settings.model_fields_set and getattr(settings, name) != value:
                raise UsageError(
                    f"{name} = {getattr(settings, name)}: {cloud.ref} has a basis Θ with {name} = {value}",
                    "Leave the setting out, or patch a cloud model without a basis.",
                )
        return settings.model_copy(update=sizes)

    def learner(self, task: PatchTask[MetaPatchSettings], events: Ints) -> Learner[MetaPatchSettings, Any]:
        backbone = open_backbone(task.cloud, task.device, task.log)
        self.check(backbone, task.cloud, "metapatch")
        devices = HiddenDevices if backbone.patch_point == "hidden_layers" else StateDevices
        return devices(task, backbone, events)

    def head(self, patches: PatchSet, backbone: Backbone, codes: Float[Tensor, "U K"]) -> HeadFunction:
        basis = read_basis(patches.artifact)
        if basis.size != codes.shape[1]:
            raise patches.artifact.unreadable(BASIS_FILE, f"is for θ̂ of {basis.size:,} numbers, not {codes.shape[1]:,}")
        return head_of(basis, backbone, codes)


def head_of(basis: SharedBasis[Any], backbone: Backbone, codes: Float[Tensor, "U K"]) -> HeadFunction:
    """The model's head with patches ϑ₀ + Θ·θ̂ of every user."""
    if backbone.patch_point == "hidden_layers":
        return hidden_patch.patched_head(cast(DinBackbone, backbone), basis, codes)
    return state_patch.state_head(cast(SequenceBackbone, backbone), basis, codes)
