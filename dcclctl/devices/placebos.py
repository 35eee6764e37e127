"""Placebos: patches that should not help more than the cloud model does, if patches are personal.

mean gives everybody the mean θ̂ (does it matter that a patch is personal?), shuffled gives each user another one's θ̂ or
history (does it matter whose it is?). They need no training.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dcclctl.events.log import EventLog
from dcclctl.events.sampling import Ints, permutation

#: what may stand after the reference of patches, with a '+'
PLACEBOS = ("mean", "shuffled")


def mean_code(codes: Float[Tensor, "U K"], patched: Tensor) -> Float[Tensor, "U K"]:
    """The mean θ̂ of the patched users, for every user."""
    return codes[patched].mean(0).expand_as(codes)


def shuffled_codes(codes: Float[Tensor, "U K"], patched: Tensor, seed: int) -> Float[Tensor, "U K"]:
    """Every patched user gets the θ̂ of another: the users stand in a ring in a seeded order, each takes the next one's."""
    users = np.flatnonzero(patched.numpy())
    ring = torch.from_numpy(users[permutation(seed, "evaluate/shuffled-patches", users)])
    shuffled = codes.clone()
    shuffled[ring] = codes[ring.roll(-1)]
    return shuffled


def shuffled_histories(log: EventLog, seed: int) -> Callable[[Ints], Ints]:
    """Events (B,) → rows (B,) whose histories stand in for theirs.

    The row is another user's, the next one in a seeded ring: its last event of an earlier period (or its first event).
    """
    users = np.unique(log.user)
    ring = users[permutation(seed, "evaluate/shuffled-memories", users)]
    other = np.zeros(log.n_users, dtype=np.int64)
    other[ring] = np.roll(ring, -1)
    keys = log.user * 4 + log.period  # ascending where periods are in order of each user's time
    first = np.searchsorted(log.user, np.arange(log.n_users))

    def stand_in(events: Ints) -> Ints:
        whose = other[log.user[events]]
        last = np.searchsorted(keys, whose * 4 + log.period[events]) - 1
        rows: Ints = np.maximum(last, first[whose])
        return rows

    return stand_in
