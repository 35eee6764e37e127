"""Everybody's events as tensors, and the histories that stand before them.

An event's history is made of the user's positive events at a *strictly earlier* time: two events of one basket, or of
one day in a log that knows days only, never see each other, so the order of rows in a file tells nothing.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dcclctl.algorithm.sampling import Ints, PairSet

#: period codes, as in the events table
CLOUD, DEVICE, VALID, TEST = range(4)


@dataclass(frozen=True)
class EventLog:
    """Events sorted by (user, time), with items' categories and users' profiles.

    Attributes:
        user, item, period: (N,) int64. label: (N,) int64, 1 positive, 0 negative.
        sequence: (S,) items of the positive events, same order.
        history_start, history_end: (N,) each event's history is sequence[start:end], oldest first.
        item_categories: (I, M) category codes, padded with `n_categories`.
        profile: (U, F) profile codes, 0 = missing; F ≥ 1 (a log without profiles has one column of zeros).
        profile_sizes: number of codes of each profile column.
    """

    user: Ints
    item: Ints
    label: Ints
    period: Ints
    sequence: Int[Tensor, "S"]
    history_start: Ints
    history_end: Ints
    n_users: int
    n_items: int
    item_categories: Int[Tensor, "I M"]
    n_categories: int
    profile: Int[Tensor, "U F"]
    profile_sizes: tuple[int, ...]

    @classmethod
    def build(
        cls,
        user: Ints,
        item: Ints,
        time: Ints,
        label: Ints,
        period: Ints,
        item_categories: Int[Tensor, "I M"],
        n_categories: int,
        profile: Int[Tensor, "U F"],
        profile_sizes: tuple[int, ...],
    ) -> "EventLog":
        """Find every event's history.

        Args:
            user, item, time, label, period: (N,) sorted by (user, time).
        """
        user, item, time, label, period = (np.asarray(x, dtype=np.int64) for x in (user, item, time, label, period))
        n_users = len(profile)
        positives_before = np.concatenate([[0], np.cumsum(label)])  # (N+1,) positives among the first n events
        new_moment = np.ones(len(user), dtype=bool)
        new_moment[1:] = (user[1:] != user[:-1]) | (time[1:] != time[:-1])
        moment_start = np.maximum.accumulate(np.where(new_moment, np.arange(len(user)), 0))
        user_start = np.searchsorted(user, np.arange(n_users))
        return cls(
            user=user,
            item=item,
            label=label,
            period=period,
            sequence=torch.from_numpy(item[label > 0].copy()),
            history_start=positives_before[user_start[user]],
            history_end=positives_before[moment_start],
            n_users=n_users,
            n_items=len(item_categories),
            item_categories=item_categories,
            n_categories=n_categories,
            profile=profile,
            profile_sizes=profile_sizes,
        )

    def events_in(self, *periods: int) -> Ints:
        """Row numbers of the events in the given periods, ascending."""
        return np.flatnonzero(np.isin(self.period, periods))

    def history_lengths(self, events: Ints, limit: int) -> Ints:
        """(B,) length of each event's history, at most `limit`."""
        return np.minimum(self.history_end[events] - self.history_start[events], limit)

    def histories(self, events: Ints, limit: int) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """The last events before each event, newest first, cut to the longest history of the batch.

        Args:
            events: (B,) row numbers.
            limit: L, the longest history that is used.

        Returns:
            items (B, L'), and a mask that is True where there is one; 1 ≤ L' ≤ limit.
        """
        width = max(1, int(self.history_lengths(events, limit).max(initial=0)))
        at = torch.from_numpy(self.history_end[events])[:, None] - 1 - torch.arange(width)
        mask = at >= torch.from_numpy(self.history_start[events])[:, None]
        if len(self.sequence) == 0:
            return torch.zeros_like(at), mask
        return torch.where(mask, self.sequence[at.clamp(min=0)], 0), mask

    def positives_in(self, *periods: int) -> PairSet:
        """(user, item) pairs that are positive in the given periods."""
        rows = self.events_in(*periods)
        rows = rows[self.label[rows] > 0]
        return PairSet(self.user[rows], self.item[rows], self.n_items)

    def catalogue(self, last_period: int) -> Ints:
        """Items that had an event by the end of a period: what could be shown or sampled then."""
        return np.unique(self.item[self.period <= last_period])
