"""The device and the number of threads of torch, resolved once so that the manifest can record them."""

# The command line calls own_process() before anything else, also for --help: nothing heavy is imported here.
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from dcclctl.errors import ArtifactError, UsageError

if TYPE_CHECKING:
    import torch

    from dcclctl.config import ComputeSection

#: on_progress(what, done, total, note); a total of 0: it is not known
OnProgress = Callable[[str, float, float, str], None]
C = TypeVar("C", bound="ComputeSection")
#: Variables that make OpenMP libraries (by the standard, GNU, Intel and LLVM) sleep while they wait.
PASSIVE_WAITING: Final = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
#: mallopt parameters of glibc (malloc.h): free memory above which some is given back; size of blocks with an own mapping
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
#: under less, threads of polars were seen to wait forever, and torch to end the process
_ADDRESS_SPACE = 3 * 2**30


_owned = False


def no_progress(what: str, done: float, total: float, note: str) -> None:
    """Show nothing."""


class Phase:
    """A part of a stage whose amount of work is known: it tells `on_progress` how far it is and how fast.

    Args:
        what: the name that is shown. total: amount of work, in `unit`, e.g. events. done: work of an earlier run.
        clock: seconds, ascending.
    """

    def __init__(
        self,
        on_progress: OnProgress,
        what: str,
        total: float,
        unit: str,
        done: float = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.done = done
        self._on_progress, self._what, self._total, self._unit, self._clock = on_progress, what, total, unit, clock
        self._first, self._started = done, clock()
        on_progress(what, done, total, "")

    def at(self, done: float, note: str = "") -> None:
        """Say how much is done of the total."""
        self.done = done
        seconds = self._clock() - self._started
        rate = f"{(done - self._first) / seconds:,.0f} {self._unit}/s" if seconds > 0 else ""
        self._on_progress(self._what, done, self._total, "  ".join(filter(None, (note, rate))))

    def add(self, count: float, note: str = "") -> None:
        """Say how much has been done since the last call."""
        self.at(self.done + count, note)


def address_space() -> float:
    """Bytes of address space that this process may use; infinite without a limit (ulimit -v)."""
    if sys.platform == "win32":
        return math.inf
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return math.inf if limit == resource.RLIM_INFINITY else limit


def memory_limit() -> float:
    """Bytes of memory that this process may use: those of the machine, or the limit of its address space; infinite where
    the machine does not say.
    """
    known = hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else math.inf
    return min(machine, address_space())


def check_address_space() -> None:
    """Refuse a limit of memory under which libraries would hang or end the process instead of saying so.

    Raises:
        ArtifactError: there is such a limit (ulimit -v).
    """
    limit = address_space()
    if limit < _ADDRESS_SPACE:
        raise ArtifactError(
            f"this process may use {limit / 2**30:.1f} GiB of address space (ulimit -v), and needs {_ADDRESS_SPACE >> 30}",
            "Lift the limit for this command: ulimit -v unlimited",
        )


def own_process() -> None:
    """Prepare this process for computing; called by the command line when it starts, never by the library.

    By default, torch's threads wait for one another in a loop that occupies a whole core. If another program needs that
    core, each wait lasts until the system switches: with one other busy process on two cores an epoch of the bundled log
    took 23 seconds that way, and 8 seconds when waiting threads sleep. OpenMP reads these variables once, when torch is
    imported. Variables that are set already stay.
    """
    global _owned
    _owned = True
    for name, value in PASSIVE_WAITING.items():
        os.environ.setdefault(name, value)


@contextmanager
def compute_settings(config: C, say: Callable[[str], None] = lambda line: None) -> Iterator[C]:
    """Configure torch for the body, and restore its settings afterwards.

    `keep_freed_memory` cannot be undone, so it is called only in a process of the command line.

    Args:
        config: any section with a device and threads. say: called with one line about what was chosen by default.

    Yields:
        The section with the resolved device and threads, see `settled`.

    Raises:
        UsageError: the requested device does not exist.
    """
    import torch

    asked, config = config, settled(config)
    if chosen := in_words(asked, config):
        say(chosen)
    threads, generator = torch.get_num_threads(), torch.get_rng_state()
    deterministic = torch.get_deterministic_debug_mode()
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
        torch.set_deterministic_debug_mode(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        if workspace is None:
            os.environ.pop(_CUBLAS_WORKSPACE, None)


def settle(config: C) -> C:
    """Configure torch for the rest of this process; `compute_settings` restores the settings instead.

    Raises:
        UsageError: the requested device does not exist.
    """
    config = settled(config)
    keep_freed_memory()
    _set_up(config)
    return config


def settled(config: C) -> C:
    """Replace `auto` and 0 threads by this machine's values.

    Results are bit-identical for the same number of threads on the same type of CPU, so the manifest records both.

    Raises:
        UsageError: the requested device does not exist.
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


def in_words(asked: "ComputeSection", chosen: "ComputeSection") -> str:
    """The device and threads that were chosen because nothing was asked for, e.g. '2 threads (2 cores; …)'; else ''."""
    said = []
    if asked.device == "auto" and chosen.device != "cpu":
        said.append(f"computing on {chosen.device} (--device to change)")
    if not asked.threads:
        cores = usable_cores()
        number = f"{chosen.threads} thread{'s' * (chosen.threads != 1)}"
        said.append(f"{number} ({cores} core{'s' * (cores != 1)}; --threads to change)")
    return ", ".join(said)


def _set_up(config: "ComputeSection") -> None:
    import torch

    torch.set_num_threads(config.threads)
    if config.device == "cuda":
        os.environ.setdefault(_CUBLAS_WORKSPACE, ":4096:8")  # torch needs it for deterministic results on CUDA
    # not use_deterministic_algorithms(True), which does the same and imports torch's compiler for 0.8 s
    torch.set_deterministic_debug_mode("error")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory and use it again; False where this is not possible.

    Every training step frees some hundred megabytes and then allocates them again. By default the system takes each large
    block back and clears it page by page at the next allocation: a third of the time of a distillation.
    """
    import ctypes
    import platform

    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    kept = libc.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
    large = libc.mallopt(_MMAP_THRESHOLD, 1 << 30) or libc.mallopt(_MMAP_THRESHOLD, 1 << 25)  # the limit of old ones
    return bool(kept and large)


def peak_memory() -> int:
    """The largest memory that this process had, in bytes; 0 on Windows, whose Python does not know it."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def usable_cores() -> int:
    """Processors that this process is bound to; all of the machine's where the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_threads() -> int:
    """The default number of threads: one for each processor that this process may use.

    That is the smallest of the processors it is bound to, the whole processors in its container's quota, and
    OMP_NUM_THREADS. The load of the machine does not count: the number of threads decides the order of sums of floats and
    so is part of an artifact's id; if it followed the load, the same command would make another artifact on a busy
    machine. A thread too many costs little there, because it sleeps while it waits (see `own_process`).
    """
    cores = usable_cores()
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # 4,2: four threads, each with two inner ones
    wanted = int(asked) if asked.isdecimal() and int(asked) else cores
    # Rounded down: a thread with a part of a processor would be paused in its work, and the others would wait for it.
    return max(1, min(cores, wanted, math.floor(min(cpu_quota(), cores))))


def cpu_quota(root: Path = Path("/")) -> float:
    """Processors that the control groups of this process (a container's --cpus) allow; infinity without a limit.

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
        own = Path(path.strip("/"))
        # A limit of a group holds for all groups in it. In a container the path may be the host's and not exist.
        for place in (own, *own.parents):
            if not controllers:
                limits.append(_share(mounted / place / "cpu.max"))
            elif "cpu" in controllers.split(","):
                for name in ("cpu", controllers):
                    limits.append(_share(mounted / name / place / "cpu.cfs_quota_us", "cpu.cfs_period_us"))
    return min(limits)


def _share(quota: Path, period: str = "") -> float:
    """Quota divided by period, from one file or two; infinity without a quota."""
    try:
        text = quota.read_text() + (" " + quota.with_name(period).read_text() if period else "")
        allowed, per = text.split()
        return int(allowed) / int(per) if int(allowed) > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or 'max'
        return math.inf


def torch_device(config: "ComputeSection") -> "torch.device":
    """The resolved device."""
    import torch

    return torch.device(config.device)
