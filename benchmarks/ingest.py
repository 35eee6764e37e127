"""Ingest against a bare polars read + sort + write of the same generated log (Taobao's UserBehavior layout).

    python benchmarks/ingest.py                      # 2 million rows, a few seconds
    python benchmarks/ingest.py --rows 20000000      # the full size: about 730 MB of text

Each way runs in fresh processes, in turn, so that neither has the other's memory or the machine's better moment. What
ingest does on top: hashes, row rules, dense ids, duplicates and repeats, periods, groups, categories, a verified commit.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from side_by_side import Ratio, show

from dcclctl.compute import peak_memory

COLUMNS = ("user_id", "item_id", "category_id", "behaviour", "timestamp")
DEFAULT_ROWS = 2_000_000
TARGET_RATIO = 2.0
TARGET_BYTES = 4 << 30


def generate(path: Path, rows: int, seed: int = 0) -> None:
    """Write a log of `rows` events in time order: 100 events a user in the mean, Zipf-like items, nine days."""
    import numpy as np
    import polars as pl

    random = np.random.default_rng(seed)
    users, items = max(rows // 100, 10), max(rows // 10, 10)
    user_share = np.cumsum(random.gamma(0.8, 1.0, users))
    item_share = np.cumsum(1 / np.arange(1, items + 1) ** 0.8)
    user_id = random.permutation(users * 5)[:users] + 1
    item_id = random.permutation(items * 2)[:items] + 1
    category = random.integers(1, 9440, items) * 541
    times = np.sort(random.integers(1_511_539_200, 1_512_316_800, rows))
    behaviours = np.array(["pv", "fav", "cart", "buy"])
    with path.open("wb") as file:
        for start in range(0, rows, 2_000_000):
            part = times[start : start + 2_000_000]
            user = np.searchsorted(user_share, random.random(len(part)) * user_share[-1])
            item = np.searchsorted(item_share, random.random(len(part)) * item_share[-1])
            behaviour = behaviours[random.choice(4, len(part), p=[0.9, 0.03, 0.05, 0.02])]
            values = (user_id[user], item_id[item], category[item], behaviour, part)
            pl.DataFrame(dict(zip(COLUMNS, values, strict=True))).write_csv(file, include_header=False)


def bare(log: Path, folder: Path) -> None:
    """The least that any reader does."""
    import polars as pl

    frame = pl.read_csv(log, has_header=False, new_columns=COLUMNS)
    frame.sort("user_id", "timestamp").write_parquet(folder / "events.parquet")


def ours(log: Path, folder: Path) -> None:
    """The stage, with its defaults."""
    from dcclctl.stages.ingest import ingest
    from dcclctl.store.store import Store

    ingest([log], Store(folder))


WAYS = {"bare": bare, "ingest": ours}


def measure(way: str, log: Path, folder: Path) -> tuple[float, int]:
    """Seconds and peak memory (bytes) of one way in a fresh process, its imports included."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [sys.executable, __file__, "--way", way, "--log", str(log), "--out", out]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, peak = json.loads(result.stdout)
    return seconds, peak


def run_way(way: str, log: Path, out: Path) -> None:
    """Inside the fresh process: do it and print seconds and peak memory."""
    start = time.perf_counter()
    WAYS[way](log, out)
    seconds = time.perf_counter() - start
    print(json.dumps([seconds, peak_memory()]))


def compare(rows: int, times: int) -> list[Ratio]:
    """How many times as long as the bare way ingest takes, and the most memory it held."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = folder / "UserBehavior.csv"
        generate(log, rows)
        print(f"ingest: {rows:,} rows, {log.stat().st_size / 1e6:,.0f} MB, medians of {times}")
        runs: dict[str, list[Any]] = {way: [] for way in WAYS}
        for _ in range(times):
            for way, found in runs.items():
                found.append(measure(way, log, folder))
    seconds = {way: [each for each, _ in found] for way, found in runs.items()}
    peaks = {way: max(peak for _, peak in found) for way, found in runs.items()}
    for way in WAYS:
        print(f"  {way:7} {statistics.median(seconds[way]):7.2f} s   peak memory {peaks[way] / 2**30:.2f} GiB")
    value = statistics.median(seconds["ingest"]) / statistics.median(seconds["bare"])
    pairs = [a / b for a, b in zip(seconds["ingest"], seconds["bare"], strict=True)]
    peak, most = peaks["ingest"] / 2**30, TARGET_BYTES / 2**30
    return [
        Ratio(
            f"ingest against a bare read, sort and write, {rows:,} rows",
            value,
            (min(pairs), max(pairs)),
            f"≤ {TARGET_RATIO:g}",
            value <= TARGET_RATIO,
        ),
        Ratio("peak memory of ingest", peak, (peak, peak), f"< {most:g}", peak < most, " GiB"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=DEFAULT_ROWS, help="events in the generated log")
    parser.add_argument("--times", type=int, default=3, help="runs of each way; the medians are compared")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        run_way(arguments.way, arguments.log, arguments.out)
        return
    show(compare(arguments.rows, arguments.times))


if __name__ == "__main__":
    main()
