"""What an event's item is compared with when a memory patch is learned: the items that the cloud model ranks highest, and a
few that stand for all others.

A patch that is learned from a few uniform items learns to tell the user's items from any item, and little of what decides
the top of a list: which of the items that the cloud model likes comes next.

Shapes: B events, N items to choose from, O others chosen, C = 1 + O candidates.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dcclctl.events.sampler import Sampler, SharedNegatives
from dcclctl.events.sampling import Ints, stream
from dcclctl.models.scoring import Backbone


@dataclass(frozen=True)
class Contrasted:
    """Candidates of some events.

    Attributes:
        candidates: (B, C) each event's own item, then the others. logits: of the cloud model.
        stands: (B, O) how many items each of the others stands for; 0: an empty place, with the event's own item in it.
    """

    candidates: Int[Tensor, "B C"]
    logits: Float[Tensor, "B C"]
    stands: Float[Tensor, "B O"]


@dataclass(frozen=True)
class Contrast:
    """Chooses candidates.

    Attributes:
        backbone: of the cloud model, which ranks. sampler: says which items an event may be compared with, and draws.
        highest: items that the model ranks highest; in a catalogue of more than RANKED_ITEMS, of as many items that are drawn for
            these events. others: items drawn uniformly from the rest.
    """

    backbone: Backbone
    sampler: Sampler
    highest: int
    others: int

    @torch.no_grad()
    def of(self, events: Ints, number: int) -> Contrasted:
        """Candidates of some events (B,) of part `number` of a block; the same if asked for together again."""
        own = torch.from_numpy(self.sampler.log.item[events])[:, None]
        ranked = self.sampler.ranked(events, int(events[0]), number)
        items, allowed, each = ranked.items, ranked.allowed, ranked.catalogue / len(ranked.items)
        scored = ranked.allowed_only(self._logits(events, ranked))
        first = min(self.highest, scored.shape[1])
        high, top = scored.topk(first, 1)
        left = allowed.scatter(1, top, False)
        rest, found = self.some_of(left, min(self.others, left.shape[1]), f"others/{number}/{int(events[0])}")
        place, there = torch.cat([top, rest], 1), torch.cat([high > -math.inf, found], 1)
        share = left.sum(1, keepdim=True) / found.sum(1, keepdim=True).clamp(min=1)
        stands = torch.cat([torch.ones_like(high), share.expand(rest.shape)], 1) * there * each
        logits = torch.where(there, scored.gather(1, place), 0.0)
        # a small catalogue leaves places empty
        missing = self.highest + self.others - place.shape[1]
        chosen = torch.where(there, items[place], own)
        chosen = torch.cat([own, chosen, own.expand(-1, missing)], 1)
        stands = torch.cat([stands, stands.new_zeros(len(events), missing)], 1)
        mine = self.backbone.logits_of_few(events, own, self.backbone.head).cpu()
        return Contrasted(chosen, torch.cat([mine, logits, logits.new_zeros(len(events), missing)], 1), stands)

    def some_of(
        self, left: Bool[Tensor, "B N"], count: int, purpose: str
    ) -> tuple[Int[Tensor, "B O"], Bool[Tensor, "B O"]]:
        """Places of `count` = O items of each row that are drawn from those that are left, and whether there were so many."""
        seed = stream(self.sampler.seed, f"{self.sampler.purpose}/{purpose}")
        draws = torch.from_numpy(np.random.default_rng(seed).random(left.shape, dtype=np.float32))
        drawn, places = draws.masked_fill(~left, -1).topk(count, 1)
        return places, drawn >= 0

    def _logits(self, events: Ints, ranked: SharedNegatives) -> Float[Tensor, "B N"]:
        """The model's logits of the items to choose from."""
        backbone, count = self.backbone, len(ranked.items)
        whole = count == ranked.catalogue
        wanted = None if whole else ranked.items.expand(len(events), -1)
        width = self.sampler.log.n_items if whole else count
        step = backbone.events_at_once(width, int(backbone.lengths(events).max(initial=1)))
        parts = []
        for at in range(0, len(events), step):
            some, own = events[at : at + step], None if wanted is None else wanted[at : at + step]
            parts.append(backbone.head(some, own, backbone.activations(some, own)).cpu())
        logits = torch.cat(parts)
        return logits[:, ranked.items] if whole else logits
