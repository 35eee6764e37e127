"""Where torch runs: the device and the number of threads, resolved once so that the manifest can name them."""

# The command line calls own_process() before anything else, also for --help: nothing heavy is imported here.
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from dcclctl.errors import UsageError

if TYPE_CHECKING:
    import torch

    from dcclctl.config import ComputeSection

#: on_progress(what, done, total, note)
OnProgress = Callable[[str, float, float, str], None]
C = TypeVar("C", bound="ComputeSection")
#: What tells the usual OpenMP libraries (the standard's own variable, GNU's, Intel's and LLVM's) to sleep while they wait.
PASSIVE_WAITING: Final = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
#: glibc's names for mallopt (malloc.h): give freed memory back above so many bytes; ask for blocks so large one by one
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


_owned = False


def own_process() -> None:
    """Set this process up for computing; called by the command line at its very start, never by the library.

    torch's threads wait for one another after every operation, by default in a loop that takes a whole core. Where
    another program needs that core, each wait lasts until the system switches: with one other busy process on two cores
    an epoch of the bundled log took 23 seconds that way and 8 with waiting asleep. OpenMP reads these variables once, when
    torch is imported. What the environment says already stays.
    """
    global _owned
    _owned = True
    for name, value in PASSIVE_WAITING.items():
        os.environ.setdefault(name, value)


@contextmanager
def compute_settings(config: C) -> Iterator[C]:
    """Set torch up for the body and put back what was there before.

    Freed memory is kept (see keep_freed_memory) only in a process that is dcclctl's own: it cannot be put back.

    Args:
        config: any section with a device and threads.

    Yields:
        The configuration with the device and threads that are used, see `settled`.

    Raises:
        UsageError: the device asked for is not there.
    """
    import torch

    config = settled(config)
    threads, generator = torch.get_num_threads(), torch.get_rng_state()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    workspace = os.environ.get(_CUBLAS_WORKSPACE)
    if _owned:
        keep_freed_memory()
    try:
        _set_up(config)
        yield config
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(generator)  # new layers draw from it before they get their own weights
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        if workspace is None:
            os.environ.pop(_CUBLAS_WORKSPACE, None)


def settle(config: C) -> C:
    """Set torch up for the rest of this process; see `compute_settings`, which puts back what was there before.

    Raises:
        UsageError: the device asked for is not there.
    """
    config = settled(config)
    keep_freed_memory()
    _set_up(config)
    return config


def settled(config: C) -> C:
    """Replace `auto` and 0 by what this machine has.

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
    return config.model_copy(update={"device": device, "threads": config.threads or default_threads()})


def _set_up(config: "ComputeSection") -> None:
    import torch

    torch.set_num_threads(config.threads)
    if config.device == "cuda":
        os.environ.setdefault(_CUBLAS_WORKSPACE, ":4096:8")  # what torch asks for to be deterministic there
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks for the next ones instead of giving them back; False where it cannot.

    Every step of training frees some hundred megabytes and asks for them again. By default the system takes each large
    block back at once and clears it, page by page, when it is asked for again: a third of the time of a distillation.
    """
    import ctypes
    import platform

    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    kept = libc.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
    large = libc.mallopt(_MMAP_THRESHOLD, 1 << 30) or libc.mallopt(_MMAP_THRESHOLD, 1 << 25)  # all that old ones take
    return bool(kept and large)


def default_threads() -> int:
    """Threads for a configuration that leaves them open: one for each processor that this process may use.

    That is the least of the processors it is bound to, the whole processors that its container's quota pays for, and
    OMP_NUM_THREADS. It is not what is idle at the moment. The number is part of an artifact's identity, because it
    decides the order of sums of floats: if it followed the load, the same command would make another artifact whenever
    the machine was busy, and what is there already would not be found. On a busy machine a thread too many costs little
    as long as it sleeps while it waits, which `own_process` sees to.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # 4,2: four, and two in each of them
    wanted = int(asked) if asked.isdecimal() and int(asked) else cores
    # A thread for a part of a processor would be stopped in the middle of its share, and the others would wait for it.
    return max(1, min(cores, wanted, math.floor(min(cpu_quota(), cores))))


def cpu_quota(root: Path = Path("/")) -> float:
    """Processors that the control groups of this process (a container's --cpus) allow it; infinity without a limit.

    Args:
        root: of the file system.

    Source: Linux kernel documentation, cgroup-v2 (cpu.max) and CFS bandwidth control (cpu.cfs_quota_us).
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return math.inf
    mounted = root / "sys/fs/cgroup"
    limits = [math.inf]
    for line in groups:
        _, controllers, path = line.split(":", 2)
        # A limit of a group holds for all groups in it. In a container the path may be the host's, which is not there.
        places = [path.strip("/"), *(str(parent) for parent in Path(path.strip("/")).parents)]
        for place in places:
            if not controllers:
                limits.append(_share(mounted / place / "cpu.max"))
            elif "cpu" in controllers.split(","):
                for name in ("cpu", controllers):
                    limits.append(_share(mounted / name / place / "cpu.cfs_quota_us", "cpu.cfs_period_us"))
    return min(limits)


def _share(quota: Path, period: str = "") -> float:
    """Quota over period, in one file or two; infinity where there is none."""
    try:
        text = quota.read_text() + (" " + quota.with_name(period).read_text() if period else "")
        allowed, per = text.split()
        return int(allowed) / int(per) if int(allowed) > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):  # not there, or 'max'
        return math.inf


def torch_device(config: "ComputeSection") -> "torch.device":
    """The settled device."""
    import torch

    return torch.device(config.device)
