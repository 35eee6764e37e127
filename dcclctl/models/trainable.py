"""What a cloud model says of itself so that one loop can train it (see training.py)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from dcclctl.events.log import EventLog
from dcclctl.events.sampling import Ints, permutation
from dcclctl.models.settings import FitSettings

#: x → x with some of its numbers zeroed, as training does between layers
Dropout = Callable[[Tensor], Tensor]
#: batches that are sorted by history length together: long enough for tight padding, short enough to stay random
BUCKET_BATCHES = 50


def keep_all(x: Tensor) -> Tensor:
    """No dropout."""
    return x


@dataclass(frozen=True)
class Forward:
    """Logits of one batch, and the rows of the item table that they depend on.

    Attributes:
        logits: (B, C). items: (R,) distinct rows of the item table.
        leaf: (R, E) copies of those rows that get the gradient; None if the gradient goes to the table itself.
    """

    logits: Float[Tensor, "B C"]
    items: Int[Tensor, "R"]
    leaf: Float[Tensor, "R E"] | None = None


class Pass(ABC):
    """One way through some events, batch by batch. A position is an index into those events."""

    @abstractmethod
    def batches(self, settings: FitSettings, epoch: int) -> Iterator[Ints]:
        """Positions of each training batch, in an order that depends on the seed and the epoch."""

    @abstractmethod
    def validation_batches(self) -> Iterator[Ints]:
        """Positions of each validation batch, in a fixed order."""

    @abstractmethod
    def forward(self, positions: Ints, candidates: Int[Tensor, "B C"], drop: Dropout = keep_all) -> Forward:
        """Logits of the candidates of some positions."""


class Trainable(nn.Module, ABC):
    """A cloud model that learns by gradient descent. Its largest table is `item_table`, which is updated row by row."""

    item_table: nn.Parameter
    #: tables beside the item table that get the L2 penalty on the rows that a batch touches
    penalised_tables: ClassVar[tuple[str, ...]] = ()
    #: learn from the difference between a positive and each of its negatives, and from positive events only
    pairwise: ClassVar[bool] = False

    @abstractmethod
    def training_pass(self, log: EventLog, events: Ints) -> Pass:
        """How training goes through the events (B,)."""

    def serving_pass(self, log: EventLog, events: Ints) -> Pass:
        """The same with every event seen as the served model sees it."""
        return self.training_pass(log, events)

    def losses(
        self, logits: Float[Tensor, "B C"], labels: Float[Tensor, "B C"], weights: Float[Tensor, "B C"]
    ) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N"]]:
        """Each loss in nats, and its weight.

        Cross-entropy of every candidate; or, if the model is pairwise, −ln σ(x_own − x_negative) of every negative.
        """
        if not self.pairwise:
            return F.binary_cross_entropy_with_logits(logits, labels, reduction="none"), weights
        return F.softplus(logits[:, 1:] - logits[:, :1]), labels[:, :1] * weights[:, 1:]


class HistoryPass(Pass):
    """Events one by one, batched with others whose histories have similar lengths.

    Args:
        log: the histories. events: (B,) rows of it. limit: L, the longest history that is read.
        forward: (log, events, candidates, drop) → Forward.
    """

    #: events of a validation batch
    VALIDATION_EVENTS = 4096

    def __init__(
        self,
        log: EventLog,
        events: Ints,
        limit: int,
        forward: Callable[[EventLog, Ints, Int[Tensor, "B C"], Dropout], Forward],
    ) -> None:
        self.log, self.events, self.limit, self._forward = log, events, limit, forward

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

    def forward(self, positions: Ints, candidates: Int[Tensor, "B C"], drop: Dropout = keep_all) -> Forward:
        return self._forward(self.log, self.events[positions], candidates, drop)


def dropout(x: Float[Tensor, "..."], rate: float, generator: torch.Generator) -> Float[Tensor, "..."]:
    """Inverted dropout from an explicit generator on the CPU, so that the mask does not depend on global state."""
    if rate == 0:
        return x
    keep = torch.empty(x.shape).bernoulli_(1 - rate, generator=generator).to(x.device)
    return x * keep / (1 - rate)
