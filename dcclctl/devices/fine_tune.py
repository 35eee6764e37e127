"""Per-user fine-tuning, a strong baseline: each device learns a change of every weight above the first hidden layer.

Shapes: U users, N rows (a row is one candidate of one event), H1 and H2 hidden units, K numbers in a change.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from dcclctl.artifacts import PatchSet
from dcclctl.artifacts.patches import USERS_FILE
from dcclctl.config import Rate, tuned
from dcclctl.devices.basis import descend
from dcclctl.devices.hidden import HiddenLearner
from dcclctl.devices.hidden_patch import DeviceRows, Head, second_linear
from dcclctl.devices.learner import CodeMethod
from dcclctl.devices.method import PatchTask
from dcclctl.devices.settings import LocalSettings
from dcclctl.events.sampling import Ints
from dcclctl.models.din import DinBackbone, prelu
from dcclctl.models.kernels import dots
from dcclctl.models.kind import open_backbone
from dcclctl.models.scoring import Backbone, HeadFunction, PatchPoint


class FineTuneSettings(LocalSettings):
    learning_rate: Rate = tuned(0.005, "Adam's step size on a device.", search="5e-4..5e-2")
    prior: Annotated[float, Field(ge=0.0)] = tuned(
        1.0, "Weight of the squared change against the sum of a user's losses.", search="0.1..100"
    )


@dataclass(frozen=True)
class LayerChange:
    """Changes of the weights of the second hidden layer and of the output, for U users, as views of (U, K)."""

    weight_2: Float[Tensor, "U H2 H1"]
    bias_2: Float[Tensor, "U H2"]
    out: Float[Tensor, "U H2"]
    bias: Float[Tensor, "U 1"]

    @classmethod
    def of(cls, codes: Float[Tensor, "U K"], shape: torch.Size) -> "LayerChange":
        """Cut the codes; shape: (H2, H1) of the second hidden layer's weight."""
        second, first = shape
        weight_2, bias_2, out, bias = torch.split(codes, [first * second, second, second, 1], dim=-1)
        return cls(weight_2.view(-1, second, first), bias_2, out, bias)


@torch.no_grad()
def fit_layers(head: Head, rows: DeviceRows, settings: LocalSettings) -> Float[Tensor, "U K"]:
    """Learn each user's own last layers by Adam on Σ CE + prior·‖change‖², with the gradient written by hand.

    Raises:
        DivergedError: a weight became infinite or NaN.
    """
    linear_2 = second_linear(head, rows)

    def gradient(codes: Float[Tensor, "U K"]) -> Float[Tensor, "U K"]:
        change = LayerChange.of(codes, head.weight_2.shape)
        a2 = torch.baddbmm(linear_2 + change.bias_2.unsqueeze(1), rows.z1, change.weight_2.mT)
        z2 = prelu(a2, head.slope_2)
        out = head.out + change.out
        logits = dots(out, z2) + head.bias + change.bias
        residual = (torch.sigmoid(logits) - rows.labels) * rows.weights
        positive = torch.sign(a2).clamp_(min=0)
        g_a2 = residual.unsqueeze(-1) * out.unsqueeze(1) * torch.addcmul(head.slope_2, positive, 1 - head.slope_2)
        pieces = [
            torch.bmm(g_a2.mT, rows.z1).flatten(1),
            g_a2.sum(1),
            torch.bmm(residual.unsqueeze(1), z2).squeeze(1),
            residual.sum(1, keepdim=True),
        ]
        return torch.cat(pieces, dim=1).add_(codes, alpha=2 * settings.prior)

    start = torch.zeros(len(rows.z1), number_of_weights(head), device=rows.z1.device)
    return descend(gradient, start, settings.steps, settings.learning_rate)


def number_of_weights(head: Head) -> int:
    """K: the weights above the first hidden layer."""
    second, first = head.weight_2.shape
    return first * second + 2 * second + 1


def changed_logits(head: Head, rows: DeviceRows, codes: Float[Tensor, "U K"]) -> Float[Tensor, "U N"]:
    """Logits of each user's own model on the user's rows."""
    change = LayerChange.of(codes, head.weight_2.shape)
    a2 = second_linear(head, rows) + rows.z1 @ change.weight_2.mT + change.bias_2.unsqueeze(1)
    out = (head.out + change.out).unsqueeze(-1)
    return (prelu(a2, head.slope_2) @ out).squeeze(-1) + head.bias + change.bias


def layer_head(backbone: DinBackbone, codes: Float[Tensor, "U K"]) -> HeadFunction:
    """The head with the own last layers of each event's user.

    The change is added to the outputs of the cloud's layers, so a zero code gives exactly the cloud model's logits.
    """
    model, log = backbone.model, backbone.log

    def head(events: Ints, candidates: Tensor | None, z1: Tensor) -> Tensor:
        own = codes[torch.from_numpy(log.user[events])].to(z1.device)
        change = LayerChange.of(own, model.hidden_2.weight.shape)
        a2 = model.hidden_2(z1) + (z1 @ change.weight_2.mT + change.bias_2.unsqueeze(1))
        z2 = prelu(a2, model.slope_2)
        return model.logits(z2) + (dots(change.out, z2) + change.bias)

    return head


class _Devices(HiddenLearner[FineTuneSettings]):
    def __init__(self, task: PatchTask[FineTuneSettings], backbone: Backbone) -> None:
        super().__init__(task, backbone)
        self.size = number_of_weights(self.head)

    def fit(self, rows: DeviceRows) -> Float[Tensor, "U K"]:
        return fit_layers(self.head, rows, self.settings)

    def logits(self, rows: DeviceRows, codes: Float[Tensor, "U K"]) -> Float[Tensor, "U N"]:
        return changed_logits(self.head, rows, codes)


class FineTune(CodeMethod[FineTuneSettings]):
    Settings = FineTuneSettings
    patch_points: ClassVar[tuple[PatchPoint, ...]] = ("hidden_layers",)

    def learner(self, task: PatchTask[FineTuneSettings], events: Ints) -> _Devices:
        backbone = open_backbone(task.cloud, task.device, task.log)
        self.check(backbone, task.cloud, "fine-tune")
        return _Devices(task, backbone)

    def head(self, patches: PatchSet, backbone: Backbone, codes: Float[Tensor, "U K"]) -> HeadFunction:
        model = cast(DinBackbone, backbone).model
        size = number_of_weights(Head.of(model))
        if size != codes.shape[1]:
            raise patches.artifact.unreadable(USERS_FILE, f"is for θ̂ of {codes.shape[1]:,} numbers, not {size:,}")
        return layer_head(cast(DinBackbone, backbone), codes)
