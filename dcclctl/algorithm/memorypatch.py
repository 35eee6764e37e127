"""The memory-conditioned patch: h(f(x), c(m, x)) with c = features of the candidate in the user's local memory.

    φ = [tanh(A·[c, t, f(x)] + a), c]       H hidden units and the F features; t: the device's track record, the same for all x
    f^(m)(x) = f(x) + (w + V·θ̂^(m))·φ        w, A, a, V: learned in the cloud, the same for everybody
    θ̂^(m) = U(θ̂, u, s)                       θ̂: trained on the device (or 0), u: the user's profile, s: summary of the memory

So every user gets a patch from what the device remembers, also one who never trained. A user whose memory is empty is
served by the cloud model. The weights w, A, a, V and U are learned from events that the f beneath had not been trained
on (as MetaPatch's Θ is); c holds no parameter of f, so that the patch can be put on a fresher f than it was learned with.

With `popularity` what a memory says of an item counts by how popular the item is, p: what is near a rare item proves more than what
is near one that everybody has.

    φ = [u(c, p) − u(0, p) + u(0, 0), c]    u(c, p) = tanh(A·[c, t, f(x), p] + a)

So where a memory says what everybody's would (c = 0 but for its size), or of an item of average popularity (p = 0), φ is what it is
without: popularity by itself is the cloud model's business. Better for all users on four logs, and worse for the tail on one of them
(EXPERIMENTS.md, section 26).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from dcclctl.algorithm.basis import descend
from dcclctl.algorithm.eventlog import EventLog
from dcclctl.algorithm.sampling import Ints, permutation
from dcclctl.errors import DivergedError


class MemoryPatch(nn.Module):
    """All weights of the patch that the cloud ships.

    Args:
        hidden_size: H. features: F. tracked: R, 0 without a track record. popularity: does p count?
        code_size: K, numbers in θ̂; 0 makes a patch that is the same function for everybody.
        profile_sizes: codes of each profile column. n_categories: G. generator: source of the initial weights.
    """

    offsets: Tensor

    def __init__(
        self,
        hidden_size: int,
        features: int,
        tracked: int,
        popularity: bool,
        code_size: int,
        profile_sizes: tuple[int, ...],
        n_categories: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        width = hidden_size + features
        self.popularity = popularity
        self.inner = nn.Parameter(torch.empty(hidden_size, features + tracked + 1 + popularity))  # A
        self.inner_bias = nn.Parameter(torch.zeros(hidden_size))  # a
        self.outer = nn.Parameter(torch.zeros(width))  # w
        self.basis = nn.Parameter(torch.empty(width, code_size))  # V
        self.code = nn.Parameter(torch.empty(code_size, code_size))  # W₂ of U
        self.profile = nn.Parameter(torch.zeros(sum(profile_sizes), code_size))  # W₃
        self.summary = nn.Parameter(torch.zeros(n_categories + 1, code_size))  # W₄; the last row is for no category
        nn.init.xavier_uniform_(self.inner, generator=generator)
        if code_size:
            nn.init.normal_(self.basis, std=width**-0.5, generator=generator)
            nn.init.eye_(self.code)
        offsets = [sum(profile_sizes[:column]) for column in range(len(profile_sizes))]
        self.register_buffer("offsets", torch.tensor(offsets), persistent=False)

    @property
    def n_features(self) -> int:
        """F."""
        return len(self.outer) - len(self.inner)

    @torch.no_grad()
    def forget(self, columns: list[int]) -> None:
        """Make nothing of some of the F + R numbers of a candidate, whatever they are."""
        self.inner[:, columns] = 0
        linear = [len(self.inner) + column for column in columns if column < self.n_features]
        self.outer[linear] = 0
        self.basis[linear] = 0

    @property
    def code_size(self) -> int:
        """K."""
        return self.basis.shape[1]

    def encode(
        self, codes: Float[Tensor, "B K"], profile: Int[Tensor, "B F"], shares: Float[Tensor, "B G"]
    ) -> Float[Tensor, "B K"]:
        """U(θ̂, u, s) = W₂·θ̂ + tanh(W₃·u + W₄·s), s the shares of the categories in the memory.

        A profile that is missing has a weight of its own, as every other one.
        """
        if not self.code_size:
            return codes
        known = self.profile[profile + self.offsets].sum(1) + shares @ self.summary
        return codes @ self.code.T + torch.tanh(known)

    def units(
        self, features: Float[Tensor, "B C FR"], logits: Float[Tensor, "B C"], popularity: Float[Tensor, "B C"]
    ) -> Float[Tensor, "B C W"]:
        """φ; features: c and t, as `Memories.features` gives them. popularity: p, as `Statistics.popularity` has it."""
        inputs = torch.cat([features, logits.unsqueeze(-1)], -1)
        if not self.popularity:
            hidden = torch.tanh(F.linear(inputs, self.inner, self.inner_bias))
        else:
            known, popular = self.inner[:, :-1], popularity.unsqueeze(-1) * self.inner[:, -1]
            # where c is 0 but for its first number, the size of the memory
            others = [0, *range(self.n_features, known.shape[1])]
            nothing = F.linear(inputs[..., others], known[:, others], self.inner_bias)
            hidden = torch.tanh(F.linear(inputs, known, self.inner_bias) + popular)
            hidden = hidden - torch.tanh(nothing + popular) + torch.tanh(nothing)
        return torch.cat([hidden, features[..., : self.n_features]], -1)

    def forward(
        self,
        features: Float[Tensor, "B C FR"],
        logits: Float[Tensor, "B C"],
        popularity: Float[Tensor, "B C"],
        codes: Float[Tensor, "B K"],
    ) -> Float[Tensor, "B C"]:
        """f^(m)(x); `codes` are what `encode` gives."""
        weights = self.outer + codes @ self.basis.T  # (B, W)
        return logits + (self.units(features, logits, popularity) @ weights.unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True)
class MemoryRows:
    """Events with everything that the patch reads, computed once.

    Attributes:
        events: (B,) rows of the log. held: (B,) how many events the memory holds. features: (B, C, F + R), see memory.py.
        logits, popularity, labels, weights: (B, C); logits are those of an f that has not been trained on these events, as
            if it had been trained with as many negatives as there are here (see `prior_shift`); popularity is p. shares: (B, G + 1) see
            `category_shares`; (B, 0) where nobody has a θ̂.
    """

    events: Ints
    held: Ints
    features: Float[Tensor, "B C FR"]
    logits: Float[Tensor, "B C"]
    popularity: Float[Tensor, "B C"]
    labels: Float[Tensor, "B C"]
    weights: Float[Tensor, "B C"]
    shares: Float[Tensor, "B G"]

    def pick(self, index: Tensor) -> "MemoryRows":
        """Some of the events, in the order given."""
        rows = index.numpy()
        return MemoryRows(self.events[rows], self.held[rows], *(getattr(self, name)[index] for name in _TENSORS))

    def blank(self, columns: list[int]) -> "MemoryRows":
        """The same rows with nothing in some of the F + R numbers."""
        features = self.features.clone()
        features[..., columns] = 0
        return replace(self, features=features)

    def where(self, wanted: Bool[Tensor, "B"]) -> "MemoryRows":
        """Those events for which `wanted` is true."""
        return self.pick(torch.nonzero(wanted).squeeze(1))

    @classmethod
    def join(cls, parts: list["MemoryRows"]) -> "MemoryRows":
        """One after the other."""
        joined = (torch.cat([getattr(part, name) for part in parts]) for name in _TENSORS)
        events, held = (np.concatenate([getattr(part, name) for part in parts]) for name in ("events", "held"))
        return cls(events, held, *joined)


#: the tensors of `MemoryRows`
_TENSORS = tuple(field.name for field in fields(MemoryRows) if field.name not in ("events", "held"))


def prior_shift(trained: int, wanted: int) -> float:
    """What is added to the logits of a model trained with so many negatives an event, so that they mean what those of a
    model trained with `wanted` would: log(trained / wanted), the difference of the log odds of a click.

    Source: King & Zeng, "Logistic regression in rare events data", Political Analysis 2001 (prior correction).
    """
    return math.log(trained / wanted)


def category_shares(log: EventLog, events: Ints, size: int) -> Float[Tensor, "B G"]:
    """How each event's user's memory divides among the categories; zeros where it is empty."""
    parts = []
    slots = log.item_categories.shape[1]
    for at in range(0, len(events), 512):
        held, mask = log.histories(events[at : at + 512], size)
        categories = log.item_categories[held].flatten(1)
        weight = mask.float().repeat_interleave(slots, 1) * (categories < log.n_categories)
        counts = torch.zeros(len(held), log.n_categories + 1).scatter_add_(1, categories, weight)
        parts.append(counts / counts.sum(1, keepdim=True).clamp(min=1))
    return torch.cat(parts) if parts else torch.zeros(0, log.n_categories + 1)


@dataclass(frozen=True)
class MemoryFit:
    """How the patch is learned."""

    epochs: int
    learning_rate: float
    weight_decay: float
    batch_size: int
    seed: int


def learn(
    patch: MemoryPatch,
    rows: MemoryRows,
    log: EventLog,
    settings: MemoryFit,
    on_epoch: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Learn everything that the cloud ships, from the devices' rows; `patch` is changed in place.

    Args:
        rows: events that the f behind `rows.logits` has not seen. log: for the users' profiles.

    Returns:
        Mean cross-entropy of each epoch, nats per candidate.

    Raises:
        DivergedError: the loss became infinite or NaN.
    """
    optimiser = torch.optim.AdamW(patch.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    losses = []
    for epoch in range(settings.epochs):
        order = torch.from_numpy(permutation(settings.seed, "memory/shuffle", rows.events, epoch))
        total = 0.0
        for at in range(0, len(order), settings.batch_size):
            some = rows.pick(order[at : at + settings.batch_size])
            users = torch.from_numpy(log.user[some.events])
            codes = patch.encode(torch.zeros(len(users), patch.code_size), log.profile[users], some.shares)
            logits = patch(some.features, some.logits, some.popularity, codes)
            each = F.binary_cross_entropy_with_logits(logits, some.labels, reduction="none")
            loss = (each * some.weights).sum() / some.weights.sum()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            total += float(loss.detach()) * len(users)
        mean = total / max(len(order), 1)
        if not math.isfinite(mean):
            raise DivergedError(f"the loss of the memory patch became {mean}", "Lower --memory-learning-rate.")
        losses.append(mean)
        if on_epoch is not None:
            on_epoch(epoch + 1, mean)
    return losses


@torch.no_grad()
def fit_codes(
    patch: MemoryPatch,
    rows: MemoryRows,
    log: EventLog,
    keep: Bool[Tensor, "B"],
    steps: int,
    learning_rate: float,
    prior: float,
) -> Float[Tensor, "U K"]:
    """θ̂ of every user, trained on the user's own rows by Adam: Σ CE + λ‖θ̂‖², everything else frozen.

    f^(m) is linear in θ̂ with a slope that does not change, so the K slopes of each row are computed once.

    Args:
        keep: which events may be learned from. steps, learning_rate: Adam's. prior: λ.

    Returns:
        θ̂ for every user of the log, zero for those without a row.
    """
    users = torch.from_numpy(log.user[rows.events])
    start = patch.encode(torch.zeros(len(users), patch.code_size), log.profile[users], rows.shares)
    offset = patch(rows.features, rows.logits, rows.popularity, start)
    slopes = patch.units(rows.features, rows.logits, rows.popularity) @ patch.basis @ patch.code  # (B, C, K)
    weights = rows.weights * keep.unsqueeze(1)

    def gradient(codes: Float[Tensor, "U K"]) -> Float[Tensor, "U K"]:
        logits = offset + (slopes @ codes[users].unsqueeze(-1)).squeeze(-1)
        residual = (torch.sigmoid(logits) - rows.labels) * weights
        return (2 * prior * codes).index_add_(0, users, (residual.unsqueeze(1) @ slopes).squeeze(1))

    return descend(gradient, torch.zeros(log.n_users, patch.code_size), steps, learning_rate)


@torch.no_grad()
def user_losses(
    patch: MemoryPatch, rows: MemoryRows, log: EventLog, codes: Float[Tensor, "U K"], judged: Bool[Tensor, "B"]
) -> Float[Tensor, "U two"]:
    """Each user's mean cross-entropy over the judged events without and with the patch; NaN where there are none.

    As when it serves, an empty memory leaves the logits alone.
    """
    users = torch.from_numpy(log.user[rows.events])
    own = patch.encode(codes[users], log.profile[users], rows.shares)
    remembers = torch.from_numpy(rows.held > 0).unsqueeze(1)
    patched = torch.where(remembers, patch(rows.features, rows.logits, rows.popularity, own), rows.logits)
    weights = (rows.weights * judged.unsqueeze(1)).double()
    sums = []
    for logits in (rows.logits, patched):
        each = F.binary_cross_entropy_with_logits(logits, rows.labels, reduction="none").double()
        sums.append(torch.zeros(log.n_users, dtype=torch.float64).index_add_(0, users, (each * weights).sum(1)))
    counts = torch.zeros(log.n_users, dtype=torch.float64).index_add_(0, users, weights.sum(1))
    return torch.stack([total / counts for total in sums], 1)
