"""Sequence models: one state per user and moment, and a dot product with every item.

Source: SASRec, Kang & McAuley, ICDM 2018 (arXiv 1808.09781); GRU4Rec, Hidasi et al., ICLR 2016 (arXiv 1511.06939), with
the item embeddings shared between input and output as in its authors' later code.

Differs: a step of the sequence is a *moment*, not an event: the mean of the embeddings of all that the user took at one
time. A state knows whole moments only, so that two events of one basket never see each other and the order of rows in a
file tells nothing; in a log without equal times the steps are the events. A learned start token stands before the first
moment, so that a user without history has a state. SASRec's positions are ages (a learned weight for each distance,
as in Raffel et al., JMLR 2020), so that what is learned at one place of a sequence holds at every other; normalisation
stands before each part. Items have category embeddings where the log has them, and a bias.

Glossary of shapes: W windows, T moments in a window, S = T + 1 states (state k is what is known after k moments),
B events, C candidates, D embedding and state, I items, E item table.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from dcclctl.algorithm.eventlog import EventLog
from dcclctl.algorithm.sampling import Ints

#: what training puts between the layers; `keep_all` elsewhere
Dropout = Callable[[Tensor], Tensor]


def keep_all(x: Tensor) -> Tensor:
    """No dropout."""
    return x


@dataclass(frozen=True)
class Bags:
    """The moments of W windows as bags of items.

    Attributes:
        items: (N,) items, bag by bag. offsets: (M,) where each bag begins in `items`.
        slots: (M,) place of each bag in the flattened (W, T). shape: (W, T); T ≥ 1, the longest window.
    """

    items: Int[Tensor, "N"]
    offsets: Int[Tensor, "M"]
    slots: Int[Tensor, "M"]
    shape: tuple[int, int]


class Moments:
    """The positive events of a log, grouped by user and time; a moment is a run of `sequence`."""

    def __init__(self, log: EventLog) -> None:
        self.sequence = log.sequence
        #: (M,) where each moment begins: events of one moment share their history, and no others do
        self.starts: Ints = np.unique(log.history_end[log.label > 0])

    def before(self, log: EventLog, events: Ints) -> tuple[Ints, Ints]:
        """(B,) numbers of the first moment of each event's user, and of the first that is not before the event.

        Args:
            log: whose histories; of the log that the moments are of, or cut differently.
        """
        first = np.searchsorted(self.starts, log.history_start[events])
        end = np.searchsorted(self.starts, log.history_end[events])
        return first.astype(np.int64), end.astype(np.int64)

    def bags(self, first: Ints, end: Ints, stop: Ints | None = None) -> Bags:
        """The moments [first, end) of W windows.

        Args:
            stop: (W,) place in `sequence` where what is known ends, where that may be within a window's last moment.
        """
        lengths = end - first
        width = max(1, int(lengths.max(initial=0)))
        window, place = runs(lengths)
        moment = first[window] + place
        begins = self.starts[moment]
        ends = np.append(self.starts, len(self.sequence))[moment + 1]
        sizes = (ends if stop is None else np.minimum(ends, stop[window])) - begins
        bag, nth = runs(sizes)
        return Bags(
            items=self.sequence[torch.from_numpy(begins[bag] + nth)],
            offsets=torch.from_numpy(np.cumsum(sizes) - sizes),
            slots=torch.from_numpy(window * width + place),
            shape=(len(first), width),
        )


def runs(lengths: Ints) -> tuple[Ints, Ints]:
    """For runs of the given lengths, one after the other: which run each element is of, and its place there."""
    which = np.repeat(np.arange(len(lengths)), lengths)
    return which, np.arange(len(which)) - np.repeat(np.cumsum(lengths) - lengths, lengths)


@dataclass(frozen=True)
class SequenceSizes:
    """What fixes the shape of every weight; `window` is L, the most moments that a state knows."""

    n_items: int
    n_categories: int
    window: int
    item_size: int = 32
    category_size: int = 16

    @property
    def state_size(self) -> int:
        """D: an item's embedding, with its categories' where the log has categories."""
        return self.item_size + (self.category_size if self.n_categories else 0)


class SequenceModel(nn.Module):
    """What both models share: items, and the dot product of states with them."""

    item_categories: Tensor
    category_counts: Tensor

    def __init__(self, sizes: SequenceSizes, item_categories: Int[Tensor, "I M"]) -> None:
        super().__init__()
        self.sizes = sizes
        self.item_table = nn.Parameter(torch.empty(sizes.n_items, sizes.item_size))
        if sizes.n_categories:  # the last row is the padding category: zero, and skipped by every gradient
            self.category_table = nn.Parameter(torch.empty(sizes.n_categories + 1, sizes.category_size))
        self.item_bias = nn.Parameter(torch.empty(sizes.n_items))
        self.start = nn.Parameter(torch.empty(sizes.state_size))
        self.register_buffer("item_categories", item_categories, persistent=False)
        self.register_buffer(
            "category_counts", (item_categories < sizes.n_categories).sum(1).clamp(min=1).float(), persistent=False
        )

    def _initialise(self, generator: torch.Generator) -> None:
        for name, weight in self.named_parameters():
            if "table" in name or name == "start":
                nn.init.normal_(weight, std=0.05, generator=generator)
            elif weight.dim() == 2:
                nn.init.xavier_uniform_(weight, generator=generator)
            elif "scale" in name:
                nn.init.ones_(weight)
            else:
                nn.init.zeros_(weight)
        if self.sizes.n_categories:
            with torch.no_grad():
                self.category_table[-1].zero_()

    def embed(
        self, items: Int[Tensor, "..."], item_rows: Float[Tensor, "... E"] | None = None
    ) -> Float[Tensor, "... D"]:
        """An item's embedding followed by the mean of its categories' embeddings.

        Args:
            items: item indices.
            item_rows: their rows of the item table, where the caller holds them as tensors of their own (see Din.embed).
        """
        rows = self.item_table[items] if item_rows is None else item_rows
        if not self.sizes.n_categories:
            return rows
        categories = F.embedding(self.item_categories[items], self.category_table, padding_idx=self.sizes.n_categories)
        return torch.cat([rows, categories.sum(-2) / self.category_counts[items].unsqueeze(-1)], dim=-1)

    def steps(self, bags: Bags, embeddings: Float[Tensor, "N D"]) -> Float[Tensor, "W T D"]:
        """Each moment as the mean of its items, zero after the end of a window.

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
        """What is known after each number of moments, 0 … T."""
        raise NotImplementedError

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
        #: weight of each age 0 … L−1 (0: the newest moment of a state), and of the start
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
    """Causal self-attention over the moments."""

    #: as in the paper
    BLOCKS = 2

    def __init__(self, sizes: SequenceSizes, item_categories: Int[Tensor, "I M"], generator: torch.Generator) -> None:
        super().__init__(sizes, item_categories)
        size = sizes.state_size
        self.blocks = nn.ModuleList(_Attention(size, sizes.window) for _ in range(self.BLOCKS))
        self.scale, self.shift = nn.Parameter(torch.empty(size)), nn.Parameter(torch.empty(size))
        self._initialise(generator)

    def states(self, steps: Float[Tensor, "W T D"], drop: Dropout = keep_all) -> Float[Tensor, "W S D"]:
        size = self.sizes.state_size
        start = (self.start * math.sqrt(size)).expand(len(steps), 1, -1)
        x = drop(torch.cat([start, steps], dim=1))
        for block in self.blocks:
            x = block(x, drop)
        return F.layer_norm(x, (size,), self.scale, self.shift)


class Gru4rec(SequenceModel):
    """A gated recurrent unit over the moments; its learned first state stands for no history."""

    def __init__(self, sizes: SequenceSizes, item_categories: Int[Tensor, "I M"], generator: torch.Generator) -> None:
        super().__init__(sizes, item_categories)
        self.gru = nn.GRU(sizes.state_size, sizes.state_size, batch_first=True)
        self._initialise(generator)

    def states(self, steps: Float[Tensor, "W T D"], drop: Dropout = keep_all) -> Float[Tensor, "W S D"]:
        first = self.start.expand(1, len(steps), -1).contiguous()
        later, _ = self.gru(drop(steps), first)
        return drop(torch.cat([first.transpose(0, 1), later], dim=1))


KINDS: dict[str, type[Sasrec] | type[Gru4rec]] = {"sasrec": Sasrec, "gru4rec": Gru4rec}


@torch.no_grad()
def catalogue_embeddings(model: SequenceModel) -> Float[Tensor, "I D"]:
    """Embeddings of all items, in blocks."""
    items = torch.arange(model.sizes.n_items, device=model.item_table.device)
    return torch.cat([model.embed(block) for block in torch.split(items, 65536)])


class SequenceBackbone:
    """A sequence model up to its states: activations are (B, D), whatever the candidates are."""

    def __init__(self, model: SequenceModel, log: EventLog, moments: Moments) -> None:
        """Args: log gives the histories; moments are those of the model's own dataset."""
        self.model, self.log, self.moments = model, log, moments
        self.embeddings = catalogue_embeddings(model)

    @property
    def head(self) -> Callable[[Ints, Int[Tensor, "B C"] | None, Tensor], Tensor]:
        return lambda events, candidates, states: self.logits(states, candidates)

    @torch.no_grad()
    def logits(self, states: Float[Tensor, "B D"], candidates: Int[Tensor, "B C"] | None) -> Float[Tensor, "B C"]:
        """Of the candidates, or (None) of the whole catalogue."""
        if candidates is None:
            return torch.addmm(self.model.item_bias, states, self.embeddings.T)
        wanted = candidates.to(states.device)
        return self.model.logits(states, wanted, self.embeddings[wanted])

    def lengths(self, events: Ints) -> Ints:
        first, end = self.moments.before(self.log, events)
        lengths: Ints = np.minimum(end - first, self.model.sizes.window)
        return lengths

    def units(self, n_candidates: int, length: int) -> int:
        return (length + 1) * (2 * self.model.sizes.state_size + length) + n_candidates

    @torch.no_grad()
    def activations(self, events: Ints, candidates: Int[Tensor, "B C"] | None) -> Float[Tensor, "B D"]:
        """States before the events; computed once for events that share a history."""
        own, end = self.moments.before(self.log, events)
        first = np.maximum(own, end - self.model.sizes.window)
        known = np.stack([first, end, self.log.history_end[events]])
        windows, which = np.unique(known, axis=1, return_inverse=True)
        bags = self.moments.bags(windows[0], windows[1], windows[2])
        states = self.model.states(self.model.steps(bags, self.embeddings[bags.items.to(self.embeddings.device)]))
        last = torch.from_numpy(windows[1] - windows[0]).to(states.device)
        newest = states[torch.arange(len(last), device=states.device), last]
        return newest[torch.from_numpy(which.reshape(-1)).to(states.device)]
