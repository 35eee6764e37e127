"""Patches after a sequence encoder: the frozen model's state s becomes s + up·tanh(down·s) + offset.

Source: Yao et al. 2021, section 3.1: f_l(·) + h_l(f_l(·)), ϑ = ϑ₀ + Θ·θ̂, device loss Σ CE + λ‖θ̂‖²; here f_l is the
sequence encoder. The logits are still dot products with the items.

Differs: as in hidden_patch.py ϑ₀ is frozen with a zero up-projection, so that θ̂ = 0 is exactly the cloud model, Θ's
columns have length 1, and the prior has a learned mean μ. There is an offset of the state per user.

Shapes: U users, N events, C candidates, D state, R bottleneck, P patch weights, K numbers in θ̂.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from dcclctl.devices.basis import Layout, SharedBasis, fit_codes
from dcclctl.devices.settings import LocalSettings
from dcclctl.events.sampling import Ints
from dcclctl.models.scoring import HeadFunction
from dcclctl.models.sequence import SequenceBackbone


@dataclass(frozen=True)
class StatePatch:
    """The patch weights of U users, as views of ϑ (U, P)."""

    down: Float[Tensor, "U R D"]
    up: Float[Tensor, "U D R"]
    offset: Float[Tensor, "U D"]

    def change(self, states: Float[Tensor, "U N D"]) -> Float[Tensor, "U N D"]:
        """The patch's addition to each state."""
        return torch.tanh(states @ self.down.mT) @ self.up.mT + self.offset.unsqueeze(1)


@dataclass(frozen=True)
class StateShape(Layout[StatePatch]):
    """Sizes of a patch after a sequence encoder."""

    state_size: int
    bottleneck: int

    @property
    def parts(self) -> dict[str, tuple[int, ...]]:
        size, r = self.state_size, self.bottleneck
        return {"down": (r, size), "up": (size, r), "offset": (size,)}

    def patch(self, weights: Float[Tensor, "U P"]) -> StatePatch:
        return StatePatch(**self.pieces(weights))


#: ϑ₀ and Θ of patches after a sequence encoder
StateBasis = SharedBasis[StatePatch]


def patched_states(
    states: Float[Tensor, "B D"], basis: StateBasis, codes: Float[Tensor, "B K"]
) -> Float[Tensor, "B D"]:
    """Every state with its own user's patch; a zero code leaves it exactly as it is."""
    return states + basis.patch(codes).change(states.unsqueeze(1)).squeeze(1)


def state_head(backbone: SequenceBackbone, basis: StateBasis, codes: Float[Tensor, "U K"]) -> HeadFunction:
    """The head with the patch of each event's user; `codes` has all users of the log (a zero row: the cloud model)."""
    basis = basis.to(backbone.embeddings.device)

    def head(events: Ints, candidates: Int[Tensor, "B C"] | None, states: Float[Tensor, "B D"]) -> Tensor:
        own = codes[torch.from_numpy(backbone.log.user[events])].to(states.device)
        return backbone.logits(patched_states(states, basis, own), candidates)

    return head


#: candidates (B, C) → their embeddings (B, C, D) and biases (B, C)
Items = Callable[[Int[Tensor, "B C"]], tuple[Float[Tensor, "B C D"], Float[Tensor, "B C"]]]


def frozen_states(
    states: Float[Tensor, "E D"], items: Items
) -> Callable[[Ints, Int[Tensor, "B C"], StatePatch], Float[Tensor, "B C"]]:
    """The `logits` of `learn_basis`: the patched model's, from the events' states; only the patch gets gradients."""

    def logits(rows: Ints, candidates: Int[Tensor, "B C"], patch: StatePatch) -> Float[Tensor, "B C"]:
        own = states[torch.from_numpy(rows).to(states.device)].unsqueeze(1)  # (B, 1, D)
        embeddings, bias = items(candidates)
        return (embeddings @ (own + patch.change(own)).mT).squeeze(-1) + bias

    return logits


@dataclass(frozen=True)
class StateRows:
    """The events of U users, padded to N, with states, embeddings and biases of the frozen model.

    Attributes:
        states: (U, N, D). items: (U, N, C, D) embeddings of the candidates. bias: (U, N, C) their biases.
        labels: (U, N, C). weights: (U, N, C), 0 for padding and held-back events.
    """

    states: Float[Tensor, "U N D"]
    items: Float[Tensor, "U N C D"]
    bias: Float[Tensor, "U N C"]
    labels: Float[Tensor, "U N C"]
    weights: Float[Tensor, "U N C"]

    def logits(self, patch: StatePatch) -> Float[Tensor, "U N C"]:
        """Logits of the patched model."""
        return self._product(self.states + patch.change(self.states))

    def _product(self, states: Float[Tensor, "U N D"]) -> Float[Tensor, "U N C"]:
        products: Tensor = torch.linalg.vecdot(self.items, states.unsqueeze(2))
        return products + self.bias

    def losses(self, patch: StatePatch) -> Float[Tensor, "U"]:
        """Σ CE of every user over the candidates that count, nats."""
        losses = F.binary_cross_entropy_with_logits(self.logits(patch), self.labels, reduction="none")
        return (losses * self.weights).sum((1, 2))


def device_gradient(rows: StateRows, patch: StatePatch) -> Float[Tensor, "U P"]:
    """Gradient of each user's Σ CE with respect to every patch weight, by hand: all users in three batched products."""
    s = torch.tanh(torch.bmm(rows.states, patch.down.mT))  # (U, N, R)
    logits = rows._product(rows.states + torch.bmm(s, patch.up.mT) + patch.offset.unsqueeze(1))
    residual = (torch.sigmoid(logits) - rows.labels) * rows.weights
    g_state = (residual.unsqueeze(2) @ rows.items).squeeze(2)  # (U, N, D): gradient at the patched state
    g_up = torch.bmm(g_state.mT, s)
    g_down = torch.bmm((torch.bmm(g_state, patch.up) * (1 - s * s)).mT, rows.states)
    return torch.cat([g_down.flatten(1), g_up.flatten(1), g_state.sum(1)], dim=1)


def fit_devices(
    basis: StateBasis, rows: StateRows, settings: LocalSettings, mean: Float[Tensor, "K"] | None = None
) -> Float[Tensor, "U K"]:
    """Learn θ̂ of the rows' users, see basis.fit_codes."""
    return fit_codes(lambda patch: device_gradient(rows, patch), basis, len(rows.states), settings, mean)
