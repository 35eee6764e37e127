"""Factors: each item as a vector, such that the dot product of an item with the sum of the items held says how well it fits.

An item's nearest items (statistics.py) say something of a candidate only if they are in the memory. Factors say something of
every pair of items, also of two that nobody has had both of. They are those of matrix factorisation, iALS.

There a user's own factor x is the solution of (A + Σ_m w_m h_m h_mᵀ) x = Σ_m w_m h_m over the items held, with one matrix for
each user. Here the sum on the left is what it is on average, n·C for n = Σ w, so that a device solves nothing: in a basis
in which A is the identity and C is diagonal, x is the sum of the items' vectors, each number divided by 1 + n·c.

Shapes: U users, I items, R rows (users or items), N the other side, D numbers in a factor, P pairs of a user and an item.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dcclctl.compute import Phase
from dcclctl.events.sampling import Ints, hashes, stream

#: numbers of users or items
IndexArray = npt.NDArray[np.int32]
Numbers = npt.NDArray[np.floating[Any]]

#: weight of every pair of a user and an item relative to one event, and L2 penalty; as iALS has them by default
_UNOBSERVED, _PENALTY = 0.1, 0.003
#: times that all users and then all items are improved, and steps for each
_SWEEPS, _STEPS = 8, 3
#: events that factors are learned from where there are more, all of some users: as few users as have so many
_EVENTS = 2_000_000
#: pairs that are read at once, about
_PAIRS = 1 << 17
#: standard deviation of the initial factors, times the root of their size
_START = 0.1


def item_factors(
    user: IndexArray, item: IndexArray, n_items: int, size: int, seed: int, phase: Phase
) -> tuple[Float[Tensor, "I D"], Float[Tensor, "D"]]:
    """The items' factors, and c: how much of each number an event takes away.

    Source: the loss is that of models/ials.py, minimised by conjugate gradients, a few steps for each row in turn: Takács,
    Pilászy & Tikk, "Applications of the conjugate gradient method for implicit feedback collaborative filtering",
    RecSys 2011.

    Args:
        user, item: (N,) of the events. n_items: I. size: D.
        seed: of the first factors. phase: its total is `sweeps()`.

    Returns:
        Zeros for an item without events.
    """
    by_user = _counts(user, item, n_items, seed)
    n_users = by_user.shape[0]
    by_item = by_user.T.tocsr()
    generator = torch.Generator().manual_seed(stream(seed, "memory/factors"))
    items = (torch.randn(n_items, size, generator=generator) * (_START / size**0.5)).numpy()
    users = np.zeros((n_users, size), dtype=np.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the factors are part of an artifact that is the same for any number of threads
    try:
        for _ in range(_SWEEPS):
            improve(users, by_user, items)
            improve(items, by_item, users)
            phase.add(1)
        items[np.diff(by_item.indptr) == 0] = 0
        return in_the_basis_of_events(torch.from_numpy(items).double(), torch.from_numpy(by_item.sum(axis=1)))
    finally:
        torch.set_num_threads(threads)


def sweeps() -> int:
    """Steps that `item_factors` reports."""
    return _SWEEPS


def improve(factors: Numbers, rows: Any, others: Numbers, steps: int = _STEPS) -> None:
    """Some steps of conjugate gradients towards the best factors (R, D) of one side, in place, for given ones of the other.

    Args:
        rows: how many events each pair has, a scipy.sparse.csr_array (R, N). others: (N, D).
    """
    gram, rows = _UNOBSERVED * _product(others.T, others), rows.astype(factors.dtype)
    ridge = (_PENALTY * (rows.sum(axis=1) + _UNOBSERVED * len(others)))[:, None].astype(factors.dtype)
    tiny = np.finfo(factors.dtype).tiny
    for some in _blocks(rows.indptr.astype(np.int64)):
        own, x = rows[some.start : some.stop], factors[some]
        apply = _matrix(own, others, gram, ridge[some])
        rest = own @ others - apply(x)
        direction, size = rest.copy(), _squares(rest)
        for _ in range(steps):
            image = apply(direction)
            step = size / np.maximum((direction * image).sum(1, keepdims=True), tiny)
            x += step * direction
            rest -= step * image
            before, size = size, _squares(rest)
            direction = rest + size / np.maximum(before, tiny) * direction


def _matrix(rows: Any, others: Numbers, gram: Numbers, ridge: Numbers) -> Callable[[Numbers], Numbers]:
    """v (R, D) → (gram + ridge·I + Σ_i y_i h_i h_iᵀ) v, row by row."""
    from scipy import sparse

    owner = torch.from_numpy(np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr)))
    other, table = torch.from_numpy(rows.indices.astype(np.int64)), torch.from_numpy(others)

    def apply(v: Numbers) -> Numbers:
        own, found = torch.from_numpy(v), np.empty(len(owner), dtype=v.dtype)
        for at in range(0, len(owner), _PAIRS):
            part = slice(at, at + _PAIRS)
            pairs = own.index_select(0, owner[part]) * table.index_select(0, other[part])
            found[part] = pairs.sum(1).numpy()
        weighted = sparse.csr_array((found * rows.data, rows.indices, rows.indptr), shape=rows.shape) @ others
        return np.asarray(_product(v, gram) + ridge * v + weighted)

    return apply


def _blocks(start: Ints) -> Iterator[slice]:
    """Consecutive rows with about `_PAIRS` pairs together; start: (R + 1,) where each row's pairs begin."""
    first, n_rows = 0, len(start) - 1
    while first < n_rows:
        last = max(first + 1, int(np.searchsorted(start, start[first] + _PAIRS, "right")) - 1)
        last = min(last, first + _PAIRS)
        yield slice(first, last)
        first = last


def _squares(rows: Numbers) -> Numbers:
    return np.asarray((rows * rows).sum(1, keepdims=True))


def _product(left: Numbers, right: Numbers) -> Numbers:
    """The matrix product, by torch, whose number of threads can be set."""
    return np.asarray((torch.from_numpy(left) @ torch.from_numpy(right)).numpy())


def _counts(user: IndexArray, item: IndexArray, n_items: int, seed: int) -> Any:
    """How many events of each item each user has, of all users or of as many as factors are learned from: (U, I)."""
    from scipy import sparse

    lengths = np.bincount(user)
    users = np.flatnonzero(lengths)
    if len(user) > _EVENTS:
        users = users[np.argsort(hashes(seed, "memory/factors", users), kind="stable")]
        users = np.sort(users[: np.searchsorted(np.cumsum(lengths[users]), _EVENTS) + 1])
        chosen = np.isin(np.arange(len(lengths)), users)[user]
        user, item = user[chosen], item[chosen]
    ones = np.ones(len(user), dtype=np.int32)
    counts = sparse.csr_array((ones, (np.searchsorted(users, user), item)), shape=(len(users), n_items))
    counts.sum_duplicates()
    return counts


def in_the_basis_of_events(
    factors: Float[Tensor, "I D"], counts: Shaped[Tensor, "I"]
) -> tuple[Float[Tensor, "I D"], Float[Tensor, "D"]]:
    """The factors in the basis of the module's text, and c; counts: events of each item."""
    one = torch.eye(factors.shape[1], dtype=torch.float64)
    shares = counts.double() / max(float(counts.sum()), 1.0)
    alone = _UNOBSERVED * factors.mT @ factors + _PENALTY * _UNOBSERVED * max(len(factors), 1) * one
    each = (factors * shares[:, None]).mT @ factors + _PENALTY * one
    root = torch.linalg.inv(torch.linalg.cholesky(alone))
    c, vectors = torch.linalg.eigh(root @ each @ root.mT)
    return (factors @ root.mT @ vectors).float(), c.float()
