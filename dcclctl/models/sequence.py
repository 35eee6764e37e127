"""Sequence models: one state per user and basket, and a dot product with every item.

Source: SASRec, Kang & McAuley, ICDM 2018 (arXiv 1808.09781); GRU4Rec, Hidasi et al., ICLR 2016 (arXiv 1511.06939), with
the item embeddings shared between input and output as in its authors' later code.

Differs: a step of the sequence is a *basket*, not an event: the mean of the embeddings of all that the user took at one
time. A state knows whole baskets only, so that two events of one basket never see each other and the order of rows in a
file tells nothing; in a log without equal times the steps are the events. A learned start token stands before the first
basket, so that a user without history has a state. SASRec's positions are ages (a learned weight for each distance,
as in Raffel et al., JMLR 2020), so that what is learned at one place of a sequence holds at every other; normalisation
stands before each part. Items have category embeddings where the log has them, and a bias.

Glossary of shapes: W windows, T baskets in a window, S = T + 1 states (state k is what is known after k baskets),
B events, C candidates, D embedding and state, I items, E item table.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dcclctl.config import Count, Positive, rarely, size
from dcclctl.events.log import EventLog
from dcclctl.events.sampling import Ints
from dcclctl.models.items import EmbeddedItems
from dcclctl.models.scoring import Backbone, HeadFunction, PatchPoint
from dcclctl.models.settings import FitSettings, Share, TrainedSettings
from dcclctl.models.trainable import Dropout, Forward, Pass, keep_all
from dcclctl.models.trained import TrainedKind
from dcclctl.models.windows import Bags, Baskets, Windows, batches, served_windows, windows_of

if TYPE_CHECKING:
    from dcclctl.artifacts.cloud import CloudModel


class SequenceSettings(TrainedSettings):
    """Settings of a sequence model. It learns item popularity first, so it needs more epochs and more patience than DIN."""

    history: Positive = size(50, "L: how many of the user's last baskets the model sees.")
    item_size: Positive = size(32, "Numbers in an item embedding.")
    category_size: Positive = size(16, "Numbers in a category embedding.")
    epochs: Positive = Field(60, description="Passes over the training events, at most.")
    patience: Count = Field(
        5, description="Epochs without a higher AUC on valid after which training stops; 0 never stops early."
    )
    dropout: Share = rarely(0.2, "Dropout between the layers.")


class SasrecSettings(SequenceSettings):
    """Settings of SASRec."""

    negatives: Positive = Field(32, description="Sampled negatives for each positive event.")


class Gru4recSettings(SequenceSettings):
    """Settings of GRU4Rec."""

    item_size: Positive = size(64, "Numbers in an item embedding.")
    dropout: Share = rarely(0.4, "Dropout between the layers.")


@dataclass(frozen=True)
class SequenceSizes:
    """What fixes the shape of every weight; `window` is L, the most baskets that a state knows."""

    n_items: int
    n_categories: int
    window: int
    item_size: int = 32
    category_size: int = 16

    @property
    def state_size(self) -> int:
        """D: an item's embedding, with its categories' where the log has categories."""
        return self.item_size + (self.category_size if self.n_categories else 0)


class SequenceModel(EmbeddedItems):
    """What both models share: items, and the dot product of states with them."""

    def __init__(self, sizes: SequenceSizes, item_categories: Int[Tensor, "I M"]) -> None:
        super().__init__()
        self.sizes = sizes
        self.add_items(item_categories, sizes.n_categories, sizes.item_size, sizes.category_size)
        self.item_bias = nn.Parameter(torch.empty(sizes.n_items))
        self.start = nn.Parameter(torch.empty(sizes.state_size))

    def steps(self, bags: Bags, embeddings: Float[Tensor, "N D"]) -> Float[Tensor, "W T D"]:
        """Each basket as the mean of its items, zero after the end of a window.

        Args:
            embeddings: of `bags.items`.
        """
        device = embeddings.device
        w, t = bags.shape
        bag = torch.arange(len(bags.offsets)).repeat_interleave(_sizes(bags))
        sums = embeddings.new_zeros(len(bags.offsets), embeddings.shape[-1]).index_add(0, bag.to(device), embeddings)
        means = sums / _sizes(bags).to(device).unsqueeze(1)
        padded = embeddings.new_zeros(w * t, embeddings.shape[-1]).index_copy(0, bags.slots.to(device), means)
        # as large as the other terms: the table's rows start small, and the first layer should hear them
        return padded.view(w, t, -1) * math.sqrt(self.sizes.state_size)

    def states(self, steps: Float[Tensor, "W T D"], drop: Dropout = keep_all) -> Float[Tensor, "W S D"]:
        """What is known after each number of baskets, 0 … T."""
        raise NotImplementedError

    def training_pass(self, log: EventLog, events: Ints) -> "WindowPass":
        baskets = Baskets(log)
        return WindowPass(self, baskets, windows_of(baskets, log, events, self.sizes.window))

    def serving_pass(self, log: EventLog, events: Ints) -> "WindowPass":
        baskets = Baskets(log)
        return WindowPass(self, baskets, served_windows(baskets, log, events, self.sizes.window))

    def logits(
        self, states: Float[Tensor, "B D"], candidates: Int[Tensor, "B C"], embeddings: Float[Tensor, "B C D"]
    ) -> Float[Tensor, "B C"]:
        """State times item, plus the item's bias.

        Args:
            embeddings: of `candidates`.
        """
        return torch.bmm(embeddings, states.unsqueeze(-1)).squeeze(-1) + self.item_bias[candidates]


def _sizes(bags: Bags) -> Int[Tensor, "M"]:
    return torch.diff(bags.offsets, append=torch.tensor([len(bags.items)]))


class _Attention(nn.Module):
    """One block of SASRec: x + attention(norm x), then x + feed-forward(norm x); one head."""

    def __init__(self, size: int, window: int) -> None:
        super().__init__()
        self.scale_1, self.shift_1 = nn.Parameter(torch.empty(size)), nn.Parameter(torch.empty(size))
        self.query = nn.Linear(size, size, bias=False)
        self.key = nn.Linear(size, size, bias=False)
        self.value = nn.Linear(size, size)
        #: weight of each age 0 … L−1 (0: the newest basket of a state), and of the start
        self.ages = nn.Parameter(torch.empty(window + 1))
        self.scale_2, self.shift_2 = nn.Parameter(torch.empty(size)), nn.Parameter(torch.empty(size))
        self.inner = nn.Linear(size, size)
        self.outer = nn.Linear(size, size)

    def forward(self, x: Float[Tensor, "W S D"], drop: Dropout) -> Float[Tensor, "W S D"]:
        size, length = x.shape[-1], x.shape[1]
        normed = F.layer_norm(x, (size,), self.scale_1, self.shift_1)
        place = torch.arange(length, device=x.device)
        age = (place.unsqueeze(1) - place).clamp(min=0)  # (S, S): query, key
        age[:, 0] = len(self.ages) - 1
        later = place > place.unsqueeze(1)
        weights = self.query(normed) @ self.key(normed).mT / math.sqrt(size) + self.ages[age]
        attention = drop(torch.softmax(weights.masked_fill(later, -math.inf), dim=-1))
        x = x + drop(attention @ self.value(normed))
        normed = F.layer_norm(x, (size,), self.scale_2, self.shift_2)
        out: Tensor = x + drop(self.outer(drop(torch.relu(self.inner(normed)))))
        return out


class Sasrec(SequenceModel):
    """Causal self-attention over the baskets."""

    #: as in the paper
    BLOCKS = 2

    def __init__(self, sizes: SequenceSizes, item_categories: Int[Tensor, "I M"], generator: torch.Generator) -> None:
        super().__init__(sizes, item_categories)
        size = sizes.state_size
        self.blocks = nn.ModuleList(_Attention(size, sizes.window) for _ in range(self.BLOCKS))
        self.scale, self.shift = nn.Parameter(torch.empty(size)), nn.Parameter(torch.empty(size))
        self.initialise(generator)

    def states(self, steps: Float[Tensor, "W T D"], drop: Dropout = keep_all) -> Float[Tensor, "W S D"]:
        size = self.sizes.state_size
        start = (self.start * math.sqrt(size)).expand(len(steps), 1, -1)
        x = drop(torch.cat([start, steps], dim=1))
        for block in self.blocks:
            x = block(x, drop)
        return F.layer_norm(x, (size,), self.scale, self.shift)


class Gru4rec(SequenceModel):
    """A gated recurrent unit over the baskets; its learned first state stands for no history."""

    def __init__(self, sizes: SequenceSizes, item_categories: Int[Tensor, "I M"], generator: torch.Generator) -> None:
        super().__init__(sizes, item_categories)
        self.gru = nn.GRU(sizes.state_size, sizes.state_size, batch_first=True)
        self.initialise(generator)

    def states(self, steps: Float[Tensor, "W T D"], drop: Dropout = keep_all) -> Float[Tensor, "W S D"]:
        first = self.start.expand(1, len(steps), -1).contiguous()
        later, _ = self.gru(drop(steps), first)
        return drop(torch.cat([first.transpose(0, 1), later], dim=1))


class WindowPass(Pass):
    """Events by the windows that hold them: all states of a window are computed at once.

    Source: Kang & McAuley 2018, section 3.5 (binary cross-entropy with sampled negatives at every position).
    Differs: any number of negatives; several events may follow one state (a basket); a window's earlier events are context
    without a loss where they lie outside of the blocks.
    """

    #: events of a validation batch
    VALIDATION_EVENTS = 1024

    def __init__(self, model: SequenceModel, baskets: Baskets, windows: Windows) -> None:
        self.model, self.baskets, self.windows = model, baskets, windows

    def batches(self, settings: FitSettings, epoch: int) -> Iterator[Ints]:
        return batches(self.windows, settings, epoch)

    def validation_batches(self) -> Iterator[Ints]:
        windows = self.windows
        order = np.argsort(windows.end[windows.window] - windows.first[windows.window], kind="stable")
        for start in range(0, len(order), self.VALIDATION_EVENTS):
            yield order[start : start + self.VALIDATION_EVENTS]

    def forward(self, positions: Ints, candidates: Int[Tensor, "B C"], drop: Dropout = keep_all) -> Forward:
        model, windows = self.model, self.windows
        device = model.item_table.device
        used, window = np.unique(windows.window[positions], return_inverse=True)
        bags = self.baskets.bags(windows.first[used], windows.end[used])
        distinct, inverse = torch.unique(torch.cat([bags.items, candidates.flatten()]), return_inverse=True)
        distinct, inverse = distinct.to(device), inverse.to(device)
        leaf = model.item_table.detach()[distinct].requires_grad_(torch.is_grad_enabled())
        table = model.embed(distinct, leaf)
        states = model.states(model.steps(bags, F.embedding(inverse[: len(bags.items)], table)), drop)
        place = window.reshape(-1) * states.shape[1] + windows.state[positions]
        own = F.embedding(torch.from_numpy(place).to(device), states.flatten(0, 1))
        wanted = F.embedding(inverse[len(bags.items) :].view(candidates.shape), table)
        return Forward(model.logits(own, candidates.to(device), wanted), distinct, leaf)


class SequenceBackbone(Backbone):
    """A sequence model up to its states: activations are (B, D), whatever the candidates are."""

    patch_point: ClassVar[PatchPoint] = "states"

    def __init__(self, model: SequenceModel, log: EventLog, baskets: Baskets) -> None:
        """Args: log gives the histories; baskets are those of the model's own dataset."""
        self.model, self.log, self.baskets = model, log, baskets
        self.embeddings = model.catalogue()

    @property
    def head(self) -> HeadFunction:
        return lambda events, candidates, states: self.logits(states, candidates)

    @torch.no_grad()
    def logits(self, states: Float[Tensor, "B D"], candidates: Int[Tensor, "B C"] | None) -> Float[Tensor, "B C"]:
        """Of the candidates, or (None) of the whole catalogue."""
        if candidates is None:
            return torch.addmm(self.model.item_bias, states, self.embeddings.T)
        wanted = candidates.to(states.device)
        return self.model.logits(states, wanted, self.embeddings[wanted])

    def lengths(self, events: Ints) -> Ints:
        first, end = self.baskets.before(self.log, events)
        lengths: Ints = np.minimum(end - first, self.model.sizes.window)
        return lengths

    def activation_cost(self, n_candidates: int, length: int) -> int:
        return (length + 1) * (2 * self.model.sizes.state_size + length) + n_candidates

    @torch.no_grad()
    def activations(self, events: Ints, candidates: Int[Tensor, "B C"] | None) -> Float[Tensor, "B D"]:
        """States before the events; computed once for events that share a history."""
        own, end = self.baskets.before(self.log, events)
        first = np.maximum(own, end - self.model.sizes.window)
        known = np.stack([first, end, self.log.history_end[events]])
        windows, which = np.unique(known, axis=1, return_inverse=True)
        bags = self.baskets.bags(windows[0], windows[1], windows[2])
        states = self.model.states(self.model.steps(bags, self.embeddings[bags.items.to(self.embeddings.device)]))
        last = torch.from_numpy(windows[1] - windows[0]).to(states.device)
        newest = states[torch.arange(len(last), device=states.device), last]
        return newest[torch.from_numpy(which.reshape(-1)).to(states.device)]


class SequenceKind(TrainedKind[SequenceSettings]):
    """What the two sequence models share."""

    def sizes(self, log: EventLog, settings: SequenceSettings) -> SequenceSizes:
        return SequenceSizes(
            log.n_items, log.n_categories, settings.history, settings.item_size, settings.category_size
        )

    def open(self, cloud: "CloudModel", device: torch.device, log: EventLog) -> SequenceBackbone:
        return SequenceBackbone(self.module(cloud, device), log, Baskets(cloud.dataset.log))


class SasrecKind(SequenceKind):
    """The kind `sasrec`."""

    Settings = SasrecSettings
    weights_purpose = "train/weights/sasrec"

    def new(self, log: EventLog, settings: SequenceSettings, generator: torch.Generator) -> Sasrec:
        return Sasrec(self.sizes(log, settings), log.item_categories, generator)


class Gru4recKind(SequenceKind):
    """The kind `gru4rec`."""

    Settings = Gru4recSettings
    weights_purpose = "train/weights/gru4rec"

    def new(self, log: EventLog, settings: SequenceSettings, generator: torch.Generator) -> Gru4rec:
        return Gru4rec(self.sizes(log, settings), log.item_categories, generator)
