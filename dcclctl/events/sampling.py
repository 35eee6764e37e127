"""Random draws that depend on their seed, purpose and keys alone.

Every number is a hash of (seed, purpose, key…): negative j of event e in epoch p depends neither on the batch size nor
on threads or shards. There is no state to save. What a batch shares (negatives, a memory patch's contrast, a teacher's list)
is keyed by the batch, so it depends on which events are in one.
"""

import hashlib

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def _mix(x: Hashes | np.uint64) -> Hashes | np.uint64:
    """SplitMix64's last step. Source: Steele et al., "Fast splittable pseudorandom number generators", OOPSLA 2014."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def stream(seed: int, purpose: str) -> int:
    """A 63-bit number that names one purpose's draws under one seed."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def hashes(seed: int, purpose: str, *keys: Ints | int) -> Hashes:
    """One 64-bit hash for every element of the broadcast keys.

    Args:
        seed: of the stage. purpose: of the draw, e.g. "train/negatives". keys: integers or arrays that broadcast.
    """
    state: Hashes | np.uint64 = np.uint64(stream(seed, purpose))
    with np.errstate(over="ignore"):
        for key in keys:
            state = _mix(state * _GAMMA + np.asarray(key).astype(np.uint64) + _GAMMA)
    return np.asarray(state)


def uniforms(seed: int, purpose: str, *keys: Ints | int) -> npt.NDArray[np.float64]:
    """One number in [0, 1) for every element of the broadcast keys."""
    return (hashes(seed, purpose, *keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def log_uniform(seed: int, purpose: str, keys: Ints, least: int, most: Ints) -> Ints:
    """Lengths (N,) from `least` to `most` (N,): `least` is as probable as the next two together, or the next four."""
    drawn = np.floor((most - least + 2.0) ** uniforms(seed, purpose, keys)).astype(np.int64) - 1 + least
    lengths: Ints = np.minimum(drawn, most)
    return lengths


def permutation(seed: int, purpose: str, keys: Ints, *more: int) -> Ints:
    """A random order of `keys` (N,): their positions, sorted by the keys' hashes."""
    return np.argsort(hashes(seed, purpose, *more, keys), kind="stable")


def ranges(begins: Ints, ends: Ints) -> Ints:
    """begins[0] … ends[0] − 1, begins[1] … ends[1] − 1, …"""
    lengths = ends - begins
    offsets = np.cumsum(lengths) - lengths
    numbers: Ints = np.arange(int(lengths.sum())) + np.repeat(begins - offsets, lengths)
    return numbers


#: places of a set's filter for each pair, as a power of 2 and at least half of it
_FILTER_BITS = 2


class PairSet:
    """A set of (user, item) or (basket, item) pairs with fast membership for whole arrays.

    Args:
        owners: (N,) user indices; with `by_basket` numbers of baskets (see EventLog.owners).
        items: (N,) item indices, below n_items.
    """

    def __init__(self, owners: Ints, items: Ints, n_items: int, by_basket: bool = False) -> None:
        self.n_items, self.by_basket = n_items, by_basket
        self._keys = np.unique(owners.astype(np.int64) * n_items + items)
        # one bit of each key's hash: most pairs that are not in the set are ruled out by one look
        self._shift = np.uint64(64 - max(len(self._keys), 1).bit_length() - _FILTER_BITS)
        self._maybe = np.zeros(1 << (64 - int(self._shift)), dtype=bool)
        self._maybe[self._places(self._keys)] = True

    def _places(self, keys: Ints) -> Ints:
        with np.errstate(over="ignore"):
            return ((keys.view(np.uint64) * _GAMMA) >> self._shift).view(np.int64)

    def contains(self, owners: Ints, items: Ints) -> npt.NDArray[np.bool_]:
        """Whether each broadcast (owner, item) is in the set."""
        wanted = owners.astype(np.int64) * self.n_items + items
        found = self._maybe[self._places(wanted)]
        if found.any():
            keys = wanted[found]
            found[found] = self._keys[np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)] == keys
        return found

    def among(self, owners: Ints, items: Ints) -> npt.NDArray[np.bool_]:
        """(B, N) whether each owner (B,) has each of some distinct items (N,): own pairs are written, no pair is looked up."""
        columns = np.full(self.n_items, len(items))
        columns[items] = np.arange(len(items))
        found = np.zeros((len(owners), len(items) + 1), dtype=bool)
        row, item = self.of_owners(owners)
        found[row, columns[item]] = True  # the last column takes the other items
        return found[:, :-1]

    def of_owners(self, owners: Ints) -> tuple[Ints, Ints]:
        """All pairs of the owners (B,): each one's place in `owners`, and its item."""
        begins, ends = (np.searchsorted(self._keys, (owners + more) * self.n_items) for more in (0, 1))
        return np.repeat(np.arange(len(owners)), ends - begins), self._keys[ranges(begins, ends)] % self.n_items


#: how often a slot is drawn again before all its candidates are listed
_TRIES = 50
#: item of a slot for which no candidate is left
NO_ITEM = -1


def draw_negatives(
    seed: int, purpose: str, keys: Ints, owners: Ints, count: int, catalogue: Ints, excluded: PairSet, round: int = 0
) -> Ints:
    """Draw distinct items of the catalogue, uniformly, that are not excluded for the event's owner.

    Slot j of an event depends only on the slots before it, so the first items do not depend on `count`.

    Args:
        seed, purpose, round: name the draw; `round` is the epoch. keys: (B,) one number for each event.
        owners: (B,) each event's owner in the excluded pairs (see EventLog.owners). count: N, negatives per event.
        catalogue: (I',) items that may be drawn. excluded: pairs that must not be drawn.

    Returns:
        (B, N) item indices; NO_ITEM where an event has fewer than N candidates.
    """

    def draw(rows: Ints, columns: Ints, attempt: int) -> Ints:
        numbers = hashes(seed, purpose, round, keys[rows], columns, attempt) % np.uint64(max(len(catalogue), 1))
        items: Ints = catalogue[numbers.astype(np.int64)]
        return items

    if not len(catalogue):
        return np.full((len(keys), count), NO_ITEM, dtype=np.int64)
    rows = np.arange(len(keys))  # events with a slot that may have to be drawn again
    drawn = draw(rows[:, None], np.arange(count)[None, :], 0)
    for attempt in range(1, _TRIES + 1):
        wrong = excluded.contains(owners[rows, None], drawn[rows]) | _repeated(drawn[rows])
        bad = wrong.any(axis=1)
        rows, wrong = rows[bad], wrong[bad]
        if not len(rows):
            return drawn
        row, column = np.nonzero(wrong)
        drawn[rows[row], column] = draw(rows[row], column, attempt)
    for place in rows.tolist():  # most items are excluded: list all others, in the order of their hashes
        left = catalogue[~excluded.contains(np.broadcast_to(owners[place], catalogue.shape), catalogue)]
        left = left[permutation(seed, f"{purpose}/left", left, int(keys[place]), round)]
        drawn[place] = _mended(drawn[place].tolist(), left.tolist())
    return drawn


def _mended(drawn: list[int], left: list[int]) -> list[int]:
    """The items drawn; excluded and repeated ones are replaced by the first item of `left` that no earlier slot has."""
    allowed, spare = set(left), iter(left)
    taken: set[int] = set()
    mended = []
    for item in drawn:
        if item not in allowed or item in taken:
            item = next((other for other in spare if other not in taken), NO_ITEM)
        taken.add(item)
        mended.append(item)
    return mended


def _repeated(items: Ints) -> npt.NDArray[np.bool_]:
    """(B, N) whether an earlier slot of the row has the same item."""
    bits = items.shape[1].bit_length()
    # item and slot in one number: numbers are sorted much faster than their places
    ranked = np.sort(items << bits | np.arange(items.shape[1]), axis=1)
    same = (ranked[:, 1:] >> bits) == (ranked[:, :-1] >> bits)
    row, place = np.nonzero(same)
    repeated = np.zeros(items.shape, dtype=bool)
    repeated[row, ranked[row, place + 1] & ((1 << bits) - 1)] = True
    return repeated
