"""Events with their candidates: each event's own item, and negatives drawn for it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dcclctl.events.log import VALID, Block, EventLog
from dcclctl.events.sampling import NO_ITEM, Ints, PairSet, draw_negatives


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


class Sampler:
    """Draws negatives for the events of some blocks.

    Args:
        log: the events. blocks: their events get negatives, from the items with an event by the end of the last block.
        negatives: N, negatives for each event.
        seed, purpose: name the draws, so that two samplers with one seed draw differently.
        excluded: pairs that may not be drawn; None: see EventLog.never_negative.
    """

    def __init__(
        self,
        log: EventLog,
        blocks: Sequence[Block | int],
        negatives: int,
        seed: int,
        purpose: str,
        excluded: PairSet | None = None,
    ) -> None:
        self.log, self.negatives, self.seed, self.purpose = log, negatives, seed, purpose
        self.catalogue = log.catalogue(max(Block.of(block) for block in blocks))
        self.excluded = excluded or log.never_negative(*blocks)

    def draw(self, events: Ints, epoch: int = 0) -> Samples:
        """The events (B,), rows of the log, with their negatives of one epoch."""
        drawn = self.items(events, self.negatives, epoch)
        own, label = self.log.item[events], self.log.label[events]
        labels = np.zeros((len(events), 1 + self.negatives), dtype=np.float32)
        labels[:, 0] = label
        weights = np.ones_like(labels)
        weights[:, 1:] = (drawn != NO_ITEM) & (label > 0)[:, None]
        candidates = np.concatenate([own[:, None], np.where(drawn == NO_ITEM, own[:, None], drawn)], axis=1)
        return Samples(events, torch.from_numpy(candidates), torch.from_numpy(labels), torch.from_numpy(weights))

    def items(self, events: Ints, count: int, epoch: int = 0) -> Ints:
        """(B, count) negatives of each event, NO_ITEM where none is left; the first ones do not depend on `count`."""
        owners = self.log.owners(events, self.excluded)
        return draw_negatives(self.seed, self.purpose, events, owners, count, self.catalogue, self.excluded, epoch)


def valid_samples(log: EventLog, negatives: int, seed: int) -> Samples:
    """The valid period's events with negatives that are the same for all epochs and models."""
    return Sampler(log, [VALID], negatives, seed, "valid/negatives").draw(log.events_in(VALID))
