"""Features of a candidate item from a device's memory.

The cloud model reads the last L events. A device holds the newest M items of its user's log (4·M bytes). Every
candidate gets F features from these items and the statistics that the cloud ships (`Statistics`): how often, how much
more than expected and how recently the user interacted with the item and its categories; how similar the items held are
to the candidate; and whether the newest items are items that usually precede the candidate.

From each feature the item's mean over reference users is subtracted, because the cloud model already knows what is the
same for all users.

A device also keeps a *profile of recent events*: for each of its newest T events the item's features just before the
event, one byte a feature. Their mean, shrunk towards 0 if there are few events, is added to the features of every
candidate: it says how well the memory has predicted this user so far.

Features of old events follow the current statistics: with new statistics, a device computes its profile again.
Statistics that count an event make its features too good. So a user without counted events would have a profile on
another scale than the profiles that the patch was learned with; such a user gets the *typical* profile, the mean over
counted users with as many events.

`Memories` computes features for whole batches of events, and `ring.Ring` event by event, as on a device; a test
compares both.

Shapes: B events, C candidates, I items, G categories, S categories of an item, M items held, F features, R of them in a
profile, T events of a profile.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dcclctl.events.log import EventLog
from dcclctl.events.sampling import Ints, hashes
from dcclctl.models.neighbours import ranges

#: features of a candidate; the first is the number of items in the memory, the same for all candidates
FEATURES = (
    "size",
    "item count",
    "item lift",
    "item recency",
    "category count, mean",
    "category count, largest",
    "category lift, mean",
    "category lift, largest",
    "category recency, mean",
    "category recency, largest",
    "similarity, sum",
    "similarity, largest",
    "similarity, recent",
)
#: further features if the order of events is used
ORDER_FEATURES = ("order, sum", "order, largest")
#: events after which recency is halved
HALF = 20.0
#: weight of an event as predecessor of a candidate, relative to the event after it
DECAY = 0.8
#: factor from a feature to a byte of a profile
STEPS = 32
#: events of value 0 in every profile's mean
PRIOR_EVENTS = 3
#: lift of a padding category, which is then never the largest
NO_LIFT = -8.0
#: events whose features are computed at once, at most; and numbers in their largest table, about
_EVENTS, _CELLS = 128, 1 << 24
#: users in the typical profile, at most
_TYPICAL = 1000


@dataclass(frozen=True)
class Statistics:
    """Statistics that the cloud ships to every device, of all users' positive events up to some time.

    Attributes:
        item_share: (I,) share of the events. category_share: (G + 1,) the same by category, the last for padding.
        neighbours, similarity: (I, N) each item's nearest items by co-occurrence; similarity 0 for padding.
        predecessors, transition_score: (I, Q) the items that usually precede each item, and their scores; 0 for
            padding, Q = 0 if the order of events is ignored.
        mean: (I, F) an item's mean features over the reference users. scale: (F,) standard deviation around the mean.
    """

    item_share: Float[Tensor, "I"]
    category_share: Float[Tensor, "G"]
    neighbours: Int[Tensor, "I N"]
    similarity: Float[Tensor, "I N"]
    predecessors: Int[Tensor, "I Q"]
    transition_score: Float[Tensor, "I Q"]
    mean: Float[Tensor, "I F"]
    scale: Float[Tensor, "F"]

    @property
    def features(self) -> tuple[str, ...]:
        """Names of a candidate's F features."""
        return FEATURES + (ORDER_FEATURES if self.predecessors.shape[1] else ())

    @property
    def profile_features(self) -> tuple[str, ...]:
        """Names of the R features in a profile of recent events: all that differ between candidates."""
        return self.features[1:]

    def columns(self, profile_window: int) -> tuple[str, ...]:
        """Names of a candidate's F + R numbers, with a profile of the last T = profile_window events."""
        return self.features + (self.profile_features if profile_window else ())

    def order_columns(self, profile_window: int) -> list[int]:
        """Indices of the columns that depend on the order of events."""
        return [at for at, name in enumerate(self.columns(profile_window)) if name in ORDER_FEATURES]

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @property
    def bytes_per_candidate(self) -> int:
        """Bytes sent to a device with a candidate: share, neighbours and preceding items (4 + 4 bytes each), means."""
        return 4 + 8 * (self.neighbours.shape[1] + self.predecessors.shape[1]) + 4 * self.mean.shape[1]


class Memories:
    """Features of candidates from every device's memory, for whole batches of events.

    Args:
        log: the devices' histories. size: M. profile_window: T; 0: no profile of recent events.
        counted: (N,) events that the statistics count; users without any get the typical profile. None: all users get
            their own.
    """

    def __init__(
        self,
        log: EventLog,
        statistics: Statistics,
        size: int,
        profile_window: int,
        counted: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        self.log, self.statistics, self.size, self.profile_window = log, statistics, size, profile_window
        self._counted = counted
        self._rows = np.flatnonzero(log.label > 0)  # of the events of log.sequence
        owners = log.user[self._rows]
        self._starts = np.searchsorted(owners, owners)  # where each event's user begins in log.sequence
        self._kept = torch.zeros(
            len(owners) if profile_window else 0, len(statistics.profile_features), dtype=torch.int8
        )
        self._known = np.zeros(len(owners), dtype=bool)

    @property
    def width(self) -> int:
        """F + R."""
        return len(self.statistics.columns(self.profile_window))

    @torch.no_grad()
    def features(self, events: Ints, candidates: Int[Tensor, "B C"] | None) -> Float[Tensor, "B C FR"]:
        """The candidates' features at each event, and the profile of recent events, from strictly earlier events only.

        Args:
            events: (B,) row numbers. candidates: items; None: all items.
        """
        own = features_of_events(self.log, events, candidates, self.statistics, self.size)
        if not self.profile_window:
            return own
        profile = self._profile(events).unsqueeze(1).expand(-1, own.shape[1], -1)
        return torch.cat([own, profile], -1)

    @cached_property
    def typical(self) -> Float[Tensor, "T1 R"]:
        """Mean profile of counted users at 0, 1, … T events on the device; the cloud ships it with the statistics."""
        assert self._counted is not None
        counted = self._counted[self._rows]
        owners = self.log.user[self._rows]
        users = np.unique(owners[counted])
        users = users[np.argsort(hashes(0, "memory/typical", users), kind="stable")[:_TYPICAL]]
        place = np.arange(len(owners)) - self._starts  # in the user's log
        at = np.flatnonzero(counted & (place < self.profile_window) & np.isin(owners, users))
        held = torch.from_numpy(place[at] + 1)
        kept = self._kept_features(at, self._starts[at]).float()
        sums = kept.cumsum(0)
        first = torch.from_numpy(np.arange(len(at)) - place[at])  # where the user's events begin in `at`
        profiles = mean_profile(sums - sums[first] + kept[first], held)
        total = torch.zeros(self.profile_window + 1, kept.shape[1]).index_add_(0, held, profiles)
        users_of = torch.bincount(held, minlength=self.profile_window + 1)
        most = int(held.max()) if len(at) else 0  # no user has more events
        return (total / users_of.clamp(min=1).unsqueeze(1))[torch.arange(self.profile_window + 1).clamp(max=most)]

    @cached_property
    def _uncounted_users(self) -> npt.NDArray[np.bool_]:
        """(U,) users without any event that the statistics count."""
        if self._counted is None:
            return np.zeros(self.log.n_users, dtype=bool)
        uncounted = np.ones(self.log.n_users, dtype=bool)
        uncounted[self.log.user[self._rows[self._counted[self._rows]]]] = False
        return uncounted

    def _profile(self, events: Ints) -> Float[Tensor, "B R"]:
        """Each event's profile, the user's own or the typical one."""
        uncounted = self._uncounted_users[self.log.user[events]]
        if not uncounted.any():
            return self._own_profile(events)
        profile = torch.empty(len(events), self._kept.shape[1])
        profile[torch.from_numpy(~uncounted)] = self._own_profile(events[~uncounted])
        held = self.log.history_lengths(events[uncounted], self.profile_window)
        profile[torch.from_numpy(uncounted)] = self.typical[torch.from_numpy(held)]
        return profile

    def _own_profile(self, events: Ints) -> Float[Tensor, "B R"]:
        """Each device's own profile."""
        log = self.log
        start, end = log.history_start[events], log.history_end[events]
        lengths = np.minimum(end - start, self.profile_window)
        asked = np.repeat(np.arange(len(events)), lengths)
        at = ranges(end - lengths, end)
        # with a truncated history (see EventLog.truncate_history) the features of the same event differ
        whole = start[asked] == self._starts[at]
        new = np.unique(at[whole])
        new = new[~self._known[new]]
        self._kept[torch.from_numpy(new)] = self._kept_features(new, self._starts[new])
        self._known[new] = True
        kept = torch.empty(len(at), self._kept.shape[1], dtype=torch.int8)
        kept[torch.from_numpy(whole)] = self._kept[torch.from_numpy(at[whole])]
        kept[torch.from_numpy(~whole)] = self._kept_features(at[~whole], start[asked[~whole]])
        sums = torch.zeros(len(events), kept.shape[1]).index_add_(0, torch.from_numpy(asked), kept.float())
        return mean_profile(sums, torch.from_numpy(lengths))

    def _kept_features(self, at: Ints, starts: Ints) -> Int[Tensor, "B R"]:
        """Kept features of some events of log.sequence, for devices whose logs begin with the events in `starts`."""
        rows = self._rows[at]
        view = replace(self.log, history_start=starts, history_end=self.log.history_end[rows])
        items = torch.from_numpy(self.log.item[rows]).unsqueeze(1)
        return in_bytes(features_of_events(view, np.arange(len(rows)), items, self.statistics, self.size)[:, 0])


def in_bytes(found: Float[Tensor, "... F"]) -> Int[Tensor, "... R"]:
    """An event's features as a device keeps them, one byte each."""
    return (found[..., 1:] * STEPS).round().clamp(-127, 127).to(torch.int8)


def mean_profile(sums: Float[Tensor, "B R"], counts: Int[Tensor, "B"]) -> Float[Tensor, "B R"]:
    """Mean of kept features, shrunk towards 0 if there are few."""
    return sums / STEPS / (counts.unsqueeze(1) + PRIOR_EVENTS)


@torch.no_grad()
def features_of_events(
    log: EventLog, events: Ints, candidates: Int[Tensor, "B C"] | None, statistics: Statistics, size: int
) -> Float[Tensor, "B C F"]:
    """Features of the candidates (None: all items) at each event."""
    if candidates is None:
        candidates = torch.arange(log.n_items).expand(len(events), -1)
    parts = []
    numbers = candidates.shape[1] * (statistics.neighbours.shape[1] + statistics.predecessors.shape[1])
    step = max(1, min(_EVENTS, _CELLS // max(numbers, 1)))
    for at in range(0, len(events), step):
        some = slice(at, at + step)
        held, mask = log.histories(events[some], size)
        parts.append(features_of(held, mask.float(), candidates[some], log.item_categories, statistics))
    return torch.cat(parts) if parts else torch.zeros(*candidates.shape, statistics.mean.shape[1])


def features_of(
    held: Int[Tensor, "B M"],
    mask: Float[Tensor, "B M"],
    candidates: Int[Tensor, "B C"],
    item_categories: Int[Tensor, "I S"],
    statistics: Statistics,
) -> Float[Tensor, "B C F"]:
    """Features from the items in memory, newest first; `mask` is 0 for padding."""
    b, n_items = len(held), len(item_categories)
    # for few candidates the tables have a column for each item held, and a last one of zeros for all other items
    place = None
    if candidates.shape[1] < n_items:
        some = torch.unique(held[mask > 0])
        place = torch.full((n_items,), len(some))
        place[some] = torch.arange(len(some))
        n_items = len(some) + 1

    def column(items: Tensor) -> Tensor:
        return items if place is None else place[items]

    here, asked = column(held), column(candidates)
    n = mask.sum(1, keepdim=True)  # (B, 1)
    freshness = mask / (1 + torch.arange(held.shape[1]) / HALF)
    count = torch.zeros(b, n_items).scatter_add_(1, here, mask)
    recency = torch.zeros(b, n_items).scatter_reduce_(1, here, freshness, "amax")
    own = count.gather(1, asked)
    columns = [
        torch.log1p(n).expand_as(own) / 5,
        torch.log1p(own),
        torch.log((own + 1) / (n * statistics.item_share[candidates] + 1)),
        recency.gather(1, asked),
        *_category_columns(held, mask, freshness, candidates, item_categories, statistics),
    ]
    near, similarity = statistics.neighbours[candidates], statistics.similarity[candidates]  # (B, C, N)
    at = column(near).flatten(1)
    fresh = recency.gather(1, at).view(near.shape)
    known = similarity * (fresh > 0)
    columns += [torch.log1p(10 * known.sum(-1)), 5 * known.amax(-1), 5 * (similarity * fresh).sum(-1)]
    if statistics.predecessors.shape[1]:
        newest = torch.zeros(b, n_items).scatter_reduce_(1, here, mask * DECAY ** torch.arange(held.shape[1]), "amax")
        before = statistics.predecessors[candidates]
        score = statistics.transition_score[candidates] * newest.gather(1, column(before).flatten(1)).view(before.shape)
        columns += [torch.log1p(20 * score.sum(-1)), 10 * score.amax(-1)]
    return (torch.stack(columns, -1) - statistics.mean[candidates]) / statistics.scale


def _category_columns(
    held: Int[Tensor, "B M"],
    mask: Float[Tensor, "B M"],
    freshness: Float[Tensor, "B M"],
    candidates: Int[Tensor, "B C"],
    item_categories: Int[Tensor, "I S"],
    statistics: Statistics,
) -> list[Float[Tensor, "B C"]]:
    """Count, lift and recency of the candidate's categories: mean and largest of each."""
    padding = len(statistics.category_share) - 1
    slots = item_categories.shape[1]
    theirs = item_categories[held].flatten(1)  # (B, M·S)
    count = torch.zeros(len(held), padding + 1).scatter_add_(1, theirs, mask.repeat_interleave(slots, 1))
    recency = torch.zeros_like(count).scatter_reduce_(1, theirs, freshness.repeat_interleave(slots, 1), "amax")
    mine = item_categories[candidates]  # (B, C, S)
    real = (mine != padding).float()
    number = real.sum(-1).clamp(min=1)
    some = real.sum(-1) > 0
    n = mask.sum(1)[:, None, None]
    own = count.gather(1, mine.flatten(1)).view(mine.shape)
    fresh = recency.gather(1, mine.flatten(1)).view(mine.shape) * real
    counted = torch.log1p(own) * real
    lift = torch.log((own + 1) / (n * statistics.category_share[mine] + 1))
    largest = torch.where(real > 0, lift, NO_LIFT).amax(-1)
    return [
        counted.sum(-1) / number,
        counted.amax(-1),
        (lift * real).sum(-1) / number,
        torch.where(some, largest, 0.0),
        fresh.sum(-1) / number,
        fresh.amax(-1),
    ]
