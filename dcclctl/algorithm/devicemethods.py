"""Device methods beside the exact MetaPatch: other functions to put on a frozen model, and other ways to a user's numbers.

A *space* says what a user's numbers (the code θ̂, K of them) do to the frozen model; a zero code does nothing. A *method* finds the
codes. `stages/patch_methods.py` has the table of the pairs.

Shapes: U users, N rows (a row is one candidate of one event), H1 and H2 hidden units, D embedding, K numbers in a code.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from dcclctl.algorithm.basis import JointFit, SharedEvents, descend, learn_jointly
from dcclctl.algorithm.din import Din, prelu
from dcclctl.algorithm.eventlog import Block, EventLog
from dcclctl.algorithm.metapatch import (
    Activations,
    Basis,
    DeviceRows,
    Head,
    fit_devices,
    head_logits,
    second_linear,
)
from dcclctl.algorithm.sampling import Ints
from dcclctl.algorithm.scoring import HeadFunction


@dataclass(frozen=True)
class LocalRows(DeviceRows):
    """The rows of U users, and what else a device knows.

    Attributes:
        users: (U,) rows of the users table. items: (U, N) the rows' candidates.
        until: (U,) the user's positive events that may be used end here, in `EventLog.sequence`.
    """

    users: Ints
    items: Int[Tensor, "U N"]
    until: Ints


class Space(Protocol):
    """What a user's numbers mean."""

    @property
    def size(self) -> int:
        """K."""
        ...

    def logits(self, rows: LocalRows, codes: Float[Tensor, "U K"]) -> Float[Tensor, "U N"]:
        """What every user's own model says about the user's rows."""
        ...


def cloud_logits(head: Head, rows: DeviceRows) -> Float[Tensor, "U N"]:
    """What the frozen model says about the rows."""
    return prelu(second_linear(head, rows), head.slope_2) @ head.out + head.bias


@dataclass(frozen=True)
class BasisSpace:
    """ϑ = ϑ₀ + Θ·θ̂, whatever θ̂ comes from."""

    head: Head
    basis: Basis

    @property
    def size(self) -> int:
        return self.basis.size

    def logits(self, rows: LocalRows, codes: Float[Tensor, "U K"]) -> Float[Tensor, "U N"]:
        return head_logits(self.head, rows.z1, self.basis.patch(codes))


@dataclass(frozen=True)
class PatchSpace(BasisSpace):
    """MetaPatch; mean: μ (K,), what the prior expects of θ̂."""

    mean: Float[Tensor, "K"]


# Linearised MetaPatch


def linearised(head: Head, basis: Basis, rows: DeviceRows) -> tuple[Float[Tensor, "U N"], Float[Tensor, "U N K"]]:
    """The frozen model's logits, and φ = ∂logit/∂θ̂ at θ̂ = 0.

    At a zero code both up-projections are zero, so only they, the output weights and the bias have a slope.
    """
    users, n, _ = rows.z1.shape
    theta = basis.shape.patch(basis.theta.T.contiguous())  # one "user" for each column of Θ
    origin = basis.patch(torch.zeros(1, basis.size, device=rows.z1.device))
    a2 = second_linear(head, rows)
    z2 = prelu(a2, head.slope_2)
    slope = torch.where(a2 > 0, 1.0, head.slope_2) * head.out  # (U, N, H2): ∂logit/∂a₂
    s1 = torch.tanh(rows.z1 @ origin.down_1[0].T)  # (U, N, R)
    s2 = torch.tanh(z2 @ origin.down_2[0].T)
    up_1 = head.weight_2 @ theta.up_1  # (K, H2, R): W₂U₁ of each column
    pairs = (slope.unsqueeze(-1) * s1.unsqueeze(-2)).flatten(2)  # (U, N, H2·R)
    phi = pairs @ up_1.flatten(1).T + s2 @ (head.out @ theta.up_2).T + z2 @ theta.out.T + theta.bias[:, 0]
    return z2 @ head.out + head.bias, phi.view(users, n, -1)


def newton(
    offset: Float[Tensor, "U N"],
    phi: Float[Tensor, "U N K"],
    rows: DeviceRows,
    prior: float,
    steps: int,
) -> Float[Tensor, "U K"]:
    """Newton's steps on Σ CE(y, offset + φ·θ̂) + λ‖θ̂‖², from θ̂ = 0, every user's own.

    Args:
        offset: the frozen model's logits. prior: λ. steps: one is the usual approximation, five are the optimum.
    """
    codes = phi.new_zeros(len(phi), phi.shape[-1])
    # without any prior a user with few rows has no single optimum
    ridge = 2 * max(prior, 1e-4)
    identity = torch.eye(phi.shape[-1], device=phi.device)
    for _ in range(steps):
        logits = offset + torch.bmm(phi, codes.unsqueeze(-1)).squeeze(-1)
        p = torch.sigmoid(logits)
        residual = (p - rows.labels) * rows.weights
        gradient = torch.bmm(phi.mT, residual.unsqueeze(-1)).squeeze(-1) + ridge * codes
        curvature = torch.bmm(phi.mT, phi * (p * (1 - p) * rows.weights).unsqueeze(-1)) + ridge * identity
        codes = codes - torch.linalg.solve(curvature, gradient)
    return codes


# A correction in the space of the items


@dataclass(frozen=True)
class ItemSpace:
    """logit += ⟨e_item, M·θ̂⟩: a user's own direction among the item embeddings.

    Attributes:
        embeddings: (I, D) of the catalogue, frozen. map: (D, K) M.
    """

    head: Head
    embeddings: Float[Tensor, "I D"]
    map: Float[Tensor, "D K"]

    @property
    def size(self) -> int:
        return self.map.shape[1]

    def features(self, rows: LocalRows) -> Float[Tensor, "U N K"]:
        """φ: the rows' items in the map's coordinates; the logit is linear in them."""
        return self.embeddings[rows.items.to(self.embeddings.device)] @ self.map

    def logits(self, rows: LocalRows, codes: Float[Tensor, "U K"]) -> Float[Tensor, "U N"]:
        return cloud_logits(self.head, rows) + torch.bmm(self.features(rows), codes.unsqueeze(-1)).squeeze(-1)


def new_map(embeddings: Float[Tensor, "I D"], size: int, seed: int) -> Float[Tensor, "D K"]:
    """A random M whose columns make ⟨e_item, column⟩ one at most for an item of typical length.

    So λ means the same whatever the size of the embeddings is.
    """
    map = torch.empty(embeddings.shape[1], size).normal_(generator=torch.Generator().manual_seed(seed))
    map /= map.norm(dim=0) * _typical_length(embeddings).cpu()
    return map


def _typical_length(embeddings: Float[Tensor, "I D"]) -> Float[Tensor, ""]:
    length: Tensor = embeddings.square().sum(1).mean().sqrt().clamp(min=1e-12)
    return length


def learn_map(
    head: Head,
    embeddings: Float[Tensor, "I D"],
    start: Float[Tensor, "D K"],
    shared: SharedEvents,
    activations: Activations,
    settings: JointFit,
) -> Float[Tensor, "D K"]:
    """M by auto-decoding, as Θ is learned (see basis.learn_basis)."""
    device = embeddings.device
    map = start.clone().to(device).requires_grad_()
    table = torch.zeros(shared.n_users, map.shape[1], device=device, requires_grad=True)
    owners = torch.from_numpy(shared.users).to(device)

    def forward(rows: Ints, candidates: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            offset = _head_of_cloud(head, activations(shared.events[rows], candidates))
        codes = table[owners[torch.from_numpy(rows).to(device)]]
        own = codes @ map.T  # (B, D)
        return offset + (embeddings[candidates.to(device)] @ own.unsqueeze(-1)).squeeze(-1), codes

    length = float(start.norm(dim=0)[0])
    learn_jointly(map, length, [table], forward, shared, settings)
    return map.detach().cpu()


def _head_of_cloud(head: Head, z1: Float[Tensor, "B C H1"]) -> Float[Tensor, "B C"]:
    return prelu(z1 @ head.weight_2.T + head.bias_2, head.slope_2) @ head.out + head.bias


def item_head(model: Din, embeddings: Float[Tensor, "I D"], own: Float[Tensor, "U D"], log: EventLog) -> HeadFunction:
    """The cloud model's head and each event's user's ⟨e_item, M·θ̂⟩; `own` is M·θ̂ of every user of the log."""

    def head(events: Ints, candidates: Tensor | None, z1: Tensor) -> Tensor:
        direction = own[torch.from_numpy(log.user[events])].to(z1.device)
        items = embeddings if candidates is None else embeddings[candidates.to(z1.device)]
        return model.logits(model.second_layer(z1)) + (items @ direction.unsqueeze(-1)).squeeze(-1)

    return head


# Fine-tuning of the last layers


@dataclass(frozen=True)
class LayerChange:
    """What is added to the weights of the second hidden layer and of the output, for U users, as views of (U, K)."""

    weight_2: Float[Tensor, "U H2 H1"]
    bias_2: Float[Tensor, "U H2"]
    out: Float[Tensor, "U H2"]
    bias: Float[Tensor, "U 1"]

    @classmethod
    def of(cls, codes: Float[Tensor, "U K"], hidden_sizes: tuple[int, int]) -> "LayerChange":
        first, second = hidden_sizes
        weight_2, bias_2, out, bias = torch.split(codes, [first * second, second, second, 1], dim=-1)
        return cls(weight_2.view(-1, second, first), bias_2, out, bias)


@dataclass(frozen=True)
class LayerSpace:
    """Per-user fine-tuning: a code is what a user adds to every weight above the first hidden layer."""

    head: Head

    @property
    def hidden_sizes(self) -> tuple[int, int]:
        second, first = self.head.weight_2.shape
        return first, second

    @property
    def size(self) -> int:
        first, second = self.hidden_sizes
        return first * second + 2 * second + 1

    def logits(self, rows: LocalRows, codes: Float[Tensor, "U K"]) -> Float[Tensor, "U N"]:
        change, head = LayerChange.of(codes, self.hidden_sizes), self.head
        a2 = second_linear(head, rows) + rows.z1 @ change.weight_2.mT + change.bias_2.unsqueeze(1)
        out = (head.out + change.out).unsqueeze(-1)
        return (prelu(a2, head.slope_2) @ out).squeeze(-1) + head.bias + change.bias


@torch.no_grad()
def fit_layers(
    space: LayerSpace, rows: DeviceRows, steps: int, learning_rate: float, decay: float
) -> Float[Tensor, "U K"]:
    """Adam on Σ CE + decay·‖change‖² for every user's own last layers; the gradient is written by hand.

    Args:
        decay: pull towards the cloud's weights, against the *sum* of a user's losses.

    Raises:
        DivergedError: a weight became infinite or NaN.
    """
    head = space.head
    linear_2 = second_linear(head, rows)

    def gradient(codes: Float[Tensor, "U K"]) -> Float[Tensor, "U K"]:
        change = LayerChange.of(codes, space.hidden_sizes)
        a2 = torch.baddbmm(linear_2 + change.bias_2.unsqueeze(1), rows.z1, change.weight_2.mT)
        z2 = prelu(a2, head.slope_2)
        out = head.out + change.out
        logits = torch.bmm(z2, out.unsqueeze(-1)).squeeze(-1) + head.bias + change.bias
        residual = (torch.sigmoid(logits) - rows.labels) * rows.weights
        positive = torch.sign(a2).clamp_(min=0)
        g_a2 = residual.unsqueeze(-1) * out.unsqueeze(1) * torch.addcmul(head.slope_2, positive, 1 - head.slope_2)
        pieces = [
            torch.bmm(g_a2.mT, rows.z1).flatten(1),
            g_a2.sum(1),
            torch.bmm(residual.unsqueeze(1), z2).squeeze(1),
            residual.sum(1, keepdim=True),
        ]
        return torch.cat(pieces, dim=1).add_(codes, alpha=2 * decay)

    start = torch.zeros(len(rows.z1), space.size, device=rows.z1.device)
    return descend(gradient, start, steps, learning_rate)


def layer_head(model: Din, codes: Float[Tensor, "U K"], log: EventLog) -> HeadFunction:
    """The head with each event's user's own last layers.

    The cloud's layers run as they do without a change and the change only adds to them, so that a zero code gives the
    cloud model's logits to the last bit.
    """

    def head(events: Ints, candidates: Tensor | None, z1: Tensor) -> Tensor:
        own = codes[torch.from_numpy(log.user[events])].to(z1.device)
        change = LayerChange.of(own, model.sizes.hidden_sizes)
        a2 = model.hidden_2(z1) + (z1 @ change.weight_2.mT + change.bias_2.unsqueeze(1))
        z2 = prelu(a2, model.slope_2)
        return model.logits(z2) + ((z2 @ change.out.unsqueeze(-1)).squeeze(-1) + change.bias)

    return head


# Codes made in the cloud, without any training on a device


class Generator(nn.Module):
    """θ̂ = W₁·tanh(W₂·[mean embedding of the recent events, log(1 + how many)] + W₃·u + b).

    W₁ starts at zero, so that training starts from the cloud model; u is the profile, one-hot.

    Source: DUET (Lv et al., WWW 2023), whose generator makes a device's weights from its recent clicks.
    Differs: it makes θ̂, not all weights; and it is trained (the public code of DUET never hands its weights to an optimiser).
    """

    offsets: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        code_size: int,
        profile_sizes: tuple[int, ...],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.out = nn.Parameter(torch.zeros(code_size, hidden_size))  # W₁
        self.history = nn.Parameter(torch.empty(hidden_size, input_size))  # W₂
        self.profile = nn.Parameter(torch.zeros(sum(profile_sizes), hidden_size))  # W₃, transposed
        self.bias = nn.Parameter(torch.zeros(hidden_size))
        nn.init.xavier_uniform_(self.history, generator=generator)
        offsets = [sum(profile_sizes[:column]) for column in range(len(profile_sizes))]
        self.register_buffer("offsets", torch.tensor(offsets), persistent=False)

    def forward(self, history: Float[Tensor, "B V"], profile: Int[Tensor, "B F"]) -> Float[Tensor, "B K"]:
        """The code of users with such histories (see `Histories`) and profiles."""
        known = self.profile[profile + self.offsets].sum(1)
        return torch.tanh(history @ self.history.T + known + self.bias) @ self.out.T


class Histories:
    """Summaries of users' recent positive events: their mean embedding, and log(1 + how many)."""

    def __init__(self, log: EventLog, embeddings: Float[Tensor, "I D"], limit: int) -> None:
        """Args: embeddings of the catalogue; they are scaled to entries of size 1. limit: the newest so many events."""
        self.log, self.limit = log, limit
        self.embeddings = embeddings / _typical_length(embeddings) * embeddings.shape[1] ** 0.5

    @property
    def size(self) -> int:
        """Numbers in a summary."""
        return int(self.embeddings.shape[1]) + 1

    def __call__(self, start: Ints, end: Ints) -> Float[Tensor, "B V"]:
        """Summaries of `log.sequence[start:end]`, (B,) each; zero where that is empty."""
        items, mask = self._newest(torch.from_numpy(start), torch.from_numpy(end))
        device = self.embeddings.device
        vectors = self.embeddings[items.to(device)] * mask.to(device).unsqueeze(-1)
        count = mask.sum(1, keepdim=True).to(device)
        return torch.cat([vectors.sum(1) / count.clamp(min=1), torch.log1p(count.float())], dim=1)

    def of_events(self, events: Ints) -> Float[Tensor, "B V"]:
        """Summaries of what stands before each event, at strictly earlier times."""
        return self(self.log.history_start[events], self.log.history_end[events])

    def _newest(self, start: Int[Tensor, "B"], end: Int[Tensor, "B"]) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
        width = min(self.limit, int((end - start).max())) if len(start) else 0
        at = end[:, None] - 1 - torch.arange(width)
        mask = at >= start[:, None]
        return self.log.sequence[at.clamp(min=0)] if width else at, mask


def known_sequences(log: EventLog, block: Block) -> tuple[Ints, Ints]:
    """Where every user's positive events up to the end of a block start and end in `log.sequence`, (n_users,) each."""
    past = (log.period < block.period) | ((log.period == block.period) & (log.share < block.end))
    positive = log.label > 0
    every, known = (np.bincount(log.user[mask], minlength=log.n_users) for mask in (positive, positive & past))
    start = np.cumsum(every) - every
    return start, start + known


@dataclass(frozen=True)
class GeneratedSpace(BasisSpace):
    """MetaPatch whose codes come from the generator."""

    generator: Generator
    histories: Histories

    @torch.no_grad()
    def codes(self, rows: LocalRows, start: Ints) -> Float[Tensor, "U K"]:
        """Codes from the users' histories up to `rows.until`; start: where all users' sequences begin."""
        profile = self.histories.log.profile[torch.from_numpy(rows.users)].to(self.histories.embeddings.device)
        codes: Tensor = self.generator(self.histories(start[rows.users], rows.until), profile)
        return codes


def learn_generator(
    head: Head,
    basis: Basis,
    generator: Generator,
    histories: Histories,
    shared: SharedEvents,
    activations: Activations,
    settings: JointFit,
) -> Basis:
    """Generator and Θ together, on everybody's events; each event's code comes from what stands before the event.

    The generator is changed in place.
    """
    device = histories.embeddings.device
    learned = basis.learnable(device)
    profile = histories.log.profile.to(device)

    def forward(rows: Ints, candidates: Tensor) -> tuple[Tensor, Tensor]:
        own = shared.events[rows]
        with torch.no_grad():
            z1 = activations(own, candidates)
        codes = generator(histories.of_events(own), profile[torch.from_numpy(histories.log.user[own]).to(device)])
        return head_logits(head, z1, learned.patch(codes)), codes

    weights: list[Tensor] = list(generator.parameters())
    learn_jointly(learned.theta, 1.0, weights, forward, shared, settings)
    return replace(basis, theta=learned.theta.detach().cpu())


# Training with the samples of similar users


def similar_users(
    query: Float[Tensor, "U V"],
    query_users: Int[Tensor, "U"],
    keys: Float[Tensor, "W V"],
    key_users: Int[Tensor, "W"],
    count: int,
) -> tuple[Int[Tensor, "U S"], Float[Tensor, "U S"]]:
    """The users nearest to each user by cosine, never the user itself.

    Returns:
        Positions among the keys, and the cosines (zero where there is no such user, or one that points elsewhere).
    """
    count = min(count, len(keys))
    # in 64 bits and rounded, so that no order of sums decides who is nearer; equals stand in the order of the keys
    cosine = (_unit(query) @ _unit(keys).T).clamp_(min=0).mul_(1e9).round_().div_(1e9)
    cosine[query_users[:, None] == key_users] = 0
    nearest = torch.sort(cosine, dim=1, descending=True, stable=True)
    return nearest.indices[:, :count], nearest.values[:, :count].float()


def _unit(vectors: Float[Tensor, "U V"]) -> Float[Tensor, "U V"]:
    return F.normalize(vectors.double(), dim=1)


# Label correction


def with_offset(basis: Basis) -> Basis:
    """The basis with one more column: the output bias alone, so that a code carries a user's offset as its last number."""
    column = torch.zeros(len(basis.origin), 1, device=basis.theta.device)
    column[-1] = 1
    return replace(basis, theta=torch.cat([basis.theta, column], dim=1))


@torch.no_grad()
def fit_corrected(
    head: Head,
    basis: Basis,
    rows: DeviceRows,
    steps: int,
    learning_rate: float,
    prior: float,
    mean: Float[Tensor, "K"],
) -> Float[Tensor, "U K"]:
    """MetaPatch after the user's base rate has been taken out: first an offset of the logits with λ·offset², then the code.

    Args:
        basis: from `with_offset`. steps, learning_rate, prior, mean: see metapatch.fit_devices; the offset's mean is 0.

    Source: Ding et al., "On-Device Model Fine-Tuning with Label Correction", arXiv 2211.01163: a user whose click rate
    differs from everybody's must not teach that to weights that rank.
    Differs: the labels stay, and an offset with a prior (a shrunken estimate of the user's rate) takes the difference
    up; it is kept in the patch, where it calibrates and changes no ranking.
    """
    codes = mean.repeat(len(rows.z1), 1)
    ones = torch.ones_like(rows.labels).unsqueeze(-1)
    codes[:, -1:] = newton(head_logits(head, rows.z1, basis.patch(codes)), ones, rows, prior, steps=5)
    return fit_devices(head, basis, rows, steps, learning_rate, prior, codes, mean, fixed=1)
