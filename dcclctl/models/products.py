"""Dot products in the form that is fast on a processor."""

import torch
from jaxtyping import Float
from torch import Tensor


def dots(vectors: Float[Tensor, "B D"], rows: Float[Tensor, "B C D"]) -> Float[Tensor, "B C"]:
    """The dot products of each vector with its own rows.

    The vector is the left factor: torch computes a product with a column nine times as slowly on a CPU (B = 16,
    C = 1,000, D = 64).
    """
    return torch.bmm(vectors.unsqueeze(1), rows.mT).squeeze(1)
