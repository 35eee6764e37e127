from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
import torch

T = TypeVar("T")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower with threads, much slower where several tests run at once."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def two_threads() -> Callable[[Callable[[], T]], tuple[T, T]]:
    """Call a function with one thread and with two."""

    def both(function: Callable[[], T]) -> tuple[T, T]:
        torch.set_num_threads(1)
        one = function()
        torch.set_num_threads(2)
        assert torch.get_num_threads() == 2
        return one, function()

    return both
