"""A bound on θ̂, learned from the devices themselves, so that a minority of them cannot decide what all others get.

The distance of most devices' θ̂ to the prior's mean μ is a matter of the data. A device far beyond all others is broken or
hostile: its θ̂ is moved to the bound, or not used at all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from dcclctl.artifacts import PatchSet
from dcclctl.devices.basis_files import PRIOR_FILE, read_prior_mean

#: a θ̂ this many times as far from the mean as the bound is no patch of an honest device: it is rejected, not moved
ABSURD = 10.0
#: median absolute deviations that the bound stands above the median distance
DEVIATIONS = 4.0
#: of a normal distribution: standard deviations in a median absolute deviation
_MAD = 1.4826
#: of float32 numbers that are moved to the bound and then read again
_ROUNDING = 1e-5

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bounded:
    """θ̂ of some devices within the bound.

    Attributes:
        theta: (U, K), moved to the bound where it was beyond. bound: largest distance to the mean.
        clipped, rejected: (U,) which were moved, and which are not to be used.
    """

    theta: Array
    bound: float
    clipped: npt.NDArray[np.bool_]
    rejected: npt.NDArray[np.bool_]


def bounded(theta: Array, mean: Array, deviations: float = DEVIATIONS, max_norm: float = 0.0) -> Bounded:
    """Move every θ̂ that is too far from the mean to the bound, and mark those that are absurdly far.

    The bound is the median distance plus some median absolute deviations, over the devices that learned anything. As long as
    fewer than half of them are dishonest, it lies within what honest ones could have given.

    Args:
        theta: (U, K) finite. mean: (K,), the prior's. max_norm: the bound, if it is known; 0: learn it.
    """
    away = theta - mean
    with np.errstate(over="ignore"):
        distance = np.linalg.norm(away, axis=1)
    moved = distance[distance > 0]
    bound = max_norm
    if not bound and len(moved):
        middle = float(np.median(moved))
        bound = middle + deviations * _MAD * float(np.median(np.abs(moved - middle)))
    rejected, clipped = distance > ABSURD * bound, distance > bound * (1 + _ROUNDING)
    scale = np.where(clipped, bound / np.maximum(distance, 1e-300), 1.0)
    within = np.where(clipped[:, None], mean + away * scale[:, None], theta)
    return Bounded(within, bound, clipped & ~rejected, rejected)


class BoundedPatches(PatchSet):
    """The same patches with every θ̂ within the bound; users whose θ̂ is rejected have no patch."""

    def __init__(self, patches: PatchSet) -> None:
        super().__init__(patches.artifact)
        self._given = patches

    @cached_property
    def _bounded(self) -> tuple[npt.NDArray[np.int64], Bounded]:
        """(U,) the users with a patch, and their θ̂."""
        codes, patched = self._given.codes()
        mean = np.zeros(codes.shape[1])
        if self.artifact.file_id(PRIOR_FILE):
            mean = read_prior_mean(self.artifact).numpy().astype(np.float64)
        return np.flatnonzero(patched.numpy()), bounded(codes[patched].numpy().astype(np.float64), mean)

    @property
    def users(self) -> pl.DataFrame:
        """A PATCHED_USERS table, in which rejected patches are not kept."""
        own, found = self._bounded
        rejected = self._given.users["user_index"].is_in(own[found.rejected])
        return self._given.users.with_columns(kept=pl.col("kept") & ~rejected)

    def codes(self, n_users: int | None = None, within: range | None = None) -> "tuple[Float[Tensor, 'U K'], Tensor]":
        codes, patched = self._given.codes(n_users)
        own, found = self._bounded
        codes[own[found.clipped]] = torch.from_numpy(found.theta[found.clipped]).float()
        codes[own[found.rejected]] = 0
        patched[own[found.rejected]] = False
        return codes, patched

    def facts_of_bound(self) -> Mapping[str, Any]:
        """For the manifest of what is learned from them; it names no user."""
        _, found = self._bounded
        counts = {"patches_clipped": int(found.clipped.sum()), "patches_rejected": int(found.rejected.sum())}
        return {**counts, "patch_bound": found.bound}

    def rejected_ids(self) -> list[str]:
        """Ids of the users whose patches are rejected."""
        own, found = self._bounded
        chosen = self._given.users["user_index"].is_in(own[found.rejected])
        return self._given.users.filter(chosen)["user_id"].to_list()
