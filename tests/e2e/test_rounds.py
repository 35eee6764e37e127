"""Many rounds of the loop in one process: its memory and its open files stay as they are."""

import ctypes
import gc
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from world import DISTILL, EVALUATE, PATCH, TRAIN, done, ingest, replaced

ROUNDS, WARM_UP = 24, 4
#: growth of a round. In use: at most 7 KiB were measured, but for one round in which a table of 1.9 MB doubles.
#: Resident: 50 to 215 KiB, steps of 2 MiB in which the allocators take memory; after 48 rounds there were no more of them
IN_USE_KIB, RESIDENT_KIB = 40.0, 320.0
#: what the planted leak keeps each round
LEAK_KIB = 64


class _Heap(ctypes.Structure):
    """What glibc says of malloc's memory, in bytes (struct mallinfo2 of malloc.h, since 2.33)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    ]


def _mallinfo() -> Any:
    found = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if found is not None:
        found.restype = _Heap
    return found


def loop(folder: Path, rounds: int, leak: bool) -> list[tuple[float, float, int]]:
    """Run rounds of patch, distill and evaluate, each from the model of the round before.

    Args:
        leak: keep a file open and some memory each round, to see that both would be found.

    Returns:
        After each round: KiB that malloc has given out, resident KiB, number of open files.
    """
    store, found, kept = folder / "store", [], []
    ingest(folder / "log", store)
    cloud = done("train", *replaced(TRAIN, "--epochs=1"), store=store)["ref"]
    patch = replaced(PATCH, "--set=patch.metapatch.basis_epochs=1")
    mallinfo = _mallinfo()
    assert mallinfo is not None
    for _ in range(rounds):
        patches = done("patch", "--users=tail", f"--cloud={cloud}", *patch, store=store)["ref"]
        taught = done("distill", f"--patches={patches}", *DISTILL, store=store)
        assert not taught["reused"]
        cloud = taught["ref"]
        done("evaluate", cloud, *EVALUATE, store=store)
        if leak:
            kept.append((os.open(os.devnull, os.O_RDONLY), b"x" * (LEAK_KIB * 1024)))
        gc.collect()
        heap = mallinfo()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident = pages * os.sysconf("SC_PAGE_SIZE") / 1024
        found.append(((heap.uordblks + heap.hblkhd) / 1024, resident, len(list(Path("/proc/self/fd").iterdir()))))
    return found


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or _mallinfo() is None, reason="reads /proc and glibc's mallinfo2"
)
@pytest.mark.parametrize(("rounds", "leak"), [(ROUNDS, False), (WARM_UP + 4, True)])
def test_memory_and_open_files_stay_flat(rounds: int, leak: bool, tmp_path: Path) -> None:
    here = Path(__file__)
    settings = {"PYTHONPATH": os.pathsep.join([str(here.parents[2]), str(here.parents[1])])}
    settings |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS"), "1")
    command = [sys.executable, str(here), str(tmp_path), str(rounds), str(int(leak))]
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ | settings, timeout=900)
    assert ran.returncode == 0, ran.stderr
    in_use, resident, files = zip(*json.loads(ran.stdout.splitlines()[-1])[WARM_UP - 1 :], strict=True)
    steps = sorted(after - before for before, after in pairwise(in_use))
    growth = sum(steps[:-1]) / (len(steps) - 1)  # without the largest: a table may double once
    assert (growth > IN_USE_KIB) == leak, in_use
    assert (files[-1] > files[0]) == leak, files
    assert leak or (resident[-1] - resident[0]) / len(steps) < RESIDENT_KIB, resident


if __name__ == "__main__":
    print(json.dumps(loop(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "1")))
