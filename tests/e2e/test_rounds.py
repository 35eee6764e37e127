"""Many rounds of the loop in one process: its memory and its open files stay as they are."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from world import DISTILL, EVALUATE, PATCH, TRAIN, done, ingest, replaced

ROUNDS, WARM_UP = 24, 4
#: growth of a round; 50 to 215 KiB were measured: flat for 15 rounds, then steps of 2 MiB of the allocator
FLAT_KIB = 320.0


def loop(folder: Path, rounds: int, leak: bool) -> list[tuple[float, int]]:
    """Run rounds of patch, distill and evaluate, each from the model of the round before.

    Args:
        leak: keep a file open and half a MiB of memory each round, to see that it would be found.

    Returns:
        (resident memory in KiB, number of open files) after each round.
    """
    store, found, kept = folder / "store", [], []
    ingest(folder / "log", store)
    cloud = done("train", *replaced(TRAIN, "--epochs=1"), store=store)["ref"]
    patch = replaced(PATCH, "--set=patch.metapatch.basis_epochs=1")
    for _ in range(rounds):
        patches = done("patch", "--users=tail", f"--cloud={cloud}", *patch, store=store)["ref"]
        taught = done("distill", f"--patches={patches}", *DISTILL, store=store)
        assert not taught["reused"]
        cloud = taught["ref"]
        done("evaluate", cloud, *EVALUATE, store=store)
        if leak:
            kept.append((os.open(os.devnull, os.O_RDONLY), b"x" * 2**19))
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        found.append((pages * os.sysconf("SC_PAGE_SIZE") / 1024, len(list(Path("/proc/self/fd").iterdir()))))
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("rounds", "leak"), [(ROUNDS, False), (WARM_UP + 4, True)])
def test_memory_and_open_files_stay_flat(rounds: int, leak: bool, tmp_path: Path) -> None:
    here = Path(__file__)
    settings = {"PYTHONPATH": os.pathsep.join([str(here.parents[2]), str(here.parents[1])])}
    settings |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS"), "1")
    command = [sys.executable, str(here), str(tmp_path), str(rounds), str(int(leak))]
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ | settings, timeout=900)
    assert ran.returncode == 0, ran.stderr
    memory, files = zip(*json.loads(ran.stdout.splitlines()[-1])[WARM_UP - 1 :], strict=True)
    growth = (memory[-1] - memory[0]) / (rounds - WARM_UP)
    assert (growth > FLAT_KIB) == leak, memory
    assert (files[-1] > files[0]) == leak, files


if __name__ == "__main__":
    print(json.dumps(loop(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "1")))
