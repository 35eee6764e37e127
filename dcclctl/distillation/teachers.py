"""Teachers: the patched models' logits, the weight of each user's teacher, and the loss that uses both."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from dcclctl.artifacts import PatchSet
from dcclctl.devices.serving import Subject, serve
from dcclctl.distillation.method import DistillTask
from dcclctl.events.log import EventLog
from dcclctl.events.sampler import Samples
from dcclctl.events.sampling import Ints
from dcclctl.models.kind import open_backbone
from dcclctl.models.scoring import Backbone, HeadFunction
from dcclctl.models.trainable import Trainable
from dcclctl.models.training import Objective, SharedLogits, mean_loss

#: events (B,), candidates (B, C) → the teacher's logits (B, C)
Teacher = Callable[[Ints, Int[Tensor, "B C"]], Float[Tensor, "B C"]]


@dataclass(frozen=True)
class PatchedTeacher:
    """The patched models as one teacher, without gradients: on each event, the model that serves the event's user.

    Attributes:
        backbone: of the cloud model under the patches, with the teacher's histories. head: of the models.
    """

    backbone: Backbone
    head: HeadFunction

    @torch.no_grad()
    def __call__(self, events: Ints, candidates: Int[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        return self.backbone.logits_of_few(events, candidates, self.head)


def teacher_of(task: DistillTask[Any], log: EventLog) -> PatchedTeacher:
    """The teachers that a task names. log: the teachers' histories."""
    patches, who = task.patches, task.config.teachers
    backbone = open_backbone(patches.cloud, task.device, log)
    subject = Subject(patches.cloud, None if who == "unpatched" else patches, "shuffled" if who == "shuffled" else "")
    return PatchedTeacher(backbone, serve(subject, backbone, seed=task.seed).head)


def teacher_weight(patches: PatchSet, teachers: str) -> Float[Tensor, "U"]:
    """Weight of each user's teacher, 0 or 1: the factor on β of the user's events.

    Guarded teachers are the patches with a lower loss on held-back events. Differs: in the paper all weights are 1, as
    they are here for all other teachers.
    """
    n_users = patches.cloud.dataset.users.height
    if teachers != "guarded":
        return torch.ones(n_users)
    # null: a user without held-back events does not teach
    won = (pl.col("loss_after") < pl.col("loss_before")).fill_null(False) & pl.col("kept")
    weight = torch.zeros(n_users)
    weight[torch.from_numpy(patches.users.filter(won)["user_index"].to_numpy().astype(np.int64))] = 1.0
    return weight


def bernoulli_kl(teacher: Float[Tensor, "..."], student: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """KL(p_teacher ‖ p_student) of the two click probabilities, from logits, nats; 0 where they are equal.

    Source: MoMoDistill, Yao et al. 2021, eq. 6 and 7.
    """
    p = torch.sigmoid(teacher)
    return p * (teacher - student) + F.softplus(student) - F.softplus(teacher)


@dataclass(frozen=True)
class TeachingObjective(Objective):
    """CE(labels) + β · teacher_weight · divergence of teacher and student.

    Attributes:
        log: the events' users. beta: β. weight: (U,) of each user's teacher.
    """

    log: EventLog
    beta: float
    weight: Float[Tensor, "U"]

    def weight_of(self, events: Ints, device: torch.device) -> Float[Tensor, "B"]:
        """The weight of the teacher of each event's user."""
        return self.weight[torch.from_numpy(self.log.user[events])].to(device)


@dataclass(frozen=True)
class TaughtObjective(TeachingObjective):
    """Teacher and student are compared on the events' own items and their negatives, each for itself.

    Attributes:
        teacher: of all users.
    """

    teacher: Teacher
    own_negatives: ClassVar[bool] = True

    def loss(
        self,
        model: Trainable,
        samples: Samples,
        candidates: Int[Tensor, "B C"],
        logits: Float[Tensor, "B C"],
        shared: SharedLogits | None = None,
    ) -> Float[Tensor, ""]:
        loss = mean_loss(model, logits, samples, shared)
        if self.beta == 0:
            return loss
        counts = samples.weights.to(logits.device)
        divergence = bernoulli_kl(self.teacher(samples.events, candidates), logits) * counts
        divergence = divergence * self.weight_of(samples.events, logits.device).unsqueeze(1)
        # with shared negatives the labels' loss is in nats per event, else per candidate
        each = 1 if shared is None else 1 + shared.negatives.expected
        return loss + self.beta * each * divergence.sum() / counts.sum()
