"""Popularity: the same ranking for all users, counted over all training events or over the newest of them."""

from bisect import bisect_left

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dcclctl.events.log import EventLog
from dcclctl.events.periods import shares
from dcclctl.events.sampling import Ints
from dcclctl.models.scoring import Backbone


def newest_of_users(log: EventLog, rows: Ints, time: Ints, newest: float) -> Ints:
    """The newest share of each user's rows: those with less than that share of the user's rows at a later time.

    Args:
        rows: (N,) rows of the log. time: (N,) their times. newest: 0 < newest ≤ 1; the latest time is always kept.
    """
    kept: Ints = rows[shares(log.user[rows], -time, np.zeros_like(rows), one_timeline=False) < newest]
    return kept


def start_of_newest(time: Ints, newest: float) -> int:
    """Where the newest share of some events begins: the earliest time with less than that share of them at a later one.

    Args:
        time: (N,), at least one. newest: 0 < newest ≤ 1.
    """
    most = bisect_left(range(len(time)), newest, key=lambda later: later / len(time))
    return int(np.partition(time, len(time) - most)[len(time) - most])


def log_odds(counts: Ints, negatives: int) -> Float[Tensor, "I"]:
    """Logits of each item being the positive among one positive and n uniform negatives: log(p_i / (n / I)).

    Args:
        counts: (I,) events of every item; p is proportional to them, each plus one. negatives: n.
    """
    share = (counts + 1) / (counts + 1).sum()
    return torch.from_numpy(np.log(share * len(counts) / negatives)).float()


class PopularityBackbone(Backbone):
    """One score an item: activations are the logits (B, C)."""

    def __init__(self, logits: Float[Tensor, "I"], log: EventLog) -> None:
        self.logits, self.log = logits, log

    def lengths(self, events: Ints) -> Ints:
        return np.zeros(len(events), dtype=np.int64)

    def activation_cost(self, n_candidates: int, length: int) -> int:
        return n_candidates

    def activations(self, events: Ints, candidates: Int[Tensor, "B C"] | None) -> Float[Tensor, "B C"]:
        if candidates is None:
            return self.logits.expand(len(events), -1)
        return self.logits[candidates.to(self.logits.device)]
