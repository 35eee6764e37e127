"""Devices of a sequence model: patches after its state (see algorithm/statepatch.py), for `stages/patch.py`."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dcclctl.algorithm import statepatch, training
from dcclctl.algorithm.basis import learn_basis, new_basis
from dcclctl.algorithm.eventlog import Block
from dcclctl.algorithm.sampling import Ints, stream
from dcclctl.algorithm.sequence import SequenceBackbone, runs
from dcclctl.algorithm.statepatch import StateBasis, StateRows, StateShape
from dcclctl.config import PatchConfig
from dcclctl.errors import UsageError
from dcclctl.stages.compute import OnProgress
from dcclctl.stages.fleet import Fleet
from dcclctl.stages.handles import (
    CloudModel,
    read_prior_mean,
    read_state_basis,
    write_basis,
    write_prior_mean,
)
from dcclctl.store.store import Work

#: events whose states are computed at once
_BATCH_EVENTS = 512


@dataclass(frozen=True)
class StateSpace:
    """What all users share: Θ, and μ (K,), what the prior expects of θ̂."""

    basis: StateBasis
    mean: Float[Tensor, "K"]

    @property
    def size(self) -> int:
        """K."""
        return self.basis.size


class StateDevices(Fleet):
    """One frozen sequence model and what its users' devices do with it."""

    family = "state"

    def __init__(
        self, cloud: CloudModel, config: PatchConfig, block: Block, work: Work, on_progress: OnProgress
    ) -> None:
        """
        Raises:
            UsageError: a way of learning that is for DIN alone.
        """
        if config.method != "metapatch":
            raise UsageError(
                f"--method {config.method}: {cloud.artifact.ref} is a {cloud.settings['model']} model",
                "Sequence models carry --method metapatch only; the others need a DIN.",
            )
        backbone = cloud.backbone(config)
        assert isinstance(backbone, SequenceBackbone)
        super().__init__(cloud.dataset.log, config, block, work, on_progress)
        self.backbone = backbone

    def states(self, events: Ints) -> Float[Tensor, "E D"]:
        """States before the events, computed for similarly long histories together."""
        states = torch.empty(len(events), self.backbone.embeddings.shape[1], device=self.device)
        order = np.argsort(self.backbone.lengths(events), kind="stable")
        for at in range(0, len(order), _BATCH_EVENTS):
            some = order[at : at + _BATCH_EVENTS]
            states[torch.from_numpy(some).to(self.device)] = self.backbone.activations(events[some], None)
        return states

    def basis(self, given: object, events: Ints) -> StateSpace:
        """Θ and μ learned from everybody's events of the block (once, also over a kill).

        Args:
            given: the basis that the cloud model brings: none, a sequence model is not distilled.
        """
        assert given is None
        if self.work.finished("basis.safetensors"):
            return self._read()
        config = self.config
        shape = StateShape(self.backbone.embeddings.shape[1], config.bottleneck)

        basis, mean, _ = learn_basis(
            new_basis(shape, config.patch_size, stream(config.seed, "patch/basis")).to(self.device),
            self.shared(events),
            statepatch.frozen_states(self.states(events), self._items),
            self.joint_fit("learn Θ"),
            with_mean=config.prior_mean == "learned",
        )
        write_prior_mean(self.work, mean)
        write_basis(self.work, basis)  # last: who finds it finds μ
        return self._read()

    def _read(self) -> StateSpace:
        return StateSpace(read_state_basis(self.work).to(self.device), read_prior_mean(self.work).to(self.device))

    def fit(self, space: StateSpace, rows: StateRows) -> Float[Tensor, "U K"]:
        """θ̂ of the rows' users."""
        config = self.config
        return statepatch.fit_devices(space.basis, rows, config.steps, config.learning_rate, config.prior, space.mean)

    def before(self, rows: StateRows, newest: Bool[Tensor, "U N"], until: Ints) -> StateRows:
        """The rows without each user's newest events."""
        return rows.weighing(rows.weights * ~newest.to(self.device).unsqueeze(2))

    def mean_losses(
        self, space: StateSpace, rows: StateRows, newest: Bool[Tensor, "U N"], codes: Float[Tensor, "U K"]
    ) -> Float[Tensor, "U"]:
        """Each user's mean cross-entropy over the newest events; NaN where there are none."""
        judged = rows.weighing(rows.weights * newest.to(self.device).unsqueeze(2))
        return judged.losses(space.basis.patch(codes)).double() / judged.weights.double().sum((1, 2))

    def rows(self, users: Ints, events: Ints, first: Ints, counts: Ints) -> StateRows:
        """Padded events of some users, each user's oldest first."""
        n = int(counts.max())
        owner, place = runs(counts)
        own = events[first[owner] + place]
        flat = self._rows_of(self.samples(own, "patch/negatives"), self.states(own))
        slot = torch.from_numpy(owner).to(self.device), torch.from_numpy(place).to(self.device)

        def padded(values: Tensor) -> Tensor:
            """(E, 1, …) → (U, N, …)"""
            places = values.new_zeros(len(counts), n, *values.shape[2:])
            places[slot] = values[:, 0]
            return places

        return StateRows(
            padded(flat.states), padded(flat.items), padded(flat.bias), padded(flat.labels), padded(flat.weights)
        )

    def _items(self, candidates: Int[Tensor, "E C"]) -> tuple[Float[Tensor, "E C D"], Float[Tensor, "E C"]]:
        """Embeddings of candidates and their biases, frozen."""
        wanted = candidates.to(self.device)
        return self.backbone.embeddings[wanted], self.backbone.model.item_bias.detach()[wanted]

    def _rows_of(self, samples: training.Samples, states: Float[Tensor, "E D"]) -> StateRows:
        """Events as users with one event each: U = E, N = 1."""
        items, bias = self._items(samples.candidates)
        return StateRows(
            states.unsqueeze(1),
            items.unsqueeze(1),
            bias.unsqueeze(1),
            samples.labels.to(self.device).unsqueeze(1),
            samples.weights.to(self.device).unsqueeze(1),
        )
