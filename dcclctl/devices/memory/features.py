"""Features of a candidate item from a device's memory.

The cloud model reads the last L events. A device holds the newest M items of its user's log (4·M bytes). Every
candidate gets F features from these items and the statistics that the cloud ships (`Statistics`): how often, how much
more than expected and how recently the user interacted with the item and its categories; how similar the items held are
to the candidate; whether the newest items are items that usually precede the candidate; and the dot product of the
candidate's factor with that of the user, made of the items held.

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

Shapes: B events, C candidates, I items, G categories, S categories of an item, M items held, D numbers in a factor, F
features, R of them in a profile, T events of a profile.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from dcclctl.devices.memory.lists import Floats, ItemLists, largest, sums
from dcclctl.events.log import EventLog
from dcclctl.events.sampling import Ints, hashes, ranges
from dcclctl.models.kernels import rows_of

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
    "similarity, lately",
)
#: further features if the order of events is used
ORDER_FEATURES = ("order, sum", "order, largest")
#: further features if items have factors
FACTOR_FEATURES = ("factors", "factors, log", "factors, lately", "factors, lately, log")
#: events after which recency is halved
HALF = 20.0
#: weight of an event as predecessor or recent neighbour of a candidate, relative to the event after it
DECAY = 0.8
#: weights of an event in the two sums of factors, relative to the event after it
FADES = (1.0, 0.9)
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
        factors, damping: (I, D) of the items, and (D,) c, see factors.py; D = 0 without them.
        mean: (I, F) an item's mean features over the reference users. scale: (F,) standard deviation around the mean.
    """

    item_share: Float[Tensor, "I"]
    category_share: Float[Tensor, "G"]
    neighbours: Int[Tensor, "I N"]
    similarity: Float[Tensor, "I N"]
    predecessors: Int[Tensor, "I Q"]
    transition_score: Float[Tensor, "I Q"]
    factors: Float[Tensor, "I D"]
    damping: Float[Tensor, "D"]
    mean: Float[Tensor, "I F"]
    scale: Float[Tensor, "F"]

    @property
    def features(self) -> tuple[str, ...]:
        """Names of a candidate's F features."""
        order, factors = self.predecessors.shape[1], self.factors.shape[1]
        return FEATURES + (ORDER_FEATURES if order else ()) + (FACTOR_FEATURES if factors else ())

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
        """Bytes sent to a device with a candidate: share, neighbours and preceding items (4 + 4 bytes each), factor, means."""
        related = self.neighbours.shape[1] + self.predecessors.shape[1]
        return 4 + 8 * related + 4 * (self.factors.shape[1] + self.mean.shape[1])


class Memories:
    """Features of candidates from every device's memory, for whole batches of events.

    Args:
        log: the devices' histories. size: M. profile_window: T; 0: no profile of recent events.
        counted: (N,) events that the statistics count; users without any get the typical profile. None: all users get
            their own.
        tables: of the statistics, where they are made already. typical: the typical profiles, where they are known.
    """

    def __init__(
        self,
        log: EventLog,
        statistics: Statistics,
        size: int,
        profile_window: int,
        counted: npt.NDArray[np.bool_] | None = None,
        tables: "FeatureTables | None" = None,
        typical: Float[Tensor, "T1 R"] | None = None,
    ) -> None:
        self.log, self.statistics, self.size, self.profile_window = log, statistics, size, profile_window
        self._counted, self._tables = counted, tables or FeatureTables(statistics, log.item_categories)
        if typical is not None:
            self.typical = typical
        self._rows = np.flatnonzero(log.label > 0)  # of the events of log.sequence
        owners = log.user[self._rows]
        self._starts = np.searchsorted(owners, owners)  # where each event's user begins in log.sequence
        self._kept = torch.zeros(
            len(owners) if profile_window else 0, len(statistics.profile_features), dtype=torch.int8
        )
        self._known = np.zeros(len(owners), dtype=bool)

    @torch.no_grad()
    def features(self, events: Ints, candidates: Int[Tensor, "B C"] | None) -> Float[Tensor, "B C FR"]:
        """The candidates' features at each event, and the profile of recent events, from strictly earlier events only.

        Args:
            events: (B,) row numbers. candidates: items; None: all items.
        """
        return with_profile(self.of_candidates(events, candidates), self.profiles(events))

    @torch.no_grad()
    def of_candidates(self, events: Ints, candidates: Int[Tensor, "B C"] | None) -> Float[Tensor, "B C F"]:
        """The candidates' features alone."""
        return self._tables.of_events(self.log, events, candidates, self.size)

    @cached_property
    def typical(self) -> Float[Tensor, "T1 R"]:
        """Mean profile of counted users at 0, 1, … T events on the device; the cloud ships it with the statistics."""
        return typical_profiles([self.profile_sums(some_users(self.counted_users()))])

    def counted_users(self) -> Ints:
        """Users with an event that the statistics count, ascending."""
        assert self._counted is not None
        return np.unique(self.log.user[self._rows[self._counted[self._rows]]])

    def profile_sums(self, users: Ints) -> tuple[Float[Tensor, "T1 R"], Int[Tensor, "T1"]]:
        """Sum of the profiles of some users at 0, 1, … T counted events on the device, and how many they are."""
        assert self._counted is not None
        counted, owners = self._counted[self._rows], self.log.user[self._rows]
        place = np.arange(len(owners)) - self._starts  # in the user's log
        at = np.flatnonzero(counted & (place < self.profile_window) & np.isin(owners, users))
        held = torch.from_numpy(place[at] + 1)
        kept = self._kept_features(at, self._starts[at]).float()
        sums = kept.cumsum(0)
        first = torch.from_numpy(np.arange(len(at)) - place[at])  # where the user's events begin in `at`
        profiles = mean_profile(sums - sums[first] + kept[first], held)
        total = torch.zeros(self.profile_window + 1, kept.shape[1]).index_add_(0, held, profiles)
        return total, torch.bincount(held, minlength=self.profile_window + 1)

    @cached_property
    def _uncounted_users(self) -> npt.NDArray[np.bool_]:
        """(U,) users without any event that the statistics count."""
        if self._counted is None:
            return np.zeros(self.log.n_users, dtype=bool)
        uncounted = np.ones(self.log.n_users, dtype=bool)
        uncounted[self.log.user[self._rows[self._counted[self._rows]]]] = False
        return uncounted

    @torch.no_grad()
    def profiles(self, events: Ints) -> Float[Tensor, "B R"]:
        """The profile at each event, the user's own or the typical one; R = 0 without profiles."""
        if not self.profile_window:
            return torch.empty(len(events), 0)
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
        return in_bytes(self._tables.of_events(view, np.arange(len(rows)), items, self.size)[:, 0])


def some_users(users: Ints) -> Ints:
    """The users (U,) that typical profiles are made from: all, or 1,000 of them."""
    return users[np.argsort(hashes(0, "memory/typical", users), kind="stable")[:_TYPICAL]]


def typical_profiles(parts: Iterable[tuple[Float[Tensor, "T1 R"], Int[Tensor, "T1"]]]) -> Float[Tensor, "T1 R"]:
    """Typical profiles from what `Memories.profile_sums` says of each part of the users."""
    totals, counts = zip(*parts, strict=True)
    total, users_of = torch.stack(totals).sum(0), torch.stack(counts).sum(0)
    most = int(users_of.nonzero().max()) if users_of.any() else 0  # no user has more events
    return (total / users_of.clamp(min=1).unsqueeze(1))[torch.arange(len(total)).clamp(max=most)]


def in_bytes(found: Float[Tensor, "... F"]) -> Int[Tensor, "... R"]:
    """An event's features as a device keeps them, one byte each."""
    return (found[..., 1:] * STEPS).round().clamp(-127, 127).to(torch.int8)


def mean_profile(sums: Float[Tensor, "B R"], counts: Int[Tensor, "B"]) -> Float[Tensor, "B R"]:
    """Mean of kept features, shrunk towards 0 if there are few."""
    return sums / STEPS / (counts.unsqueeze(1) + PRIOR_EVENTS)


class FeatureTables:
    """What the features of many candidates need, made once for the statistics of a log.

    Args:
        item_categories: (I, S) codes, as in EventLog.
    """

    def __init__(self, statistics: Statistics, item_categories: Int[Tensor, "I S"]) -> None:
        self.statistics, self.item_categories = statistics, item_categories

    @cached_property
    def _near(self) -> ItemLists:
        return ItemLists.of(self.statistics.neighbours, self.statistics.similarity)

    @cached_property
    def _before(self) -> ItemLists:
        return ItemLists.of(self.statistics.predecessors, self.statistics.transition_score)

    @cached_property
    def _mean_of_column(self) -> Float[Tensor, "F I"]:
        return self.statistics.mean.T.contiguous()

    @cached_property
    def _factor_of_column(self) -> Float[Tensor, "D I"]:
        return self.statistics.factors.double().T.contiguous()

    @cached_property
    def _category_sets(self) -> tuple[Int[Tensor, "T S"], Int[Tensor, "I"]]:
        """The distinct sets of categories, and which of them each item has."""
        sets, own = torch.unique(self.item_categories, dim=0, return_inverse=True)
        return sets, own

    @torch.no_grad()
    def of_events(
        self, log: EventLog, events: Ints, candidates: Int[Tensor, "B C"] | None, size: int
    ) -> Float[Tensor, "B C F"]:
        """Features of the candidates (None: all items) at each event, from the newest `size` items before it."""
        statistics, n_items = self.statistics, log.n_items
        n_candidates = n_items if candidates is None else candidates.shape[1]
        related, width = statistics.neighbours.shape[1] + statistics.predecessors.shape[1], statistics.mean.shape[1]
        if candidates is None:  # column by column in memory
            found = torch.empty(len(events), width, n_candidates).mT
        else:
            found = torch.empty(len(events), n_candidates, width)
        # turned round, the lists cost a table of all items and what the held items are related to, each twice a lookup
        turned = candidates is None or n_candidates * related > 2 * (n_items + size * related)
        # numbers of a candidate in the largest table
        table = max(statistics.factors.shape[1], 0 if turned else related)
        step = _EVENTS if candidates is None else max(1, min(_EVENTS, _CELLS // max(n_candidates * table, 1)))
        for at in range(0, len(events), step):
            some = slice(at, at + step)
            held, mask = log.histories(events[some], size)
            memory = held, mask.float()
            if candidates is None:
                self._of_all(*memory, found[some])
            elif turned:
                each = [
                    torch.stack(self._related(*_distinct(*one)[:2], own))
                    for *one, own in zip(*memory, candidates[some].numpy(), strict=True)
                ]
                sums_of = list(torch.stack(each, 1))
                found[some] = features_of(*memory, candidates[some], self.item_categories, statistics, sums_of)
            else:
                found[some] = features_of(*memory, candidates[some], self.item_categories, statistics)
        return found

    def _related(self, items: Ints, place: Ints, candidates: Ints | None = None) -> list[Float[Tensor, "C"]]:
        """The sums of `features_of` over related items, before the logarithm, for the distinct items of a memory.

        Args:
            candidates: (C,) items; None: all items.
        """
        n_items, held = len(self.item_categories), int(place.max(initial=0)) + 1
        column = None
        if candidates is not None:  # equal candidates share the last one's column
            column = np.full(n_items, -1)
            column[candidates] = np.arange(len(candidates))
        size = n_items if candidates is None else len(candidates)

        def entries(lists: ItemLists, weights: Float[Tensor, "M"]) -> tuple[Ints, Floats, Floats]:
            target, value, weight = lists.entries(items, weights.numpy()[place])
            if column is None:
                return target, value, value * weight
            target = column[target]
            asked = target >= 0
            value = value[asked]
            return target[asked], value, value * weight[asked]

        target, value, lately = entries(self._near, _newest(held))
        tables = [sums(target, value, size), largest(target, value, size), sums(target, lately, size)]
        if self.statistics.predecessors.shape[1]:
            target, _, score = entries(self._before, _newest(held))
            tables += [sums(target, score, size), largest(target, score, size)]
        if column is not None:
            tables = [table[column[candidates]] for table in tables]
        return [torch.from_numpy(table) for table in tables]

    def _of_all(self, held: Int[Tensor, "B M"], mask: Float[Tensor, "B M"], found: Float[Tensor, "B I F"]) -> None:
        """Write the features of all items: memory by memory and column by column, which stay in the processor's cache."""
        statistics, (b, n_items, _) = self.statistics, found.shape
        sets, set_of_item = self._category_sets
        freshness = mask * _freshness(held.shape[1])
        theirs, every_set = self.item_categories[held], sets.expand(b, -1, -1)
        by_set = torch.stack(_category_columns(held, mask, freshness, theirs, every_set, statistics), 1)
        by_factors = None
        if statistics.factors.shape[1]:
            scores = _user_factors(held, mask, statistics) @ self._factor_of_column  # (B, 2, I)
            by_factors = torch.stack(_factor_columns(scores.float()), 1)
        for row in range(b):
            columns = found[row].mT
            items, place, count = _distinct(held[row], mask[row])
            n, own = mask[row].sum(), torch.zeros(n_items)
            own[torch.from_numpy(items)] = torch.from_numpy(count).float()
            columns[0] = torch.log1p(n) / 5
            torch.log1p(own, out=columns[1])
            torch.log((own + 1) / (n * statistics.item_share + 1), out=columns[2])
            columns[3] = 0
            columns[3, torch.from_numpy(items)] = freshness[row, torch.from_numpy(place)]
            of_sets = columns[4 : 4 + by_set.shape[1]]
            torch.index_select(by_set[row], 1, set_of_item, out=of_sets)
            related = self._related(items, place)
            of_related = _similarity_columns(*related[:3]) + (_order_columns(*related[3:]) if related[3:] else [])
            first = 4 + by_set.shape[1]
            torch.stack(of_related, out=columns[first : first + len(of_related)])
            if by_factors is not None:
                columns[first + len(of_related) :] = by_factors[row]
            columns.sub_(self._mean_of_column).div_(statistics.scale[:, None])


def _distinct(held: Int[Tensor, "M"], mask: Float[Tensor, "M"]) -> tuple[Ints, Ints, Ints]:
    """The distinct items of a memory (H,), the newest place of each, and how often each is held."""
    # the first of equal items is the newest
    items, place, count = np.unique(held[mask > 0].numpy(), return_index=True, return_counts=True)
    return items, place, count


def with_profile(features: Float[Tensor, "B C F"], profile: Float[Tensor, "B R"]) -> Float[Tensor, "B C FR"]:
    """Features of candidates, each followed by the profile of its event; F + R = FR."""
    if not profile.shape[1]:
        return features
    return torch.cat([features, profile.unsqueeze(1).expand(-1, features.shape[1], -1)], -1)


def features_of(
    held: Int[Tensor, "B M"],
    mask: Float[Tensor, "B M"],
    candidates: Int[Tensor, "B C"],
    item_categories: Int[Tensor, "I S"],
    statistics: Statistics,
    related: list[Float[Tensor, "B C"]] | None = None,
) -> Float[Tensor, "B C F"]:
    """Features from the items in memory, newest first; `mask` is 0 for padding.

    Args:
        related: the sums over related items, if they are known.
    """
    b, n_items = len(held), len(item_categories)
    # for few candidates the tables have a column for each item held, and a last one of zeros for all other items
    place = None
    if candidates.shape[1] < n_items:
        some = torch.unique(held[mask > 0])
        place = torch.full((n_items,), len(some))
        place[some] = torch.arange(len(some))
        n_items = len(some) + 1

    def column(items: Tensor) -> Tensor:
        return items if place is None else rows_of(place, items)

    here, asked = column(held), column(candidates)
    n = mask.sum(1, keepdim=True)  # (B, 1)
    freshness = mask * _freshness(held.shape[1])
    count = torch.zeros(b, n_items).scatter_add_(1, here, mask)
    recency = torch.zeros(b, n_items).scatter_reduce_(1, here, freshness, "amax")
    own = count.gather(1, asked)
    categories = rows_of(item_categories, held), rows_of(item_categories, candidates)
    columns = [
        torch.log1p(n).expand_as(own) / 5,
        torch.log1p(own),
        torch.log((own + 1) / (n * rows_of(statistics.item_share, candidates) + 1)),
        recency.gather(1, asked),
        *_category_columns(held, mask, freshness, *categories, statistics),
    ]
    if related is None:
        near = rows_of(statistics.neighbours, candidates)  # (B, C, N)
        similarity = rows_of(statistics.similarity, candidates)
        known = similarity * (count.gather(1, column(near).flatten(1)).view(near.shape) > 0)
        newest = torch.zeros(b, n_items).scatter_reduce_(1, here, mask * _newest(held.shape[1]), "amax")
        lately = newest.gather(1, column(near).flatten(1)).view(near.shape)
        related = [_sum(known), known.amax(-1), _sum(similarity * lately)]
        if statistics.predecessors.shape[1]:
            before = rows_of(statistics.predecessors, candidates)
            score = rows_of(statistics.transition_score, candidates)
            score = score * newest.gather(1, column(before).flatten(1)).view(before.shape)
            related += [_sum(score), score.amax(-1)]
    columns += _similarity_columns(*related[:3]) + (_order_columns(*related[3:]) if related[3:] else [])
    if statistics.factors.shape[1]:
        scores = _user_factors(held, mask, statistics) @ rows_of(statistics.factors, candidates).double().mT
        columns += _factor_columns(scores.float())
    return (torch.stack(columns, -1) - rows_of(statistics.mean, candidates)) / statistics.scale


def _sum(values: Float[Tensor, "B C N"]) -> Float[Tensor, "B C"]:
    """The sum of 32-bit numbers with 64 bits, which is exact here, so that no order of the numbers changes it."""
    return values.sum(-1, dtype=torch.float64).float()


def _freshness(size: int) -> Float[Tensor, "M"]:
    """Recency of the items at each place of a memory, newest first."""
    return 1 / (1 + torch.arange(size) / HALF)


def _newest(size: int) -> Float[Tensor, "M"]:
    """Weight of the items at each place of a memory as predecessors and recent neighbours, newest first."""
    return DECAY ** torch.arange(size)


def _user_factors(
    held: Int[Tensor, "B M"], mask: Float[Tensor, "B M"], statistics: Statistics
) -> Float[Tensor, "B K D"]:
    """A user's factors, one for each of the `FADES`: damped sums of the factors of the items held."""
    age = torch.arange(held.shape[1])
    found = []
    for fade in FADES:
        weights = mask * fade**age
        total = F.embedding_bag(held, statistics.factors, per_sample_weights=weights, mode="sum").double()
        found.append(total / (1 + weights.sum(1, keepdim=True) * statistics.damping))
    return torch.stack(found, 1)


def _factor_columns(scores: Float[Tensor, "B K C"]) -> list[Float[Tensor, "B C"]]:
    """Each score and its logarithm."""
    logs = torch.log1p(50 * scores.clamp(min=0))
    return [column for number in range(scores.shape[1]) for column in (scores[:, number], logs[:, number])]


def _similarity_columns(
    total: Float[Tensor, "..."], most: Float[Tensor, "..."], recent: Float[Tensor, "..."]
) -> list[Float[Tensor, "..."]]:
    return [torch.log1p(10 * total), 5 * most, torch.log1p(20 * recent)]


def _order_columns(total: Float[Tensor, "..."], most: Float[Tensor, "..."]) -> list[Float[Tensor, "..."]]:
    return [torch.log1p(20 * total), 10 * most]


def _category_columns(
    held: Int[Tensor, "B M"],
    mask: Float[Tensor, "B M"],
    freshness: Float[Tensor, "B M"],
    theirs: Int[Tensor, "B M S"],
    mine: Int[Tensor, "B C S"],
    statistics: Statistics,
) -> list[Float[Tensor, "B C"]]:
    """Count, lift and recency of a candidate's categories `mine`: mean and largest of each; `theirs` of the items held."""
    padding = len(statistics.category_share) - 1
    slots = theirs.shape[2]
    theirs = theirs.flatten(1)
    count = torch.zeros(len(held), padding + 1).scatter_add_(1, theirs, mask.repeat_interleave(slots, 1))
    recency = torch.zeros_like(count).scatter_reduce_(1, theirs, freshness.repeat_interleave(slots, 1), "amax")
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
