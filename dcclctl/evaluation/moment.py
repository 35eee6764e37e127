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
    moment: Ints = first_test[users]
    without = moment < 0
    moment[without] = end[without]
    places, last = end[without], end[without] - 1  # rows are inserted before the places

    def longer(values: npt.NDArray[Any], added: npt.NDArray[Any] | int) -> npt.NDArray[Any]:
        return np.insert(values, places, added)

    rows = moment + np.searchsorted(places, moment, "left")
    before = np.concatenate([[0], np.cumsum(log.label > 0)])  # positive events among the first n
    history_start = longer(log.history_start, log.history_start[last])
    history_end = longer(log.history_end, 0)
    # also what came at the moment of the first test event itself, where periods are cut on each user's own timeline
    history_end[rows] = history_start[rows] + before[moment] - before[first]
    log = replace(
        log,
        user=longer(log.user, log.user[last]),
        item=longer(log.item, log.item[last]),
        label=longer(log.label, 0),
        period=longer(log.period, log.period[last]),
        share=longer(log.share, log.share[last]),
        history_start=history_start,
        history_end=history_end,
    )
    return log, rows
