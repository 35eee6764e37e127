"""The positive events that a model counts, one part of the users in memory at a time.

Shapes: N events of a part, T users with a counted event, I items.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from dcclctl.artifacts.dataset import Dataset
from dcclctl.compute import OnProgress, Phase, no_progress
from dcclctl.events.log import Block, EventLog
from dcclctl.events.sampling import Ints

#: events of a part of the users, which part it is, and rows of the periods → those rows that are counted
Selection = Callable[[EventLog, range, Ints], Ints]


@dataclass(frozen=True)
class PositiveEvents:
    """The positive events that a model counts, and what is known of all of them.

    Attributes:
        open: reads the events, and the rows (N,) of them that are counted, of one part of the users after the other.
        item_counts: (I,) counted events of each item. repeats: see EventLog.
        events: all events of the periods. users: those with one.
    """

    open: Callable[[], Iterator[tuple[EventLog, Ints]]]
    item_counts: Ints
    repeats: bool
    events: int
    users: int

    @classmethod
    def of(
        cls, dataset: Dataset, blocks: list[Block], select: Selection, on_progress: OnProgress = no_progress
    ) -> "PositiveEvents":
        """Those that are selected of the blocks' events, and of these the positive ones."""
        parts = dataset.parts
        item_counts = np.zeros(dataset.no_events.n_items, dtype=np.int64)
        n_events = n_users = 0

        def read() -> Iterator[tuple[EventLog, Ints, Ints]]:
            phase = Phase(on_progress, "read events", len(parts), "parts of users")
            for users in parts:
                log = dataset.log_part(users)
                events = log.events_in(*blocks)
                rows = select(log, users, events)
                yield log, events, rows[log.label[rows] > 0]
                phase.add(1)

        for log, events, rows in read():
            item_counts += np.bincount(log.item[rows], minlength=len(item_counts))
            n_events, n_users = n_events + len(events), n_users + len(np.unique(log.user[events]))
        return cls(
            lambda: ((log, rows) for log, _, rows in read()), item_counts, dataset.no_events.repeats, n_events, n_users
        )

    @property
    def n_items(self) -> int:
        """I, all items of the log."""
        return len(self.item_counts)

    def counts(self) -> Any:
        """How many counted events each user has of each item: a scipy.sparse.csr_array (T, I) of int32, 8 bytes a pair."""
        return stacked([count_matrix(log, rows)[1] for log, rows in self.open()], self.n_items)

    def pairs(self) -> Any:
        """The same with ones."""
        found = self.counts()
        found.data[:] = 1
        return found


def count_matrix(log: EventLog, rows: Ints) -> tuple[Ints, Any]:
    """How many of some events (N,) each of their users has of each item.

    Returns:
        The users (T,), ascending, and a scipy.sparse.csr_array (T, I) of int32, its columns ascending.
    """
    from scipy import sparse

    users, owners = np.unique(log.user[rows], return_inverse=True)
    ones = np.ones(len(rows), dtype=np.int32)
    cells = (owners.astype(np.int32), log.item[rows].astype(np.int32))
    found = sparse.csr_array((ones, cells), shape=(len(users), log.n_items))
    found.sum_duplicates()
    return users, found


def stacked(parts: list[Any], n_items: int) -> Any:
    """Sparse matrices with the same columns (I), one below the other; the list is emptied, to save memory."""
    from scipy import sparse

    lengths = np.concatenate([np.diff(part.indptr) for part in parts])
    start = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    columns = np.concatenate([part.indices for part in parts])
    values = np.concatenate([part.data for part in parts])
    parts.clear()
    return sparse.csr_array((values, columns, start), shape=(len(lengths), n_items))
