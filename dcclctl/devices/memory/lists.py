"""Related items by the item held: what an item in memory says of all items, without a look at every pair.

The statistics list each item's related items. Turned round, an item held names at once all items whose lists it is in, so
that the cost depends on the items held and their lists, not on the number of candidates.

Shapes: I items, H distinct items in a memory, N entries.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int
from torch import Tensor

from dcclctl.events.sampling import Ints
from dcclctl.logs.order import order_by

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ItemLists:
    """For each item the items in whose lists it is.

    Attributes:
        start: (I + 1,). target: (N,) item j is in the lists of target[start[j] : start[j + 1]].
        value: (N,) its value in their lists, above 0.
    """

    start: Ints
    target: Ints
    value: Floats

    @classmethod
    def of(cls, related: Int[Tensor, "I N"], values: Float[Tensor, "I N"]) -> "ItemLists":
        """From each item's related items and their values, 0 for padding."""
        value = values.numpy().ravel()
        held = np.flatnonzero(value)
        source = related.numpy().ravel()[held]
        held = held[order_by(source)]
        start = np.concatenate([[0], np.cumsum(np.bincount(source, minlength=len(related)))])
        return cls(start, held // max(related.shape[1], 1), value[held])

    def entries(self, items: Ints, weights: Floats) -> tuple[Ints, Floats, Floats]:
        """The lists of some items (H,), one after the other: targets, values, and the weight of the item of each (N,)."""
        if not len(items):
            return self.target[:0], self.value[:0], weights
        begins, ends = self.start[items], self.start[items + 1]
        parts = [slice(*pair) for pair in zip(begins.tolist(), ends.tolist(), strict=True)]
        target, value = (np.concatenate([own[part] for part in parts]) for own in (self.target, self.value))
        return target, value, np.repeat(weights, ends - begins)


def sums(cells: Ints, values: Floats, size: int) -> Floats:
    """(size,) the sum of each cell's values, added with 64 bits."""
    return np.bincount(cells, values, size).astype(np.float32)


def largest(cells: Ints, values: Floats, size: int) -> Floats:
    """(size,) each cell's largest value, 0 without one; values are above 0."""
    table = np.zeros(size, dtype=np.float32)
    np.maximum.at(table, cells, values)
    return table
