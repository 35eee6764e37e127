"""The shared parameters of all users' patches ϑ = ϑ₀ + Θ·θ̂, the prior's mean μ, and how they are learned.

Source: Yao et al. 2021, section 3.1; auto-decoding for the first Θ as in Park et al., DeepSDF, CVPR 2019.
hidden_patch.py (inside a DIN) and state_patch.py (after a sequence encoder) define the patch with the weights ϑ.

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
from dcclctl.errors import DivergedError, finite_loss
from dcclctl.events.sampler import Samples
from dcclctl.events.sampling import Ints, permutation
from dcclctl.models.adam import Adam

PatchT = TypeVar("PatchT")
#: Adam's ε where devices learn θ̂. With the usual 1e-8 a number whose gradient is a rounding error moves as far as any
#: other, so a device and the cloud, which sum in another order, would learn another θ̂
EPSILON = 1e-4


class Layout(ABC, Generic[PatchT]):
    """The places of a patch's P weights in one flat vector ϑ."""

    bottleneck: int

    @property
    @abstractmethod
    def parts(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every piece of ϑ, in order; names of down-projections (R, features) start with down."""

    @abstractmethod
    def patch(self, weights: Float[Tensor, "U P"]) -> PatchT:
        """The patches of U users, as views of ϑ."""

    @property
    def size(self) -> int:
        """P."""
        return sum(math.prod(part) for part in self.parts.values())

    def pieces(self, weights: Float[Tensor, "U P"]) -> dict[str, Tensor]:
        """ϑ of U users, cut into its named pieces, each (U, …)."""
        cut = torch.split(weights, [math.prod(part) for part in self.parts.values()], dim=-1)
        return {name: piece.view(-1, *part) for (name, part), piece in zip(self.parts.items(), cut, strict=True)}


@dataclass(frozen=True)
class SharedBasis(Generic[PatchT]):
    """ϑ₀ (`origin`) and Θ (`theta`)."""

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
        """A copy whose Θ gets gradients, unless it is fixed."""
        moved = self.to(device)
        return replace(moved, theta=moved.theta.clone().requires_grad_(not fixed))

    def weights(self, codes: Float[Tensor, "U K"]) -> Float[Tensor, "U P"]:
        """ϑ = ϑ₀ + Θ·θ̂ for every user."""
        return self.origin + codes @ self.theta.T

    def patch(self, codes: Float[Tensor, "U K"]) -> PatchT:
        return self.shape.patch(self.weights(codes))


def new_basis(shape: Layout[PatchT], size: int, seed: int) -> SharedBasis[PatchT]:
    """ϑ₀ with random down-projections and zeros elsewhere; a random Θ with columns of length 1, to be learned.

    Args:
        shape: sizes of the patches. size: K. seed: of both draws.
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


@dataclass(frozen=True)
class SharedEvents:
    """The events of all users, from which Θ and μ are learned.

    Attributes:
        events: (E,) rows of the log. users: (E,) dense numbers 0…U−1 of their users.
        draw: epoch → the events with negatives of that epoch.
    """

    events: Ints
    users: Ints
    draw: Callable[[int], Samples]


@dataclass(frozen=True)
class JointFit:
    """Settings for learning from all users' events.

    Attributes:
        prior: λ. seed: of the order of events. batch_size: events of a step.
        on_epoch: called with the number of every epoch and its mean loss. on_step: called with a batch's number of events.
    """

    epochs: int
    learning_rate: float
    prior: float
    seed: int
    batch_size: int = 1024
    on_epoch: Callable[[int, float], None] | None = None
    on_step: Callable[[int], None] = lambda count: None


def learn_basis(
    basis: SharedBasis[PatchT],
    shared: SharedEvents,
    logits: Callable[[Ints, Int[Tensor, "B C"], PatchT], Float[Tensor, "B C"]],
    settings: JointFit,
    with_mean: bool = False,
    fixed: bool = False,
) -> tuple[SharedBasis[PatchT], Float[Tensor, "K"], Float[Tensor, "U K"]]:
    """Learn Θ and the prior's mean μ by auto-decoding: they and θ̂ of all users are trained together.

    Each event has a share λ‖θ̂ − μ‖²/n_user of the prior, so that the objective is the sum of the devices' objectives.

    Args:
        basis: where Θ starts from, on the device that computes; ϑ₀ and the length 1 of Θ's columns stay.
        shared: events that f was not trained on.
        logits: positions (B,) in the events, their candidates, the patch of each (U = B) → logits of the patched model.
        with_mean: learn μ; if False it is 0. fixed: learn μ alone, and leave Θ as it is.

    Returns:
        The basis, μ (K,), and the table of θ̂ (U, K), on the CPU.

    Raises:
        DivergedError: the loss became infinite or NaN.
    """
    device = basis.theta.device
    learned = basis.learnable(device, fixed)
    theta, n_users = learned.theta, int(shared.users.max(initial=-1)) + 1
    table = torch.zeros(n_users, basis.size, device=device, requires_grad=True)  # θ̂ − μ of each user
    mean = torch.zeros(basis.size, device=device, requires_grad=with_mean)
    owners = torch.from_numpy(shared.users).to(device)
    share = torch.from_numpy(1.0 / np.bincount(shared.users)[shared.users]).float().to(device)
    trained = [weight for weight in (theta, table, mean) if weight.requires_grad]
    optimiser = Adam(trained, settings.learning_rate)
    for epoch in range(settings.epochs):
        samples = shared.draw(epoch)
        order = permutation(settings.seed, "basis/shuffle", shared.events, epoch)
        total = 0.0
        for begin in range(0, len(order), settings.batch_size):
            rows = order[begin : begin + settings.batch_size]
            index = torch.from_numpy(rows)
            on_device = index.to(device)
            own = table[owners[on_device]]
            found = logits(rows, samples.candidates[index], learned.patch(own + mean))
            losses = F.binary_cross_entropy_with_logits(found, samples.labels[index].to(device), reduction="none")
            data = (losses * samples.weights[index].to(device)).sum()
            loss = (data + settings.prior * (own.square().sum(1) * share[on_device]).sum()) / len(rows)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            if not fixed:
                with torch.no_grad():
                    theta /= theta.norm(dim=0)
            total += float(data.detach())
            settings.on_step(len(rows))
        average = finite_loss(total / float(samples.weights.sum()), "Θ", "patch.metapatch.basis_learning_rate=0.003")
        if settings.on_epoch is not None:
            settings.on_epoch(epoch + 1, average)
    return replace(basis, theta=theta.detach()).to("cpu"), mean.detach().cpu(), (table + mean).detach().cpu()


def descend(
    gradient: Callable[[Float[Tensor, "U K"]], Float[Tensor, "U K"]],
    codes: Float[Tensor, "U K"],
    steps: int,
    learning_rate: float,
    epsilon: float = 1e-8,
) -> Float[Tensor, "U K"]:
    """Adam on the numbers of U users, as if each user's were trained alone.

    Args:
        gradient: codes → gradient of the devices' losses. codes: the start; changed in place. epsilon: Adam's.

    Raises:
        DivergedError: a number became infinite or NaN.
    """
    first, second = torch.zeros_like(codes), torch.zeros_like(codes)
    for step in range(1, steps + 1):
        slope = gradient(codes)
        first.lerp_(slope, 0.1)
        second.mul_(0.999).addcmul_(slope, slope, value=0.001)
        rate = learning_rate / (1 - 0.9**step)
        codes -= rate * first / ((second / (1 - 0.999**step)).sqrt() + epsilon)
    if not codes.isfinite().all():
        raise DivergedError("θ̂ became infinite or NaN", "Lower --learning-rate and run the command again.")
    return codes


@torch.no_grad()
def fit_codes(
    slope: Callable[[PatchT], Float[Tensor, "U P"]],
    basis: SharedBasis[PatchT],
    n_users: int,
    settings: LocalSettings,
    mean: Float[Tensor, "K"] | None = None,
) -> Float[Tensor, "U K"]:
    """Learn θ̂ of U users at once by Adam on Σ CE + λ‖θ̂ − μ‖², with the same result as for each user alone.

    Args:
        slope: patches of the users → gradient of each user's Σ CE with respect to the patch weights.
        settings: Adam's steps and step size, and λ. mean: μ, where θ̂ starts; None: zeros.

    Raises:
        DivergedError: θ̂ became infinite or NaN.

    Source: Yao et al. 2021, eq. 3, with the sum over a user's events: λ has more weight for users with few events.
    """
    center = torch.zeros(basis.size, device=basis.theta.device) if mean is None else mean

    def gradient(codes: Float[Tensor, "U K"]) -> Float[Tensor, "U K"]:
        return torch.addmm(2 * settings.prior * (codes - center), slope(basis.patch(codes)), basis.theta)

    return descend(gradient, center.repeat(n_users, 1), settings.steps, settings.learning_rate, EPSILON)
