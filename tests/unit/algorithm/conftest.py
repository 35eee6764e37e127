from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
import torch

T = TypeVar("T")


@pytest.fixture
def two_threads() -> Iterator[Callable[[Callable[[], T]], tuple[T, T]]]:
    """Call a function with one thread and with two; the number of threads is put back afterwards."""
    before = torch.get_num_threads()

    def both(function: Callable[[], T]) -> tuple[T, T]:
        torch.set_num_threads(1)
        one = function()
        torch.set_num_threads(2)
        assert torch.get_num_threads() == 2
        return one, function()

    yield both
    torch.set_num_threads(before)
