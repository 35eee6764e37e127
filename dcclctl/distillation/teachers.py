"""Teachers: the patched models' logits, the weight of each user's teacher, and the loss that uses both."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from dcclctl.artifacts import PatchSet
from dcclctl.devices.serving import Subject, serve
from dcclctl.distillation.method import DistillTask
from dcclctl.events.log import EventLog
from dcclctl.events.sampler import Samples
from dcclctl.events.sampling import Ints
from dcclctl.models.kind import open_backbone
from dcclctl.models.trainable import Trainable
from dcclctl.models.training import Objective, SharedLogits, mean_loss

#: events (B,), candidates (B, C) → the teacher's logits (B, C)
Teacher = Callable[[Ints, Int[Tensor, "B C"]], Float[Tensor, "B C"]]
#: events (B,), epoch from 0 → items (B, M) without labels
Unlabelled = Callable[[Ints, int], Int[Tensor, "B M"]]


def teacher_of(task: DistillTask[Any], log: EventLog, shift: float = 0.0) -> Teacher:
    """The patched models as one teacher, without gradients: on each event, the model that serves the event's user.

    Args:
        log: the teacher's histories. shift: added to every logit (see memory.patch.prior_shift).
    """
    patches, who = task.patches, task.config.teachers
    backbone = open_backbone(patches.cloud, task.device, log)
    subject = Subject(patches.cloud, None if who == "unpatched" else patches, "shuffled" if who == "shuffled" else "")
    head = serve(subject, backbone, seed=task.seed).head

    @torch.no_grad()
    def teach(events: Ints, candidates: Int[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        return backbone.logits_of_few(events, candidates, head) + shift

    return teach


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
class TaughtObjective(Objective):
    """CE(labels) + β · teacher_weight · KL(teacher ‖ student).

    Attributes:
        log: the events' users. weight: (U,) of each user's teacher.
        unlabelled: gives more candidates of each event; then the KL term has these alone, and the CE term the event's
            own item and its negatives alone.
        has_label: (N,) events of the log whose labels are taught; None: all.
    """

    log: EventLog
    teacher: Teacher
    beta: float
    weight: Float[Tensor, "U"]
    unlabelled: Unlabelled | None = None
    has_label: Bool[np.ndarray, "N"] | None = None
    own_negatives: ClassVar[bool] = True

    def candidates(self, events: Ints, candidates: Int[Tensor, "B C"], epoch: int) -> Int[Tensor, "B C2"]:
        if self.unlabelled is None or self.beta == 0:
            return candidates
        return torch.cat([candidates, self.unlabelled(events, epoch)], 1)

    def loss(
        self,
        model: Trainable,
        samples: Samples,
        candidates: Int[Tensor, "B C"],
        logits: Float[Tensor, "B C"],
        shared: SharedLogits | None = None,
    ) -> Float[Tensor, ""]:
        labelled, device = samples.candidates.shape[1], logits.device
        has_label = None if self.has_label is None else torch.from_numpy(self.has_label[samples.events]).to(device)
        loss = mean_loss(model, logits[:, :labelled], samples, has_label, shared)
        if self.beta == 0:
            return loss
        taught, counts = slice(0, None), samples.weights.to(device)
        if self.unlabelled is not None:
            taught, counts = slice(labelled, None), torch.ones_like(logits[:, labelled:])
        teacher_logits = self.teacher(samples.events, candidates[:, taught])
        divergence = bernoulli_kl(teacher_logits, logits[:, taught]) * counts
        owners = torch.from_numpy(self.log.user[samples.events])
        divergence = divergence * self.weight[owners].to(device).unsqueeze(1)
        # with shared negatives the labels' loss is in nats per event, else per candidate
        each = 1 if shared is None else 1 + shared.negatives.expected
        return loss + self.beta * each * divergence.sum() / counts.sum()
