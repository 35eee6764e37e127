"""How long it takes to compare two models on many users: 2,000 paired resamples, all groups and metrics from the same draws.

python benchmarks/bootstrap.py [--users 100000] [--metrics 10] [--threads 2] [--times 3]
"""

import argparse
import statistics
import time
from typing import TYPE_CHECKING

from side_by_side import Ratio, show

if TYPE_CHECKING:
    import polars as pl

USERS, METRICS = 100_000, 10
GROUPS = ("all", "head", "tail", "new", "activity-00")
TARGET_SECONDS = 20


def differences(users: int, metrics: int) -> "pl.DataFrame":
    """Differences of two models as they look in life: most users see none, a tenth have no value at all."""
    import numpy as np
    import polars as pl

    draw = np.random.default_rng(0)
    number = np.arange(users)
    group = np.select([number % 50 == 0, number % 5 == 0], ["new", "head"], "tail")
    table = {"user_index": pl.Series(number, dtype=pl.Int32), "user_id": [f"u{u}" for u in number], "group": group}
    activity = pl.Series(np.where(group == "new", -1, number % 20), dtype=pl.Int8).replace({-1: None})
    for metric in range(metrics):
        values = np.where(draw.random(users) < 0.3, draw.normal(0.01, 0.3, users), 0.0)
        table[f"metric-{metric}"] = pl.Series(values).set(pl.Series(draw.random(users) < 0.1), None)
    return pl.DataFrame(table | {"activity_group": activity})


def compare(users: int, metrics: int, threads: int, times: int) -> list[Ratio]:
    """Seconds of the whole comparison: intervals, p-values, Holm, and the users that would settle it."""
    import torch

    from dcclctl.metrics.significance import RESAMPLES
    from dcclctl.metrics.significance import compare as compare_models

    torch.set_num_threads(threads)
    table = differences(users, metrics)
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        compare_models(table, GROUPS)
        seconds.append(time.perf_counter() - started)
    what = f"bootstrap, {users:,} users × {metrics} metrics × {len(GROUPS)} groups"
    print(f"{what}, {RESAMPLES:,} resamples, {threads} threads: {statistics.median(seconds):.1f} s (median of {times})")
    value = statistics.median(seconds)
    target = f"≤ {TARGET_SECONDS}"
    return [Ratio(what, value, (min(seconds), max(seconds)), target, value <= TARGET_SECONDS, " s")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--metrics", type=int, default=METRICS)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--times", type=int, default=3, help="repetitions; the median counts")
    arguments = parser.parse_args()
    show(compare(arguments.users, arguments.metrics, arguments.threads, arguments.times))


if __name__ == "__main__":
    main()
