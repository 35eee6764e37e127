"""Distillation from memories: the teachers are asked about items that nobody has labelled.

A device with a memory has counted the events of the block, so what it says of those events proves nothing. What it says of
other items is what it has generalised, and there are as many of those as one cares to ask about.
"""

from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from dcclctl.artifacts import PatchSet
from dcclctl.config import Count, DistillConfig, Fraction, Positive, Rate, rarely
from dcclctl.devices.memory.features import Statistics
from dcclctl.devices.memory.method import statistics_of
from dcclctl.devices.memory.patch import prior_shift
from dcclctl.distillation.method import DistillationMethod, DistillTask, TeachingSettings
from dcclctl.distillation.teachers import TaughtObjective, teacher_of, teacher_weight
from dcclctl.events.log import VALID, Block, EventLog
from dcclctl.events.sampler import Sampler
from dcclctl.events.sampling import Ints, log_uniform, uniforms


class FromMemorySettings(TeachingSettings):
    """Settings of distillation from memories. The student learns slowly from many candidates, until it ranks no better."""

    unlabelled: Positive = Field(
        12,
        description="Unlabelled items per event; half of them are near the user's history where the teachers remember.",
    )
    truncated_share: Fraction = rarely(
        0.25,
        "Share of the events that are taught with the history cut to a few events or none, as new users have, and by the "
        "teachers alone.",
    )
    beta: Annotated[float, Field(ge=0.0)] = Field(10.0, description="β: weight of the teachers against the labels.")
    epochs: Positive = Field(20, description="Passes over the events for the cloud weights, at most.")
    patience: Count = Field(
        5, description="Epochs without a higher AUC on valid after which training stops; 0 never stops early."
    )
    learning_rate: Rate = Field(0.001, description="Adam's step size for the cloud weights.")


class FromMemory(DistillationMethod[FromMemorySettings]):
    """The method `from-memory`."""

    Settings = FromMemorySettings

    def check(self, patches: PatchSet, block: Block, config: DistillConfig) -> None:
        """Any teacher can be asked about unlabelled items."""

    def histories(self, task: DistillTask[FromMemorySettings]) -> EventLog:
        """Some of the events get a truncated history, or none, for student and memories alike.

        Without them the student gets worse for users with short histories: every event of a period comes after a longer
        past. A device without a memory is served by the cloud model, and teaches that. Events of valid choose the epoch,
        so they keep their histories; so do all where nobody teaches (β = 0).
        """
        log, settings = task.log, task.settings
        if settings.beta == 0 or task.patches.memory is None or task.block.period == VALID:
            return log
        events = log.events_in(task.block)
        some = events[uniforms(task.seed, "distill/short", events) < settings.truncated_share]
        lengths = log_uniform(task.seed, "distill/length", some, 0, log.history_lengths(some, task.student.history))
        return log.truncate_history(some, lengths)

    def objective(self, task: DistillTask[FromMemorySettings], log: EventLog) -> TaughtObjective:
        # the labels of truncated events are not taught: an old user's next event is not what a new user does first
        full, limit = task.log, task.student.history
        everything = np.arange(len(full.user))
        has_label = log.history_lengths(everything, limit) == full.history_lengths(everything, limit)
        # no label of an unlabelled item tells the student how frequent clicks are; the teachers do, in its terms
        shift = prior_shift(task.patches.cloud.negatives, task.settings.negatives)
        memory = task.patches.memory
        unlabelled = UnlabelledItems(task, log, statistics_of(memory) if memory is not None else None)
        return TaughtObjective(
            log,
            teacher_of(task, log, shift),
            task.settings.beta,
            teacher_weight(task.patches, task.config.teachers),
            unlabelled,
            has_label,
        )


class UnlabelledItems:
    """Draws items that nobody has labelled: none that the user interacted with in the block, none first seen later.

    Args:
        log: the histories.
        nearest: with it every second item is a neighbour of a random item of the history, where a teacher with a memory
            has most to say. Where there is no history, it is drawn by popularity, as a new user's first items are. All
            other items are uniform.
    """

    def __init__(self, task: DistillTask[FromMemorySettings], log: EventLog, nearest: Statistics | None = None) -> None:
        block = task.block
        self.log, self.nearest, self.seed = log, nearest, task.seed
        self.count, self.limit = task.settings.unlabelled, task.student.history
        self.purpose = f"distill/{task.config.on}/unlabelled"
        self.labelled = log.positives_in(block)
        # with repeats, an item of another time may be a negative, but it has a label and was counted
        excluded = self.labelled if log.repeats else log.never_negative(block)
        self.sampler = Sampler(log, [block], self.count, task.seed, f"{self.purpose}/uniform", excluded)
        catalogue = self.sampler.catalogue
        positive = log.item[log.up_to(block) & (log.label > 0)]
        self.by_popularity = positive if len(positive) else catalogue
        self.known = np.zeros(log.n_items, dtype=bool)
        self.known[catalogue] = True

    def __call__(self, events: Ints, epoch: int) -> Int[Tensor, "B M"]:
        """(B, M) items of one epoch; where fewer are left, the event's own item stands in."""
        drawn = self.sampler.items(events, self.count, epoch)
        drawn = np.where(drawn >= 0, drawn, self.log.item[events][:, None])
        if self.nearest is None:
            return torch.from_numpy(drawn)
        slots = np.arange(1, self.count, 2)[None, :]
        history, mask = (part.numpy() for part in self.log.histories(events, self.limit))
        lengths = mask.sum(1)[:, None]
        place = (self._uniforms("history", events, epoch, slots) * lengths).astype(np.int64)
        source = np.take_along_axis(history, place, 1)
        rank = self._uniforms("near", events, epoch, slots) * self.nearest.neighbours.shape[1]
        at = (torch.from_numpy(source), torch.from_numpy(rank.astype(np.int64)))
        near, related = self.nearest.neighbours[at].numpy(), self.nearest.similarity[at].numpy() > 0
        excluded = self.sampler.excluded
        owners = self.log.owners(events, excluded)[:, None]
        fits = related & (lengths > 0) & self.known[near] & ~excluded.contains(owners, near)
        drawn[:, 1::2] = np.where(fits, near, drawn[:, 1::2])
        empty = lengths[:, 0] == 0
        if empty.any():  # events come sorted by length: most batches have none
            new = events[empty]
            pick = self._uniforms("popular", new, epoch, slots) * len(self.by_popularity)
            popular = self.by_popularity[pick.astype(np.int64)]
            owners = self.log.owners(new, self.labelled)[:, None]
            begins = self.known[popular] & ~self.labelled.contains(owners, popular)
            drawn[empty, 1::2] = np.where(begins, popular, drawn[empty, 1::2])
        return torch.from_numpy(drawn)

    def _uniforms(self, what: str, events: Ints, epoch: int, slots: Ints) -> npt.NDArray[np.float64]:
        return uniforms(self.seed, f"{self.purpose}/{what}", epoch, events[:, None], slots)
