"""MoMoDistill, "model over models": the patched device models teach the cloud model.

Source: Yao et al. 2021, section 3.2.
Step 1, cloud weights:       min over W_f of Σ_m Σ_i CE(y, f(x)) + β·KL(f^(m)(x) ‖ f(x))       → `TaughtObjective`
Step 2, basis and encoder:   min over Θ, W_e of Σ_m Σ_i CE(y, f̂(x)) + β·KL(f^(m)(x) ‖ f̂(x))  → `SecondStep`
with f̂ = f with patch weights ϑ₀ + Θ·U(θ̂^(m), u^(m)).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from dcclctl.artifacts import PatchSet
from dcclctl.artifacts.cloud import BASIS_FILE
from dcclctl.compute import Phase
from dcclctl.config import Count, DistillConfig, Positive, Rate, rarely
from dcclctl.devices.basis_files import encoder_of, read_basis, write_basis, write_encoder
from dcclctl.devices.encoder import Encoder
from dcclctl.devices.hidden_patch import Basis, Head, head_logits
from dcclctl.distillation.method import DistillationMethod, DistillTask, TeachingSettings
from dcclctl.distillation.teachers import TaughtObjective, bernoulli_kl, teacher_of, teacher_weight
from dcclctl.errors import UsageError, finite_loss
from dcclctl.events.log import Block, EventLog
from dcclctl.events.sampler import Samples
from dcclctl.events.sampling import hashes, permutation, stream
from dcclctl.models.adam import Adam
from dcclctl.models.din import Din
from dcclctl.models.training import Trainer, pick


class MoMoDistillSettings(TeachingSettings):
    basis_epochs: Count = Field(5, description="Passes for Θ and the encoder U (step 2); 0 leaves both as they are.")
    basis_learning_rate: Rate = rarely(0.01, "Adam's step size for Θ and the encoder.")
    encoder_size: Positive = rarely(32, "Hidden units of the encoder U.")


class MoMoDistill(DistillationMethod[MoMoDistillSettings]):
    Settings = MoMoDistillSettings

    def check(self, patches: PatchSet, block: Block, config: DistillConfig) -> None:
        """Check that the teachers' memories do not count the events to be distilled.

        Raises:
            UsageError: their statistics count them.
        """
        if patches.memory is None or config.teachers == "unpatched":
            return
        end = Block.parse(patches.memory.counted_through)
        if (block.period, block.start) < (end.period, end.end):
            raise UsageError(
                f"{patches.ref} uses {patches.memory.ref}, whose statistics go on to the end of {end}: they have "
                "counted the events that would be distilled",
                "Let the teachers score other items: --method from-memory. Or use a memory that ends before: "
                "dcclctl memory --counted-through cloud.",
            )

    def objective(self, task: DistillTask[MoMoDistillSettings], log: EventLog) -> TaughtObjective:
        weight = teacher_weight(task.patches, task.config.teachers)
        return TaughtObjective(log, task.settings.beta, weight, teacher_of(task, log))

    def after(self, task: DistillTask[MoMoDistillSettings], trainer: Trainer) -> dict[str, Any]:
        """Step 2: Θ and U on top of the new weights, written into the artifact."""
        reason = self._why_no_basis(task)
        if reason:
            return {"basis_losses": [], "no_basis": reason}
        patches, settings = task.patches, task.settings

        def on_epoch(epoch: int, loss: float) -> None:
            task.work.record({"stage": "distill basis", "epoch": epoch, "loss": loss})

        basis = read_basis(patches.artifact)
        # an encoder makes codes for its own cloud model's Θ only
        encoder = None if patches.own_basis else encoder_of(patches.cloud)
        if encoder is None:
            generator = torch.Generator().manual_seed(stream(task.seed, "distill/encoder"))
            encoder = Encoder(
                basis.size, settings.encoder_size, patches.cloud.dataset.no_events.profile_sizes, generator
            )
        encoder.to(task.device)
        second = SecondStep(cast(Din, trainer.model), patches.codes()[0], settings)

        def draw(epoch: int) -> Iterator[tuple[TaughtObjective, Samples]]:
            groups = np.arange(trainer.groups.count)
            for number in permutation(task.seed, "distill/basis-groups", groups, epoch):
                group = trainer.group(int(number))
                sampler = group.sampler.named("distill/basis-negatives")
                yield cast(TaughtObjective, group.objective), sampler.draw(group.all_events, epoch)

        phase = Phase(
            task.on_progress, "teach basis and encoder", settings.basis_epochs * trainer.n_all_events, "events"
        )
        basis, losses = second.distill(basis, encoder, draw, task.seed, on_epoch, phase.add)
        write_basis(task.work, basis)
        write_encoder(task.work, encoder)
        return {"basis_losses": losses, "no_basis": ""}

    def _why_no_basis(self, task: DistillTask[MoMoDistillSettings]) -> str:
        """The reason why step 2 is left out; empty if it is done."""
        if not task.patches.artifact.file_id(BASIS_FILE):
            return f"{task.patches.method} patches have no basis Θ"
        own, wanted = (cloud.sizes.get("hidden_sizes") for cloud in (task.patches.cloud, task.student))
        if own is None:
            return "Θ is for the states of a sequence model, of which no Θ or encoder is taught"
        if own != wanted:
            return f"Θ is for hidden layers of {own[0]} and {own[1]} units, which the student does not have"
        return ""


@dataclass(frozen=True)
class SecondStep:
    """Learns Θ and the encoder with the cloud weights frozen.

    Args:
        model: the cloud model after step 1; it stays as it is.
        codes: (U, K) θ̂ of all users, zero without a patch.
    """

    model: Din
    codes: Float[Tensor, "U K"]
    settings: MoMoDistillSettings

    def distill(
        self,
        basis: Basis,
        encoder: Encoder,
        draw: Callable[[int], Iterable[tuple[TaughtObjective, Samples]]],
        seed: int,
        on_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
        on_step: Callable[[int, str], None] = lambda count, note: None,
    ) -> tuple[Basis, list[float]]:
        """Learn both; the encoder is changed in place.

        Args:
            basis: start of Θ; ϑ₀ stays. draw: epoch → groups of users: their teachers and log, and their events with
                the negatives of that epoch.
            on_epoch: called with an epoch's number and mean loss. on_step: with a batch's number of events and a note.

        Returns:
            The new basis, and the mean loss of each epoch (nats per candidate, CE + β·KL).

        Raises:
            DivergedError: the loss became infinite or NaN.

        Differs: θ̂ is replaced by 0 for half of the events, drawn anew each epoch, to train U(0, u) too, which serves
        users without a patch; Θ's columns always have length 1 (see hidden_patch.py).
        """
        settings, device = self.settings, self.model.out.weight.device
        learned = basis.learnable(device)
        theta = learned.theta
        optimiser = Adam([theta, *encoder.parameters()], settings.basis_learning_rate)
        losses = []
        for epoch in range(settings.basis_epochs):
            total, count = 0.0, 0
            for objective, samples in draw(epoch):
                places = objective.log.places(samples.events)
                without_patch = hashes(seed, "distill/forget", epoch, places) % 2 == 0
                order = permutation(seed, "distill/basis-shuffle", places, epoch)
                for begin in range(0, len(order), settings.batch_size):
                    rows = order[begin : begin + settings.batch_size]
                    has_code = torch.from_numpy(~without_patch[rows])
                    loss = self._loss(learned, encoder, objective, pick(samples, rows), has_code)
                    optimiser.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimiser.step()
                    with torch.no_grad():
                        theta /= theta.norm(dim=0)
                    value = float(loss.detach())
                    total, count = total + value * len(rows), count + len(rows)
                    on_step(len(rows), f"loss {value:.4f}")
            mean = finite_loss(total / max(count, 1), "Θ", "distill.momodistill.basis_learning_rate=0.003")
            losses.append(mean)
            on_epoch(epoch + 1, mean)
        return replace(basis, theta=theta.detach().cpu()), losses

    def _loss(
        self, basis: Basis, encoder: Encoder, objective: TaughtObjective, batch: Samples, has_code: Tensor
    ) -> Float[Tensor, ""]:
        """Mean of CE + β·KL over the batch's candidates; has_code: (B,) if False, θ̂ is replaced by 0."""
        head, device = Head.of(self.model), self.model.out.weight.device
        log = objective.log
        with torch.no_grad():
            z1 = self.model.first_layer_of_few(log, batch.events, batch.candidates)
            teacher_logits = objective.teacher(batch.events, batch.candidates)
        users = torch.from_numpy(log.user[batch.events])
        codes = self.codes[users].to(device) * has_code.to(device).unsqueeze(1)
        logits = head_logits(head, z1, basis.patch(encoder(codes, log.profile[users].to(device))))
        weights = batch.weights.to(device)
        entropy = F.binary_cross_entropy_with_logits(logits, batch.labels.to(device), reduction="none")
        divergence = bernoulli_kl(teacher_logits, logits)
        divergence = divergence * objective.weight_of(batch.events, device).unsqueeze(1)
        return ((entropy + self.settings.beta * divergence) * weights).sum() / weights.sum()
