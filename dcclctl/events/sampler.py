"""Events with their candidates: each event's own item, and negatives drawn for it.

A log with labels has observed negatives too: items that a user was shown and did not choose, or rated low. Each is an event
with label 0, and so a row of its own beside the sampled negatives of the positive events. Both are needed: the observed ones
tell apart what is shown side by side, the sampled ones rank the many items that a user was never shown. A pairwise loss has
no rows with label 0; there observed negatives take half of the places of sampled ones.
"""

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dcclctl.events.log import VALID, Block, EventLog
from dcclctl.events.sampling import NO_ITEM, Ints, PairSet, draw_negatives, stream, uniforms

#: items that a ranking on the way has at most, so that it costs little beside what is learned
RANKED_ITEMS = 20_000


@dataclass(frozen=True)
class Samples:
    """Events with candidates: each event's own item first, then its negatives.

    Attributes:
        events: (B,) rows of the log. candidates: (B, C) items. labels: (B, C) 0 or 1.
        weights: (B, C) 1 where the candidate counts, else 0. An event with label 0 has no sampled negatives, and a slot
            may be empty because all items are excluded.
    """

    events: Ints
    candidates: Int[Tensor, "B C"]
    labels: Float[Tensor, "B C"]
    weights: Float[Tensor, "B C"]


@dataclass(frozen=True)
class SharedNegatives:
    """Negatives that all events of a batch share.

    Attributes:
        items: (N,) distinct items. allowed: (B, N) whether the item is a negative of the event.
        catalogue: number of items that they were drawn from. expected: negatives for each positive event; a logit of 0
            means one click among that many items.
    """

    items: Int[Tensor, "N"]
    allowed: Bool[Tensor, "B N"]
    catalogue: int
    expected: int

    def allowed_only(self, logits: Float[Tensor, "B N"]) -> Float[Tensor, "B N"]:
        """The logits of the items, −∞ where one is no negative of the event."""
        return logits.masked_fill(~self.allowed.to(logits.device), -math.inf)


class Sampler:
    """Draws negatives for the events of some blocks.

    Args:
        log: the events. blocks: their events get negatives, from the items with an event by the end of the last block.
        negatives: N, negatives for each event.
        seed, purpose: name the draws, so that two samplers with one seed draw differently.
        excluded: pairs that may not be drawn; None: see EventLog.never_negative.
        observed: half of the negatives are observed ones of the event's user, where the blocks have any: the items that the
            user was shown since the positive event before, or any of the user's if there is none.
    """

    def __init__(
        self,
        log: EventLog,
        blocks: Sequence[Block | int],
        negatives: int,
        seed: int,
        purpose: str,
        excluded: PairSet | None = None,
        observed: bool = False,
    ) -> None:
        self.log, self.negatives, self.seed, self.purpose = log, negatives, seed, purpose
        self.catalogue = log.catalogue(Block.last(*blocks))
        self.excluded = excluded or log.never_negative(*blocks)
        rows = log.events_in(*blocks) if observed else np.zeros(0, dtype=np.int64)
        self._observed = rows[log.label[rows] == 0]

    def named(self, purpose: str) -> "Sampler":
        """The same with other draws, which `purpose` names."""
        other = copy(self)
        other.purpose = purpose
        return other

    def draw(self, events: Ints, epoch: int = 0) -> Samples:
        """The events (B,), rows of the log, with their negatives of one epoch."""
        drawn = self._with_observed(events, self.items(events, self.negatives, epoch), epoch)
        own, label = self.log.item[events], self.log.label[events]
        labels = np.zeros((len(events), 1 + self.negatives), dtype=np.float32)
        labels[:, 0] = label
        weights = np.ones_like(labels)
        weights[:, 1:] = (drawn != NO_ITEM) & (label > 0)[:, None]
        candidates = np.concatenate([own[:, None], np.where(drawn == NO_ITEM, own[:, None], drawn)], axis=1)
        return Samples(events, torch.from_numpy(candidates), torch.from_numpy(labels), torch.from_numpy(weights))

    def shared(self, events: Ints, count: int, expected: int, batch: int, epoch: int = 0) -> SharedNegatives:
        """Up to `count` distinct negatives, drawn uniformly, for all events (B,) of one batch of an epoch."""
        items = self.catalogue
        if count < len(items):
            first = stream(self.seed, f"{self.purpose}/shared/{epoch}/{batch}")
            items = np.sort(np.random.default_rng(first).choice(items, count, replace=False))
        taken = self.excluded.among(self.log.owners(events, self.excluded), items)
        taken |= self.log.item[events][:, None] == items
        return SharedNegatives(torch.from_numpy(items), torch.from_numpy(~taken), len(self.catalogue), expected)

    def ranked(self, events: Ints, batch: int, epoch: int = 0, most: int | None = None) -> SharedNegatives:
        """What the items of events (B,) of one batch are ranked among: the catalogue, or if it has more than `most` items
        (20,000 by default) that many of them."""
        return self.shared(events, most or RANKED_ITEMS, 1, batch, epoch)

    def items(self, events: Ints, count: int, epoch: int = 0) -> Ints:
        """(B, count) negatives of each event, NO_ITEM where none is left; the first ones do not depend on `count`."""
        owners = self.log.owners(events, self.excluded)
        places = self.log.places(events)
        return draw_negatives(self.seed, self.purpose, places, owners, count, self.catalogue, self.excluded, epoch)

    def _with_observed(self, events: Ints, drawn: Ints, epoch: int) -> Ints:
        """The drawn negatives (B, N), about half of them replaced by observed ones of the event's user."""
        if not len(self._observed):
            return drawn
        log, chosen = self.log, np.full_like(drawn, NO_ITEM)
        keys = (epoch, log.places(events)[:, None], np.arange(drawn.shape[1])[None, :])
        # rows of the log are sorted by user and time, and the histories of a user only grow
        for shown, wanted in (
            (log.user[self._observed], log.user[events]),
            (self._since_last(self._observed), self._since_last(events)),
        ):
            first = np.searchsorted(shown, wanted)
            counts = np.searchsorted(shown, wanted, side="right") - first
            place = np.floor(uniforms(self.seed, f"{self.purpose}/observed", *keys) * counts[:, None]).astype(np.int64)
            rows = self._observed[np.minimum(first[:, None] + place, len(self._observed) - 1)]
            chosen = np.where((counts > 0)[:, None], log.item[rows], chosen)
        half = uniforms(self.seed, f"{self.purpose}/half", *keys) < 0.5
        fits = half & (chosen != NO_ITEM) & (chosen != log.item[events][:, None])
        replaced: Ints = np.where(fits, chosen, drawn)
        return replaced

    def _since_last(self, events: Ints) -> Ints:
        """A number that events of one user share if the user has no positive event between them; ascending over the log."""
        numbers: Ints = self.log.user[events] * (len(self.log.sequence) + 1) + self.log.history_end[events]
        return numbers


def valid_sampler(log: EventLog, negatives: int, seed: int) -> Sampler:
    """Draws negatives for the valid period's events that are the same for all epochs and models."""
    return Sampler(log, [VALID], negatives, seed, "valid/negatives")
