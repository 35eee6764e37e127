"""What serving costs: DIN with its short window, DIN with a long one, and the short one with a memory-conditioned patch.

    python benchmarks/memory.py STORE SHORT LONG PATCHES    # references, e.g. cloud@6 cloud@26 patches@5

Scores 300 sampled candidates for each of some hundred events of test, one thread, alternating; prints medians, the ratio
to the short window, and the bytes that a device holds of its user.
"""

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dcclctl.artifacts import CloudModel, PatchSet
from dcclctl.devices.serving import Subject, serve
from dcclctl.events.log import TEST
from dcclctl.events.sampler import Sampler
from dcclctl.events.sampling import NO_ITEM
from dcclctl.models.kind import open_backbone
from dcclctl.models.scoring import score
from dcclctl.store.store import Store

EVENTS, CANDIDATES, REPETITIONS = 500, 300, 7


@dataclass(frozen=True)
class Batch:
    """Some events and their candidates."""

    events: np.ndarray
    items: torch.Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    for name in ("short", "long", "patches"):
        parser.add_argument(name)
    options = parser.parse_args()
    torch.set_num_threads(1)
    store = Store(options.store)
    short, long = (CloudModel(store.resolve(name, "cloud")) for name in (options.short, options.long))
    patches = PatchSet(store.resolve(options.patches, "patches"))
    memory = patches.memory
    if memory is None:
        raise SystemExit(f"{patches.ref} were not made by --method memory")
    log = short.dataset.log
    events = log.events_in(TEST)
    events = events[:: max(1, len(events) // EVENTS)][:EVENTS]
    drawn = Sampler(log, [TEST], CANDIDATES, 0, "bench").items(events, CANDIDATES)
    drawn = np.where(drawn == NO_ITEM, 0, drawn)  # any item costs the same
    place = {event: row for row, event in enumerate(events.tolist())}

    def batch_of(rows: np.ndarray) -> Batch:
        return Batch(rows, torch.from_numpy(drawn[[place[row] for row in rows.tolist()]]))

    facts = memory.facts
    remembering = f"DIN, L = {patches.cloud.history} + memory of {memory.size}"
    subjects = {
        f"DIN, L = {short.history}": (Subject(short), 4 * short.history),
        f"DIN, L = {long.history}": (Subject(long), 4 * long.history),
        remembering: (Subject(patches.cloud, patches), facts["bytes_per_user_largest"]),
    }
    ready = {}
    for name, (subject, _) in subjects.items():
        backbone = open_backbone(subject.cloud, torch.device("cpu"))
        ready[name] = (backbone, serve(subject, backbone, "cloud", 0).head)
    seconds: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(REPETITIONS):
        for name, (backbone, head) in ready.items():
            started = time.perf_counter()
            for _ in score(backbone, [head], events, batch_of, CANDIDATES, 256):
                pass
            seconds[name].append(time.perf_counter() - started)
    first = statistics.median(next(iter(seconds.values())))
    for name, times in seconds.items():
        middle = statistics.median(times)
        low, each, high = (f"{1000 * value / len(events):.2f}" for value in (min(times), middle, max(times)))
        print(
            f"{name}: {each} ms an event of {CANDIDATES} candidates ({low} … {high}), {middle / first:.2f}×, "
            f"{subjects[name][1]:,} bytes of the user"
        )
    print(
        f"a device's memory: {facts['bytes_per_user_mean']:,.0f} bytes on average; "
        f"a candidate's counts: {facts['bytes_per_candidate']} bytes"
    )


if __name__ == "__main__":
    main()
