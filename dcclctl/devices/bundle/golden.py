"""Golden vectors: inputs of the graphs and the outputs that every runtime must give.

In golden.safetensors a tensor is called CASE/in/NAME or CASE/out/NAME.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from dcclctl.devices.bundle.graph import Array
from dcclctl.devices.bundle.serving import ReplayedDevices

GOLDEN_FILE = "golden.safetensors"
#: largest difference of a number that a runtime may have
TOLERANCE = 1e-5
#: candidates of a case
_CANDIDATES = 20
#: case → inputs and outputs
Cases = dict[str, tuple[dict[str, Array], dict[str, Array]]]


def golden_vectors(parts: Iterable[ReplayedDevices]) -> dict[str, Array]:
    """Tensors of golden.safetensors: devices with no event, one event, and most events; a user without a profile.

    Args:
        parts: the devices of one part of the users after the other.
    """
    events = _events(parts)
    cases: Cases = {}
    for name, (devices, event) in events.items():
        cases[name] = _scored(devices.at(event).inputs(_candidates(devices)), devices)
    devices, event = events["full"]
    stranger = devices.at(event)
    stranger.profile, stranger.theta = np.zeros_like(stranger.profile), np.zeros_like(stranger.theta)
    stranger.counted = not stranger.counted
    cases["unknown-profile"] = _scored(stranger.inputs(_candidates(devices)), devices)
    if devices.graphs.learn is not None:
        cases["learn"] = _learned(devices, event, _candidates(devices))
    tensors: dict[str, Array] = {}
    for name, (given, found) in cases.items():
        tensors |= {f"{name}/in/{key}": np.array(value, order="C") for key, value in given.items()}
        tensors |= {f"{name}/out/{key}": np.array(value, order="C") for key, value in found.items()}
    return dict(sorted(tensors.items()))


def _events(parts: Iterable[ReplayedDevices]) -> dict[str, tuple[ReplayedDevices, int]]:
    """The events before which devices hold nothing, one event, and the most: the first of all parts, and their devices."""
    found: dict[str, tuple[int, ReplayedDevices, int]] = {}
    for devices in parts:
        held = devices.place[devices.log.history_end] - devices.place[devices.log.history_start]
        if not len(held):
            continue
        for name, distance in {"empty": held, "one": np.abs(held - 1), "full": -held}.items():
            event = int(np.argmin(distance))
            if name not in found or distance[event] < found[name][0]:
                found[name] = (int(distance[event]), devices, event)
    return {name: (devices, event) for name, (_, devices, event) in found.items()}


def _candidates(devices: ReplayedDevices) -> Array:
    """Numbers of the items of a case, spread over all that are shipped."""
    n_items = len(devices.graphs.item_ids)
    return np.linspace(0, n_items - 1, min(_CANDIDATES, n_items)).astype(np.int64)


def golden_cases(tensors: dict[str, Any]) -> Cases:
    """Cases of the tensors of golden.safetensors."""
    cases: Cases = {}
    for key, value in tensors.items():
        name, side, tensor = key.split("/")
        cases.setdefault(name, ({}, {}))[side == "out"][tensor] = value
    return cases


def _scored(given: dict[str, Array], devices: ReplayedDevices) -> tuple[dict[str, Array], dict[str, Array]]:
    graphs = devices.graphs
    return given, dict(zip(graphs.writes, graphs.score.run(None, given), strict=True))


def _learned(devices: ReplayedDevices, event: int, candidates: Array) -> tuple[dict[str, Array], dict[str, Array]]:
    """One step on one event, whose first candidate was chosen."""
    graphs, device = devices.graphs, devices.at(event)
    assert graphs.learn is not None
    labels = np.zeros(len(candidates), dtype=np.float32)
    labels[0] = 1
    row = device.rows_of(candidates, labels, np.ones_like(labels))
    zeros = np.zeros_like(device.theta)
    given = device.learning_inputs([row]) | {
        "theta": device.theta,
        "first": zeros,
        "second": zeros,
        "step": np.array(1, dtype=np.float32),
    }
    names = [each.name for each in graphs.learn.get_outputs()]
    return given, dict(zip(names, graphs.learn.run(None, given), strict=True))
