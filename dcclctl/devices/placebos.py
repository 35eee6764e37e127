"""Placebos of patches: if patches help because they are personal, placebos should not help.

`mean` gives all users the mean θ̂; `shuffled` gives each user the θ̂ or the history of another user.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dcclctl.events.log import EventLog
from dcclctl.events.sampling import Ints, permutation

#: suffixes of references to patches, after a '+'
PLACEBOS = ("mean", "shuffled")


def mean_code(codes: Float[Tensor, "U K"], patched: Tensor) -> Float[Tensor, "U K"]:
    """The mean θ̂ of the patched users, for every user."""
    return codes[patched].mean(0).expand_as(codes)


def shuffled_codes(codes: Float[Tensor, "U K"], patched: Tensor, seed: int) -> Float[Tensor, "U K"]:
    """θ̂ with the rows of patched users exchanged: each gets that of the next user in a seeded ring."""
    users = np.flatnonzero(patched.numpy())
    ring = torch.from_numpy(users[permutation(seed, "evaluate/shuffled-patches", users)])
    shuffled = codes.clone()
    shuffled[ring] = codes[ring.roll(-1)]
    return shuffled


def shuffled_histories(log: EventLog, seed: int) -> Callable[[Ints], Ints]:
    """Events (B,) → rows (B,) whose histories replace theirs: of each user, those of the next user in a seeded ring.

    A row is that user's last event of an earlier period, or the user's first event if there is none.
    """
    users = np.unique(log.user)
    ring = users[permutation(seed, "evaluate/shuffled-memories", users)]
    other = np.zeros(log.n_users, dtype=np.int64)
    other[ring] = np.roll(ring, -1)
    keys = log.user * 4 + log.period  # ascending, because each user's periods are in order of time
    first = np.searchsorted(log.user, np.arange(log.n_users))

    def stand_in(events: Ints) -> Ints:
        whose = other[log.user[events]]
        last = np.searchsorted(keys, whose * 4 + log.period[events]) - 1
        rows: Ints = np.maximum(last, first[whose])
        return rows

    return stand_in
