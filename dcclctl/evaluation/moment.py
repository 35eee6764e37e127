"""Every user's state at the start of the test period, which is when a list of recommendations is made."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from dcclctl.events.log import TEST, EventLog
from dcclctl.events.sampling import Ints


def at_start_of_test(log: EventLog, users: Ints) -> tuple[EventLog, Ints]:
    """A row for each user whose history is all that came before the test period.

    It is the user's first event of the test period; a user without one gets a row of its own after its last event.

    Args:
        users: (U,) users with an event, ascending.

    Returns:
        The log, with added rows, and the rows (U,).
    """
    first = np.searchsorted(log.user, users)
    end = np.searchsorted(log.user, users, side="right")
    tested = np.flatnonzero(log.period == TEST)
    owners, at = np.unique(log.user[tested], return_index=True)
    first_test = np.full(log.n_users, -1)
    first_test[owners] = tested[at]
    rows: Ints = first_test[users]
    without = rows < 0
    last = end[without] - 1
    before = np.concatenate([[0], np.cumsum(log.label > 0)])  # positive events among the first n
    positives = before[end[without]] - before[first[without]]
    places = end[without]  # rows are inserted before these

    def longer(values: npt.NDArray[Any], added: npt.NDArray[Any] | int) -> npt.NDArray[Any]:
        return np.insert(values, places, added)

    log = replace(
        log,
        user=longer(log.user, log.user[last]),
        item=longer(log.item, log.item[last]),
        label=longer(log.label, 0),
        period=longer(log.period, log.period[last]),
        share=longer(log.share, log.share[last]),
        history_start=longer(log.history_start, log.history_start[last]),
        history_end=longer(log.history_end, log.history_start[last] + positives),
    )
    shifted = np.where(without, np.searchsorted(places, end, "left"), np.searchsorted(places, rows, "right"))
    return log, np.where(without, end, rows) + shifted
