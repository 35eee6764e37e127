"""The events of one evaluation and the candidates of each: the same for every model, drawn by (seed, event) alone."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dcclctl.artifacts import Dataset
from dcclctl.config import EvaluateConfig
from dcclctl.errors import UsageError
from dcclctl.evaluation.targets import of_new_users, seen_by_models, targets_of
from dcclctl.events.log import Block, EventLog
from dcclctl.events.sampler import Sampler
from dcclctl.events.sampling import NO_ITEM, Ints

#: `--candidates auto` ranks everything up to so many (event, item) pairs: one to two minutes a DIN on one core
_AFFORDABLE_PAIRS = 300_000_000
_SAMPLED = 1000
#: scored rows that are kept until their users' figures are computed
_ROWS = 1 << 20


def number_to_rank(dataset: Dataset, log: EventLog, block: Block, config: EvaluateConfig) -> int:
    """How many events `--candidates auto` goes by: the same for every K of --first-events and for all --targets."""
    events = log.events_in(block)
    return len(of_new_users(dataset, log, events) if config.first_events else events)


@dataclass(frozen=True)
class Batch:
    """Some events with their candidates; the event's own item is compared with its rivals.

    Attributes:
        events: (B,) rows of the log.
        items: (B, C) the event's own item, then C − 1 sampled ones; None where the columns are the whole catalogue.
        own: (B,) column of the event's own item.
        sampled: R, how many columns after the own item's are compared with it; 0: the whole catalogue is.
        no_rivals: rows and columns of what stands in no ranking among the compared columns. outside: (O,) columns that stand
            in none of the rankings.
        rivals: (B,) number of rivals.
        negatives: (B, N) items for AUC, NO_ITEM where fewer are left.
    """

    events: Ints
    items: Int[Tensor, "B C"] | None
    own: Ints
    sampled: int
    no_rivals: tuple[Ints, Ints]
    outside: Ints
    rivals: Ints
    negatives: Ints

    def own_logits(self, logits: Float[np.ndarray, "B C"]) -> Float[np.ndarray, "B"]:
        """Logits of the events' own items."""
        return logits[np.arange(len(self.events)), self.own]

    def negative_logits(self, logits: Float[np.ndarray, "B C"]) -> Float[np.ndarray, "B N"]:
        """Logits of the negatives; any value where there is none."""
        if self.items is not None:
            return logits[:, 1 : 1 + self.negatives.shape[1]]
        return np.take_along_axis(logits, np.maximum(self.negatives, 0), axis=1)

    def rival_logits(self, logits: Float[np.ndarray, "B C"]) -> Float[np.ndarray, "B R"]:
        """Logits of the compared columns, −∞ where there is no rival: a part of `logits`, which is changed."""
        compared = logits if self.items is None else logits[:, 1 : 1 + self.sampled]
        compared[self.no_rivals] = -np.inf
        compared[:, self.outside] = -np.inf
        return compared


class Candidates:
    """What one evaluation scores: of all users, or of a part of them.

    Args:
        log: of the part; None: the dataset's log. to_rank: events that `--candidates auto` goes by; None: those of the log.

    Attributes:
        events: (E,) rows of the log. seen: the log that the models look at.
        catalogue: (I',) items that may stand in a ranking.
        sampled: how many sampled items each event is ranked among; 0: the whole catalogue.
    """

    def __init__(
        self,
        dataset: Dataset,
        block: Block,
        config: EvaluateConfig,
        log: EventLog | None = None,
        to_rank: int | None = None,
    ) -> None:
        self.log, self.config, self.observed = log or dataset.log, config, dataset.observed_labels
        self.seen = seen_by_models(self.log, config)
        events = self.log.events_in(block)
        self.events = targets_of(dataset, self.log, events, config)
        self.sampler = Sampler(self.log, [block], config.auc_negatives, config.seed, "evaluate")
        self.catalogue = self.sampler.catalogue
        self._in_catalogue = np.zeros(self.log.n_items, dtype=bool)
        self._in_catalogue[self.catalogue] = True
        self._outside = np.flatnonzero(~self._in_catalogue)
        if to_rank is None:
            to_rank = number_to_rank(dataset, self.log, block, config)
        self.sampled = self._number_of_candidates(config.candidates, to_rank)

    def _number_of_candidates(self, asked: str, n_events: int) -> int:
        if asked == "auto":
            return 0 if n_events * self.log.n_items <= _AFFORDABLE_PAIRS else _SAMPLED
        if asked == "all":
            return 0
        if not asked.isdecimal() or int(asked) == 0:
            raise UsageError(f"--candidates {asked!r}", "Give all, auto, or a number such as 1000.")
        return int(asked) if int(asked) < len(self.catalogue) else 0

    @property
    def width(self) -> int:
        """C, columns of logits."""
        return 1 + max(self.sampled, self.config.auc_negatives) if self.sampled else self.log.n_items

    @property
    def events_at_once(self) -> int:
        """How many events' rows for AUC are kept at once, at most, unless one user has more."""
        return max(1, _ROWS // (1 + self.config.auc_negatives))

    def batch(self, events: Ints) -> Batch:
        """Some events with their candidates."""
        drawn = self.sampler.items(events, max(self.sampled, self.config.auc_negatives))
        negatives = drawn[:, : self.config.auc_negatives]
        own = self.log.item[events]
        if not self.sampled:
            no_rivals = self._no_rivals(events, own)
            rivals = len(self.catalogue) - np.bincount(no_rivals[0], minlength=len(events))
            return Batch(events, None, own, 0, no_rivals, self._outside, rivals, negatives)
        items = np.concatenate([own[:, None], np.where(drawn == NO_ITEM, own[:, None], drawn)], axis=1)
        missing = drawn[:, : self.sampled] == NO_ITEM
        row, column = np.nonzero(missing)
        return Batch(
            events,
            torch.from_numpy(items),
            np.zeros(len(events), dtype=np.int64),
            self.sampled,
            (row, column),
            self._outside[:0],
            self.sampled - missing.sum(1),
            negatives,
        )

    def _no_rivals(self, events: Ints, own: Ints) -> tuple[Ints, Ints]:
        """Rows and items of the catalogue that may not stand in the event's ranking: `never_negative` ones and its own."""
        excluded = self.sampler.excluded
        row, item = excluded.of_owners(self.log.owners(events, excluded))
        pairs = np.concatenate([row * self.log.n_items + item, np.arange(len(events)) * self.log.n_items + own])
        row, item = np.divmod(np.unique(pairs), self.log.n_items)
        inside = self._in_catalogue[item]
        return row[inside], item[inside]
