"""Scoring many candidates per event: what rankings are made of. No gradients, and no effect of the batch on a score.

The layers below the patches are the same for a cloud model and all its patches, so they are computed once for all of
the models that share them.
"""

from collections.abc import Callable, Iterator
from copy import copy
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dcclctl.algorithm.din import Din
from dcclctl.algorithm.eventlog import EventLog
from dcclctl.algorithm.metapatch import Basis, patched_logits
from dcclctl.algorithm.sampling import Ints

#: (events (B,), candidates (B, C) or None for the whole catalogue, activations) → logits (B, C): the head of one model
HeadFunction = Callable[[Ints, Int[Tensor, "B C"] | None, Tensor], Tensor]

#: numbers held at once: small enough for the processor's cache, large enough for its matrix units
_UNITS = 1 << 20


@runtime_checkable
class Backbone(Protocol):
    """A model of the cloud, cut in two: what no device changes (`activations`), and its own head on top of it.

    `activations` may have any shape whose first dimension is B; every head that is put on a backbone knows which.
    """

    log: EventLog

    @property
    def head(self) -> HeadFunction:
        """The cloud model's own head."""
        ...

    def lengths(self, events: Ints) -> Ints:
        """(B,) length of what is read for each event; events of similar length are scored together."""
        ...

    def units(self, n_candidates: int, length: int) -> int:
        """Numbers that are held at once for one event."""
        ...

    def activations(self, events: Ints, candidates: Int[Tensor, "B C"] | None) -> Tensor:
        """What is below the head, for the candidates of every event (None: the whole catalogue)."""
        ...


BackboneT = TypeVar("BackboneT", bound=Backbone)


def reading(backbone: BackboneT, log: EventLog) -> BackboneT:
    """The same model with its histories from another log of the same users and items."""
    other = copy(backbone)
    other.log = log
    return other


@torch.no_grad()
def item_embeddings(model: Din) -> Float[Tensor, "I D"]:
    """Embeddings of the whole catalogue, in blocks."""
    items = torch.arange(model.sizes.n_items, device=model.out.weight.device)
    return torch.cat([model.embed(block) for block in torch.split(items, 65536)])


@torch.no_grad()
def activations_of_many(
    model: Din,
    log: EventLog,
    events: Ints,
    candidates: Int[Tensor, "B C"] | None,
    limit: int,
    embeddings: Float[Tensor, "I D"],
) -> Float[Tensor, "B C H1"]:
    """First hidden layer for many candidates per event; all items if `candidates` is None.

    Args:
        limit: L, history length. embeddings: of the catalogue (see `item_embeddings`).
    """
    device = embeddings.device
    history, mask = log.histories(events, limit)
    keys = embeddings[history.to(device)]
    query = embeddings.expand(len(events), -1, -1) if candidates is None else embeddings[candidates.to(device)]
    interest = model.interest_of_many(query, keys, mask.to(device))
    profile = model.embed_profile(log.profile[torch.from_numpy(log.user[events])].to(device))
    return model.first_layer(query, interest, profile)


class DinBackbone:
    """DIN up to its first hidden layer: activations are (B, C, H1). No patch changes anything below."""

    def __init__(self, model: Din, log: EventLog, limit: int) -> None:
        """Args: limit is L, history length."""
        self.model, self.log, self.limit = model, log, limit
        self.embeddings = item_embeddings(model)

    @property
    def head(self) -> HeadFunction:
        return cloud_head(self.model)

    def lengths(self, events: Ints) -> Ints:
        return self.log.history_lengths(events, self.limit)

    def units(self, n_candidates: int, length: int) -> int:
        return n_candidates * max(1, length) * self.model.sizes.attention_size

    def activations(self, events: Ints, candidates: Int[Tensor, "B C"] | None) -> Float[Tensor, "B C H1"]:
        return activations_of_many(self.model, self.log, events, candidates, self.limit, self.embeddings)


def cloud_head(model: Din) -> HeadFunction:
    """The cloud model's own head."""
    return lambda events, candidates, z1: model.logits(model.second_layer(z1))


def patched_head(model: Din, basis: Basis, codes: Float[Tensor, "U K"], log: EventLog) -> HeadFunction:
    """The head with each event's user's patch; `codes` has a row for every user of the log (zero: the cloud model)."""

    basis = basis.to(model.out.weight.device)

    def head(events: Ints, candidates: Tensor | None, z1: Tensor) -> Tensor:
        own = codes[torch.from_numpy(log.user[events])].to(z1.device)
        return patched_logits(model, z1, basis.patch(own))

    return head


def events_at_once(backbone: Backbone, n_candidates: int, longest: int) -> int:
    """How many events to score together; longest: length of the longest of their histories."""
    return max(1, _UNITS // backbone.units(n_candidates, longest))


def score(
    backbone: Backbone,
    heads: list[HeadFunction],
    events: Ints,
    candidates_of: Callable[[Ints], Int[Tensor, "B C"] | None],
    n_candidates: int,
    batch_events: int,
) -> Iterator[tuple[Ints, Int[Tensor, "B C"] | None, list[Float[Tensor, "B C"]]]]:
    """Logits of every head for every event, in batches of events whose histories have similar lengths.

    Args:
        heads: models that share everything below the patches.
        candidates_of: rows of the log → their candidates, or None for the whole catalogue.
        n_candidates: C.
        batch_events: at most so many events at once.

    Yields:
        events (B,), their candidates, one (B, C) tensor of logits per head (on the CPU).
    """
    lengths = backbone.lengths(events)
    order = np.argsort(lengths, kind="stable")
    for begin in range(0, len(order), batch_events):
        batch = order[begin : begin + batch_events]
        rows = events[batch]
        candidates = candidates_of(rows)
        # lengths ascend, so the last event has the longest history
        step = events_at_once(backbone, n_candidates, int(lengths[batch[-1]]))
        parts: list[list[Tensor]] = [[] for _ in heads]
        with torch.no_grad():
            for at in range(0, len(rows), step):
                part = rows[at : at + step]
                own = None if candidates is None else candidates[at : at + step]
                below = backbone.activations(part, own)
                for head, logits in zip(heads, parts, strict=True):
                    logits.append(head(part, own, below).cpu())
        yield rows, candidates, [torch.cat(logits) for logits in parts]
