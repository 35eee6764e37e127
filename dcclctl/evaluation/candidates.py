"""The events of one evaluation and the candidates of each: the same for every model, drawn by (seed, event) alone."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Int
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
        rivals: (B, C − 1), or (B, I) for the whole catalogue: which columns (but the own item's) may stand in the ranking.
        negatives: (B, N) items for AUC, NO_ITEM where fewer are left.
    """

    events: Ints
    items: Int[Tensor, "B C"] | None
    rivals: Bool[np.ndarray, "B R"]
    negatives: Ints


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
        if not self.sampled:
            return Batch(events, None, self._unseen(events), negatives)
        own = self.log.item[events][:, None]
        items = np.concatenate([own, np.where(drawn == NO_ITEM, own, drawn)], axis=1)
        return Batch(events, torch.from_numpy(items), drawn[:, : self.sampled] != NO_ITEM, negatives)

    def _unseen(self, events: Ints) -> npt.NDArray[np.bool_]:
        """(B, I) items that may stand in the event's ranking beside its own."""
        excluded = self.sampler.excluded
        unseen: npt.NDArray[np.bool_] = ~excluded.rows(self.log.owners(events, excluded))
        unseen &= self._in_catalogue
        unseen[np.arange(len(events)), self.log.item[events]] = False
        return unseen
