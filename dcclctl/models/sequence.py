"""Sequence models: one state per user and basket, and a dot product with every item.

Source: SASRec, Kang & McAuley, ICDM 2018 (arXiv 1808.09781); GRU4Rec, Hidasi et al., ICLR 2016 (arXiv 1511.06939), with
the item embeddings shared between input and output as in its authors' later code.

Differs: a step of the sequence is a *basket*, not an event: the mean of the embeddings of the items of one time. A
state depends on whole baskets only, so the order of rows in a file has no effect; in a log without equal times the
steps are the events. A learned start token stands before the first basket, so that a user without history has a state.
SASRec's positions are ages (a learned weight for each distance, as in Raffel et al., JMLR 2020), so that all places of
a sequence share their weights; normalisation stands before each part. Items have a bias, and category embeddings if the
log has categories.

Shapes: W windows, T baskets in a window, S = T + 1 states (state k is the state after k baskets), B events,
C candidates, D embedding and state, I items, E item table.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dcclctl.config import Positive, rarely, size
from dcclctl.events.log import EventLog
from dcclctl.events.sampling import Ints
from dcclctl.models.items import EmbeddedItems
from dcclctl.models.kernels import dots, rows_of
from dcclctl.models.scoring import Backbone, HeadFunction, PatchPoint
from dcclctl.models.settings import FitSettings, PatientSettings, Share
from dcclctl.models.trainable import Dropout, Forward, Pass, keep_all
from dcclctl.models.trained import TrainedKind
from dcclctl.models.windows import Bags, Baskets, Windows, batches, served_windows, windows_of

if TYPE_CHECKING:
    from dcclctl.artifacts.cloud import CloudModel


class SequenceSettings(PatientSettings):
    history: Positive = size(50, "L: how many of the user's last baskets the model sees.", search="20,50,100")
    item_size: Positive = size(64, "Numbers in an item embedding.", search="32,64,128")
    category_size: Positive = size(16, "Numbers in a category embedding.")
    dropout: Share = rarely(0.5, "Dropout between the layers.", search="0.0..0.6")
    negatives: Positive = Field(32, description="A logit of 0 means one click among that many sampled items.")
    shared_negatives: Positive = rarely(
        1024, "Sampled negatives that all events of a batch share, in a softmax; all items if there are no more."
    )


class Gru4recSettings(SequenceSettings):
    dropout: Share = rarely(0.4, "Dropout between the layers.", search="0.0..0.6")


class SequenceModel(EmbeddedItems):
    """Common part of both models: embeddings of items, and their dot product with states. `sizes.history` is L."""

    def __init__(self, log: EventLog, sizes: SequenceSettings) -> None:
        super().__init__()
        self.sizes = sizes
        self.add_items(log, sizes.item_size, sizes.category_size)
        self.item_bias = nn.Parameter(torch.empty(log.n_items))
        self.start = nn.Parameter(torch.empty(self.embedding_size))

    def steps(self, bags: Bags, embeddings: Float[Tensor, "N D"]) -> Float[Tensor, "W T D"]:
        """Each basket's mean embedding, zero after the end of a window.

        Args:
            embeddings: of `bags.items`.
        """
        device = embeddings.device
        w, t = bags.shape
        sizes = torch.diff(bags.offsets, append=torch.tensor([len(bags.items)]))
        bag = torch.arange(len(sizes)).repeat_interleave(sizes)
        sums = embeddings.new_zeros(len(sizes), embeddings.shape[-1]).index_add(0, bag.to(device), embeddings)
        means = sums / sizes.to(device).unsqueeze(1)
        padded = embeddings.new_zeros(w * t, embeddings.shape[-1]).index_copy(0, bags.slots.to(device), means)
        # the table's rows start small: scaled, they are as large as the first layer's other terms
        return padded.view(w, t, -1) * math.sqrt(self.embedding_size)

    def states(self, steps: Float[Tensor, "W T D"], drop: Dropout = keep_all) -> Float[Tensor, "W S D"]:
        """The states after 0 … T baskets."""
        raise NotImplementedError

    def training_pass(self, log: EventLog, events: Ints) -> "WindowPass":
        baskets = Baskets(log)
        return WindowPass(self, baskets, windows_of(baskets, log, events, self.sizes.history))

    def serving_pass(self, log: EventLog, events: Ints) -> "WindowPass":
        baskets = Baskets(log)
        return WindowPass(self, baskets, served_windows(baskets, log, events, self.sizes.history))

    def logits(
        self, states: Float[Tensor, "B D"], candidates: Int[Tensor, "B C"], embeddings: Float[Tensor, "B C D"]
    ) -> Float[Tensor, "B C"]:
        """Dot product of the state and each candidate's embedding, plus the candidate's bias."""
        return dots(states, embeddings) + self.item_bias[candidates]


class Attention(nn.Module):
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

    def __init__(self, log: EventLog, sizes: SequenceSettings, generator: torch.Generator) -> None:
        super().__init__(log, sizes)
        size = self.embedding_size
        self.blocks = nn.ModuleList(Attention(size, sizes.history) for _ in range(self.BLOCKS))
        self.scale, self.shift = nn.Parameter(torch.empty(size)), nn.Parameter(torch.empty(size))
        self.initialise(generator)

    def states(self, steps: Float[Tensor, "W T D"], drop: Dropout = keep_all) -> Float[Tensor, "W S D"]:
        size = self.embedding_size
        start = (self.start * math.sqrt(size)).expand(len(steps), 1, -1)
        x = drop(torch.cat([start, steps], dim=1))
        for block in self.blocks:
            x = block(x, drop)
        return F.layer_norm(x, (size,), self.scale, self.shift)


class Gru4rec(SequenceModel):
    """A gated recurrent unit over the baskets; its learned first state is the state of users without history."""

    def __init__(self, log: EventLog, sizes: SequenceSettings, generator: torch.Generator) -> None:
        super().__init__(log, sizes)
        self.gru = nn.GRU(self.embedding_size, self.embedding_size, batch_first=True)
        self.initialise(generator)

    def states(self, steps: Float[Tensor, "W T D"], drop: Dropout = keep_all) -> Float[Tensor, "W S D"]:
        first = self.start.expand(1, len(steps), -1).contiguous()
        later, _ = self.gru(drop(steps), first)
        return drop(torch.cat([first.transpose(0, 1), later], dim=1))


class WindowPass(Pass):
    """Events by the windows that hold them: all states of a window are computed at once.

    Source: Kang & McAuley 2018, section 3.5 (binary cross-entropy with sampled negatives at every position).
    Differs: any number of negatives; several events (a basket) may follow one state; events of a window that are
    outside of the blocks are context without a loss.
    """

    #: events of a validation batch
    VALIDATION_EVENTS = 1024

    def __init__(self, model: SequenceModel, baskets: Baskets, windows: Windows) -> None:
        self.model, self.baskets, self.windows = model, baskets, windows

    def batches(self, settings: FitSettings, epoch: int) -> Iterator[Ints]:
        return batches(self.windows, settings, epoch)

    def validation_batches(self) -> Iterator[Ints]:
        order = np.argsort(self.windows.lengths, kind="stable")
        for start in range(0, len(order), self.VALIDATION_EVENTS):
            yield order[start : start + self.VALIDATION_EVENTS]

    def forward(self, positions: Ints, candidates: Int[Tensor, "B C"], drop: Dropout = keep_all) -> Forward:
        return self.forward_shared(positions, candidates, candidates.new_empty(0), drop)

    def forward_shared(
        self, positions: Ints, candidates: Int[Tensor, "B C"], shared: Int[Tensor, "N"], drop: Dropout = keep_all
    ) -> Forward:
        model, windows = self.model, self.windows
        device = model.item_table.device
        used, window = np.unique(windows.window[positions], return_inverse=True)
        stop = None if windows.stop is None else windows.stop[used]
        bags = self.baskets.bags(windows.first[used], windows.end[used], stop)
        distinct, inverse = torch.unique(torch.cat([bags.items, candidates.flatten(), shared]), return_inverse=True)
        distinct, inverse = distinct.to(device), inverse.to(device)
        leaf = model.item_table.detach()[distinct].requires_grad_(torch.is_grad_enabled())
        table = model.embed(distinct, leaf)
        states = model.states(model.steps(bags, F.embedding(inverse[: len(bags.items)], table)), drop)
        place = window.reshape(-1) * states.shape[1] + windows.state[positions]
        own = F.embedding(torch.from_numpy(place).to(device), states.flatten(0, 1))
        end = len(bags.items) + candidates.numel()
        wanted = F.embedding(inverse[len(bags.items) : end].view(candidates.shape), table)
        logits = model.logits(own, candidates.to(device), wanted)
        others = torch.addmm(model.item_bias[shared.to(device)], own, F.embedding(inverse[end:], table).T)
        return Forward(logits, distinct, leaf, others)


class SequenceBackbone(Backbone):
    """A sequence model up to its states: activations are (B, D), for any candidates.

    Args:
        log: the histories. baskets: of the same positive events.
    """

    patch_point: ClassVar[PatchPoint] = "states"

    def __init__(self, model: SequenceModel, log: EventLog, baskets: Baskets) -> None:
        self.model, self.log, self.baskets = model, log, baskets
        self.embeddings = model.catalogue()

    def with_log(self, log: EventLog) -> Self:
        other = super().with_log(log)
        if log.sequence is not self.log.sequence:
            other.baskets = Baskets(log)
        return other

    @property
    def head(self) -> HeadFunction:
        return lambda events, candidates, states: self.logits(states, candidates)

    @torch.no_grad()
    def logits(self, states: Float[Tensor, "B D"], candidates: Int[Tensor, "B C"] | None) -> Float[Tensor, "B C"]:
        """Logits of the candidates (None: of the whole catalogue)."""
        if candidates is None:
            return torch.addmm(self.model.item_bias, states, self.embeddings.T)
        wanted = candidates.to(states.device)
        return self.model.logits(states, wanted, rows_of(self.embeddings, wanted))

    def lengths(self, events: Ints) -> Ints:
        """(B,) baskets of the window that an event shares with others of the given events."""
        return served_windows(self.baskets, self.log, events, self.model.sizes.history).lengths

    def items_read(self, events: Ints) -> Ints:
        served = served_windows(self.baskets, self.log, events, self.model.sizes.history)
        begins = np.append(self.baskets.starts, len(self.log.sequence))[served.first[served.window]]
        read: Ints = np.maximum(self.log.history_end[events] - begins, 0)
        return read

    def activation_cost(self, n_candidates: int, length: int) -> int:
        return (length + 1) * (2 * self.model.embedding_size + length) + n_candidates

    @torch.no_grad()
    def activations(self, events: Ints, candidates: Int[Tensor, "B C"] | None) -> Float[Tensor, "B D"]:
        """States before the events; events that share a window read their states from one pass over it."""
        served = served_windows(self.baskets, self.log, events, self.model.sizes.history)
        bags = self.baskets.bags(served.first, served.end, served.stop)
        items = rows_of(self.embeddings, bags.items.to(self.embeddings.device))
        states = self.model.states(self.model.steps(bags, items))
        place = torch.from_numpy(served.window * states.shape[1] + served.state)
        return rows_of(states.flatten(0, 1), place.to(states.device))


class SequenceKind(TrainedKind[SequenceSettings]):
    """Common part of the two kinds."""

    can_be_taught: ClassVar[bool] = True

    def open(self, cloud: "CloudModel", device: torch.device, log: EventLog) -> SequenceBackbone:
        return SequenceBackbone(self.module(cloud, device), log, Baskets(log))


class SasrecKind(SequenceKind):
    Settings = SequenceSettings
    weights_purpose = "train/weights/sasrec"

    def new(self, log: EventLog, settings: SequenceSettings, generator: torch.Generator) -> Sasrec:
        return Sasrec(log, settings, generator)


class Gru4recKind(SequenceKind):
    Settings = Gru4recSettings
    weights_purpose = "train/weights/gru4rec"

    def new(self, log: EventLog, settings: SequenceSettings, generator: torch.Generator) -> Gru4rec:
        return Gru4rec(log, settings, generator)
