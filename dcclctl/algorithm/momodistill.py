"""MoMoDistill, "model over models": what the patched device models know goes back to the cloud.

Source: Yao et al. 2021, section 3.2.
Step 1, cloud weights:       min over W_f of Σ_m Σ_i CE(y, f(x)) + β·KL(f^(m)(x) ‖ f(x))       → `teacher_of` + training.py
Step 2, basis and encoder:   min over Θ, W_e of Σ_m Σ_i CE(y, f̂(x)) + β·KL(f^(m)(x) ‖ f̂(x))  → `distill_basis`
with f̂ = f with patch weights ϑ₀ + Θ·U(θ̂^(m), u^(m)).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from dcclctl.algorithm.din import Din
from dcclctl.algorithm.encoder import Encoder
from dcclctl.algorithm.eventlog import Block, EventLog
from dcclctl.algorithm.memory import Statistics
from dcclctl.algorithm.metapatch import Basis, Head, head_logits
from dcclctl.algorithm.sampling import Ints, draw_negatives, hashes, permutation, stream, uniforms
from dcclctl.algorithm.scoring import Backbone, DinBackbone, HeadFunction, events_at_once
from dcclctl.algorithm.training import Samples, Teacher, Unlabelled, bernoulli_kl, first_layer
from dcclctl.errors import DivergedError

#: events at which a patch is half trusted (see `trust_in`); as many as the patch's prior λ weighs
EVIDENCE = 10


def teacher_of(backbone: Backbone, head: HeadFunction, shift: float = 0.0) -> Teacher:
    """A served model as the teacher: each event is taught by what its own user is served with.

    Args:
        backbone: of the cloud model that the teachers are put on, frozen; any kind of model.
        head: the teachers' head on it, e.g. `patched_head`, or `backbone.head` for the cloud model itself.
        shift: added to every logit (see memorypatch.prior_shift).

    Returns:
        The teacher, without gradients.
    """

    @torch.no_grad()
    def teach(events: Ints, candidates: Int[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        if isinstance(backbone, DinBackbone):
            # made for few candidates an event: several times as fast there as what rankings are made of
            z1 = first_layer(backbone.model, backbone.log, events, candidates, backbone.limit)
            return head(events, candidates, z1) + shift
        longest = int(backbone.lengths(events).max(initial=1))
        step = events_at_once(backbone, candidates.shape[1], longest)
        parts = []
        for at in range(0, len(events), step):
            some, own = events[at : at + step], candidates[at : at + step]
            parts.append(head(some, own, backbone.activations(some, own)))
        return torch.cat(parts) + shift

    return teach


def unlabelled_candidates(
    log: EventLog,
    limit: int,
    count: int,
    block: Block,
    seed: int,
    purpose: str,
    nearest: Statistics | None = None,
) -> Unlabelled:
    """Items whose labels nobody looks up, for the teachers alone to speak of.

    A teacher that has counted an event cannot prove anything on that event's own item and negatives; what it says of other
    items is what it has generalised, and there are as many of those as one cares to ask about.

    Args:
        limit: L, the history that the student sees. count: M, items an event.
        block: what is taught; nothing is drawn that its users had in it, nor what was first seen later.
        seed, purpose: name the draws.
        nearest: with it every second item is one of the nearest to a random item of the history, where a teacher who
            remembers has most to say; where there is no history, one that is as popular as it is: what new users begin
            with, and what would be missing if what this one once had were left out. All others are uniform.
    """
    catalogue, taught = log.catalogue(block), log.positives_in(block)
    # in a log with repeats what the user had at another moment may be a negative, but it has been labelled, and counted
    excluded = taught if log.repeats else log.never_negative(block)
    had = log.item[log.up_to(block) & (log.label > 0)]
    had = had if len(had) else catalogue  # nobody liked anything
    known = np.zeros(log.n_items, dtype=bool)
    known[catalogue] = True

    def draw(events: Ints, epoch: int) -> Int[Tensor, "B M"]:
        owners = log.owners(events, excluded)
        drawn = draw_negatives(seed, f"{purpose}/uniform", events, owners, count, catalogue, excluded, epoch)
        if nearest is None:
            return torch.from_numpy(drawn)
        slots = np.arange(1, count, 2)[None, :]
        history, mask = (part.numpy() for part in log.histories(events, limit))
        lengths = mask.sum(1)[:, None]
        place = (uniforms(seed, f"{purpose}/history", epoch, events[:, None], slots) * lengths).astype(np.int64)
        source = np.take_along_axis(history, place, 1)
        rank = uniforms(seed, f"{purpose}/near", epoch, events[:, None], slots) * nearest.neighbours.shape[1]
        at = (torch.from_numpy(source), torch.from_numpy(rank.astype(np.int64)))
        near, related = nearest.neighbours[at].numpy(), nearest.similarity[at].numpy() > 0
        fits = related & (lengths > 0) & known[near] & ~excluded.contains(owners[:, None], near)
        drawn[:, 1::2] = np.where(fits, near, drawn[:, 1::2])
        empty = lengths[:, 0] == 0
        if empty.any():  # events come sorted by length: most batches have none
            new = events[empty]
            pick = uniforms(seed, f"{purpose}/popular", epoch, new[:, None], slots) * len(had)
            popular = had[pick.astype(np.int64)]
            begins = known[popular] & ~taught.contains(log.owners(new, taught)[:, None], popular)
            drawn[empty, 1::2] = np.where(begins, popular, drawn[empty, 1::2])
        return torch.from_numpy(drawn)

    return draw


def trust_in(
    n_users: int,
    users: Ints,
    events: Ints,
    passed: npt.NDArray[np.bool_] | None = None,
    evidence: bool = False,
) -> Float[Tensor, "U"]:
    """How much each user's teacher counts, 0 to 1: the factor on β of the user's events.

    Args:
        n_users: U. users: (N,) users with a patch. events: (N,) what each of the patches learned from.
        passed: (N,) did the patch pass the guard? With it, only those who passed teach, and nobody without a patch does.
        evidence: weigh every teacher by n / (n + EVIDENCE), n = events that its patch learned from (0 without a patch).

    Differs: the paper lets all device models teach alike.
    """
    n = np.zeros(n_users)
    n[users] = events
    trust = n / (n + EVIDENCE) if evidence else np.ones(n_users)
    if passed is not None:
        teaches = np.zeros(n_users, dtype=bool)
        teaches[users[passed]] = True
        trust = trust * teaches
    return torch.from_numpy(trust).float()


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
    trust: Float[Tensor, "U"] | None = None,
) -> tuple[Basis, list[float]]:
    """Step 2: learn Θ and the encoder with the cloud weights frozen. The encoder is changed in place.

    Args:
        model: the cloud model after step 1; it is not changed.
        basis: where Θ starts from; ϑ₀ stays.
        codes: θ̂ of all users, zero where there is no patch.
        draw: epoch → the events with their negatives of that epoch.
        teacher: the device models' logits.
        trust: factor on β for each user's events (see `trust_in`); None is 1 for everybody.

    Returns:
        The new basis, and the mean loss of each epoch (nats per candidate, CE + β·KL).

    Raises:
        DivergedError: the loss became infinite or NaN.

    Differs: θ̂ is replaced by 0 for half of the events, drawn anew each epoch, so that U(0, u) is trained too and not
    only looked up for users without a patch; Θ's columns are kept at length 1 (see metapatch.py).
    """
    device = model.out.weight.device
    head = Head.of(model)
    profile = log.profile
    learned = basis.learnable(device)
    theta = learned.theta
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
            logits = head_logits(head, z1, learned.patch(own))
            weights = samples.weights[index].to(device)
            entropy = F.binary_cross_entropy_with_logits(logits, samples.labels[index].to(device), reduction="none")
            divergence = bernoulli_kl(wisdom, logits)
            if trust is not None:
                divergence = divergence * trust[users].to(device).unsqueeze(1)
            loss = ((entropy + settings.beta * divergence) * weights).sum() / weights.sum()
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
    return replace(basis, theta=theta.detach().cpu()), losses


def new_encoder(code_size: int, hidden_size: int, profile_sizes: tuple[int, ...], seed: int) -> Encoder:
    """An encoder that gives zero for everybody until it is trained."""
    generator = torch.Generator().manual_seed(stream(seed, "distill/encoder"))
    return Encoder(code_size, hidden_size, profile_sizes, generator)
