"""What a bundle costs a device: bytes, and milliseconds on this machine with one thread."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from dcclctl.devices.bundle.device import Device, Graphs

#: candidates of a ranking
_SIZES = (20, 300)
_RUNS = 200


@dataclass(frozen=True)
class Budget:
    """Figures of one bundle; times are of this machine.

    Attributes:
        download_bytes: graphs and item table. shared_bytes: graphs alone. item_bytes: per shipped item.
        user_bytes: what a device keeps of its user, with full rings. uplink_bytes: θ̂ of one round; 0 without θ̂.
        written_bytes: to the device's disk for one event.
        open_milliseconds: opening the graphs and the first ranking, cold.
        milliseconds: candidates → p50 and p95 of a ranking with a full ring.
        learning_step_milliseconds: one step on 50 rows; None if nothing is learned on the device.
    """

    download_bytes: int
    shared_bytes: int
    item_bytes: int
    user_bytes: int
    uplink_bytes: int
    written_bytes: int
    open_milliseconds: float
    milliseconds: dict[str, dict[str, float]]
    learning_step_milliseconds: float | None

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def measure(graphs: Graphs) -> Budget:
    """Rank and learn on a device whose ring is full, some hundred times."""
    spec, draw = graphs.spec, np.random.default_rng(0)
    started = time.perf_counter()
    device = Device(Graphs(graphs.folder))
    device.logits(np.arange(1))
    cold = 1000 * (time.perf_counter() - started)
    n_items = len(graphs.item_ids)
    for place, item in enumerate(draw.integers(0, n_items, spec["sizes"]["ring"])):
        device.items.append(int(item))
        device.times.append(float(place))
    device.seen = len(device.items)
    found = {}
    for size in _SIZES:
        candidates = draw.integers(0, n_items, size)
        found[str(size)] = _percentiles(partial(device.logits, candidates))
    step = None
    if graphs.learn is not None:
        candidates = draw.integers(0, n_items, 10)
        labels = (np.arange(10) == 0).astype(np.float32)
        rows = [device.rows_of(candidates, labels, np.ones_like(labels)) for _ in range(5)]
        step = _percentiles(lambda: device.learn(rows, 1))["p50"]
    return Budget(
        download_bytes=spec["bytes"]["shared"] + spec["bytes"]["items"],
        shared_bytes=spec["bytes"]["shared"],
        item_bytes=spec["bytes"]["item"],
        user_bytes=spec["bytes"]["user"],
        uplink_bytes=device.theta.nbytes,
        written_bytes=8 + device.kept.shape[1],
        open_milliseconds=round(cold, 2),
        milliseconds=found,
        learning_step_milliseconds=step,
    )


def _percentiles(run: Callable[[], Any]) -> dict[str, float]:
    """p50 and p95 of the milliseconds of a call."""
    spent = []
    for _ in range(_RUNS):
        started = time.perf_counter()
        run()
        spent.append(1000 * (time.perf_counter() - started))
    return {name: round(float(np.quantile(spent, share)), 3) for name, share in (("p50", 0.5), ("p95", 0.95))}
