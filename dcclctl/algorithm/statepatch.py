"""MetaPatch after a sequence encoder: the frozen model's state s becomes s + up·tanh(down·s) + offset.

Source: Yao et al. 2021, section 3.1: f_l(·) + h_l(f_l(·)), ϑ = ϑ₀ + Θ·θ̂, device loss Σ CE + λ‖θ̂‖²; here f_l is the
sequence encoder, and what follows it is the dot product with the items, so that patched users are ranked exactly.

Differs: as in metapatch.py ϑ₀ is frozen with a zero up-projection, so that θ̂ = 0 is exactly the cloud model, and Θ's
columns have length 1; the prior has a learned mean μ. There is a per-user offset of the state: a user's taste in the
space of the items.

Shapes: U users, N events, C candidates, D state, R bottleneck, P patch weights, K numbers in θ̂.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from dcclctl.algorithm.metapatch import descend
from dcclctl.algorithm.sampling import Ints, permutation
from dcclctl.algorithm.sequence import SequenceBackbone
from dcclctl.errors import DivergedError


@dataclass(frozen=True)
class StateShape:
    """Sizes of a patch; fixes the layout of the P weights in one flat vector: down, up, offset."""

    state_size: int
    bottleneck: int

    @property
    def size(self) -> int:
        """P."""
        return self.state_size * (2 * self.bottleneck + 1)


@dataclass(frozen=True)
class StateBasis:
    """What all users share: ϑ₀ (P,) and Θ (P, K)."""

    shape: StateShape
    origin: Float[Tensor, "P"]
    theta: Float[Tensor, "P K"]

    @property
    def size(self) -> int:
        """K."""
        return self.theta.shape[1]

    def to(self, device: torch.device) -> "StateBasis":
        return StateBasis(self.shape, self.origin.to(device), self.theta.to(device))

    def patch(self, codes: Float[Tensor, "U K"]) -> "StatePatch":
        """ϑ = ϑ₀ + Θ·θ̂ for every user."""
        size, r = self.shape.state_size, self.shape.bottleneck
        down, up, offset = torch.split(self.origin + codes @ self.theta.T, [r * size, size * r, size], dim=-1)
        return StatePatch(down.view(-1, r, size), up.view(-1, size, r), offset)


@dataclass(frozen=True)
class StatePatch:
    """The patch weights of U users, as views of ϑ (U, P)."""

    down: Float[Tensor, "U R D"]
    up: Float[Tensor, "U D R"]
    offset: Float[Tensor, "U D"]

    def change(self, states: Float[Tensor, "U N D"]) -> Float[Tensor, "U N D"]:
        """What the patch adds to each state."""
        return torch.tanh(states @ self.down.mT) @ self.up.mT + self.offset.unsqueeze(1)


def new_basis(shape: StateShape, size: int, seed: int) -> StateBasis:
    """ϑ₀ with a random down-projection and zero elsewhere; Θ random with columns of length 1, to be learned.

    Args:
        shape: sizes of the patches. size: K. seed: seed of both draws.
    """
    generator = torch.Generator().manual_seed(seed)
    origin = torch.zeros(shape.size)
    origin[: shape.bottleneck * shape.state_size].normal_(std=shape.state_size**-0.5, generator=generator)
    theta = torch.empty(shape.size, size).normal_(generator=generator)
    return StateBasis(shape, origin, theta / theta.norm(dim=0))


def patched_states(
    states: Float[Tensor, "B D"], basis: StateBasis, codes: Float[Tensor, "B K"]
) -> Float[Tensor, "B D"]:
    """Every state with its own user's patch; a zero code changes no bit of it."""
    return states + basis.patch(codes).change(states.unsqueeze(1)).squeeze(1)


def state_head(
    backbone: SequenceBackbone, basis: StateBasis, codes: Float[Tensor, "U K"]
) -> Callable[[Ints, Int[Tensor, "B C"] | None, Tensor], Tensor]:
    """The head with each event's user's patch; `codes` has a row for every user of the log (zero: the cloud model)."""
    basis = basis.to(backbone.embeddings.device)

    def head(events: Ints, candidates: Int[Tensor, "B C"] | None, states: Float[Tensor, "B D"]) -> Tensor:
        own = codes[torch.from_numpy(backbone.log.user[events])].to(states.device)
        return backbone.logits(patched_states(states, basis, own), candidates)

    return head


@dataclass(frozen=True)
class StateRows:
    """The events of U users, padded to N, with what the frozen model makes of them.

    Attributes:
        states: (U, N, D). items: (U, N, C, D) embeddings of the candidates. bias: (U, N, C) their biases.
        labels: (U, N, C). weights: (U, N, C), 0 for padding and for events that are held back.
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
        return (self.items @ states.unsqueeze(-1)).squeeze(-1) + self.bias

    def losses(self, patch: StatePatch) -> Float[Tensor, "U"]:
        """Σ CE of every user over the candidates that count, nats."""
        losses = F.binary_cross_entropy_with_logits(self.logits(patch), self.labels, reduction="none")
        return (losses * self.weights).sum((1, 2))

    def weighing(self, weights: Float[Tensor, "U N C"]) -> "StateRows":
        """The same with other weights."""
        return replace(self, weights=weights)


def device_gradient(rows: StateRows, patch: StatePatch) -> Float[Tensor, "U P"]:
    """Gradient of each user's Σ CE with respect to every patch weight, by hand: all users in three batched products."""
    s = torch.tanh(torch.bmm(rows.states, patch.down.mT))  # (U, N, R)
    logits = rows._product(rows.states + torch.bmm(s, patch.up.mT) + patch.offset.unsqueeze(1))
    residual = (torch.sigmoid(logits) - rows.labels) * rows.weights
    g_state = (residual.unsqueeze(2) @ rows.items).squeeze(2)  # (U, N, D): gradient at the patched state
    g_up = torch.bmm(g_state.mT, s)
    g_down = torch.bmm((torch.bmm(g_state, patch.up) * (1 - s * s)).mT, rows.states)
    return torch.cat([g_down.flatten(1), g_up.flatten(1), g_state.sum(1)], dim=1)


@torch.no_grad()
def fit_devices(
    basis: StateBasis,
    rows: StateRows,
    steps: int,
    learning_rate: float,
    prior: float,
    mean: Float[Tensor, "K"] | None = None,
) -> Float[Tensor, "U K"]:
    """θ̂ of U users at once; every user's numbers are those of training that user alone.

    Args:
        rows: cached rows of each user. steps, learning_rate: Adam's. prior: λ. mean: μ, zeros if None; θ̂ starts there.

    Raises:
        DivergedError: θ̂ became infinite or NaN.

    Source: Yao et al. 2021, eq. 3, with the sum over a user's events (so that λ weighs more for users with few).
    """
    center = torch.zeros(basis.size, device=rows.states.device) if mean is None else mean

    def gradient(codes: Float[Tensor, "U K"]) -> Float[Tensor, "U K"]:
        return torch.addmm(2 * prior * (codes - center), device_gradient(rows, basis.patch(codes)), basis.theta)

    return descend(gradient, center.repeat(len(rows.states), 1), steps, learning_rate)


def learn_basis(
    basis: StateBasis,
    events: Ints,
    users: Ints,
    rows_of: Callable[[int, Ints], StateRows],
    epochs: int,
    learning_rate: float,
    prior: float,
    seed: int,
    batch_size: int = 1024,
    on_epoch: Callable[[int, float], None] | None = None,
    with_mean: bool = False,
) -> tuple[StateBasis, Float[Tensor, "K"]]:
    """Θ and the prior's mean μ, by auto-decoding: they and θ̂ of all users are trained together on events f has not seen.

    Each event carries its share λ‖θ̂ − μ‖²/n_user of the prior, so that the objective is the devices' own, summed over users.

    Args:
        basis: where Θ starts from; ϑ₀ stays as it is.
        events, users: (E,) rows of the log and dense numbers 0…U−1 of their users.
        rows_of: (epoch, positions (B,) into `events`) → one event a row, with negatives of that epoch: U = B, N = 1.
        with_mean: learn μ; if not it is 0.

    Returns:
        The basis, and μ (K,).

    Raises:
        DivergedError: the loss became infinite or NaN.

    Source: auto-decoding as in Park et al., DeepSDF, CVPR 2019.
    """
    device = basis.theta.device
    n_users = int(users.max(initial=-1)) + 1
    theta = basis.theta.clone().requires_grad_()
    table = torch.zeros(n_users, basis.size, device=device, requires_grad=True)  # what each user's θ̂ is beside μ
    mean = torch.zeros(basis.size, device=device, requires_grad=with_mean)
    share = torch.from_numpy(1.0 / np.bincount(users, minlength=n_users)[users]).float().to(device)
    owners: Int[Tensor, "E"] = torch.from_numpy(users).to(device)
    optimiser = torch.optim.Adam([theta, table, mean] if with_mean else [theta, table], lr=learning_rate)
    for epoch in range(epochs):
        order = permutation(seed, "basis/shuffle", events, epoch)
        total, counted = 0.0, 0.0
        for begin in range(0, len(order), batch_size):
            positions = order[begin : begin + batch_size]
            index = torch.from_numpy(positions).to(device)
            rows = rows_of(epoch, positions)
            own = table[owners[index]]
            data = rows.losses(replace(basis, theta=theta).patch(own + mean)).sum()
            loss = (data + prior * (own.square().sum(1) * share[index]).sum()) / len(positions)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            with torch.no_grad():
                theta /= theta.norm(dim=0)
            total, counted = total + float(data.detach()), counted + float(rows.weights.sum())
        loss_now = total / counted if counted else math.nan
        if not math.isfinite(loss_now):
            raise DivergedError(
                f"the loss of Θ became {loss_now}", "Lower --basis-learning-rate and run the command again."
            )
        if on_epoch is not None:
            on_epoch(epoch + 1, loss_now)
    return replace(basis, theta=theta.detach()), mean.detach()
