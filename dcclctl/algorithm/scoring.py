"""Scoring many candidates per event: what rankings are made of. No gradients, and no effect of the batch on a score.

The layers below the patches are the same for a cloud model and all its patches, so they are computed once for all of
the models that share them.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dcclctl.algorithm.din import Din
from dcclctl.algorithm.eventlog import EventLog
from dcclctl.algorithm.metapatch import Basis, patched_logits
from dcclctl.algorithm.sampling import Ints

#: (events (B,), z1 (B, C, H1)) → logits (B, C): the head of one model
HeadFunction = Callable[[Ints, Tensor], Tensor]

#: attention units held at once: small enough for the processor's cache, large enough for its matrix units
_UNITS = 1 << 20


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


def cloud_head(model: Din) -> HeadFunction:
    """The cloud model's own head."""
    return lambda events, z1: model.logits(model.second_layer(z1))


def patched_head(model: Din, basis: Basis, codes: Float[Tensor, "U K"], log: EventLog) -> HeadFunction:
    """The head with each event's user's patch; `codes` has a row for every user of the log (zero: the cloud model)."""

    basis = basis.to(model.out.weight.device)

    def head(events: Ints, z1: Tensor) -> Tensor:
        own = codes[torch.from_numpy(log.user[events])].to(z1.device)
        return patched_logits(model, z1, basis.patch(own))

    return head


def score(
    model: Din,
    heads: list[HeadFunction],
    log: EventLog,
    events: Ints,
    candidates_of: Callable[[Ints], Int[Tensor, "B C"] | None],
    n_candidates: int,
    limit: int,
    batch_events: int,
) -> Iterator[tuple[Ints, Int[Tensor, "B C"] | None, list[Float[Tensor, "B C"]]]]:
    """Logits of every head for every event, in batches of events whose histories have similar lengths.

    Args:
        heads: models that share the layers of `model` below the patches.
        candidates_of: rows of the log → their candidates, or None for the whole catalogue.
        n_candidates: C.
        batch_events: at most so many events at once.

    Yields:
        events (B,), their candidates, one (B, C) tensor of logits per head (on the CPU).
    """
    embeddings = item_embeddings(model)
    lengths = log.history_lengths(events, limit)
    order = np.argsort(lengths, kind="stable")
    for begin in range(0, len(order), batch_events):
        batch = order[begin : begin + batch_events]
        rows = events[batch]
        candidates = candidates_of(rows)
        # lengths ascend, so the last event has the longest history
        units = n_candidates * max(1, int(lengths[batch[-1]])) * model.sizes.attention_size
        step = max(1, _UNITS // units)
        parts: list[list[Tensor]] = [[] for _ in heads]
        with torch.no_grad():
            for at in range(0, len(rows), step):
                part = rows[at : at + step]
                own = None if candidates is None else candidates[at : at + step]
                z1 = activations_of_many(model, log, part, own, limit, embeddings)
                for head, logits in zip(heads, parts, strict=True):
                    logits.append(head(part, z1).cpu())
        yield rows, candidates, [torch.cat(logits) for logits in parts]
