"""The devices of one run: what every kind of cloud model must say of them, and the loop over one shard of users."""

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dcclctl.algorithm import training
from dcclctl.algorithm.basis import JointFit, SharedEvents
from dcclctl.algorithm.eventlog import Block, EventLog
from dcclctl.algorithm.metapatch import Basis
from dcclctl.algorithm.sampling import Ints
from dcclctl.config import PatchConfig
from dcclctl.stages.compute import OnProgress, torch_device
from dcclctl.store.store import Work


class Fleet(ABC):
    """The devices of one run, on one kind of cloud model.

    Attributes:
        family: how what they learn is served (stages/serve.py). block: what they learn from.
        device: where they compute. catalogue, excluded: what negatives are drawn from, and what never is one.
    """

    family: str

    def __init__(self, log: EventLog, config: PatchConfig, block: Block, work: Work, on_progress: OnProgress) -> None:
        self.log, self.config, self.block, self.work, self.on_progress = log, config, block, work, on_progress
        self.device = torch_device(config)
        self.catalogue = log.catalogue(block)
        self.excluded = log.never_negative(block)

    def samples(self, events: Ints, purpose: str, epoch: int = 0) -> training.Samples:
        """Events of the block with their negatives."""
        return training.sample(
            self.log, events, self.config.negatives, self.catalogue, self.excluded, self.config.seed, purpose, epoch
        )

    def shared(self, events: Ints) -> SharedEvents:
        """What everybody learns from together: the events, with other negatives every epoch."""

        def draw(epoch: int) -> tuple[Tensor, Tensor, Tensor]:
            drawn = self.samples(events, "basis/negatives", epoch)
            return drawn.candidates, drawn.labels, drawn.weights

        return SharedEvents(events, np.unique(self.log.user[events], return_inverse=True)[1], draw)

    def joint_fit(self, what: str) -> JointFit:
        """How everybody learns together. what: is learned, as the progress line names it."""
        config = self.config

        def on_epoch(epoch: int, loss: float) -> None:
            self.work.record({"stage": "basis", "epoch": epoch, "loss": loss})
            self.on_progress(what, epoch, config.basis_epochs, f"loss {loss:.4f}")

        self.on_progress(what, 0, config.basis_epochs, "")
        return JointFit(config.basis_epochs, config.basis_learning_rate, config.prior, config.seed, on_epoch=on_epoch)

    @abstractmethod
    def basis(self, given: Basis | None, events: Ints) -> Any:
        """What all users share: the cloud's, or learned from everybody's events of the block."""

    @abstractmethod
    def rows(self, users: Ints, events: Ints, first: Ints, counts: Ints) -> Any:
        """What some users learn from: events[first : first + counts] of each, padded to the largest count."""

    @abstractmethod
    def fit(self, basis: Any, rows: Any) -> Float[Tensor, "U K"]:
        """θ̂ of the rows' users."""

    @abstractmethod
    def before(self, rows: Any, newest: Bool[Tensor, "U N"], until: Ints) -> Any:
        """The rows without each user's newest events.

        Args:
            newest: which. until: (U,) where they begin in `EventLog.sequence`; −1 where there are none.
        """

    @abstractmethod
    def mean_losses(
        self, basis: Any, rows: Any, newest: Bool[Tensor, "U N"], codes: Float[Tensor, "U K"]
    ) -> Float[Tensor, "U"]:
        """Each user's mean cross-entropy over the newest events as served with θ̂; NaN where there are none."""


def fit_shard(fleet: Fleet, members: Ints, events: Ints, basis: Any) -> dict[str, Tensor]:
    """θ̂ of one shard's users and whether it helps them: what one file of the artifact holds.

    Args:
        members: (U,) the users, ascending. events: the events to learn from, sorted by user. basis: what all users share.
    """
    log, config = fleet.log, fleet.config
    first = np.searchsorted(log.user[events], members)
    counts = np.searchsorted(log.user[events], members, side="right") - first
    codes = torch.zeros(len(members), basis.size)
    losses = torch.full((len(members), 2), math.nan, dtype=torch.float64)
    for batch in packed(counts, 1 + config.negatives, config.batch_rows):
        rows = fleet.rows(members[batch], events, first[batch], counts[batch])
        index = torch.from_numpy(batch)
        codes[index] = fleet.fit(basis, rows).cpu()
        held = held_back_of(counts[batch], config.held_back)
        if held.any():
            # A patch learned without the newest events, judged on them. What is kept is learned from all events.
            age = counts[batch][:, None] - 1 - np.arange(counts[batch].max())
            newest = torch.from_numpy(age < held[:, None])
            begin = np.minimum(first[batch] + counts[batch] - held, len(events) - 1)
            until = np.where(held > 0, log.history_end[events[begin]], -1)
            trial = fleet.fit(basis, fleet.before(rows, newest, until))
            both = [fleet.mean_losses(basis, rows, newest, code) for code in (torch.zeros_like(trial), trial)]
            losses[index] = torch.stack(both, dim=1).cpu()
    # false for NaN: nothing was held back, nothing is proven
    kept = losses[:, 1] < losses[:, 0] if config.guard else torch.ones(len(members), dtype=torch.bool)
    return {
        "theta": codes * kept.unsqueeze(1),
        "user_index": torch.from_numpy(members),
        "events": torch.from_numpy(counts),
        "losses": losses,
        "kept": kept,
    }


def held_back_of(counts: Ints, fraction: float) -> Ints:
    """Newest events to hold back of each user: the share rounded, at least 1; none of users with fewer than 3 events."""
    if fraction == 0:
        return np.zeros_like(counts)
    held = np.maximum(1, np.floor(counts * fraction + 0.5).astype(np.int64))
    return np.where(counts >= 3, np.minimum(held, counts - 1), 0)


def packed(counts: Ints, width: int, batch_rows: int) -> list[Ints]:
    """Users with similar numbers of events together, each batch at most `batch_rows` rows after padding (or one user)."""
    order = np.argsort(counts, kind="stable")
    batches, begin = [], 0
    while begin < len(order):
        end = begin + 1
        while end < len(order) and (end + 1 - begin) * counts[order[end]] * width <= batch_rows:
            end += 1
        batches.append(order[begin:end])
        begin = end
    return batches
