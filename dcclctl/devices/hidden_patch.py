"""Patches inside a click model with two hidden layers, and the gradient of a device's loss, written by hand.

Source: Yao et al. 2021, section 3.1: f_l(·) + h_l(f_l(·)), ϑ = ϑ₀ + Θ·θ̂, device loss Σ CE + λ‖θ̂‖².

Shapes: U users, N rows (a row is one candidate of one event), H1 and H2 hidden units, R bottleneck, P patch weights,
K numbers in θ̂.

Differs: ϑ₀ is frozen with a zero up-projection, so that θ̂ = 0 is exactly the cloud model; besides the two bottleneck
patches there is a correction of the output weights and bias; the first Θ is learned by auto-decoding, and its columns
always have length 1, because a larger Θ with a smaller θ̂ would give the same loss and evade the prior λ.
The prior is λ‖θ̂ − μ‖² with a mean μ that is learned from all users' events, so that a change of the model that all
users need is learned once, and not by each device from few events. A user without a patch has θ̂ = 0.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dcclctl.devices.basis import Layout, SharedBasis, fit_codes
from dcclctl.devices.settings import LocalSettings
from dcclctl.events.sampling import Ints
from dcclctl.models.din import Din, DinBackbone, prelu
from dcclctl.models.kernels import dots
from dcclctl.models.scoring import HeadFunction


@dataclass(frozen=True)
class Patch:
    """The patch weights of U users, as views of ϑ (U, P)."""

    down_1: Float[Tensor, "U R H1"]
    up_1: Float[Tensor, "U H1 R"]
    down_2: Float[Tensor, "U R H2"]
    up_2: Float[Tensor, "U H2 R"]
    out: Float[Tensor, "U H2"]
    bias: Float[Tensor, "U 1"]


@dataclass(frozen=True)
class PatchShape(Layout[Patch]):
    """Sizes of a patch inside a DIN with two hidden layers."""

    hidden_sizes: tuple[int, int]
    bottleneck: int

    @property
    def parts(self) -> dict[str, tuple[int, ...]]:
        (h1, h2), r = self.hidden_sizes, self.bottleneck
        return {"down_1": (r, h1), "up_1": (h1, r), "down_2": (r, h2), "up_2": (h2, r), "out": (h2,), "bias": (1,)}

    def patch(self, weights: Float[Tensor, "U P"]) -> Patch:
        return Patch(**self.pieces(weights))


#: ϑ₀ and Θ of patches inside a DIN
Basis = SharedBasis[Patch]


def patched_logits(model: Din, z1: Float[Tensor, "B C H1"], patch: Patch) -> Float[Tensor, "B C"]:
    """f^(m): the cloud model's logits with one patch per batch row (U = B), from first-layer activations.

    The patch is added to the outputs of the cloud's layers, so a zero patch gives exactly the cloud model's logits.
    """
    z1 = z1 + torch.tanh(z1 @ patch.down_1.mT) @ patch.up_1.mT
    z2 = model.second_layer(z1)
    z2 = z2 + torch.tanh(z2 @ patch.down_2.mT) @ patch.up_2.mT
    correction = dots(patch.out, z2) + patch.bias
    return model.logits(z2) + correction


@dataclass(frozen=True)
class Head:
    """The frozen weights above the first hidden layer, as plain tensors."""

    weight_2: Float[Tensor, "H2 H1"]
    bias_2: Float[Tensor, "H2"]
    slope_2: Float[Tensor, "H2"]
    out: Float[Tensor, "H2"]
    bias: Float[Tensor, ""]

    @classmethod
    def of(cls, model: Din) -> "Head":
        return cls(
            model.hidden_2.weight.detach(),
            model.hidden_2.bias.detach(),
            model.slope_2.detach(),
            model.out.weight.detach()[0],
            model.out.bias.detach()[0],
        )


@dataclass(frozen=True)
class DeviceRows:
    """The rows of U users, padded to N.

    Attributes:
        z1: (U, N, H1) first-layer activations. labels: (U, N). weights: (U, N), 0 for padding and held-back rows.
    """

    z1: Float[Tensor, "U N H1"]
    labels: Float[Tensor, "U N"]
    weights: Float[Tensor, "U N"]


def device_gradient(
    head: Head, patch: Patch, rows: DeviceRows, linear_2: Float[Tensor, "U N H2"]
) -> tuple[Float[Tensor, "U P"], Float[Tensor, "U N"]]:
    """Gradient of Σ CE with respect to every patch weight, and the logits.

    W₂·(z₁ + U₁s₁) = W₂z₁ + (W₂U₁)s₁, so the wide layer is multiplied once (`linear_2`) and a step works in the
    bottleneck only; gradients of the up-projections are outer products with the frozen weights.

    Args:
        linear_2: see `second_linear`.
    """
    s1 = torch.tanh(torch.bmm(rows.z1, patch.down_1.mT))  # (U, N, R)
    up_1 = head.weight_2 @ patch.up_1  # (U, H2, R): W₂U₁
    a2 = torch.baddbmm(linear_2, s1, up_1.mT)
    z2 = prelu(a2, head.slope_2)
    s2 = torch.tanh(torch.bmm(z2, patch.down_2.mT))
    out = head.out + patch.out  # (U, H2)
    pull = torch.bmm(patch.up_2.mT, out.unsqueeze(-1))  # (U, R, 1): U₂ᵀ(w + δw)
    logits = dots(out, z2) + dots(pull.squeeze(-1), s2) + head.bias + patch.bias
    residual = (torch.sigmoid(logits) - rows.labels) * rows.weights  # (U, N)

    r = residual.unsqueeze(1)  # (U, 1, N)
    sum_s2 = torch.bmm(r, s2)  # (U, 1, R)
    g_bias = residual.sum(1, keepdim=True)
    g_out = torch.bmm(r, z2).squeeze(1) + torch.bmm(patch.up_2, sum_s2.mT).squeeze(-1)
    g_up_2 = out.unsqueeze(-1) * sum_s2  # (U, H2, R)
    g_d2 = residual.unsqueeze(-1) * pull.mT * (1 - s2 * s2)  # (U, N, R)
    g_down_2 = torch.bmm(g_d2.mT, z2)
    g_z2 = torch.baddbmm(residual.unsqueeze(-1) * out.unsqueeze(1), g_d2, patch.down_2)
    positive = torch.sign(a2).clamp_(min=0)  # torch's where is twenty times slower than this on a CPU
    g_a2 = g_z2.mul_(torch.addcmul(head.slope_2, positive, 1 - head.slope_2))
    sum_a2 = torch.bmm(g_a2.mT, s1)  # (U, H2, R)
    g_up_1 = head.weight_2.T @ sum_a2
    g_d1 = torch.bmm(g_a2, up_1) * (1 - s1 * s1)
    g_down_1 = torch.bmm(g_d1.mT, rows.z1)
    pieces = [g_down_1, g_up_1, g_down_2, g_up_2, g_out, g_bias]
    return torch.cat([piece.flatten(1) for piece in pieces], dim=1), logits


@torch.no_grad()
def fit_devices(
    head: Head, basis: Basis, rows: DeviceRows, settings: LocalSettings, mean: Float[Tensor, "K"] | None = None
) -> Float[Tensor, "U K"]:
    """Learn θ̂ of the rows' users, see basis.fit_codes."""
    linear_2 = second_linear(head, rows)
    return fit_codes(lambda patch: device_gradient(head, patch, rows, linear_2)[0], basis, len(rows.z1), settings, mean)


def second_linear(head: Head, rows: DeviceRows) -> Float[Tensor, "U N H2"]:
    """W₂·z₁ + b₂, the same for all steps of a device."""
    return torch.addmm(head.bias_2, rows.z1.flatten(0, 1), head.weight_2.T).view(*rows.z1.shape[:2], -1)


def head_logits(head: Head, z1: Float[Tensor, "B C H1"], patch: Patch) -> Float[Tensor, "B C"]:
    """`patched_logits` on plain tensors, differentiable with respect to the patch."""
    z1 = z1 + torch.tanh(z1 @ patch.down_1.mT) @ patch.up_1.mT
    z2 = prelu(z1 @ head.weight_2.T + head.bias_2, head.slope_2)
    z2 = z2 + torch.tanh(z2 @ patch.down_2.mT) @ patch.up_2.mT
    return dots(head.out + patch.out, z2) + head.bias + patch.bias


#: events (B,), candidates (B, C) → first-layer activations (B, C, H1)
Activations = Callable[[Ints, Int[Tensor, "B C"]], Float[Tensor, "B C H1"]]


def frozen_head(
    head: Head, activations: Activations, events: Ints
) -> Callable[[Ints, Int[Tensor, "B C"], Patch], Float[Tensor, "B C"]]:
    """The `logits` of `learn_basis`: the patched model's, at positions in `events`; only the patch gets gradients."""

    def logits(rows: Ints, candidates: Int[Tensor, "B C"], patch: Patch) -> Float[Tensor, "B C"]:
        with torch.no_grad():
            z1 = activations(events[rows], candidates)
        return head_logits(head, z1, patch)

    return logits


def patched_head(backbone: DinBackbone, basis: Basis, codes: Float[Tensor, "U K"]) -> HeadFunction:
    """The head with the patch of each event's user; `codes` has all users of the log (a zero row: the cloud model)."""
    model, log = backbone.model, backbone.log
    basis = basis.to(model.out.weight.device)

    def head(events: Ints, candidates: Tensor | None, z1: Tensor) -> Tensor:
        own = codes[torch.from_numpy(log.user[events])].to(z1.device)
        return patched_logits(model, z1, basis.patch(own))

    return head
