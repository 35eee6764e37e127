"""Where torch runs: the device and the number of threads, resolved once so that the manifest can name them."""

import ctypes
import os
import platform
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from dcclctl.config import ComputeSection
from dcclctl.errors import UsageError

if TYPE_CHECKING:
    import torch

#: on_progress(what, done, total, note)
OnProgress = Callable[[str, float, float, str], None]
C = TypeVar("C", bound=ComputeSection)
#: glibc's names for mallopt (malloc.h): give freed memory back above so many bytes; ask for blocks so large one by one
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def settle(config: C) -> C:
    """Replace `auto` and 0 by what this machine has, and set torch up accordingly.

    Results are the same bits for the same number of threads on the same type of CPU, so both stand in the manifest.

    Raises:
        UsageError: the device asked for is not there.
    """
    import torch

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    device = config.device
    if device == "auto":
        device = next((name for name in ("cuda", "mps") if available[name]), "cpu")
    if not available[device]:
        usable = ", ".join(name for name, there in available.items() if there)
        raise UsageError(
            f"--device {device}: torch finds none on this machine", f"Available: {usable}. Or leave it at auto."
        )
    threads = config.threads or available_cores()
    torch.set_num_threads(threads)
    keep_freed_memory()
    if device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what torch asks for to be deterministic there
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return config.model_copy(update={"device": device, "threads": threads})


def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks for the next ones instead of giving them back; False where it cannot.

    Every step of training frees some hundred megabytes and asks for them again. By default the system takes each large
    block back at once and clears it, page by page, when it is asked for again: a third of the time of a distillation.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    kept = libc.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
    large = libc.mallopt(_MMAP_THRESHOLD, 1 << 30) or libc.mallopt(_MMAP_THRESHOLD, 1 << 25)  # all that old ones take
    return bool(kept and large)


def available_cores() -> int:
    """Cores that this process may use (fewer than the machine has, in a container)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def torch_device(config: ComputeSection) -> "torch.device":
    """The settled device."""
    import torch

    return torch.device(config.device)
