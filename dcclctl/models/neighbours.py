"""Item-kNN, EASE and a user's own counts: a candidate's score is computed from the items of the user's history.

No model has parameters of a user, so users without training events are scored like all others. Of two items with equal
scores the more popular one is ranked first.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from dcclctl.compute import OnProgress, Phase, no_progress
from dcclctl.events.log import EventLog
from dcclctl.events.sampling import Ints, ranges
from dcclctl.models.scoring import Backbone
from dcclctl.models.windows import Baskets

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.integer[Any]]
#: numbers of a block of the co-occurrence matrix
_BLOCK = 1 << 23
#: pairs of items of one user that are multiplied at once, about
_SPARSE_BLOCK = 1 << 22
#: a matrix of neighbours with a larger share of non-zeros is faster when dense
_DENSE = 0.04
#: the most that popularity adds to a score, so that it only breaks ties
_TIE = 1e-6


def co_occurrences(pairs: Any, on_progress: OnProgress = no_progress) -> Iterator[tuple[int, Float[Tensor, "R I"]]]:
    """Rows of XᵀX, block by block: how many users have both items.

    Args:
        pairs: X, a scipy.sparse.csr_array (U, I) of ones.

    Yields:
        The block's first item, and its rows.
    """
    phase = Phase(on_progress, "count pairs of items", pairs.shape[1], "items")
    for first, block in _blocks(pairs):
        yield first, torch.from_numpy(block.toarray()).float()
        phase.add(block.shape[0])


def add_co_occurrences(total: Float[Tensor, "I I"], pairs: Any) -> None:
    """Add XᵀX of some users' pairs, as `co_occurrences` has them, to a table."""
    for first, block in _blocks(pairs):
        some = block.tocoo()
        total.numpy()[some.row + first, some.col] += some.data  # each cell is there once


def _blocks(pairs: Any) -> Iterator[tuple[int, Any]]:
    """The first item of each block of rows of XᵀX, and the rows, a scipy.sparse.csr_array (R, I)."""
    of_items, n_items = pairs.T.tocsr(), pairs.shape[1]
    step = max(1, _BLOCK // max(n_items, 1))
    for first in range(0, n_items, step):
        yield first, of_items[first : first + step] @ pairs


def sparse_co_occurrences(
    users: Integers, items: Integers, n_items: int, weights: npt.NDArray[np.float64]
) -> Iterator[tuple[int, Ints, Ints, npt.NDArray[np.float64]]]:
    """What is not zero in the rows of XᵀWX, block by block, without a table of all pairs of items.

    Args:
        users, items: (P,) distinct pairs, ascending by user, the ones of X. weights: (U,) of the users, the diagonal of W.

    Yields:
        The block's first item; start (R + 1,), columns (N,) and values (N,) of its rows, columns in any order. A value
        is summed in the order of the users.
    """
    from scipy import sparse

    ones = np.ones(len(users))
    of_users = sparse.csr_array((weights[users], (users, items)), shape=(len(weights), n_items))
    of_items = sparse.csr_array((ones, (items, users)), shape=(n_items, len(weights)))
    of_items.sort_indices()
    degree = np.bincount(users, minlength=len(weights))
    work = np.cumsum(np.bincount(items, degree[users], minlength=n_items))  # pairs of all items up to each
    first = 0
    while first < n_items:
        done = work[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(work, done + _SPARSE_BLOCK, "right")))
        product = of_items[first:last] @ of_users
        yield first, product.indptr.astype(np.int64), product.indices.astype(np.int64), product.data
        first = last


def largest_of_rows(
    start: Ints, columns: Ints, values: npt.NDArray[np.float64], count: int
) -> tuple[Ints, npt.NDArray[np.float64]]:
    """The columns with the largest values of each row of a sparse matrix; of equal values the first column counts more.

    Args:
        start: (R + 1,). columns, values: (N,), of which those above 0 count; the columns of a row are distinct, in any order.
        count: K, at most the number of columns.

    Returns:
        Columns (R, K) and their values (R, K); a row with fewer values goes on with its first other columns, value 0.
    """
    lengths, n_rows = np.diff(start), len(start) - 1
    kept = values > 0
    for long in np.flatnonzero(lengths > count).tolist():
        mine = slice(start[long], start[long + 1])
        own = values[mine]
        kept[mine] &= own >= np.partition(own, len(own) - count)[len(own) - count]
    rows = np.repeat(np.arange(n_rows), lengths)[kept]
    # a stable sort by value of what is sorted by column: equal values stay in the order of their columns
    order = np.argsort(rows * (int(columns.max(initial=0)) + 1) + columns[kept])
    columns, values = columns[kept][order], values[kept][order]
    lengths = np.bincount(rows, minlength=n_rows)
    place = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    width = max(count, int(lengths.max(initial=0)))
    value, column = np.zeros((n_rows, width)), np.zeros((n_rows, width), dtype=np.int64)
    value[rows, place], column[rows, place] = values, columns
    order = np.argsort(-value, axis=1, kind="stable")[:, :count]
    value, column = np.take_along_axis(value, order, 1), np.take_along_axis(column, order, 1)
    short = np.flatnonzero(lengths < count)
    taken = np.zeros((len(short), count), dtype=bool)  # the first K − n columns that are free are among the first K
    row, at = np.nonzero((column[short] < count) & (value[short] > 0))
    taken[row, column[short][row, at]] = True
    free = np.argsort(taken, axis=1, kind="stable")
    missing = np.arange(count) - lengths[short, None]
    column[short] = np.where(missing < 0, column[short], np.take_along_axis(free, missing.clip(min=0), 1))
    return column, value


class HistoryModel(ABC):
    """What HistoryBackbone asks of a model.

    Attributes:
        tie: the most that popularity adds to a score. counts: an item weighs as often as it occurs in the history.
    """

    tie: ClassVar[float]
    counts: ClassVar[bool]

    @abstractmethod
    def width(self, length: int) -> int:
        """Numbers held at once for a history of some length, beside the scores."""

    @abstractmethod
    def scores(self, bags: Ints, items: Ints, weights: Floats | None, n_bags: int) -> Float[Tensor, "B I"]:
        """Scores of all items for each bag.

        Args:
            bags: (H,) the bag of each item, ascending. items: (H,) distinct in a bag. weights: (H,); None: all 1.
        """


@dataclass(frozen=True)
class Neighbours(HistoryModel):
    """Sparse similarities: item j of a history adds `value` to the scores of the items target[start[j] : start[j + 1]].

    Attributes:
        start: (I + 1,). target: (N,) items. value: (N,) similarities, above 0.
    """

    tie: ClassVar[float] = _TIE
    counts: ClassVar[bool] = False

    start: Int[Tensor, "Iplus1"]
    target: Int[Tensor, "N"]
    value: Float[Tensor, "N"]

    def faster(self) -> "Neighbours | ItemWeights":
        """The same as a dense matrix, if a large share of it is not zero."""
        n_items = len(self.start) - 1
        if len(self.target) < _DENSE * n_items**2:
            return self
        weights = torch.zeros(n_items, n_items)
        weights[torch.repeat_interleave(torch.arange(n_items), self.start.diff()), self.target] = self.value
        return ItemWeights(weights)

    def width(self, length: int) -> int:
        return length * (1 + len(self.target) // max(1, len(self.start) - 1))

    def scores(self, bags: Ints, items: Ints, weights: Floats | None, n_bags: int) -> Float[Tensor, "B I"]:
        """Each bag's weighted sum of the similarities to its items."""
        start, n_items = self.start.numpy(), len(self.start) - 1
        begins, ends = start[items], start[items + 1]
        at = ranges(begins, ends)
        cells = np.repeat(bags, ends - begins) * n_items + self.target.numpy()[at]
        values = self.value.numpy()[at]
        if weights is not None:
            values = values * np.repeat(weights, ends - begins)
        sums = np.bincount(cells, weights=values, minlength=n_bags * n_items)
        return torch.from_numpy(sums).view(n_bags, n_items).float()


def item_knn(
    pairs: Any, neighbours: int, shrinkage: float, itself: bool, on_progress: OnProgress = no_progress
) -> Neighbours:
    """Each item's nearest items by shrunk cosine: s_ij = n_ij / (√(n_i n_j) + shrinkage).

    Source: Deshpande & Karypis, "Item-based top-N recommendation algorithms", TOIS 2004; the shrinkage as in
    Ferrari Dacrema et al., "Are we really making much progress?", RecSys 2019 (arXiv 1907.06902).

    Args:
        pairs: of users and items to learn from, a scipy.sparse.csr_array (U, I) of ones.
        neighbours: k, kept for each candidate i at most. itself: an item may be its own neighbour, for logs in which users interact with an item repeatedly.
    """
    from scipy import sparse

    # 1 for an item without users, which has no pairs: the divisor may not be 0
    n_items = pairs.shape[1]
    roots = torch.from_numpy(np.bincount(pairs.indices, minlength=n_items)).float().sqrt().clamp(min=1)
    near: list[npt.NDArray[np.int32]] = []
    values: list[npt.NDArray[np.float32]] = []
    lengths = np.zeros(n_items + 1, dtype=np.int64)
    for first, counts in co_occurrences(pairs, on_progress):
        rows = torch.arange(first, first + len(counts))
        similarity = counts.div_(torch.outer(roots[rows], roots).add_(shrinkage))
        if not itself:
            similarity[torch.arange(len(rows)), rows] = 0.0
        value, column = similarity.topk(min(neighbours, n_items), dim=1)
        above = value > 0
        near.append(column[above].int().numpy())
        values.append(value[above].numpy())
        lengths[1 + first : 1 + first + len(rows)] = above.sum(1).numpy()
    on_progress("sort neighbours", 0, 0, "")
    by_candidate = sparse.csr_array(
        (np.concatenate(values), np.concatenate(near), np.cumsum(lengths)), shape=(n_items, n_items)
    )
    near.clear()
    values.clear()
    found = by_candidate.T.tocsr()
    start, target = (torch.from_numpy(each.astype(np.int64)) for each in (found.indptr, found.indices))
    return Neighbours(start, target, torch.from_numpy(found.data))


@dataclass(frozen=True)
class ItemWeights(HistoryModel):
    """Dense weights of all pairs of items: a row for each item of a history, a column for each candidate."""

    tie: ClassVar[float] = _TIE
    counts: ClassVar[bool] = False

    weights: Float[Tensor, "I I"]

    def width(self, length: int) -> int:
        return length

    def scores(self, bags: Ints, items: Ints, weights: Floats | None, n_bags: int) -> Float[Tensor, "B I"]:
        """X B, for the bags as rows of X."""
        offsets = torch.from_numpy(np.searchsorted(bags, np.arange(n_bags)))
        device = self.weights.device
        own = None if weights is None else torch.from_numpy(weights).float().to(device)
        rows = torch.from_numpy(items).to(device)
        return F.embedding_bag(rows, self.weights, offsets.to(device), mode="sum", per_sample_weights=own)


def ease(gram: Float[Tensor, "I I"], ridge: float, on_progress: OnProgress = no_progress) -> ItemWeights:
    """The B that minimises ‖X − XB‖² + λ‖B‖² with diag(B) = 0: B_ij = −P_ij / P_jj with P = (XᵀX + λI)⁻¹.

    Source: Steck, "Embarrassingly shallow autoencoders for sparse data", WWW 2019 (arXiv 1905.03375), eq. 8.

    Args:
        gram: XᵀX, float64, how many users have both items; it is changed. ridge: λ.
    """
    n_items = len(gram)
    gram.diagonal().add_(ridge)
    on_progress("invert", 0, 0, f"a matrix of {n_items:,} × {n_items:,}")
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    weights = inverse.div_(-inverse.diagonal().clone()).float()
    weights.fill_diagonal_(0.0)
    return ItemWeights(weights)


@dataclass(frozen=True)
class OwnCounts(HistoryModel):
    """How often the user has interacted with the candidate itself.

    Source: GP-TopFreq of Li, Jullien, Ariannezhad & de Rijke, "A next basket recommendation reality check", TOIS 2023
    (arXiv 2109.14233). Differs: all events are counted, also several events with one item in a basket.
    """

    #: less than one interaction, also after rounding
    tie: ClassVar[float] = 0.5
    counts: ClassVar[bool] = True

    n_items: int

    def width(self, length: int) -> int:
        return length

    def scores(self, bags: Ints, items: Ints, weights: Floats | None, n_bags: int) -> Float[Tensor, "B I"]:
        """How many times each bag holds each item."""
        counts = np.bincount(bags * self.n_items + items, weights, minlength=n_bags * self.n_items)
        return torch.from_numpy(counts).view(n_bags, self.n_items).float()


class HistoryBackbone(Backbone):
    """Scores from all strictly earlier positive events of the event's user: activations are the logits (B, C).

    Args:
        model: gives the scores. popularity: (I,) training events of each item, which break ties.
        decay: the weight of an item is `decay` to the power of the number of the user's baskets since its newest event.
    """

    def __init__(self, model: HistoryModel, log: EventLog, popularity: Float[Tensor, "I"], decay: float = 1.0) -> None:
        self.model, self.log, self.decay = model, log, decay
        self.baskets = Baskets(log)
        self.ties = model.tie * popularity / popularity.max().clamp(min=1)

    def with_log(self, log: EventLog) -> Self:
        other = super().with_log(log)
        other.baskets = Baskets(log)
        return other

    def lengths(self, events: Ints) -> Ints:
        return self.log.history_lengths(events, len(self.log.user))

    def activation_cost(self, n_candidates: int, length: int) -> int:
        return self.log.n_items + self.model.width(length)

    def bags(self, events: Ints) -> tuple[Ints, Ints, Floats | None]:
        """The events' histories as bags of distinct items: bag (H,), ascending, item (H,) and its weight (H,) or None."""
        owners, places = self.log.history_places(events)
        keys = owners * self.log.n_items + self.log.sequence.numpy()[places]
        # of the reversed history the first occurrence is the newest
        keys, newest, counts = np.unique(keys[::-1], return_index=True, return_counts=True)
        bags, items = keys // self.log.n_items, keys % self.log.n_items
        if self.model.counts:
            return bags, items, counts.astype(np.float64)
        if self.decay == 1.0:
            return bags, items, None
        since = self.baskets.number(self.log.history_end[events] - 1)[bags] - self.baskets.number(places[::-1][newest])
        return bags, items, self.decay**since

    def activations(self, events: Ints, candidates: Int[Tensor, "B C"] | None) -> Float[Tensor, "B C"]:
        scores, ties = self.model.scores(*self.bags(events), len(events)), self.ties
        if self.decay < 1:  # an old item's neighbours have scores that are smaller than the ties of new ones
            smallest = scores.masked_fill(scores <= 0, 1.0).amin(1, keepdim=True).clamp(max=1.0)
            ties = ties * smallest
        scores = scores + ties
        return scores if candidates is None else scores.gather(1, candidates.to(scores.device))
