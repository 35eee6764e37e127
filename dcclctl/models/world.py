"""Several processes that train one model together, as torchrun starts them: each computes a part of every batch.

All have the same weights at any time: gradients are summed before a step, and all make the same step. The process of rank 0
writes the artifact. Sums of floats depend on the number of processes, so it is part of the artifact's recorded configuration.
"""

import os
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from dcclctl.errors import UsageError
from dcclctl.events.sampling import Ints


def world_size() -> int:
    """Number of processes that torchrun has started; 1 without torchrun.

    Raises:
        UsageError: WORLD_SIZE is no number above 0.
    """
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or not int(text):
        raise UsageError(f"WORLD_SIZE is {text!r}, no number of processes", "Unset it, or start with torchrun.")
    return int(text)


@dataclass(frozen=True)
class World:
    """The processes that train together; by default this one alone.

    Attributes:
        rank: number of this process. size: number of processes. device: that computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def join(cls, device: torch.device) -> "World":
        """Meet the other processes that torchrun has started; without torchrun this process is alone.

        Raises:
            UsageError: the environment names more than one process, but not where they meet.
        """
        size = world_size()
        if size == 1:
            return cls()
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise UsageError(
                f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set",
                "Start the command with torchrun --nproc-per-node N -m dcclctl train ..., or unset WORLD_SIZE.",
            )
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(dist.get_rank(), size, device)

    @property
    def leads(self) -> bool:
        """Whether this process writes the artifact."""
        return self.rank == 0

    def agree(self, value: int) -> int:
        """The value that the process of rank 0 has."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], device=self.device)
        dist.broadcast(shared, 0)
        return int(shared)

    def share(self, positions: Ints) -> Ints:
        """This process's part of a batch; it may be empty."""
        return np.array_split(positions, self.size)[self.rank]

    def sum(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.size > 1:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            dist.all_reduce(flat)
            for tensor, part in zip(tensors, torch.split(flat, [each.numel() for each in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def sum_rows(
        self, rows: Int[Tensor, "R"], values: Float[Tensor, "R E"]
    ) -> tuple[Int[Tensor, "N"], Float[Tensor, "N E"]]:
        """The rows that any process has, ascending, with the sum of their values over all processes."""
        if self.size == 1:
            return rows, values
        counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(self.size)]
        dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
        most = max(int(count) for count in counts)
        numbers = [rows.new_zeros(most) for _ in counts]
        found = [values.new_zeros(most, values.shape[1]) for _ in counts]
        dist.all_gather(numbers, torch.cat([rows, rows.new_zeros(most - len(rows))]))
        dist.all_gather(found, torch.cat([values, values.new_zeros(most - len(values), values.shape[1])]))
        every = torch.cat([number[: int(count)] for number, count in zip(numbers, counts, strict=True)])
        distinct, place = torch.unique(every, return_inverse=True)
        total = values.new_zeros(len(distinct), values.shape[1])
        return distinct, total.index_add_(
            0, place, torch.cat([each[: int(count)] for each, count in zip(found, counts, strict=True)])
        )
