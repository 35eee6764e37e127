"""Every benchmark of README.md, and one table of the results at the end: `make bench`.

    python benchmarks/run.py [--data FOLDER] [--threads 1] [--times 3] [--json FILE]

Takes ten to fifteen minutes. The ratios say the same on any machine; the figures printed on the way do not. Beside every part stand
its wall and CPU seconds, and the largest memory of the process until then.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bootstrap
import ingest
import kernels
import patch
import startup
import train
from side_by_side import Ratio, find_data, flags, machine, show, write_results

from dcclctl.compute import peak_memory


def main() -> None:
    parser = flags(__doc__)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.set_defaults(times=3)
    given = parser.parse_args()
    data, threads, times = find_data(given.data), given.threads, given.times
    about, ratios, found = machine(), list[Ratio](), dict[str, Any]()
    parts: dict[str, Callable[[], list[Ratio]]] = {
        "start-up": lambda: startup.compare(3 * times),
        "ingest": lambda: ingest.compare(ingest.DEFAULT_ROWS, times),
        "train": lambda: train.compare(data, train.EVENTS, threads, times),
        "patch": lambda: patch.compare(data, patch.USERS, patch.LOOP_USERS, threads, times),
        "bootstrap": lambda: bootstrap.compare(bootstrap.USERS, bootstrap.METRICS, threads, times),
        "kernels": lambda: list(kernels.compare(kernels.KERNELS, times)),
    }
    for name, compare in parts.items():
        wall, cpu = time.perf_counter(), time.process_time()
        ratios += compare()
        found[name] = {
            "wall": round(time.perf_counter() - wall, 2),
            "cpu": round(time.process_time() - cpu, 2),
            "peak_bytes": peak_memory(),
        }
        print(f"{name}: {found[name]['wall']:.0f} s, {found[name]['cpu']:.0f} s of CPU", flush=True)
    print()
    show(ratios)
    if given.json:
        write_results(given.json, about, ratios, found)


if __name__ == "__main__":
    main()
