"""The memory patch: a correction of the cloud model's logit, computed from features of the candidate.

    φ = [tanh(A·[c, t, f(x)] + a), c]     c: F features of candidate x from the memory; t: profile of recent events
    f^(m)(x) = f(x) + w·φ                  w, A, a: learned in the cloud, the same for all users

So every user with a memory has a patch, without training on the device; a user without events is served by the cloud
model. The weights are learned from events that f was not trained on (as MetaPatch's Θ is). c does not depend on f, so
the patch can be applied to a fresher f than the one it was learned with.

What is learned is the ranking of all items: each event's item is compared with those that the cloud model ranks highest,
and with some that stand for all others.

Shapes: B events, C candidates, F features, R of them in a profile, H hidden units, W = H + F.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from dcclctl.devices.memory.features import with_profile
from dcclctl.errors import finite_loss
from dcclctl.events.log import EventLog
from dcclctl.events.sampling import Ints, permutation
from dcclctl.models.adam import Adam
from dcclctl.models.kernels import dots
from dcclctl.models.training import CALIBRATION, NOTHING


class MemoryPatch(nn.Module):
    """The patch's weights, which the cloud ships to all devices; before learning the patch does not change f.

    Args:
        hidden_size: H. n_features: F. n_profile: R, 0 without profiles of recent events. generator: of initial weights.
    """

    def __init__(self, hidden_size: int, n_features: int, n_profile: int, generator: torch.Generator) -> None:
        super().__init__()
        self.n_features = n_features
        self.inner = nn.Parameter(torch.empty(hidden_size, n_features + n_profile + 1))  # A
        self.inner_bias = nn.Parameter(torch.zeros(hidden_size))  # a
        self.outer = nn.Parameter(torch.zeros(hidden_size + n_features))  # w
        nn.init.xavier_uniform_(self.inner, generator=generator)

    @torch.no_grad()
    def ignore(self, columns: list[int]) -> None:
        """Set the weights of some columns of the F + R features to 0."""
        self.inner[:, columns] = 0
        self.outer[[len(self.inner) + column for column in columns if column < self.n_features]] = 0

    def forward(self, features: Float[Tensor, "B C FR"], logits: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        """f^(m)(x); features: c and t, as `Memories.features` gives them. logits: f(x)."""
        inputs = torch.cat([features, logits.unsqueeze(-1)], -1)
        hidden = torch.tanh(F.linear(inputs, self.inner, self.inner_bias))
        phi = torch.cat([hidden, features[..., : self.n_features]], -1)
        return logits + dots(self.outer.expand(len(phi), -1), phi)


@dataclass(frozen=True)
class MemoryRows:
    """Events with all inputs of the patch, computed once. The first candidate is the event's own item.

    Attributes:
        events: (B,) rows of the log. held: (B,) events in the memory.
        features: (B, C, F) of the candidates. profile: (B, R) of recent events, see features.py.
        logits: (B, C) of an f that was not trained on these events, shifted to the patch's number of negatives
            (see `prior_shift`).
        labels: (B,) of the events.
        stands: (B, C − 1) how many items each of the other candidates stands for; 0: an empty place.
    """

    events: Ints
    held: Ints
    features: Float[Tensor, "B C F"]
    profile: Float[Tensor, "B R"]
    logits: Float[Tensor, "B C"]
    labels: Float[Tensor, "B"]
    stands: Float[Tensor, "B O"]

    @property
    def inputs(self) -> Float[Tensor, "B C FR"]:
        """What the patch reads of every candidate; a profile is kept once for all of them."""
        return with_profile(self.features, self.profile)

    def pick(self, index: Tensor) -> "MemoryRows":
        """The rows of some events, in the given order."""
        rows = index.numpy()
        return MemoryRows(self.events[rows], self.held[rows], *(getattr(self, name)[index] for name in _TENSORS))

    def blank(self, columns: list[int]) -> "MemoryRows":
        """The same rows with 0 in some columns of the F + R features."""
        features, profile, width = self.features.clone(), self.profile.clone(), self.features.shape[2]
        features[..., [column for column in columns if column < width]] = 0
        profile[:, [column - width for column in columns if column >= width]] = 0
        return replace(self, features=features, profile=profile)

    def where(self, wanted: Bool[Tensor, "B"]) -> "MemoryRows":
        """The rows for which `wanted` is true."""
        return self.pick(torch.nonzero(wanted).squeeze(1))

    @classmethod
    def join(cls, parts: list["MemoryRows"]) -> "MemoryRows":
        """All parts, one after the other."""
        joined = (torch.cat([getattr(part, name) for part in parts]) for name in _TENSORS)
        events, held = (np.concatenate([getattr(part, name) for part in parts]) for name in ("events", "held"))
        return cls(events, held, *joined)


#: the tensors of `MemoryRows`
_TENSORS = ("features", "profile", "logits", "labels", "stands")
#: events whose losses are computed at once
_TESTED_EVENTS = 4096


def prior_shift(trained: int, wanted: int) -> float:
    """The number to add to logits of a model trained with `trained` negatives, as if trained with `wanted` negatives.

    It is log(trained / wanted), the difference of the log odds of a click.

    Source: King & Zeng, "Logistic regression in rare events data", Political Analysis 2001 (prior correction).
    """
    return math.log(trained / wanted)


@dataclass(frozen=True)
class MemoryFit:
    """Settings for learning the patch; negatives: a logit of 0 means one click among that many items."""

    epochs: int
    learning_rate: float
    weight_decay: float
    batch_size: int
    seed: int
    negatives: int


def event_losses(
    logits: Float[Tensor, "B C"], labels: Float[Tensor, "B"], stands: Float[Tensor, "B O"], negatives: int
) -> Float[Tensor, "B"]:
    """Each event's loss in nats: −log of the share of its item among all items, and how far the logits' level is off.

    The level is right if the mean odds of all items are one in `negatives`. An event with label 0 has the binary
    cross-entropy of its own item, and one without other candidates 0.

    Source: softmax with a proposal, Bengio & Senécal 2008, here stratified: the cloud model's highest items count as
    they are, and the others in proportion to how many there are. The level: models/training.py, `softmax_losses`.
    """
    own, count = logits[:, 0], stands.sum(1)
    there = stands > 0
    weighted = torch.where(there, logits[:, 1:] + torch.log(torch.where(there, stands, 1.0)), NOTHING)
    total = torch.logsumexp(weighted, 1)
    level = total - torch.log(count.clamp(min=1)) + math.log(negatives)
    ranked = torch.where(count > 0, F.softplus(total - own) + CALIBRATION * level.square(), 0.0)
    return torch.where(labels > 0, ranked, F.softplus(own))


def learn(
    patch: MemoryPatch,
    rows: MemoryRows,
    settings: MemoryFit,
    on_step: Callable[[int, str], None] = lambda count, note: None,
) -> list[float]:
    """Learn the patch's weights from all devices' rows; `patch` is changed in place.

    Args:
        on_step: called with every batch's number of events and its loss in words.

    Returns:
        Mean loss of each epoch, nats per event.

    Raises:
        DivergedError: the loss became infinite or NaN.
    """
    optimiser = Adam(patch.parameters(), settings.learning_rate, settings.weight_decay)
    losses = []
    for epoch in range(settings.epochs):
        order = torch.from_numpy(permutation(settings.seed, "memory/shuffle", rows.events, epoch))
        total = 0.0
        for at in range(0, len(order), settings.batch_size):
            some = rows.pick(order[at : at + settings.batch_size])
            logits = patch(some.inputs, some.logits)
            loss = event_losses(logits, some.labels, some.stands, settings.negatives).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            value = float(loss.detach())
            total += value * len(some.events)
            on_step(len(some.events), f"loss {value:.4f}")
        mean = finite_loss(total / max(len(order), 1), "the memory patch", "patch.memory.learning_rate=0.001")
        losses.append(mean)
    return losses


@torch.no_grad()
def user_losses(
    patch: MemoryPatch, rows: MemoryRows, log: EventLog, tested: Bool[Tensor, "B"], negatives: int, smallest: int
) -> Float[Tensor, "U two"]:
    """Each user's mean loss over the tested events, without and with the patch; NaN for users without any.

    As in serving, the patch is not used if the memory holds fewer than `smallest` events.
    """
    users = torch.from_numpy(log.user[rows.events])
    remembers = torch.from_numpy(rows.held >= smallest).unsqueeze(1)
    some = (rows.pick(index) for index in torch.split(torch.arange(len(rows.events)), _TESTED_EVENTS))
    patched = torch.cat([patch(each.inputs, each.logits) for each in some])
    patched = torch.where(remembers, patched, rows.logits)
    counted = tested.double()
    sums = []
    for logits in (rows.logits, patched):
        each = event_losses(logits, rows.labels, rows.stands, negatives).double() * counted
        sums.append(torch.zeros(log.n_users, dtype=torch.float64).index_add_(0, users, each))
    counts = torch.zeros(log.n_users, dtype=torch.float64).index_add_(0, users, counted)
    return torch.stack([total / counts for total in sums], 1)
