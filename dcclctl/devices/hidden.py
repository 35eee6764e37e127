"""Devices of a click model with hidden layers: their rows are cached activations of the layers that no patch touches."""

from abc import abstractmethod
from dataclasses import replace
from typing import TypeVar, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from dcclctl.devices.hidden_patch import DeviceRows, Head
from dcclctl.devices.learner import Learner
from dcclctl.devices.method import PatchTask
from dcclctl.devices.settings import LocalSettings
from dcclctl.events.sampling import Ints
from dcclctl.models.din import DinBackbone
from dcclctl.models.scoring import Backbone
from dcclctl.models.windows import runs

#: events whose attention units are held at once, so that they stay in a CPU's cache: twice as fast as thousands
_CACHED_EVENTS = 256
SettingsT = TypeVar("SettingsT", bound=LocalSettings)


class HiddenLearner(Learner[SettingsT, DeviceRows]):
    """Devices whose model is frozen up to its first hidden layer."""

    def __init__(self, task: PatchTask[SettingsT], backbone: Backbone) -> None:
        """Args: backbone has its patch point at the hidden layers."""
        super().__init__(task)
        self.model = cast(DinBackbone, backbone).model
        self.head = Head.of(self.model)

    @abstractmethod
    def logits(self, rows: DeviceRows, codes: Float[Tensor, "U K"]) -> Float[Tensor, "U N"]:
        """What each user's own model says about the user's rows."""

    @torch.no_grad()
    def activations(self, events: Ints, candidates: Int[Tensor, "B C"]) -> Float[Tensor, "B C H1"]:
        """First-layer activations, computed for events with similarly long histories together."""
        z1 = torch.empty(*candidates.shape, self.head.weight_2.shape[1], device=self.device)
        order = np.argsort(self.log.history_lengths(events, self.model.sizes.history), kind="stable")
        for at in range(0, len(order), _CACHED_EVENTS):
            some = order[at : at + _CACHED_EVENTS]
            index = torch.from_numpy(some)
            found = self.model.first_layer_of_few(self.log, events[some], candidates[index])
            z1[index.to(self.device)] = found
        return z1

    def rows(self, events: Ints, first: Ints, counts: Ints) -> DeviceRows:
        """Padded rows of some users, oldest event first: the candidates of one event after those of another."""
        n, width = int(counts.max()), 1 + self.sampler.negatives
        owner, place = runs(counts)
        own = events[first[owner] + place]
        samples = self.sampler.draw(own)
        z1 = self.activations(own, samples.candidates)
        slot = torch.from_numpy(owner).to(self.device), torch.from_numpy(place).to(self.device)
        padded = torch.zeros(len(counts), n, width, z1.shape[-1], device=self.device)
        labels, weights = (torch.zeros(len(counts), n, width, device=self.device) for _ in range(2))
        padded[slot] = z1
        labels[slot] = samples.labels.to(self.device)
        weights[slot] = samples.weights.to(self.device)
        return DeviceRows(padded.flatten(1, 2), labels.flatten(1), weights.flatten(1))

    def without(self, rows: DeviceRows, left_out: Bool[Tensor, "U N"]) -> DeviceRows:
        each = left_out.to(self.device).repeat_interleave(1 + self.sampler.negatives, dim=1)
        return replace(rows, weights=rows.weights * ~each)

    def losses(self, rows: DeviceRows, codes: Float[Tensor, "U K"]) -> tuple[Float[Tensor, "U"], Float[Tensor, "U"]]:
        losses = F.binary_cross_entropy_with_logits(self.logits(rows, codes), rows.labels, reduction="none").double()
        return (losses * rows.weights).sum(1), rows.weights.double().sum(1)
