"""Popularity, the same ranking for everybody, counted over all training events or over the newest of them; and each
user's own counts with popularity behind them.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dcclctl.algorithm.baselines import identity_head
from dcclctl.algorithm.baselines.neighbours import ranges
from dcclctl.algorithm.eventlog import EventLog, shares
from dcclctl.algorithm.sampling import Ints
from dcclctl.algorithm.scoring import HeadFunction


def item_counts(log: EventLog, rows: Ints) -> Ints:
    """(I,) positive events of every item among some rows of the log."""
    counts: Ints = np.bincount(log.item[rows][log.label[rows] > 0], minlength=log.n_items)
    return counts


def newest_rows(log: EventLog, rows: Ints, time: Ints, newest: float, one_timeline: bool) -> Ints:
    """The newest share of some rows: those with less than that share of the rows at a later time.

    Args:
        rows: (N,) rows of the log. time: (N,) their times.
        newest: share, 0 < newest ≤ 1; the last moment is always kept.
        one_timeline: the newest of all rows; else of each user's own (where times of two users say nothing together).
    """
    if not len(rows):
        return rows
    kept: Ints = rows[shares(log.user[rows], -time, np.zeros_like(rows), one_timeline) < newest]
    return kept


def log_odds(counts: Ints, negatives: int) -> Float[Tensor, "I"]:
    """Logits that an item is what came next, and not one of the uniformly drawn items beside it.

    Of one positive, drawn by the counts (each plus one), and n uniform negatives: logit = log(p_i / (n / I)).

    Args:
        counts: (I,) events of every item. negatives: n.
    """
    share = (counts + 1) / (counts + 1).sum()
    return torch.from_numpy(np.log(share * len(counts) / negatives)).float()


class PopularityBackbone:
    """One score an item: activations are the logits (B, C)."""

    def __init__(self, logits: Float[Tensor, "I"], log: EventLog) -> None:
        self.logits, self.log = logits, log

    @property
    def head(self) -> HeadFunction:
        return identity_head

    def lengths(self, events: Ints) -> Ints:
        return np.zeros(len(events), dtype=np.int64)

    def units(self, n_candidates: int, length: int) -> int:
        return n_candidates

    def activations(self, events: Ints, candidates: Int[Tensor, "B C"] | None) -> Float[Tensor, "B C"]:
        if candidates is None:
            return self.logits.expand(len(events), -1)
        return self.logits[candidates.to(self.logits.device)]


class OwnCountsBackbone:
    """How often the user had the candidate strictly before the event; popularity breaks ties, and ranks what is new.

    Nothing is learned from a user but by everybody's counts, so users that training never saw are served as all others.

    Source: GP-TopFreq of Li, Jullien, Ariannezhad & de Rijke, "A next basket recommendation reality check", TOIS 2023
    (arXiv 2109.14233). Differs: a moment's items are counted one by one, not by basket.
    """

    def __init__(self, popularity: Float[Tensor, "I"], log: EventLog) -> None:
        """Args: popularity is each item's number of training events."""
        self.log = log
        #: at most a half, so that it never outweighs having had an item once more, after rounding either
        self.ties = popularity / (2 * popularity.max().clamp(min=1))

    @property
    def head(self) -> HeadFunction:
        return identity_head

    def lengths(self, events: Ints) -> Ints:
        return self.log.history_lengths(events, len(self.log.user))

    def units(self, n_candidates: int, length: int) -> int:
        return self.log.n_items + length

    def activations(self, events: Ints, candidates: Int[Tensor, "B C"] | None) -> Float[Tensor, "B C"]:
        begins, ends = self.log.history_start[events], self.log.history_end[events]
        had = self.log.sequence.numpy()[ranges(begins, ends)]
        cells = np.repeat(np.arange(len(events)), ends - begins) * self.log.n_items + had
        counts = np.bincount(cells, minlength=len(events) * self.log.n_items).reshape(len(events), -1)
        scores = torch.from_numpy(counts).to(self.ties) + self.ties
        return scores if candidates is None else scores.gather(1, candidates.to(scores.device))
