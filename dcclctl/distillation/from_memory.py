"""Distillation from memories: the teachers score items without labels.

The statistics of a memory count the events of the block, so its logits of these events' items only repeat the labels.
Its logits of other items generalise, and any number of such items can be drawn.
"""

from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from dcclctl.artifacts import PatchSet
from dcclctl.config import Count, DistillConfig, Fraction, Positive, Rate, rarely, tuned
from dcclctl.devices.memory.features import Statistics
from dcclctl.devices.memory.method import statistics_of
from dcclctl.devices.memory.patch import prior_shift
from dcclctl.distillation.method import DistillationMethod, DistillTask, TeachingSettings
from dcclctl.distillation.teachers import TaughtObjective, teacher_of, teacher_weight
from dcclctl.errors import UsageError
from dcclctl.events.log import VALID, Block, EventLog
from dcclctl.events.sampler import Sampler
from dcclctl.events.sampling import NO_ITEM, Ints, log_uniform, uniforms
from dcclctl.models.settings import PATIENCE


class FromMemorySettings(TeachingSettings):
    """Settings of distillation from memories: small steps, many candidates, until valid is ranked no better."""

    unlabelled: Positive = Field(
        12,
        description="Unlabelled items per event; for teachers with a memory, half of them are near the user's history.",
    )
    truncated_share: Fraction = rarely(
        0.25,
        "Share of the events that are taught with the history cut to a few events or none, as new users have, and by "
        "the teachers alone; only for teachers with a memory.",
    )
    beta: Annotated[float, Field(ge=0.0)] = tuned(10.0, "β: weight of the teachers against the labels.", search="1..30")
    epochs: Positive = Field(20, description="Passes over the events for the cloud weights, at most.")
    patience: Count = Field(5, description=PATIENCE)
    learning_rate: Rate = tuned(0.001, "Adam's step size for the cloud weights.", search="1e-4..1e-2")


class FromMemory(DistillationMethod[FromMemorySettings]):
    Settings = FromMemorySettings

    def check(self, patches: PatchSet, block: Block, config: DistillConfig) -> None:
        """Check that `truncated_share` is only given for teachers with a memory.

        Raises:
            UsageError: it is given, and the teachers have no memory.
        """
        if patches.memory is None and "truncated_share" in config.settings.model_fields_set:
            raise UsageError(
                f"truncated_share: {patches.ref} has no memory, so no history is truncated",
                "Leave the setting out, or give teachers with a memory: dcclctl patch --method memory",
            )

    def histories(self, task: DistillTask[FromMemorySettings], log: EventLog) -> EventLog:
        """The log with truncated histories of some events, for student and memories.

        Without them the student gets worse for users with short histories, because the events of a late period have
        long histories. Events of valid choose the epoch, so they keep their histories; so do all events if β = 0.
        """
        settings = task.settings
        if settings.beta == 0 or task.patches.memory is None or task.block.period == VALID:
            return log
        events = log.events_in(task.block)
        some = events[uniforms(task.seed, "distill/short", log.places(events)) < settings.truncated_share]
        lengths = log_uniform(
            task.seed, "distill/length", log.places(some), 0, log.history_lengths(some, task.student.history)
        )
        return log.truncate_history(some, lengths)

    def objective(self, task: DistillTask[FromMemorySettings], log: EventLog) -> TaughtObjective:
        # labels of truncated events are not taught: an old user's next item is no example of a new user's first item
        has_label = ~log.truncated(task.student.history)
        # the teachers' logits, shifted to the student's number of negatives
        teacher = teacher_of(task, log, prior_shift(task.patches.cloud.negatives, task.settings.negatives))
        memory, weight = task.patches.memory, teacher_weight(task.patches, task.config.teachers)
        unlabelled = UnlabelledItems(task, log, None if memory is None else statistics_of(memory))
        return TaughtObjective(log, teacher, task.settings.beta, weight, unlabelled, has_label)


class UnlabelledItems:
    """Draws items of the catalogue at the end of the block that the user did not interact with in the block.

    Args:
        log: the histories.
        nearest: with it every second item is a neighbour of a random item of the history, where a memory's logits
            differ most from the cloud model's; without a history it is drawn by popularity, like a new user's first
            items. All other items are drawn uniformly.
    """

    def __init__(self, task: DistillTask[FromMemorySettings], log: EventLog, nearest: Statistics | None = None) -> None:
        block = task.block
        self.log, self.nearest, self.seed, self.block = log, nearest, task.seed, block
        self.count, self.limit = task.settings.unlabelled, task.student.history
        self.purpose = f"distill/{task.config.on}/unlabelled"
        self.labelled = log.positives_in(block)
        # with repeats, an item of another basket may be a negative, but it has a label and was counted
        excluded = self.labelled if log.repeats else log.never_negative(block)
        self.sampler = Sampler(log, [block], self.count, task.seed, f"{self.purpose}/uniform", excluded)
        catalogue = self.sampler.catalogue
        positive = log.item[log.up_to(block) & (log.label > 0)]
        self.by_popularity = positive if len(positive) else catalogue
        self.known = np.zeros(log.n_items, dtype=bool)
        self.known[catalogue] = True

    def __call__(self, events: Ints, epoch: int) -> Int[Tensor, "B M"]:
        """The items of one epoch; the event's own item fills slots for which no item is left."""
        drawn = self.sampler.items(events, self.count, epoch)
        drawn = np.where(drawn == NO_ITEM, self.log.item[events][:, None], drawn)
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
        if empty.any():
            new = events[empty]
            pick = self._uniforms("popular", new, epoch, slots) * len(self.by_popularity)
            popular = self.by_popularity[pick.astype(np.int64)]
            owners = self.log.owners(new, self.labelled)[:, None]
            fits = self.known[popular] & ~self.labelled.contains(owners, popular)
            drawn[empty, 1::2] = np.where(fits, popular, drawn[empty, 1::2])
        return torch.from_numpy(drawn)

    def _uniforms(self, what: str, events: Ints, epoch: int, slots: Ints) -> npt.NDArray[np.float64]:
        return uniforms(self.seed, f"{self.purpose}/{what}", epoch, self.log.places(events)[:, None], slots)
