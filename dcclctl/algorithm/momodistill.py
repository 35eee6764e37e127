"""MoMoDistill, "model over models": what the patched device models know goes back to the cloud.

Source: Yao et al. 2021, section 3.2.
Step 1, cloud weights:       min over W_f of Σ_m Σ_i CE(y, f(x)) + β·KL(f^(m)(x) ‖ f(x))       → `teacher_of` + training.py
Step 2, basis and encoder:   min over Θ, W_e of Σ_m Σ_i CE(y, f̂(x)) + β·KL(f^(m)(x) ‖ f̂(x))  → `distill_basis`
with f̂ = f with patch weights ϑ₀ + Θ·U(θ̂^(m), u^(m)).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from dcclctl.algorithm.din import Din
from dcclctl.algorithm.encoder import Encoder
from dcclctl.algorithm.eventlog import EventLog
from dcclctl.algorithm.metapatch import Basis, Head, Patch, head_logits, patched_logits
from dcclctl.algorithm.sampling import Ints, hashes, permutation, stream
from dcclctl.algorithm.training import Samples, Teacher, bernoulli_kl, first_layer
from dcclctl.errors import DivergedError


def teacher_of(model: Din, basis: Basis, codes: Float[Tensor, "U K"], log: EventLog, limit: int) -> Teacher:
    """Every user's own device model as the teacher of that user's samples; a zero code is the cloud model itself.

    Args:
        model: the cloud model that the patches were trained on, frozen.
        codes: θ̂ of all users of the log, zero where a user has no patch.
        limit: L, history length.
    """

    basis = basis.to(model.out.weight.device)

    @torch.no_grad()
    def teach(events: Ints, candidates: Int[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        z1 = first_layer(model, log, events, candidates, limit)
        own = codes[torch.from_numpy(log.user[events])].to(z1.device)
        return patched_logits(model, z1, basis.patch(own))

    return teach


@dataclass(frozen=True)
class BasisSettings:
    """Step 2: passes, Adam's step size, β, events per step, seed."""

    epochs: int
    learning_rate: float
    beta: float
    batch_size: int
    seed: int


def distill_basis(
    model: Din,
    basis: Basis,
    codes: Float[Tensor, "U K"],
    log: EventLog,
    limit: int,
    draw: Callable[[int], Samples],
    teacher: Teacher,
    encoder: Encoder,
    settings: BasisSettings,
    on_epoch: Callable[[int, float], None] | None = None,
) -> tuple[Basis, list[float]]:
    """Step 2: learn Θ and the encoder with the cloud weights frozen. The encoder is changed in place.

    Args:
        model: the cloud model after step 1; it is not changed.
        basis: where Θ starts from; ϑ₀ stays.
        codes: θ̂ of all users, zero where there is no patch.
        draw: epoch → the events with their negatives of that epoch.
        teacher: the device models' logits.

    Returns:
        The new basis, and the mean loss of each epoch (nats per candidate, CE + β·KL).

    Raises:
        DivergedError: the loss became infinite or NaN.

    Differs: θ̂ is replaced by 0 for half of the events, drawn anew each epoch, so that U(0, u) is trained too and not
    only looked up for users without a patch; Θ's columns are kept at length 1 (see metapatch.py).
    """
    device = model.out.weight.device
    head = Head.of(model)
    origin, profile = basis.origin.to(device), log.profile
    theta = basis.theta.clone().to(device).requires_grad_()
    optimiser = torch.optim.Adam([theta, *encoder.parameters()], lr=settings.learning_rate)
    losses = []
    for epoch in range(settings.epochs):
        samples = draw(epoch)
        forget = hashes(settings.seed, "distill/forget", epoch, samples.events) % 2 == 0
        order = permutation(settings.seed, "distill/basis-shuffle", samples.events, epoch)
        total = 0.0
        for begin in range(0, len(order), settings.batch_size):
            rows = order[begin : begin + settings.batch_size]
            index = torch.from_numpy(rows)
            events, candidates = samples.events[rows], samples.candidates[index]
            with torch.no_grad():
                z1 = first_layer(model, log, events, candidates, limit)
                wisdom = teacher(events, candidates)
            users = torch.from_numpy(log.user[events])
            known = codes[users].to(device) * torch.from_numpy(~forget[rows]).to(device).unsqueeze(1)
            own = encoder(known, profile[users].to(device))
            logits = head_logits(head, z1, Patch.of(origin + own @ theta.T, basis.shape))
            weights = samples.weights[index].to(device)
            entropy = F.binary_cross_entropy_with_logits(logits, samples.labels[index].to(device), reduction="none")
            loss = ((entropy + settings.beta * bernoulli_kl(wisdom, logits)) * weights).sum() / weights.sum()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            with torch.no_grad():
                theta /= theta.norm(dim=0)
            total += float(loss.detach()) * len(rows)
        mean = total / max(len(order), 1)
        if not math.isfinite(mean):
            raise DivergedError(
                f"the loss of Θ became {mean}", "Lower --basis-learning-rate and run the command again."
            )
        losses.append(mean)
        if on_epoch is not None:
            on_epoch(epoch + 1, mean)
    return Basis(basis.shape, basis.origin, theta.detach().cpu()), losses


def new_encoder(code_size: int, hidden_size: int, profile_sizes: tuple[int, ...], seed: int) -> Encoder:
    """An encoder that gives zero for everybody until it is trained."""
    generator = torch.Generator().manual_seed(stream(seed, "distill/encoder"))
    return Encoder(code_size, hidden_size, profile_sizes, generator)
