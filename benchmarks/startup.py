"""How long `dcclctl --help` takes on top of a bare interpreter.

    python benchmarks/startup.py [--times 15]

Both are started in turn as fresh processes, after one untimed start of each that fills the caches.
"""

import argparse
import statistics
import subprocess
import sys
import time

from side_by_side import HERE, Ratio, in_turn, show

TARGET_MS = 150


def compare(times: int) -> list[Ratio]:
    """Milliseconds that `--help` takes longer than an interpreter that does nothing."""

    def start(*arguments: str) -> None:
        subprocess.run([sys.executable, *arguments], cwd=HERE, check=True, capture_output=True)

    ways = {"bare": lambda: start("-c", "pass"), "help": lambda: start("-m", "dcclctl", "--help")}
    seconds = in_turn(ways, times, time.perf_counter)
    extra = [1000 * (b - a) for a, b in zip(seconds["bare"], seconds["help"], strict=True)]
    middle = {name: 1000 * statistics.median(found) for name, found in seconds.items()}
    print(f"start-up: interpreter {middle['bare']:.0f} ms, dcclctl --help {middle['help']:.0f} ms (medians of {times})")
    value = middle["help"] - middle["bare"]
    spread = (min(extra), max(extra))
    return [Ratio("dcclctl --help over a bare interpreter", value, spread, f"≤ {TARGET_MS}", value <= TARGET_MS, " ms")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=15, help="starts of each; medians are compared")
    show(compare(parser.parse_args().times))


if __name__ == "__main__":
    main()
