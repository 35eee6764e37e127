"""TIFU-KNN and UP-CF: how often the user has an item, recent baskets weighing more, and the same of the nearest users.

A *basket* is all positive events of a user at one time; an item counts once a basket. No model has parameters of a user
who is scored: the user's vector is made from the strictly earlier events of each event, so users without training
events are scored like all others. The user's own training vector is never a neighbour.

Shapes: B events, T users with training events, I items, K neighbours.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from dcclctl.config import Positive, tuned
from dcclctl.events.log import EventLog
from dcclctl.events.sampling import Ints
from dcclctl.models.counts import CountedKind, Decay, popularity_of, read_tables
from dcclctl.models.kind import FitTask
from dcclctl.models.neighbours import Floats
from dcclctl.models.positives import PositiveEvents, stacked
from dcclctl.models.scoring import Backbone
from dcclctl.models.settings import ModelSettings
from dcclctl.models.windows import Baskets

if TYPE_CHECKING:
    from dcclctl.artifacts.cloud import CloudModel

#: the most that popularity adds to the log of a score, so that it only breaks ties
_TIE = 1e-5
#: how far below an event's lowest score the items without a score begin
_BELOW = 2.0

#: places of baskets (0 the oldest), and the number of baskets of their histories → weights
Weighting = Callable[[Ints, Ints], Floats]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class UserKnnSettings(ModelSettings):
    neighbours: Positive = tuned(300, "K, nearest users that are counted.", search="25..1000")


class TifuKnnSettings(UserKnnSettings):
    groups: Positive = tuned(7, "m, groups that a user's baskets are divided into.", search="1..20")
    basket_decay: Decay = tuned(0.9, "r_b, weight of a basket relative to the next one of its group.", search="0.3..1")
    group_decay: Decay = tuned(0.7, "r_g, weight of a group relative to the next one.", search="0.3..1")
    own_share: Share = tuned(0.7, "α, weight of the user's own vector; the neighbours' is 1 − α.", search="0..1")


class UpCfSettings(UserKnnSettings):
    recent_baskets: Positive = tuned(25, "r, a user's newest baskets that are counted.", search="2..100")
    asymmetry: Share = tuned(
        0.5, "α: 1 relates the shared items to the user's own, 0 to the neighbour's, 0.5 is the cosine.", search="0..1"
    )
    locality: Annotated[float, Field(gt=0.0)] = tuned(5.0, "q, power of a neighbour's similarity.", search="1..50")


def item_vectors(owners: Ints, baskets: Ints, items: Ints, shape: tuple[int, int], weigh: Weighting) -> Any:
    """Each owner's items with the sum of the weights of the baskets that hold them.

    Args:
        owners: (N,) ascending. baskets: (N,) numbers, ascending for each owner, equal for the items of one basket.
        shape: number of owners, number of items. weigh: gives the weights of baskets; 0 leaves a basket out.

    Returns:
        A scipy.sparse.csr_array of the shape, without zeros.
    """
    from scipy import sparse

    n_owners, n_items = shape
    begins = np.ones(len(owners), dtype=bool)
    begins[1:] = (owners[1:] != owners[:-1]) | (baskets[1:] != baskets[:-1])
    owner = owners[begins]  # of each basket
    place = np.arange(len(owner)) - np.searchsorted(owner, owner)
    weight = weigh(place, np.bincount(owner, minlength=n_owners)[owner])
    pairs = np.unique((np.cumsum(begins) - 1) * n_items + items)
    basket, item = pairs // n_items, pairs % n_items
    cells, cell = np.unique(owner[basket] * n_items + item, return_inverse=True)
    values = np.bincount(cell.reshape(-1), weight[basket], minlength=len(cells))
    cells, values = cells[values > 0], values[values > 0]
    start = np.searchsorted(cells, np.arange(n_owners + 1) * n_items)
    return sparse.csr_array((values, cells % n_items, start), shape=shape)


def largest(values: Floats, count: int) -> Ints:
    """(B, K) the columns of the K largest of each row (B, T), ascending; of equal values the first columns."""
    least = -np.partition(-values, count - 1, axis=1)[:, count - 1 : count]
    above, equal = values > least, values == least
    missing = count - above.sum(1, keepdims=True)
    columns: Ints = np.nonzero(above | (equal & (np.cumsum(equal, axis=1) <= missing)))[1]
    return columns.reshape(len(values), count)


@dataclass(frozen=True)
class TrainingUsers:
    """The vectors of the users with training events, who may be neighbours.

    Attributes:
        users: (T,) ascending. vectors: a scipy.sparse.csr_array (T, I).
    """

    users: Ints
    vectors: Any

    @classmethod
    def of(cls, tensors: dict[str, Tensor], n_items: int) -> "TrainingUsers":
        """From the tensors of a model."""
        from scipy import sparse

        value, item, start = (tensors[name].numpy() for name in ("value", "item", "start"))
        users = tensors["users"].numpy()
        return cls(users, sparse.csr_array((value.astype(np.float64), item, start), shape=(len(users), n_items)))

    def tensors(self) -> dict[str, Tensor]:
        return {
            "users": torch.from_numpy(self.users),
            "start": torch.from_numpy(self.vectors.indptr.astype(np.int64)),
            "item": torch.from_numpy(self.vectors.indices.astype(np.int64)),
            "value": torch.from_numpy(self.vectors.data).float(),
        }


class UserModel(ABC):
    """How vectors are weighed, which users are near, and what their vectors count."""

    @property
    @abstractmethod
    def own(self) -> float:
        """Weight of the user's own vector."""

    @property
    @abstractmethod
    def neighbours(self) -> int:
        """K, how many of the nearest users count."""

    @abstractmethod
    def weigh(self, place: Ints, total: Ints) -> Floats:
        """Weights of the baskets at some places (0 the oldest) of histories with `total` baskets."""

    @abstractmethod
    def nearness(self, others: Any) -> Callable[[Any], Floats]:
        """How near users are to others: a function from their vectors (B, I) to (B, T), of which only the order counts.

        Args:
            others: vectors (T, I), sparse, as those of the users.
        """

    @abstractmethod
    def weights(self, nearness: Floats) -> Floats:
        """(B, K') what the vectors of the chosen neighbours count, from their nearness."""


@dataclass(frozen=True)
class TifuKnn(UserModel):
    """Personal item frequency in groups of baskets, and the mean of the nearest users: α u + (1 − α) u_nearest.

    A user's n baskets are divided into m groups of nearly equal size, the larger ones the newest. The vector of a group of
    x baskets is Σ_j r_b^(x−j) b_j / x, and the user's is Σ_i r_g^(m−i) v_i / m; a user of fewer than m baskets has a group
    for each.

    Source: Hu, He, Gao & Zhang, "Modeling personalized item frequency information for next-basket recommendation",
    SIGIR 2020 (arXiv 2006.00556), section 4.
    Differs: the user's own vector is never among its neighbours.
    """

    settings: TifuKnnSettings

    @property
    def own(self) -> float:
        return self.settings.own_share

    @property
    def neighbours(self) -> int:
        return self.settings.neighbours

    def weigh(self, place: Ints, total: Ints) -> Floats:
        groups = np.minimum(self.settings.groups, total)
        small = total // groups  # baskets of the older groups; the newer ones have one more
        n_small = groups - total % groups
        later = place - n_small * small
        is_small = later < 0
        size = np.where(is_small, small, small + 1)
        group = np.where(is_small, place // small, n_small + later // (small + 1))
        within = np.where(is_small, place, later) % size
        baskets = self.settings.basket_decay ** (size - 1 - within) / size
        weights: Floats = baskets * self.settings.group_decay ** (groups - 1 - group) / groups
        return weights

    def nearness(self, others: Any) -> Callable[[Any], Floats]:
        """Minus the squared Euclidean distance, without the part that is the same for all others."""
        by_item, squares = others.T.tocsr(), others.multiply(others).sum(axis=1)

        def near(vectors: Any) -> Floats:
            distances: Floats = squares - 2 * (vectors @ by_item).toarray()
            return -distances

        return near

    def weights(self, nearness: Floats) -> Floats:
        near = np.isfinite(nearness)
        weights: Floats = (1 - self.own) * near / np.maximum(near.sum(1, keepdims=True), 1)
        return weights


@dataclass(frozen=True)
class UpCf(UserModel):
    """Popularity among a user's last r baskets, and the sum of that of similar users, Σ_v s(u, v)^q π_v, with s(u, u) = 1.

    π_v(i) is the share of v's last r baskets that hold the item, and s(u, v) = |u ∩ v| / (|u|^α |v|^(1−α)) compares the sets
    of items in these baskets.

    Source: Faggioli, Polato & Aiolli, "Recency aware collaborative filtering for next basket recommendation", UMAP 2020.
    Differs: only the K most similar users are summed.
    """

    settings: UpCfSettings

    @property
    def own(self) -> float:
        return 1.0

    @property
    def neighbours(self) -> int:
        return self.settings.neighbours

    def weigh(self, place: Ints, total: Ints) -> Floats:
        counted = np.minimum(self.settings.recent_baskets, total)
        weights: Floats = (place >= total - counted) / counted
        return weights

    def nearness(self, others: Any) -> Callable[[Any], Floats]:
        """The asymmetric cosine of the sets of items."""
        share, by_item = self.settings.asymmetry, _sets(others).T.tocsr()
        their_sizes = np.diff(others.indptr) ** (1 - share)

        def near(vectors: Any) -> Floats:
            my_sizes = np.maximum(np.diff(vectors.indptr), 1) ** share
            cosines: Floats = (_sets(vectors) @ by_item).toarray() / np.outer(my_sizes, their_sizes)
            return cosines

        return near

    def weights(self, nearness: Floats) -> Floats:
        weights: Floats = np.maximum(nearness, 0) ** self.settings.locality
        return weights


def _sets(vectors: Any) -> Any:
    """The same sparse matrix with ones."""
    return vectors.astype(bool).astype(np.float64)


class UserKnnBackbone(Backbone):
    """Scores from all strictly earlier positive events of the event's user: activations are the logits (B, C).

    A logit is the log of the score, so that scores of any size keep their order. An item without a score ranks below those
    that have one; such items, and items with equal scores, are ranked by popularity.

    Args:
        popularity: (I,) training events of each item.
    """

    def __init__(self, model: UserModel, log: EventLog, others: TrainingUsers, popularity: Float[Tensor, "I"]) -> None:
        self.model, self.log, self.others = model, log, others
        self.nearness = model.nearness(others.vectors)
        self.baskets = Baskets(log)
        self.popularity = (popularity / popularity.max().clamp(min=1)).double().numpy()

    def with_log(self, log: EventLog) -> Self:
        other = super().with_log(log)
        other.baskets = Baskets(log)
        return other

    def lengths(self, events: Ints) -> Ints:
        return self.log.history_lengths(events, len(self.log.user))

    def activation_cost(self, n_candidates: int, length: int) -> int:
        return length + 2 * self.log.n_items + 3 * len(self.others.users)

    def vectors(self, events: Ints) -> Any:
        """(B, I) vectors of the events' histories, sparse."""
        owners, places = self.log.history_places(events)
        items = self.log.sequence.numpy()[places]
        shape = (len(events), self.log.n_items)
        return item_vectors(owners, self.baskets.number(places), items, shape, self.model.weigh)

    def scores(self, events: Ints) -> Floats:
        """(B, I) the models' scores; 0 for an item that neither the user nor a neighbour has."""
        from scipy import sparse

        vectors, users = self.vectors(events), self.others.users
        nearness = self.nearness(vectors)
        own = np.searchsorted(users, self.log.user[events])
        is_known = np.append(users, -1)[own] == self.log.user[events]
        nearness[np.flatnonzero(is_known), own[is_known]] = -np.inf
        nearness[np.diff(vectors.indptr) == 0] = -np.inf  # an empty history is near to nobody
        n_near = min(self.model.neighbours, len(users))
        chosen = largest(nearness, n_near)
        weights = self.model.weights(np.take_along_axis(nearness, chosen, axis=1))
        start = np.arange(len(events) + 1) * n_near
        near = sparse.csr_array((weights.ravel(), chosen.ravel(), start), shape=(len(events), len(users)))
        scores: Floats = (self.model.own * vectors + near @ self.others.vectors).toarray()
        return scores

    def activations(self, events: Ints, candidates: Int[Tensor, "B C"] | None) -> Float[Tensor, "B C"]:
        scores = self.scores(events)
        has_score = scores > 0
        logs = np.log(scores, where=has_score, out=np.zeros_like(scores))
        lowest = np.min(logs, axis=1, where=has_score, initial=0.0, keepdims=True)
        logits = np.where(has_score, logs + _TIE * self.popularity, lowest - _BELOW + self.popularity)
        found = torch.from_numpy(logits).float()
        return found if candidates is None else found.gather(1, candidates.cpu())


SettingsT = TypeVar("SettingsT", bound=UserKnnSettings)


class UserKnnKind(CountedKind[SettingsT]):
    """Common part of the two kinds."""

    @abstractmethod
    def model(self, settings: SettingsT) -> UserModel:
        """How vectors are weighed and compared."""

    def tensors(self, task: FitTask[SettingsT], counted: PositiveEvents) -> dict[str, Tensor]:
        weigh = self.model(task.settings).weigh
        users, vectors = [], []
        for log, rows in counted.open():
            own, owners = np.unique(log.user[rows], return_inverse=True)
            shape = (len(own), log.n_items)
            users.append(own)
            # positive events of a part have the same history end only if they are of one basket
            vectors.append(item_vectors(owners, log.history_end[rows], log.item[rows], shape, weigh).astype(np.float32))
        training = TrainingUsers(np.concatenate(users), stacked(vectors, counted.n_items))
        return training.tensors() | popularity_of(counted)

    def open(self, cloud: "CloudModel", device: torch.device, log: EventLog) -> Backbone:
        tensors = read_tables(cloud, log, "popularity")
        others = TrainingUsers.of(tensors, log.n_items)
        return UserKnnBackbone(self.model(self.settings_of(cloud)), log, others, tensors["popularity"])


class TifuKnnKind(UserKnnKind[TifuKnnSettings]):
    Settings = TifuKnnSettings

    def model(self, settings: TifuKnnSettings) -> UserModel:
        return TifuKnn(settings)


class UpCfKind(UserKnnKind[UpCfSettings]):
    Settings = UpCfSettings

    def model(self, settings: UpCfSettings) -> UserModel:
        return UpCf(settings)
