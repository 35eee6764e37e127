"""What serving costs: DIN with its short window, DIN with a long one, and the short one with a memory-conditioned patch.

    python benchmarks/memory.py STORE SHORT LONG PATCHES    # references, e.g. cloud@6 cloud@26 patches@5

Scores 300 sampled candidates for each of some hundred events of test, one thread, alternating; prints medians, the ratio
to the short window, and the bytes that a device holds of its user.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from dcclctl.algorithm.eventlog import TEST
from dcclctl.algorithm.sampling import draw_negatives
from dcclctl.algorithm.scoring import score
from dcclctl.config import EvaluateConfig
from dcclctl.stages.compute import settle
from dcclctl.stages.handles import CloudModel, PatchSet
from dcclctl.stages.serve import Subject, serve
from dcclctl.store.store import Store

EVENTS, CANDIDATES, REPETITIONS = 500, 300, 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    for name in ("short", "long", "patches"):
        parser.add_argument(name)
    options = parser.parse_args()
    store, config = Store(options.store), settle(EvaluateConfig(threads=1))
    short, long = (CloudModel.load(store.resolve(name, "cloud"), store) for name in (options.short, options.long))
    patches = PatchSet.load(store.resolve(options.patches, "patches"), store)
    memory = patches.memory
    assert memory is not None
    log = short.dataset.log
    events = log.events_in(TEST)
    events = events[:: max(1, len(events) // EVENTS)][:EVENTS]
    pairs = log.never_negative(TEST)
    drawn = draw_negatives(0, "bench", events, log.owners(events, pairs), CANDIDATES, log.catalogue(TEST), pairs)
    place = {event: row for row, event in enumerate(events.tolist())}

    def candidates(rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(drawn[[place[row] for row in rows.tolist()]])

    subjects = {
        f"DIN, L = {short.history}": Subject(short.artifact, short),
        f"DIN, L = {long.history}": Subject(long.artifact, long),
        f"DIN, L = {patches.cloud.history} + memory of {memory.size}": Subject(
            patches.artifact, patches.cloud, patches
        ),
    }
    ready = {}
    for name, subject in subjects.items():
        backbone = subject.cloud.backbone(config)
        ready[name] = (backbone, serve(subject, config, backbone)[0])
    seconds: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(REPETITIONS):
        for name, (backbone, head) in ready.items():
            started = time.perf_counter()
            for _ in score(backbone, [head], events, candidates, CANDIDATES, 256):
                pass
            seconds[name].append(time.perf_counter() - started)
    held = {
        f"DIN, L = {short.history}": 4 * short.history,
        f"DIN, L = {long.history}": 4 * long.history,
        f"DIN, L = {patches.cloud.history} + memory of {memory.size}": memory.artifact.facts["bytes_per_user_largest"],
    }
    first = statistics.median(next(iter(seconds.values())))
    for name, times in seconds.items():
        middle = statistics.median(times)
        each = 1000 * middle / len(events)
        spread = f"{1000 * min(times) / len(events):.2f} … {1000 * max(times) / len(events):.2f}"
        print(
            f"{name}: {each:.2f} ms an event of {CANDIDATES} candidates ({spread}), {middle / first:.2f}×, {held[name]:,} bytes of the user"
        )
    facts = memory.artifact.facts
    print(
        f"a device's ring: {facts['bytes_per_user_mean']:,.0f} bytes on average; a candidate's counts: {facts['bytes_per_candidate']} bytes"
    )


if __name__ == "__main__":
    main()
