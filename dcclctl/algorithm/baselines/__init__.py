"""Baselines that any new method is held against: counts of items, neighbours of items, and factor models.

Each gives logits for candidates by itself, so none has anything below a head that a patch could be put on.
"""

from jaxtyping import Int
from torch import Tensor

from dcclctl.algorithm.sampling import Ints


def identity_head(events: Ints, candidates: Int[Tensor, "B C"] | None, logits: Tensor) -> Tensor:
    """The head of a backbone whose activations are the logits themselves."""
    return logits
