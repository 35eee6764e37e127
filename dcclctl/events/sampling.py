"""Random draws that depend on what they are for and on nothing else.

Every number is a hash of (seed, purpose, key…): the negative j of event e in epoch p is the same whatever the batch
size, the number of threads or the shard it is drawn in. No generator state exists, so none has to be saved.
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
    """The finaliser of SplitMix64.

    Source: Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
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
        seed: seed of the stage.
        purpose: what the draw is for, e.g. "train/negatives".
        keys: integers or integer arrays that broadcast together.
    """
    state: Hashes | np.uint64 = np.uint64(stream(seed, purpose))
    with np.errstate(over="ignore"):
        for key in keys:
            state = _mix(state * _GAMMA + np.asarray(key).astype(np.uint64) + _GAMMA)
    return np.asarray(state)


def uniforms(seed: int, purpose: str, *keys: Ints | int) -> npt.NDArray[np.float64]:
    """One number of [0, 1) for every element of the broadcast keys."""
    return (hashes(seed, purpose, *keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def log_uniform(seed: int, purpose: str, keys: Ints, least: int, most: Ints) -> Ints:
    """Lengths (N,) between `least` and each one's own `most`: least as often as the next two, or the four after those.

    Args:
        seed, purpose, keys: name the draws. most: (N,) at least `least`.
    """
    drawn = np.floor((most - least + 2.0) ** uniforms(seed, purpose, keys)).astype(np.int64) - 1 + least
    lengths: Ints = np.minimum(drawn, most)
    return lengths


def permutation(seed: int, purpose: str, keys: Ints, *more: int) -> Ints:
    """Order of `keys` (N,) shuffled by their own hashes."""
    return np.argsort(hashes(seed, purpose, *more, keys), kind="stable")


class PairSet:
    """A set of (user, item) pairs with fast membership for whole arrays.

    Args:
        users: (N,) user indices; or, with `by_moment`, numbers of the moments that the pairs belong to.
        items: (N,) item indices.
        n_items: number of items, larger than any item index.
        by_moment: does a pair hold at one moment of the user only? See EventLog.never_negative and EventLog.owners.
    """

    def __init__(self, users: Ints, items: Ints, n_items: int, by_moment: bool = False) -> None:
        self.n_items, self.by_moment = n_items, by_moment
        self._keys = np.unique(users.astype(np.int64) * n_items + items)

    def contains(self, users: Ints, items: Ints) -> npt.NDArray[np.bool_]:
        """For every broadcast (user, item): is the pair in the set?"""
        wanted = users.astype(np.int64) * self.n_items + items
        if len(self._keys) == 0:
            return np.zeros(wanted.shape, dtype=bool)
        at = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        return np.asarray(self._keys[at] == wanted)


#: redraws of a slot before its event's candidates are listed one by one
_TRIES = 50
#: item of a slot for which no candidate is left
NO_ITEM = -1


def draw_negatives(
    seed: int, purpose: str, keys: Ints, owners: Ints, count: int, catalogue: Ints, excluded: PairSet, round: int = 0
) -> Ints:
    """Draw distinct items of the catalogue, uniformly, that are not excluded for the event's owner.

    Slot j of an event depends on the slots before it only, so the first items are the same whatever `count` is.

    Args:
        seed, purpose, round: name the draw (see module); `round` is the epoch.
        keys: (B,) one number an event.
        owners: (B,) what the excluded pairs are keyed by, for each event (EventLog.owners).
        count: N, negatives per event.
        catalogue: (I',) items that may be drawn.
        excluded: pairs that must not be drawn.

    Returns:
        (B, N) item indices; NO_ITEM where an event has fewer than N candidates.
    """
    slots = np.arange(count, dtype=np.int64)[None, :]

    def draw(rows: Ints, columns: Ints, attempt: int) -> Ints:
        numbers = hashes(seed, purpose, round, keys[rows], columns, attempt) % np.uint64(max(len(catalogue), 1))
        items: Ints = catalogue[numbers.astype(np.int64)]
        return items

    if not len(catalogue):
        return np.full((len(keys), count), NO_ITEM, dtype=np.int64)
    drawn = draw(np.arange(len(keys))[:, None], slots, 0)
    rows = np.arange(len(keys))  # events with a slot that may have to be drawn again
    for attempt in range(1, _TRIES + 1):
        wrong = excluded.contains(owners[rows, None], drawn[rows]) | _repeated(drawn[rows])
        bad = wrong.any(axis=1)
        rows, wrong = rows[bad], wrong[bad]
        if not len(rows):
            return drawn
        row, column = np.nonzero(wrong)
        drawn[rows[row], column] = draw(rows[row], column, attempt)
    for place in rows.tolist():  # nearly everything is excluded: list what is left, in the order of its hashes
        left = catalogue[~excluded.contains(np.broadcast_to(owners[place], catalogue.shape), catalogue)]
        left = left[permutation(seed, f"{purpose}/left", left, int(keys[place]), round)]
        drawn[place] = _mended(drawn[place].tolist(), left.tolist())
    return drawn


def _mended(drawn: list[int], left: list[int]) -> list[int]:
    """What was drawn, with the first item of `left` that no earlier slot has instead of each wrong or repeated one."""
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
    """(B, N) whether an item stands in an earlier slot of its row."""
    order = np.argsort(items, axis=1, kind="stable")
    ranked = np.take_along_axis(items, order, axis=1)
    again = np.zeros(items.shape, dtype=bool)
    again[:, 1:] = ranked[:, 1:] == ranked[:, :-1]
    repeated = np.zeros(items.shape, dtype=bool)
    np.put_along_axis(repeated, order, again, axis=1)
    return repeated
