"""Devices of a click model with hidden layers: their rows are cached activations of the first hidden layer."""

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
from dcclctl.events.sampling import Ints, ranges
from dcclctl.models.din import DinBackbone
from dcclctl.models.scoring import Backbone

#: events whose attention units are held at once, few enough for a CPU's cache: twice as fast as thousands
_CACHED_EVENTS = 256
SettingsT = TypeVar("SettingsT", bound=LocalSettings)


class HiddenLearner(Learner[SettingsT, DeviceRows]):
    """Devices whose model is frozen up to its first hidden layer; the backbone's patch point is `hidden_layers`."""

    def __init__(self, task: PatchTask[SettingsT], backbone: Backbone) -> None:
        super().__init__(task)
        self.model = cast(DinBackbone, backbone).model
        self.head = Head.of(self.model)

    @abstractmethod
    def logits(self, rows: DeviceRows, codes: Float[Tensor, "U K"]) -> Float[Tensor, "U N"]:
        """Logits of each user's own model on the user's rows."""

    @torch.no_grad()
    def activations(self, events: Ints, candidates: Int[Tensor, "B C"]) -> Float[Tensor, "B C H1"]:
        """First-layer activations; events with histories of similar length are computed together."""
        z1 = torch.empty(*candidates.shape, self.head.weight_2.shape[1], device=self.device)
        order = np.argsort(self.log.history_lengths(events, self.model.sizes.history), kind="stable")
        for at in range(0, len(order), _CACHED_EVENTS):
            some = order[at : at + _CACHED_EVENTS]
            index = torch.from_numpy(some)
            found = self.model.first_layer_of_few(self.log, events[some], candidates[index])
            z1[index.to(self.device)] = found
        return z1

    def rows(self, events: Ints, first: Ints, counts: Ints) -> DeviceRows:
        """Padded rows of some users: the candidates of each event one after the other, oldest event first."""
        own = events[ranges(first, first + counts)]
        samples = self.sampler.draw(own)
        values = self.activations(own, samples.candidates), samples.labels, samples.weights
        return DeviceRows(*(self.padded(each, counts).flatten(1, 2) for each in values))

    def without(self, rows: DeviceRows, left_out: Bool[Tensor, "U N"]) -> DeviceRows:
        each = left_out.to(self.device).repeat_interleave(1 + self.sampler.negatives, dim=1)
        return replace(rows, weights=rows.weights * ~each)

    def losses(self, rows: DeviceRows, codes: Float[Tensor, "U K"]) -> tuple[Float[Tensor, "U"], Float[Tensor, "U"]]:
        losses = F.binary_cross_entropy_with_logits(self.logits(rows, codes), rows.labels, reduction="none").double()
        return (losses * rows.weights).sum(1), rows.weights.double().sum(1)
