"""Scoring many candidates per event, for rankings: without gradients, and batches change a score by rounding at most.

A cloud model and all its patches share the layers below the patches, so these layers are computed once for all of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from copy import copy
from typing import ClassVar, Literal, Protocol, Self, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dcclctl.events.log import EventLog
from dcclctl.events.sampling import Ints

#: the head of one model: (events (B,), candidates (B, C) or None for the whole catalogue, activations) → logits (B, C)
HeadFunction = Callable[[Ints, Int[Tensor, "B C"] | None, Tensor], Tensor]
#: where a learned patch can stand: after the hidden layers of a click model, or after the state of a sequence model
PatchPoint = Literal["hidden_layers", "states"]

#: numbers held at once: few enough for the processor's cache, enough to use its matrix units
_UNITS = 1 << 20


class Backbone(ABC):
    """A cloud model in two parts: the activations, which no device changes, and the model's own head on top of them.

    Activations may have any shape whose first dimension is B.

    Attributes:
        log: the histories. patch_point: where a patch that learns weights can stand; None: nowhere.
    """

    log: EventLog
    patch_point: ClassVar[PatchPoint | None] = None

    @property
    def head(self) -> HeadFunction:
        """The cloud model's own head; by default the activations are the logits."""
        return lambda events, candidates, activations: activations

    @abstractmethod
    def lengths(self, events: Ints) -> Ints:
        """(B,) length of the history that the model reads at each event; similar lengths are scored together."""

    def items_read(self, events: Ints) -> Ints:
        """(B,) how many of the newest items of each history the model reads."""
        return self.lengths(events)

    @abstractmethod
    def activation_cost(self, n_candidates: int, length: int) -> int:
        """Numbers that are held at once for one event."""

    @abstractmethod
    def activations(self, events: Ints, candidates: Int[Tensor, "B C"] | None) -> Tensor:
        """The head's input for the candidates of every event (None: the whole catalogue)."""

    def logits_of_few(self, events: Ints, candidates: Int[Tensor, "B C"], head: HeadFunction) -> Float[Tensor, "B C"]:
        """A head's logits of few candidates per event."""
        step = self.events_at_once(candidates.shape[1], int(self.lengths(events).max(initial=1)))
        parts = []
        for at in range(0, len(events), step):
            some, own = events[at : at + step], candidates[at : at + step]
            parts.append(head(some, own, self.activations(some, own)))
        return torch.cat(parts)

    def with_log(self, log: EventLog) -> Self:
        """The same model with histories from another log of the same users and items."""
        other = copy(self)
        other.log = log
        return other

    def events_at_once(self, n_candidates: int, longest: int) -> int:
        """How many events to score together, where the longest of their histories has length `longest`."""
        return max(1, _UNITS // max(1, self.activation_cost(n_candidates, longest)))


class CandidateBatch(Protocol):
    """Some events and their candidates: items (B, C), or None for the whole catalogue."""

    @property
    def events(self) -> Ints: ...

    @property
    def items(self) -> Int[Tensor, "B C"] | None: ...


BatchT = TypeVar("BatchT", bound=CandidateBatch)


def score(
    backbone: Backbone,
    heads: list[HeadFunction],
    events: Ints,
    batch_of: Callable[[Ints], BatchT],
    n_candidates: int,
    batch_events: int,
) -> Iterator[tuple[BatchT, list[Float[Tensor, "B C"]]]]:
    """Logits of every head for every event, in batches of events whose histories have similar lengths.

    Args:
        heads: of models that share everything below the patches.
        batch_of: rows of the log → batch with their candidates. n_candidates: C. batch_events: of a batch, at most.

    Yields:
        The batch, and one (B, C) tensor of logits per head, on the CPU.
    """
    lengths = backbone.lengths(events)
    order = np.argsort(lengths, kind="stable")
    for begin in range(0, len(order), batch_events):
        some = order[begin : begin + batch_events]
        batch = batch_of(events[some])
        # lengths ascend, so the last event has the longest history
        step = backbone.events_at_once(n_candidates, int(lengths[some[-1]]))
        parts: list[list[Tensor]] = [[] for _ in heads]
        with torch.no_grad():
            for at in range(0, len(some), step):
                part = batch.events[at : at + step]
                own = None if batch.items is None else batch.items[at : at + step]
                below = backbone.activations(part, own)
                for head, logits in zip(heads, parts, strict=True):
                    logits.append(head(part, own, below).cpu())
        yield batch, [torch.cat(logits) for logits in parts]
