"""The inner loops of memory, ranking and metrics against their plain forms, on a log drawn at random.

    python benchmarks/kernels.py [--times 3] [--only NAME …]

Both forms run in this process on one thread, in turn, and must give the same result; CPU seconds are compared. The plain
forms are those of tests/references.py, which the tests compare with too.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import Ratio, in_turn, show

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from references import dense_neighbours  # noqa: E402 (after the path)

from dcclctl.devices.memory import statistics  # noqa: E402
from dcclctl.devices.memory.statistics import StatisticsSettings  # noqa: E402
from dcclctl.events.log import EventColumns, EventLog  # noqa: E402

N_CATEGORIES = 50


def drawn_log(n_users: int, n_items: int, per_user: int) -> EventLog:
    """Half of the events are of popular items (log-uniform ranks), half of any; 80% of a user's events are before test."""
    draw = np.random.default_rng(0)
    lengths = 2 + draw.poisson(per_user - 2, n_users)
    user = np.repeat(np.arange(n_users), lengths)
    popular = np.floor(n_items ** draw.random(len(user))).astype(np.int64) - 1
    item = np.where(draw.random(len(user)) < 0.5, popular, draw.integers(0, n_items, len(user)))
    place = np.arange(len(user)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    period = np.searchsorted([0.5, 0.8, 0.9], place / np.repeat(lengths, lengths), side="right")
    events = EventColumns(user, draw.permutation(n_items)[item], place, np.ones(len(user), dtype=np.int64), period)
    categories = torch.from_numpy(draw.integers(0, N_CATEGORIES, (n_items, 1)))
    return EventLog.build(events, categories, N_CATEGORIES, torch.zeros(n_users, 1, dtype=torch.int64), (1,))


def ratio(what: str, plain: Callable[[], Any], fast: Callable[[], Any], times: int, target: float | None) -> Ratio:
    """How many times less CPU time the fast form takes."""
    seconds = in_turn({"plain": plain, "fast": fast}, times, time.process_time)
    return Ratio.faster(what, seconds["plain"], seconds["fast"], target)


def neighbours(times: int) -> list[Ratio]:
    """Each item's 100 nearest items, of 10,000 users with 50 events each."""
    found = []
    for n_items, target in ((20_000, 8), (50_000, 40)):
        log = drawn_log(10_000, n_items, 50)
        rows, settings = np.arange(len(log.user)), StatisticsSettings(200, 100, 10.0, 10)
        results: dict[str, Any] = {}

        def plain() -> None:
            results["plain"] = dense_neighbours(log, rows, settings)  # noqa: B023 (called in this turn)

        def fast() -> None:
            results["fast"] = statistics._neighbours(log, rows, settings)  # noqa: B023

        found.append(ratio(f"neighbours of {n_items:,} items", plain, fast, times, target))
        assert all(ours.equal(theirs) for ours, theirs in zip(results["fast"], results["plain"], strict=True))
    return found


KERNELS = {"neighbours": neighbours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3, help="repetitions of each form; medians are compared")
    parser.add_argument("--only", nargs="*", choices=KERNELS, default=list(KERNELS), help="these kernels only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.only:
        show(KERNELS[name](options.times))


if __name__ == "__main__":
    main()
