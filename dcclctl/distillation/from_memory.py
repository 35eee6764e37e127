"""Distillation from memories: the teachers rank items without a label, and the student learns their lists.

The statistics of a memory count the events of the block, so its logit of an event's own item only repeats the label. Its
logits of other items generalise. What decides a ranking is the top of the list, so for each event the teacher chooses: of the
items that the cloud model under it ranks highest, the ones that it ranks highest itself. Beside them stand some that it leaves
out and some of all other items, or nothing would hold down what is not in the list.

Source: Tang & Wang, "Ranking distillation", KDD 2018 (arXiv 1809.07428): a teacher's top items. Differs: the divergence of two
softmax functions over them and the others; a list is made once, before the training.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from dcclctl.compute import Phase
from dcclctl.config import Count, Positive, Rate, rarely, tuned
from dcclctl.devices.memory.contrast import Contrast
from dcclctl.distillation.method import DistillationMethod, DistillTask, TeachingSettings
from dcclctl.distillation.teachers import PatchedTeacher, TeachingObjective, teacher_of, teacher_weight
from dcclctl.events.log import EventLog
from dcclctl.events.sampler import Sampler, Samples
from dcclctl.events.sampling import Ints, uniforms
from dcclctl.models.settings import PATIENCE, Share
from dcclctl.models.trainable import Trainable
from dcclctl.models.training import SharedLogits, mean_loss

#: items that the cloud model ranks highest, of which the teacher chooses; in a catalogue of more than RANKED_ITEMS, of as
#: many items that a batch draws
CONSIDERED = 200
#: events that are taught, about, where there are more; all are labelled
TAUGHT_EVENTS = 1 << 19
#: events whose lists are made at once
_EVENTS = 256


class FromMemorySettings(TeachingSettings):
    """Settings of distillation from memories: small steps, little dropout, until valid is ranked no better."""

    highest: Positive = Field(20, description="Items of an event that the teacher ranks highest, which are taught.")
    others: Positive = Field(
        20,
        description="Items of an event that the cloud model ranks high and the teacher does not choose, and as many of all "
        "others, which are taught too.",
    )
    beta: Annotated[float, Field(ge=0.0)] = tuned(10.0, "β: weight of the teachers against the labels.", search="1..30")
    epochs: Positive = Field(20, description="Passes over the events for the cloud weights, at most.")
    patience: Count = Field(5, description=PATIENCE)
    learning_rate: Rate = tuned(0.001, "Adam's step size for the cloud weights.", search="1e-4..1e-2")
    dropout: Share = rarely(0.1, "Dropout on the hidden layers.")

    @property
    def asked(self) -> int:
        """M, items in a list."""
        return self.highest + 2 * self.others


class FromMemory(DistillationMethod[FromMemorySettings]):
    Settings = FromMemorySettings

    def __init__(self) -> None:
        #: of each group of users, by the place of its first event; the same in every epoch
        self._lists: dict[int, TaughtLists] = {}

    def objective(self, task: DistillTask[FromMemorySettings], log: EventLog) -> "ListObjective":
        first = log.events_in(task.block)[:1]
        place = int(log.places(first)[0]) if len(first) else -1  # groups without events have the same empty lists
        if place not in self._lists:
            self._lists[place] = lists_of(task, log)
        weight = teacher_weight(task.patches, task.config.teachers)
        return ListObjective(log, task.settings.beta, weight, self._lists[place])


@dataclass(frozen=True)
class TaughtLists:
    """What teachers say of the items of some events.

    Attributes:
        events: (E,) ascending rows of the log. items: (E, M). logits: (E, M) of the teachers, −∞ for an empty place.
    """

    events: Ints
    items: Int[Tensor, "E M"]
    logits: Float[Tensor, "E M"]

    def find(self, events: Ints) -> tuple[Int[Tensor, "B"], Bool[Tensor, "B"]]:
        """The row of each event, and whether it has one; without one the row is any."""
        if not len(self.events):
            return torch.zeros(len(events), dtype=torch.int64), torch.zeros(len(events), dtype=torch.bool)
        rows = np.searchsorted(self.events, events).clip(max=len(self.events) - 1)
        return torch.from_numpy(rows), torch.from_numpy(self.events[rows] == events)


def lists_of(task: DistillTask[FromMemorySettings], log: EventLog) -> TaughtLists:
    """The teachers' lists for the events of the block, or in a large log for a sample of them; none if β = 0.

    A list has only items that could be negatives of the event: none that the user chose in the block, or in a log with repeats
    in the same basket.

    Args:
        log: the histories of some users.
    """
    settings, block = task.settings, task.block
    events = log.events_in(block) if settings.beta else np.zeros(0, dtype=np.int64)
    share = TAUGHT_EVENTS / max(1, int(task.student.dataset.count_events(block).sum()))
    if share < 1:
        events = events[uniforms(task.seed, "distill/taught", log.places(events)) < share]
    shape = len(events), settings.asked
    items, logits = torch.zeros(shape, dtype=torch.int32), torch.zeros(shape)
    if not len(events):  # nobody is asked, so no teacher is opened
        return TaughtLists(events, items, logits)
    teacher = teacher_of(task, log)
    sampler = Sampler(log, [block], 0, task.seed, f"distill/{task.config.on}")
    contrast = Contrast(teacher.backbone, sampler, max(CONSIDERED, settings.highest + settings.others), settings.others)
    phase = Phase(task.on_progress, "ask the teachers", len(events), "events")
    order = np.argsort(teacher.backbone.lengths(events), kind="stable")
    for at in range(0, len(order), _EVENTS):
        some = order[at : at + _EVENTS]
        index = torch.from_numpy(some)
        items[index], logits[index] = _lists(teacher, contrast, events[some], settings)
        phase.add(len(some))
    return TaughtLists(events, items, logits)


def _lists(
    teacher: PatchedTeacher, contrast: Contrast, events: Ints, settings: FromMemorySettings
) -> tuple[Int[Tensor, "B M"], Float[Tensor, "B M"]]:
    """The lists of some events: items, and the teacher's logits."""
    chosen = contrast.of(events, 0)
    candidates, first = chosen.candidates[:, 1:], contrast.highest
    logits = teacher(events, candidates).cpu().masked_fill(chosen.stands == 0, -math.inf)
    best = logits[:, :first].topk(settings.highest, 1).indices
    left = torch.isfinite(logits[:, :first]).scatter(1, best, False)
    rest, there = contrast.some_of(left, settings.others, f"left/{int(events[0])}")
    place = torch.cat([best, rest, torch.arange(first, candidates.shape[1]).expand(len(events), -1)], 1)
    found = logits.gather(1, place)
    found[:, settings.highest : settings.highest + settings.others].masked_fill_(~there, -math.inf)
    return candidates.gather(1, place).int(), found


@dataclass(frozen=True)
class ListObjective(TeachingObjective):
    """Teacher and student are compared on the teacher's lists, a list being a softmax over its items.

    Attributes:
        lists: of the events, or of some of them.
    """

    lists: TaughtLists

    def candidates(self, events: Ints, candidates: Int[Tensor, "B C"]) -> Int[Tensor, "B C2"]:
        if not len(self.lists.events):
            return candidates
        rows, _ = self.lists.find(events)
        return torch.cat([candidates, self.lists.items[rows].long()], 1)

    def loss(
        self,
        model: Trainable,
        samples: Samples,
        candidates: Int[Tensor, "B C"],
        logits: Float[Tensor, "B C"],
        shared: SharedLogits | None = None,
    ) -> Float[Tensor, ""]:
        labelled, device = samples.candidates.shape[1], logits.device
        loss = mean_loss(model, logits[:, :labelled], samples, shared)
        if not len(self.lists.events):
            return loss
        rows, found = self.lists.find(samples.events)
        taught = found.to(device) * self.weight_of(samples.events, device)
        divergence = list_kl(self.lists.logits[rows].to(device), logits[:, labelled:])
        # without shared negatives the labels' loss is in nats per candidate, and not per event
        each = 1 if shared is not None else 1 / labelled
        return loss + self.beta * each * (divergence * taught).sum() / found.sum().clamp(min=1)


def list_kl(teacher: Float[Tensor, "B M"], student: Float[Tensor, "B M"]) -> Float[Tensor, "B"]:
    """KL(softmax(teacher) ‖ softmax(student)) over the places that the teacher fills, nats; 0 for a list without any."""
    there = torch.isfinite(teacher)
    log_p, log_q = (F.log_softmax(each.masked_fill(~there, -1e4), 1) for each in (teacher, student))
    return (log_p.exp() * (log_p - log_q)).sum(1)
