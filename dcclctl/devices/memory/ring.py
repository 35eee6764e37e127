"""The memory as a device holds it: two rings of fixed size, updated event by event."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dcclctl.devices.memory.features import Statistics, features_of, in_bytes, mean_profile
from dcclctl.events.sampling import Ints

#: of the number of events seen
_COUNTER_BYTES = 8


@dataclass(frozen=True)
class RingContents:
    """What the rings of many users hold, as slices of the log; the same as one `Ring` a user that observes event by event.

    Attributes:
        users: (U,) users with an event, ascending. seen: (U,) events of each. bytes: (U,) on its device.
        items: (N,) items held, user after user, each newest first. start: (U + 1,) where each user's items begin.
    """

    users: Ints
    seen: Ints
    bytes: Ints
    items: Ints
    start: Ints

    @classmethod
    def of(cls, user: Ints, item: Ints, size: int, profile_window: int, n_features: int) -> "RingContents":
        """From events (N,), sorted by (user, time).

        Args:
            size: M. profile_window: T. n_features: R; see `Ring`.
        """
        first = np.flatnonzero(np.diff(user, prepend=-1))
        seen = np.diff(first, append=len(user))
        held = np.minimum(seen, size)
        start = np.concatenate([[0], np.cumsum(held)])
        # item n of a user's slice is the n-th from the end of the user's events
        place = np.repeat(first + seen - 1 + start[:-1], held) - np.arange(start[-1])
        used = 4 * held + n_features * np.minimum(seen, profile_window) + _COUNTER_BYTES
        return cls(user[first], seen, used, item[place], start)


class Ring:
    """One device's memory: the newest M items, 4 bytes each, and R features of the newest T of them, one byte each.

    Args:
        size: M. items: of the events so far, oldest first, without their features. profile_window: T. n_features: R.
    """

    def __init__(self, size: int, items: Iterable[int] = (), profile_window: int = 0, n_features: int = 0) -> None:
        self.items = np.zeros(size, dtype=np.uint32)
        self.kept = np.zeros((profile_window, n_features), dtype=np.int8)
        self.seen = 0
        for item in items:
            self.observe(item)

    def observe(self, item: int, found: Float[Tensor, "FR"] | None = None) -> None:
        """Add one event in place of the oldest one; found: the item's features before the event (see `features`)."""
        self.items[self.seen % len(self.items)] = item
        if len(self.kept):
            own = 1 + self.kept.shape[1]
            known = torch.zeros(own) if found is None else found[:own]
            self.kept[self.seen % len(self.kept)] = in_bytes(known).numpy()
        self.seen += 1

    @property
    def bytes(self) -> int:
        """Bytes on the device: the filled part of both rings, and the counter."""
        return (
            4 * min(self.seen, len(self.items)) + self.kept.shape[1] * min(self.seen, len(self.kept)) + _COUNTER_BYTES
        )

    def newest_first(self) -> Ints:
        """Items held, newest first."""
        last = np.arange(self.seen - 1, max(self.seen - len(self.items), 0) - 1, -1)
        return self.items[last % len(self.items)].astype(np.int64)

    def features(
        self,
        candidates: Int[Tensor, "C"],
        item_categories: Int[Tensor, "I S"],
        statistics: Statistics,
        typical: Float[Tensor, "T1 R"] | None = None,
    ) -> Float[Tensor, "C FR"]:
        """The candidates' features and the profile of recent events, as the device computes them.

        Args:
            candidates: items. typical: typical profiles, for a user without counted events (see `Memories`).
        """
        held = torch.from_numpy(self.newest_first())[None]
        mask = torch.ones(held.shape)
        if not held.shape[1]:
            held, mask = torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1)
        own = features_of(held, mask, candidates[None], item_categories, statistics)[0]
        if not len(self.kept):
            return own
        kept = min(self.seen, len(self.kept))
        if typical is None:
            sums = torch.from_numpy(self.kept.astype(np.float32)).sum(0, keepdim=True)
            profile = mean_profile(sums, torch.tensor([kept]))
        else:
            profile = typical[kept].unsqueeze(0)
        return torch.cat([own, profile.expand(len(own), -1)], -1)
