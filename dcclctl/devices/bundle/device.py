"""Run a bundle on a device: rank items for its user, remember events, learn θ̂. Needs numpy and onnxruntime only.

    device = Device("bundle", user=json.load(open("user.json")))
    device.recommend(10)                     # ids of the best items, with scores
    device.observe("item 7", time=1700000000)
    device.save("device.json")

From the shell, for a device whose log is a file of lines `item,time,label`:

    python device.py BUNDLE --user user.json --log log.csv --learn --uplink uplink.json --dp 2

This file is a part of every bundle (runner/python/device.py) and is the whole runner.
"""

import argparse
import base64
import csv
import hashlib
import json
import math
import os
import re
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

#: version of the bundle's layout that this runner reads
SPEC = 2
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
_INT8 = 127
#: how often a negative is drawn again before all items that are left are listed
_TRIES = 50
#: an event of the device's own log: item, time, label (1: chosen)
Event = tuple[str, float, int]


class BundleError(Exception):
    """The bundle or the saved state cannot be used; the message says why, and what to do."""


class NothingToLearnError(BundleError):
    """The device's log has no event to learn from."""


def session(path: Path, threads: int = 1) -> ort.InferenceSession:
    """Open one graph of a bundle."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no common class of its own errors
        raise BundleError(
            f"{path.name}: this onnxruntime ({ort.__version__}) cannot open the graph: {error}. "
            "It needs the operators of ONNX opset 18: pip install 'onnxruntime>=1.16'"
        ) from error


def read_bundle(folder: Path) -> dict[str, Any]:
    """bundle.json, after checking its version, its form, and the hash of every file that it lists."""
    try:
        spec = json.loads((folder / "bundle.json").read_bytes())
    except (OSError, ValueError) as error:
        raise BundleError(f"{folder} holds no bundle: bundle.json: {error}. Export it again: dcclctl export") from error
    if not isinstance(spec, dict) or spec.get("spec") != SPEC:
        found = spec.get("spec") if isinstance(spec, dict) else None
        raise BundleError(
            f"{folder} has bundle version {found}; this runner reads {SPEC}. Use the runner inside the bundle, or export it again."
        )
    files = spec.get("files")
    for name, record in files.items() if isinstance(files, dict) else ():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts or not path.is_file() or path.is_symlink():
            raise BundleError(f"{name} is missing from the bundle. Copy the whole folder again.")
        data = path.read_bytes()
        if not isinstance(record, dict) or hashlib.sha256(data).hexdigest() != record.get("sha256"):
            raise BundleError(
                f"{name} is cut or changed: its hash is not the one in bundle.json. Copy the bundle again."
            )
    try:
        schema = json.loads((folder / "bundle.schema.json").read_bytes())
    except (OSError, ValueError) as error:
        raise BundleError(f"bundle.schema.json is missing or cut ({error}). Copy the whole folder again.") from error
    if wrong := misfit(spec, schema, schema.get("$defs", {})):
        raise BundleError(f"bundle.json is damaged: {wrong}. Copy the bundle again.")
    return spec


_KINDS: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def misfit(value: Any, schema: dict[str, Any], parts: dict[str, Any], at: str = "") -> str:
    """Where a document does not fit its JSON Schema, or ''; of the standard's words those that bundle.schema.json uses."""
    if "$ref" in schema:
        return misfit(value, parts[schema["$ref"].rpartition("/")[2]], parts, at)
    if "anyOf" in schema:
        found = [misfit(value, each, parts, at) for each in schema["anyOf"]]
        return "" if "" in found else found[0]
    kinds = _KINDS.get(schema.get("type", ""), (object,))
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds and object not in kinds):
        return f"{at or 'it'} is no {schema['type']}"
    if value not in schema.get("enum", [value]) or value != schema.get("const", value):
        return f"{at} is {value!r}"
    if isinstance(value, (int, float)) and value < schema.get("minimum", value):
        return f"{at} is less than {schema['minimum']}"
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        return f"{at} is not like {schema['pattern']}"
    inside: list[tuple[str, Any, Any]] = []
    if isinstance(value, list):
        inside = [(f"{at}[{place}]", each, schema.get("items", True)) for place, each in enumerate(value)]
    if isinstance(value, dict):
        missing = [name for name in schema.get("required", ()) if name not in value]
        if missing:
            return f"{at + ': ' if at else ''}{missing[0]} is missing"
        known, other = schema.get("properties", {}), schema.get("additionalProperties", True)
        inside = [(f"{at}.{name}".lstrip("."), each, known.get(name, other)) for name, each in value.items()]
    for place, each, wanted in inside:
        if wanted is False:
            return f"{place} is unknown"
        if wanted is not True and (wrong := misfit(each, wanted, parts, place)):
            return wrong
    return ""


class Graphs:
    """The graphs and tables of one bundle, opened once for any number of devices."""

    def __init__(self, folder: str | os.PathLike[str], threads: int = 1) -> None:
        self.folder = Path(folder)
        self.spec = read_bundle(self.folder)
        self.score = session(self.folder / "score.onnx", threads)
        self.learn = session(self.folder / "learn.onnx", threads) if "learn.onnx" in self.spec["files"] else None
        self.reads = {each.name for each in self.score.get_inputs()}
        self.writes = [each.name for each in self.score.get_outputs()]
        catalogue = json.loads((self.folder / "catalogue.json").read_bytes())
        self.item_ids: list[str] = catalogue["items"]
        self.names: list[str | None] = catalogue["names"]
        #: numbers of the items that may be drawn as negatives
        self.drawn: Ints = np.array(catalogue.get("drawn", []), dtype=np.int64)
        self.number = {item: at for at, item in enumerate(self.item_ids)}


def user_bytes(sizes: dict[str, int], n_items: int, events: int) -> int:
    """Bytes of what a device keeps of its user: the ring's items with one bit each, kept features, θ̂ with Adam's two
    moments, and three numbers of 8 bytes (the newest time, events seen and unknown).

    Args:
        sizes: of bundle.json. n_items: in the bundle. events: that the device has seen.
    """
    held = min(events, sizes["ring"])
    kept = min(events, sizes["kept"]) * sizes["kept_features"]
    return held * number_type(n_items).itemsize + (held + 7) // 8 + kept + 12 * sizes["theta"] + 24


def number_type(n_items: int) -> "np.dtype[Any]":
    """What a state stores an item's number in."""
    return np.dtype("<u2" if n_items <= 1 << 16 else "<u4")


class Device:
    """One user's device. Events come in the order of their times; one that is older than the newest counts as of its time.

    Args:
        bundle: its folder, or graphs that are open. user: what the cloud sends to this device alone: profile, theta,
            patched, counted, events ([item, time], oldest first).
    """

    def __init__(self, bundle: "str | os.PathLike[str] | Graphs", user: dict[str, Any] | None = None) -> None:
        self.graphs = bundle if isinstance(bundle, Graphs) else Graphs(bundle)
        spec, user = self.graphs.spec, user or {}
        sizes = spec["sizes"]
        if user.get("bundle", spec["id"]) != spec["id"]:
            raise BundleError("The user's file is of another bundle. Export it again, with this bundle.")
        self.capacity: int = sizes["ring"]
        self.items: list[int] = []  # newest last
        #: of each event in `items`: is it later than the one before?
        self.later: list[bool] = []
        self.newest_time = -np.inf
        self.seen = 0
        self.unknown = 0
        self.profile = np.array(user.get("profile") or [0] * sizes["profile"], dtype=np.int64)
        self.theta = np.array(user.get("theta") or [0.0] * sizes["theta"], dtype=np.float32)
        self.learned_from = 0  # events
        self.moments: tuple[Floats, Floats, int] = (np.zeros_like(self.theta), np.zeros_like(self.theta), 0)
        self.patched, self.counted = bool(user.get("patched", True)), bool(user.get("counted", False))
        self.kept = np.zeros((sizes["kept"], sizes["kept_features"]), dtype=np.int8)
        if self.profile.shape != (sizes["profile"],) or self.theta.shape != (sizes["theta"],):
            raise BundleError(
                "The user's file is of another bundle: its profile or θ̂ has another size. Export it again."
            )
        for item, time in user.get("events", []):
            self.observe(item, time)

    # -- what the device knows

    def observe(self, item: str, time: float) -> None:
        """Remember one event. An item that the bundle does not hold is counted, and otherwise forgotten."""
        number = self.graphs.number.get(item)
        if number is None:
            self.unknown += 1
            return
        self.observe_number(number, time)

    def observe_number(self, number: int, time: float) -> None:
        """`observe` by the item's number in the bundle."""
        if len(self.kept):
            # the item's features just before the event, one byte each
            found = self._run(np.array([number]), before=time)["features"][0]
            steps = self.graphs.spec["constants"]["steps"]
            quantised = np.clip(np.rint(found[1:] * np.float32(steps)), -_INT8, _INT8)
            self.kept[self.seen % len(self.kept)] = quantised.astype(np.int8)
        self.items.append(number)
        self.later.append(time > self.newest_time)
        self.newest_time = max(self.newest_time, time)
        del self.items[: -self.capacity], self.later[: -self.capacity]
        self.seen += 1

    @property
    def bytes(self) -> int:
        """Bytes of what the device keeps of its user now."""
        return user_bytes(self.graphs.spec["sizes"], len(self.graphs.item_ids), self.seen)

    # -- scores

    def logits(self, numbers: Ints, before: float | None = None) -> Floats:
        """(C,) logits of items, by their numbers in the bundle.

        Args:
            before: only events earlier than this time count, which is no earlier than the newest event; None: all events.
        """
        found: Floats = self._run(numbers, before)["logits"]
        return found

    def recommend(self, top: int = 10, exclude_known: bool = True) -> list[tuple[str, float]]:
        """The best items with their logits, best first; ties in the order of the bundle's items.

        Args:
            exclude_known: in a log without repeats, leave out the items of the events that the device holds.
        """
        logits = self.logits(np.arange(len(self.graphs.item_ids)))
        if exclude_known and not self.graphs.spec["repeats"]:
            logits = logits.copy()
            logits[self.items] = -np.inf
        order = np.argsort(-logits, kind="stable")[:top]
        return [(self.graphs.item_ids[at], float(logits[at])) for at in order if np.isfinite(logits[at])]

    def _run(self, numbers: Ints, before: float | None) -> dict[str, Any]:
        graphs = self.graphs
        return dict(zip(graphs.writes, graphs.score.run(None, self.inputs(numbers, before)), strict=True))

    def inputs(self, numbers: Ints, before: float | None = None) -> dict[str, Any]:
        """The scoring graph's inputs for some candidates."""
        held = len(self.items)
        if before is not None and before <= self.newest_time:
            # an event of the same time is no history of another one
            held = max((at for at, later in enumerate(self.later) if later), default=0)
        ring = np.array(self.items[:held][::-1] or [0], dtype=np.int64)
        later = np.array(self.later[:held][::-1] or [True])
        kept = min(self.seen, len(self.kept))
        given = {
            "ring": ring,
            "held": np.array(held, dtype=np.int64),
            "baskets": np.concatenate([[0], np.cumsum(later[:-1])]).astype(np.int64),
            "candidates": np.asarray(numbers, dtype=np.int64),
            "profile": self.profile,
            "theta": self.theta,
            "kept": self.kept,
            "kept_count": np.array(kept, dtype=np.int64),
            "counted": np.array(self.counted),
            "patched": np.array(self.patched),
        }
        return {name: value for name, value in given.items() if name in self.graphs.reads}

    # -- learning

    def learn(self, rows: list[dict[str, Any]], steps: int) -> Floats:
        """Take some steps of Adam on θ̂, which starts at the mean of all users'; the new θ̂.

        Args:
            rows: of every event to learn from, see `rows_of`.
        """
        learn, given = self._learn_graph(), self.learning_inputs(rows)
        if not self.moments[2]:
            self.theta = np.array(self.graphs.spec["learning"]["start"], dtype=np.float32)
        first, second, done = self.moments
        for step in range(done + 1, done + steps + 1):
            given |= {"theta": self.theta, "first": first, "second": second, "step": np.array(step, dtype=np.float32)}
            self.theta, first, second = learn.run(None, given)
            if not np.isfinite(self.theta).all():
                raise BundleError("θ̂ became infinite. Export the bundle with a smaller learning rate.")
        self.moments = (first, second, done + steps)
        return self.theta

    def learn_log(self, events: list[Event], plan: dict[str, Any]) -> Floats:
        """Replay the user's log, and learn θ̂ from its events in the learning period; the new θ̂.

        Args:
            events: the user's whole log, oldest first. plan: `learn` of the user's file: since and until (times of the
                period), row (number of the user's first event in the cloud's log, which names the draws of negatives).
        """
        learning = self.graphs.spec["learning"]
        in_period = [plan["since"] <= time < plan["until"] for _, time, _ in events]
        numbers = [self.graphs.number.get(item) for item, _, _ in events]
        rows = []
        for at, (item, time, label) in enumerate(events):
            number = numbers[at]
            if in_period[at] and number is not None:
                taken = self._never_negative(events, plan, time)
                drawn = draw_negatives(learning, self.graphs.drawn, plan["row"] + at, taken, learning["negatives"])
                candidates = np.array([number, *(number if other is None else other for other in drawn)])
                weights = np.array([1, *(other is not None and label > 0 for other in drawn)], dtype=np.float32)
                labels = np.zeros_like(weights)
                labels[0] = label
                rows.append(self.rows_of(candidates, labels, weights, before=time))
            if label > 0:
                self.observe(item, time)
        if not rows:
            raise NothingToLearnError("The log has no event in the learning period, so there is nothing to learn.")
        self.learned_from = len(rows)
        return self.learn(rows, learning["steps"])

    def _never_negative(self, events: list[Event], plan: dict[str, Any], time: float) -> set[int]:
        """Items that may not be drawn as negatives of an event at this time; as EventLog.never_negative in the cloud."""
        if self.graphs.spec["repeats"]:
            taken = [item for item, other, label in events if other == time and label > 0]
        else:
            taken = [
                item for item, other, label in events if other < plan["since"] or (label > 0 and other < plan["until"])
            ]
        return {self.graphs.number[item] for item in taken if item in self.graphs.number}

    def learning_inputs(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The rows of some events as the learning graph reads them, without θ̂ and Adam's moments."""
        states = self.graphs.spec["learning"]["states"]
        join = np.stack if states else np.concatenate
        names = ("activations", "labels", "weights", *(("candidates",) if states else ()))
        return {name: join([row[name] for row in rows]) for name in names}

    def rows_of(self, candidates: Ints, labels: Floats, weights: Floats, before: float | None = None) -> dict[str, Any]:
        """One event for `learn`: (C,) its candidates with their labels and weights, and the activations as of then."""
        activations = self._run(candidates, before)["activations"]
        return {"activations": activations, "candidates": candidates, "labels": labels, "weights": weights}

    def uplink(self, user: dict[str, Any]) -> dict[str, Any]:
        """What the device sends to the cloud: θ̂ of this round, and nothing of its log but the number of events."""
        return {
            "bundle": self.graphs.spec["id"],
            "token": user.get("token", ""),
            "theta": self.theta.tolist(),
            "events": self.learned_from,
        }

    def private_uplink(self, user: dict[str, Any], epsilon: float, delta: float) -> dict[str, Any]:
        """`uplink` under local differential privacy: whatever the log holds, what is sent is nearly as likely.

        θ̂ gets noise, the number of events is not sent, and a device without an event in the period sends μ with noise.
        The device itself keeps its own θ̂. Each round spends ε and δ anew.

        Args:
            epsilon, delta: see `noise_of`.
        """
        learning = self.graphs.spec["learning"]
        mean = np.array(learning["start"])
        theta = self.theta if self.learned_from else mean
        gauss = secrets.SystemRandom().gauss
        sent, noise = with_noise(theta, mean, learning["clip"], epsilon, delta, gauss)
        return self.uplink(user) | {"theta": sent.tolist(), "events": 0, "noise": noise}

    def _learn_graph(self) -> ort.InferenceSession:
        if self.graphs.learn is None:
            raise BundleError(
                "This bundle has nothing to learn on a device: export patches made with --method metapatch."
            )
        return self.graphs.learn

    # -- the state on the device's disk

    def state(self) -> dict[str, Any]:
        """All that the device keeps, for JSON."""
        return {
            "bundle": self.graphs.spec["id"],
            "items": _packed(np.array(self.items, dtype=self._number_type)),
            "later": _packed(np.packbits(np.array(self.later, dtype=bool))),
            "newest_time": None if self.newest_time == -np.inf else self.newest_time,
            "seen": self.seen,
            "unknown": self.unknown,
            "profile": self.profile.tolist(),
            "theta": _packed(self.theta),
            "moments": [_packed(self.moments[0]), _packed(self.moments[1]), self.moments[2]],
            "patched": self.patched,
            "counted": self.counted,
            "kept": _packed(self.kept),
        }

    @property
    def _number_type(self) -> "np.dtype[Any]":
        return number_type(len(self.graphs.item_ids))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state; a reader sees the old state or the new one, never a part."""
        temporary = Path(f"{os.fspath(path)}.new")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(self.state(), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    @classmethod
    def load(cls, bundle: "str | os.PathLike[str] | Graphs", path: str | os.PathLike[str]) -> "Device":
        """A device from its saved state.

        Raises:
            BundleError: the state is of another bundle, or damaged.
        """
        device = cls(bundle)
        try:
            state = json.loads(Path(path).read_bytes())
            if state["bundle"] != device.graphs.spec["id"]:
                raise BundleError(
                    "The saved state is of another bundle: its item numbers mean other items. Start from user.json."
                )
            device._restore(state)
        except (ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{path} is cut or damaged ({error!r}). Start from user.json.") from error
        return device

    def _restore(self, state: dict[str, Any]) -> None:
        self.seen, self.unknown = int(state["seen"]), int(state["unknown"])
        numbers = _unpacked(state["items"], self._number_type, min(self.seen, self.capacity))
        if self.seen < 0 or numbers.max(initial=0) >= max(len(self.graphs.item_ids), 1):
            raise ValueError("items that are not in the bundle")
        bits = _unpacked(state["later"], np.uint8, (len(numbers) + 7) // 8)
        self.items, self.later = numbers.tolist(), np.unpackbits(bits, count=len(numbers)).astype(bool).tolist()
        self.newest_time = -np.inf if state["newest_time"] is None else float(state["newest_time"])
        self.patched, self.counted = bool(state["patched"]), bool(state["counted"])
        self.profile = np.array(state["profile"], dtype=np.int64).reshape(self.profile.shape)
        self.theta = _unpacked(state["theta"], np.float32, self.theta.shape)
        first, second, done = state["moments"]
        shape = self.theta.shape
        self.moments = (_unpacked(first, np.float32, shape), _unpacked(second, np.float32, shape), int(done))
        self.kept = _unpacked(state["kept"], np.int8, self.kept.shape)


def _packed(array: npt.NDArray[Any]) -> str:
    """The bytes of an array as text."""
    return base64.b64encode(array.tobytes()).decode()


def _unpacked(text: str, kind: Any, shape: int | tuple[int, ...]) -> npt.NDArray[Any]:
    """An array from `_packed`; ValueError if it has another shape."""
    return np.frombuffer(base64.b64decode(text, validate=True), dtype=kind).reshape(shape).copy()


# -- negatives: the same draws as in the cloud, see dcclctl/events/sampling.py


def draw_negatives(streams: dict[str, Any], catalogue: Ints, key: int, taken: set[int], count: int) -> list[int | None]:
    """Draw distinct items that are not taken; None where none is left.

    Args:
        streams: `learning` of bundle.json, which names the draws. catalogue: items that may be drawn.
        key: number of the event.
    """

    def draw(slot: int, attempt: int) -> int:
        number = hashed(streams["stream"], 0, key, slot, attempt) % max(len(catalogue), 1)
        return int(catalogue[number])

    if not len(catalogue):
        return [None] * count
    found = [draw(slot, 0) for slot in range(count)]
    for attempt in range(1, _TRIES + 1):
        wrong = [slot for slot in range(count) if found[slot] in taken or found[slot] in found[:slot]]
        if not wrong:
            return list(found)
        for slot in wrong:
            found[slot] = draw(slot, attempt)
    left = [int(item) for item in catalogue if int(item) not in taken]
    left.sort(key=lambda item: hashed(streams["stream_left"], key, 0, item))
    allowed, spare, used = set(left), iter(left), set[int]()
    mended: list[int | None] = []
    for item in found:
        if item in allowed and item not in used:
            chosen: int | None = item
        else:
            chosen = next((other for other in spare if other not in used), None)
        if chosen is not None:
            used.add(chosen)
        mended.append(chosen)
    return mended


def hashed(state: int, *keys: int) -> int:
    """A 64-bit hash. Source: SplitMix64, Steele et al., OOPSLA 2014."""
    mask = (1 << 64) - 1
    for key in keys:
        x = (state * 0x9E3779B97F4A7C15 + key + 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        state = x ^ (x >> 31)
    return state


# -- differential privacy of what is sent


def with_noise(
    theta: npt.NDArray[Any],
    mean: npt.NDArray[Any],
    clip: float,
    epsilon: float,
    delta: float,
    gauss: Callable[[float, float], float],
) -> tuple[npt.NDArray[np.float64], float]:
    """θ̂ moved to within `clip` of the mean μ, with Gaussian noise; and the noise's standard deviation.

    Args:
        clip: any two devices' θ̂ are then at most twice as far apart. epsilon, delta: see `noise_of`.
        gauss: draws a number, from mean and standard deviation.
    """
    away = theta.astype(np.float64) - mean
    away *= min(1.0, clip / max(float(np.linalg.norm(away)), 1e-300))
    noise = noise_of(epsilon, delta, 2 * clip)
    return mean + away + np.array([gauss(0.0, noise) for _ in away]), noise


def noise_of(epsilon: float, delta: float, sensitivity: float) -> float:
    """The least standard deviation of Gaussian noise that makes a release (ε, δ)-differentially private.

    Args:
        epsilon: > 0, at most 100. delta: between 0 and 1. sensitivity: largest distance of what two logs give.

    Source: Balle and Wang, Improving the Gaussian mechanism for differential privacy, ICML 2018, theorem 8.
    """
    if not 0 < epsilon <= 100 or not 0 < delta < 1:
        raise BundleError(f"ε = {epsilon:g}, δ = {delta:g}: ε lies between 0 and 100, δ between 0 and 1.")

    def spent(ratio: float) -> float:
        """δ at noise of `ratio` sensitivities."""
        half, shift = 0.5 / ratio, epsilon * ratio
        return _below(half - shift) - math.exp(epsilon) * _below(-half - shift)

    low, high = 1e-3, 1.0
    while spent(high) > delta:
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > delta else (low, middle)
    return high * sensitivity


def _below(x: float) -> float:
    """The share of a normal distribution that lies below x standard deviations."""
    return math.erfc(-x / math.sqrt(2)) / 2


# -- the command line


def read_log(path: Path) -> list[Event]:
    """The device's log: lines `item,time,label`, oldest first; without a label an event is a choice."""
    with path.open(newline="", encoding="utf-8") as file:
        return [(row[0], float(row[1]), int(row[2]) if len(row) > 2 else 1) for row in csv.reader(file) if row]


def main() -> int:
    """Run one device: read its log, learn, write what goes to the cloud, print its list."""
    parser = argparse.ArgumentParser(description="Run a bundle on a device.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--user", type=Path, help="user.json, what the cloud sends to this device alone")
    parser.add_argument("--log", type=Path, help="the device's own log: lines item,time,label")
    parser.add_argument("--learn", action="store_true", help="learn θ̂ from the log")
    parser.add_argument("--uplink", type=Path, help="write θ̂ for the cloud to this file")
    parser.add_argument(
        "--dp", type=float, metavar="EPSILON", help="with --uplink: local differential privacy with this ε"
    )
    parser.add_argument("--delta", type=float, default=1e-5, help="δ of --dp (default: 1e-5)")
    parser.add_argument("--state", type=Path, help="write the device's state to this file")
    parser.add_argument("--top", type=int, default=0, help="print this many recommendations")
    options = parser.parse_args()
    if options.dp is not None and options.uplink is None:
        parser.error("--dp is read with --uplink only")
    try:
        user = json.loads(options.user.read_bytes()) if options.user else {}
        if not isinstance(user, dict):
            raise BundleError(f"{options.user} is no file of a user. Export it: dcclctl export -o FOLDER --user ID")
        device = Device(options.bundle, user)
        events = read_log(options.log) if options.log else []
        if options.learn:
            try:
                device.learn_log(events, user.get("learn") or {})
            except NothingToLearnError:
                if options.dp is None:  # else that it sends nothing would tell that it has nothing
                    raise
        else:
            for item, time, label in events:
                if label > 0:
                    device.observe(item, time)
        if options.uplink:
            sent = device.uplink(user) if options.dp is None else device.private_uplink(user, options.dp, options.delta)
            options.uplink.write_text(json.dumps(sent), encoding="utf-8")
        if options.state:
            device.save(options.state)
        for item, logit in device.recommend(options.top) if options.top else []:
            print(f"{item}\t{logit:.4f}")
    except (BundleError, OSError, ValueError, KeyError, IndexError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
