"""The interface of cloud models that learn by gradient descent, so that one loop can train them (training.py)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from dcclctl.events.log import EventLog
from dcclctl.events.sampling import Ints, permutation
from dcclctl.models.settings import FitSettings

#: x → x with some of its numbers set to zero
Dropout = Callable[[Tensor], Tensor]
#: batches whose events are sorted by history length together: enough for little padding, few enough for random batches
BUCKET_BATCHES = 50


def keep_all(x: Tensor) -> Tensor:
    """No dropout."""
    return x


@dataclass(frozen=True)
class Forward:
    """Logits of one batch, and the rows of the item table that they depend on.

    Attributes:
        logits: (B, C). items: (R,) distinct rows of the item table.
        leaf: (R, E) copies of those rows that get the gradient; None: the table itself gets it.
        shared: (B, N) logits of the items that all events share, if any.
    """

    logits: Float[Tensor, "B C"]
    items: Int[Tensor, "R"]
    leaf: Float[Tensor, "R E"] | None = None
    shared: Float[Tensor, "B N"] | None = None


class Pass(ABC):
    """Some events in batches. A position is an index into the events."""

    @abstractmethod
    def batches(self, settings: FitSettings, epoch: int) -> Iterator[Ints]:
        """Positions of each training batch, in an order that depends on the seed and the epoch."""

    @abstractmethod
    def validation_batches(self) -> Iterator[Ints]:
        """Positions of each validation batch, in a fixed order."""

    @abstractmethod
    def forward(self, positions: Ints, candidates: Int[Tensor, "B C"], drop: Dropout = keep_all) -> Forward:
        """Logits of the candidates of some positions."""

    def forward_shared(
        self, positions: Ints, candidates: Int[Tensor, "B C"], shared: Int[Tensor, "N"], drop: Dropout = keep_all
    ) -> Forward:
        """Logits of each position's own candidates (B, C), and of N items that all positions share."""
        every = torch.cat([candidates, shared.expand(len(candidates), -1)], 1)
        found = self.forward(positions, every, drop)
        logits, others = found.logits.tensor_split([candidates.shape[1]], 1)
        return replace(found, logits=logits, shared=others)


class Trainable(nn.Module, ABC):
    """A cloud model that learns by gradient descent. A step updates only the rows of `item_table` that a batch uses."""

    item_table: nn.Parameter
    #: other tables with an L2 penalty on the rows that a batch uses
    penalised_tables: ClassVar[tuple[str, ...]] = ()
    #: valid events that are ranked after an epoch, and items that each is ranked among, at most: what costs little beside it
    ranked_on_valid: ClassVar[tuple[int, int]] = (10_000, 20_000)
    #: learn from positive events only, by the difference between a positive and each of its negatives
    pairwise: ClassVar[bool] = False

    @abstractmethod
    def training_pass(self, log: EventLog, events: Ints) -> Pass:
        """The events (B,) in batches for training."""

    def serving_pass(self, log: EventLog, events: Ints) -> Pass:
        """The events (B,) with the histories that the served model reads."""
        return self.training_pass(log, events)

    def losses(
        self, logits: Float[Tensor, "B C"], labels: Float[Tensor, "B C"], weights: Float[Tensor, "B C"]
    ) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N"]]:
        """Losses in nats, and weights: cross-entropy of each candidate, or −ln σ(x_own − x_negative) if pairwise."""
        if not self.pairwise:
            return F.binary_cross_entropy_with_logits(logits, labels, reduction="none"), weights
        return F.softplus(logits[:, 1:] - logits[:, :1]), labels[:, :1] * weights[:, 1:]


class HistoryPass(Pass):
    """Events one by one, batched with others whose histories have similar lengths.

    Args:
        log: the histories. events: (B,) rows of the log. limit: L, the longest history that is read.
    """

    #: events of a validation batch
    VALIDATION_EVENTS = 4096

    def __init__(self, log: EventLog, events: Ints, limit: int) -> None:
        self.log, self.events, self.limit = log, events, limit

    def batches(self, settings: FitSettings, epoch: int) -> Iterator[Ints]:
        order = permutation(settings.seed, f"{settings.purpose}/shuffle", self.events, epoch)
        lengths = self.log.history_lengths(self.events, self.limit)
        span = settings.batch_size * BUCKET_BATCHES
        for start in range(0, len(order), span):
            chunk = order[start : start + span]
            chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
            firsts = np.arange(0, len(chunk), settings.batch_size)
            for first in firsts[permutation(settings.seed, f"{settings.purpose}/batches", firsts, epoch, start)]:
                yield chunk[first : first + settings.batch_size]

    def validation_batches(self) -> Iterator[Ints]:
        for start in range(0, len(self.events), self.VALIDATION_EVENTS):
            yield np.arange(start, min(start + self.VALIDATION_EVENTS, len(self.events)))


def dropout(x: Float[Tensor, "..."], rate: float, generator: torch.Generator) -> Float[Tensor, "..."]:
    """Inverted dropout with a mask drawn from `generator` on the CPU, so that it does not depend on global state."""
    if rate == 0:
        return x
    keep = torch.empty(x.shape).bernoulli_(1 - rate, generator=generator).to(x.device)
    return x * keep / (1 - rate)
