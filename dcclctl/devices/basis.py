"""What the patches of all users share, and how it is learned: ϑ = ϑ₀ + Θ·θ̂ and the prior's mean μ.

Source: Yao et al. 2021, section 3.1, and auto-decoding as in Park et al., DeepSDF, CVPR 2019, for the first Θ. What a
patch does with its weights ϑ is hidden_patch.py (inside a DIN) and state_patch.py (after a sequence encoder).

Shapes: U users, E events, B of them in a batch, C candidates, P patch weights, K numbers in θ̂.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from dcclctl.devices.settings import LocalSettings
from dcclctl.errors import DivergedError
from dcclctl.events.sampling import Ints, permutation

PatchT = TypeVar("PatchT")


class Layout(ABC, Generic[PatchT]):
    """What the P weights of a patch are, in one flat vector."""

    bottleneck: int

    @property
    @abstractmethod
    def parts(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every piece of ϑ, in order; down-projections are named down…, (R, features)."""

    @abstractmethod
    def patch(self, weights: Float[Tensor, "U P"]) -> PatchT:
        """The patches of U users, as views of ϑ."""

    @property
    def size(self) -> int:
        """P."""
        return sum(math.prod(part) for part in self.parts.values())

    def pieces(self, weights: Float[Tensor, "U P"]) -> dict[str, Tensor]:
        """ϑ of U users cut into its named pieces, each (U, …)."""
        cut = torch.split(weights, [math.prod(part) for part in self.parts.values()], dim=-1)
        return {name: piece.view(-1, *part) for (name, part), piece in zip(self.parts.items(), cut, strict=True)}


@dataclass(frozen=True)
class SharedBasis(Generic[PatchT]):
    """ϑ₀ (P,) and Θ (P, K)."""

    shape: Layout[PatchT]
    origin: Float[Tensor, "P"]
    theta: Float[Tensor, "P K"]

    @property
    def size(self) -> int:
        """K."""
        return self.theta.shape[1]

    def to(self, device: torch.device | str) -> "SharedBasis[PatchT]":
        return replace(self, origin=self.origin.to(device), theta=self.theta.to(device))

    def learnable(self, device: torch.device | str, fixed: bool = False) -> "SharedBasis[PatchT]":
        """A copy whose Θ is a leaf that gets gradients, unless it is fixed."""
        moved = self.to(device)
        return replace(moved, theta=moved.theta.clone().requires_grad_(not fixed))

    def weights(self, codes: Float[Tensor, "U K"]) -> Float[Tensor, "U P"]:
        """ϑ = ϑ₀ + Θ·θ̂ for every user."""
        return self.origin + codes @ self.theta.T

    def patch(self, codes: Float[Tensor, "U K"]) -> PatchT:
        return self.shape.patch(self.weights(codes))


def new_basis(shape: Layout[PatchT], size: int, seed: int) -> SharedBasis[PatchT]:
    """ϑ₀ with random down-projections and everything else zero; Θ random with columns of length 1, to be learned.

    Args:
        shape: sizes of the patches. size: K. seed: seed of both draws.
    """
    generator = torch.Generator().manual_seed(seed)
    pieces = []
    for name, part in shape.parts.items():
        piece = torch.zeros(part)
        if name.startswith("down"):
            piece.normal_(std=part[1] ** -0.5, generator=generator)
        pieces.append(piece.flatten())
    theta = torch.empty(shape.size, size).normal_(generator=generator)
    return SharedBasis(shape, torch.cat(pieces), theta / theta.norm(dim=0))


#: epoch → candidates, labels and weights (E, C) of the events, with negatives of that epoch
Draw = Callable[[int], tuple[Int[Tensor, "E C"], Float[Tensor, "E C"], Float[Tensor, "E C"]]]


@dataclass(frozen=True)
class SharedEvents:
    """What everybody learns from together.

    Attributes:
        events: (E,) rows of the log. users: (E,) dense numbers 0…U−1 of their users.
        draw: what each epoch learns from.
    """

    events: Ints
    users: Ints
    draw: Draw

    @property
    def n_users(self) -> int:
        """U."""
        return int(self.users.max(initial=-1)) + 1


@dataclass(frozen=True)
class JointFit:
    """How everybody learns together.

    Attributes:
        prior: λ. seed: orders the events of every epoch. batch_size: events of a step.
        on_epoch: is told the number of every epoch and its mean loss.
    """

    epochs: int
    learning_rate: float
    prior: float
    seed: int
    batch_size: int = 1024
    on_epoch: Callable[[int, float], None] | None = None


def learn_basis(
    basis: SharedBasis[PatchT],
    shared: SharedEvents,
    logits: Callable[[Ints, Int[Tensor, "B C"], PatchT], Float[Tensor, "B C"]],
    settings: JointFit,
    with_mean: bool = False,
    fixed: bool = False,
) -> tuple[SharedBasis[PatchT], Float[Tensor, "K"], Float[Tensor, "U K"]]:
    """Θ and the prior's mean μ, by auto-decoding: they and θ̂ of all users are trained together on events f has not seen.

    Each event carries its share λ‖θ̂ − μ‖²/n_user of the prior, so that the objective is the devices' own, summed over users.

    Args:
        basis: where Θ starts from, on the device that computes; ϑ₀ stays as it is.
        shared: events that f has not seen.
        logits: positions (B,) in the events, their candidates, the patch of each (U = B) → what the patched model says.
        with_mean: learn μ; if not it is 0.
        fixed: keep Θ as it is; for a μ to a given basis.

    Returns:
        The basis, μ (K,), and the table of θ̂ (U, K), on the CPU.

    Raises:
        DivergedError: the loss became infinite or NaN.
    """
    device = basis.theta.device
    learned = basis.learnable(device, fixed)
    # what each user's θ̂ is beside μ
    table = torch.zeros(shared.n_users, basis.size, device=device, requires_grad=True)
    mean = torch.zeros(basis.size, device=device, requires_grad=with_mean)
    owners = torch.from_numpy(shared.users).to(device)

    def forward(rows: Ints, candidates: Tensor) -> tuple[Tensor, Tensor]:
        own = table[owners[torch.from_numpy(rows).to(device)]]
        return logits(rows, candidates, learned.patch(own + mean)), own

    others = [table, mean] if with_mean else [table]
    learn_jointly(learned.theta, 1.0, others, forward, shared, settings)
    codes = (table + mean).detach().cpu()
    return replace(basis, theta=learned.theta.detach()).to("cpu"), mean.detach().cpu(), codes


def learn_jointly(
    columns: Float[Tensor, "P K"],
    length: float,
    others: list[Tensor],
    forward: Callable[[Ints, Int[Tensor, "B C"]], tuple[Float[Tensor, "B C"], Float[Tensor, "B K"]]],
    shared: SharedEvents,
    settings: JointFit,
) -> None:
    """Train what all users share together with what gives each user's numbers; both are changed in place.

    Args:
        columns: what all users share; its columns keep the length `length`. Without gradients it stays as it is.
        others: what gives the users' numbers (a table of them, or a network).
        forward: positions of events (B,), their candidates (B, C) → logits, and what the prior keeps small.

    Raises:
        DivergedError: the loss became infinite or NaN.
    """
    device = columns.device
    share = torch.from_numpy(1.0 / np.bincount(shared.users)[shared.users]).float().to(device)
    learned = columns.requires_grad
    optimiser = torch.optim.Adam([columns, *others] if learned else others, lr=settings.learning_rate)
    for epoch in range(settings.epochs):
        candidates, labels, weights = shared.draw(epoch)
        order = permutation(settings.seed, "basis/shuffle", shared.events, epoch)
        total = 0.0
        for begin in range(0, len(order), settings.batch_size):
            rows = order[begin : begin + settings.batch_size]
            index = torch.from_numpy(rows)
            logits, codes = forward(rows, candidates[index])
            losses = F.binary_cross_entropy_with_logits(logits, labels[index].to(device), reduction="none")
            data = (losses * weights[index].to(device)).sum()
            loss = (data + settings.prior * (codes.square().sum(1) * share[index.to(device)]).sum()) / len(rows)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            if learned:
                with torch.no_grad():
                    columns /= columns.norm(dim=0) / length
            total += float(data.detach())
        mean = total / float(weights.sum())
        if not math.isfinite(mean):
            raise DivergedError(
                f"the loss of Θ became {mean}",
                "Lower it: --set patch.metapatch.basis_learning_rate=0.003",
            )
        if settings.on_epoch is not None:
            settings.on_epoch(epoch + 1, mean)


def descend(
    gradient: Callable[[Float[Tensor, "U K"]], Float[Tensor, "U K"]],
    codes: Float[Tensor, "U K"],
    steps: int,
    learning_rate: float,
) -> Float[Tensor, "U K"]:
    """Adam on the numbers of U users, each user's on its own.

    Args:
        gradient: of the devices' losses. codes: where to start from; it is changed in place.

    Raises:
        DivergedError: a number became infinite or NaN.
    """
    first, second = torch.zeros_like(codes), torch.zeros_like(codes)
    for step in range(1, steps + 1):
        slope = gradient(codes)
        first.lerp_(slope, 0.1)
        second.mul_(0.999).addcmul_(slope, slope, value=0.001)
        rate = learning_rate / (1 - 0.9**step)
        codes -= rate * first / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    if not codes.isfinite().all():
        raise DivergedError(
            "θ̂ became infinite or NaN",
            "Lower --learning-rate and run the command again.",
        )
    return codes


@torch.no_grad()
def fit_codes(
    slope: Callable[[PatchT], Float[Tensor, "U P"]],
    basis: SharedBasis[PatchT],
    n_users: int,
    settings: LocalSettings,
    mean: Float[Tensor, "K"] | None = None,
) -> Float[Tensor, "U K"]:
    """θ̂ of U users at once, by Adam on Σ CE + λ‖θ̂ − μ‖²; every user's numbers are those of training that user alone.

    Args:
        slope: patches of the users → gradient of each user's Σ CE with respect to the patch weights.
        settings: Adam's steps and step size, and λ. mean: μ, where θ̂ starts; zeros if None.

    Raises:
        DivergedError: θ̂ became infinite or NaN.

    Source: Yao et al. 2021, eq. 3, with the sum over a user's events (so that λ weighs more for users with few).
    """
    center = torch.zeros(basis.size, device=basis.theta.device) if mean is None else mean

    def gradient(codes: Float[Tensor, "U K"]) -> Float[Tensor, "U K"]:
        return torch.addmm(2 * settings.prior * (codes - center), slope(basis.patch(codes)), basis.theta)

    return descend(gradient, center.repeat(n_users, 1), settings.steps, settings.learning_rate)
