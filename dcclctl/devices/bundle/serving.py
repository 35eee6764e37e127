"""A bundle serves the users of a log, for evaluation: every score comes from the exported graph by ONNX Runtime."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int
from torch import Tensor

from dcclctl.artifacts import Bundle
from dcclctl.artifacts.bundle import BUNDLE_FILE, USERS_FILE
from dcclctl.devices.bundle.device import BundleError, Device, Graphs
from dcclctl.devices.bundle.graph import Array
from dcclctl.devices.method import Served
from dcclctl.events.log import EventLog
from dcclctl.events.sampling import Ints

#: logit of an item that the bundle does not hold: it comes after all others
_NOT_SHIPPED = -30.0


def serve_bundle(bundle: Bundle, log: EventLog) -> Served:
    """A bundle as a model that serves the users of a log."""
    try:
        graphs = Graphs(bundle.folder())
    except BundleError as error:
        raise bundle.artifact.unreadable(BUNDLE_FILE, f"cannot be used: {error}") from error
    users = {name: value.numpy() for name, value in bundle.users().items()}
    number = users.pop("number")
    if number.min(initial=0) < -1 or number.max(initial=-1) >= graphs.spec["items"]["shipped"]:
        raise bundle.artifact.unreadable(USERS_FILE, "numbers items that the bundle does not hold")
    # the log may have users that came after the export: their devices were sent nothing of their own
    new = log.n_users - len(users["profile"])
    users = {
        name: np.concatenate([value, np.zeros((new, *value.shape[1:]), value.dtype)]) for name, value in users.items()
    }
    users["profile"] = log.profile.numpy()
    return ReplayedDevices(graphs, log, number, users).served()


class ReplayedDevices:
    """Every user's device as it is at each event of a log.

    Args:
        graphs: of the bundle. log: the histories. number: (I,) each item's number in the bundle, −1 if it is not shipped.
        users: see build.Parts.
    """

    def __init__(self, graphs: Graphs, log: EventLog, number: Ints, users: Mapping[str, Array]) -> None:
        self.graphs, self.log, self.number, self.users = graphs, log, number, users
        sizes = graphs.spec["sizes"]
        self.window, self.ring = sizes["kept"], sizes["ring"]
        rows = np.flatnonzero(log.label > 0)
        # events that a device knows of: those with shipped items
        self.known = number[log.item[rows]] >= 0
        self.place = np.concatenate([[0], np.cumsum(self.known)])  # of each event of log.sequence among the known ones
        rows = rows[self.known]
        self.items = number[log.item[rows]]
        self.times = log.history_end[rows].astype(np.float64)  # a number for each time of a user
        self.later = np.diff(self.times, prepend=-1) != 0
        self.kept = np.zeros((len(rows), sizes["kept_features"]), dtype=np.int8)
        self.has_kept = np.zeros(len(rows), dtype=bool)

    def at(self, event: int) -> Device:
        """The device of the event's user with all that happened before the event."""
        log = self.log
        start, end = self.place[log.history_start[event]], self.place[log.history_end[event]]
        return self._device(int(log.user[event]), int(start), int(end))

    def _device(self, user: int, start: int, end: int) -> Device:
        device = self._empty(user)
        if self.window:
            for at in range(max(start, end - self.window), end):
                if not self.has_kept[at]:
                    self._remember(user, start, at)
                device.kept[(at - start) % self.window] = self.kept[at]
        self._fill(device, start, end)
        return device

    def _empty(self, user: int) -> Device:
        users = self.users
        own = {name: users[name][user] for name in ("profile", "theta", "patched", "counted")}
        return Device(
            self.graphs,
            {
                **own,
                "profile": own["profile"][: self.graphs.spec["sizes"]["profile"]].tolist(),
                "theta": own["theta"].tolist(),
            },
        )

    def _fill(self, device: Device, start: int, end: int) -> None:
        first = max(start, end - self.ring)
        device.items, device.later = self.items[first:end].tolist(), self.later[first:end].tolist()
        device.newest_time = float(self.times[end - 1]) if end > start else -np.inf
        device.seen = end - start

    def _remember(self, user: int, start: int, at: int) -> None:
        """The kept features of one event: what the device computed just before it."""
        device = self._empty(user)
        self._fill(device, start, at)
        device.observe_number(int(self.items[at]), float(self.times[at]))
        self.kept[at] = device.kept[(device.seen - 1) % self.window]
        self.has_kept[at] = True

    def served(self) -> Served:
        """The bundle as a model to score."""

        def head(events: Ints, candidates: Int[Tensor, "B C"] | None, below: Tensor) -> Tensor:
            found = []
            everything = np.arange(self.log.n_items)
            for row, event in enumerate(events):
                wanted = self.number[everything if candidates is None else candidates[row].numpy()]
                logits = np.full(len(wanted), _NOT_SHIPPED, dtype=np.float32)
                shipped = wanted >= 0
                if shipped.any():
                    logits[shipped] = self.at(int(event)).logits(wanted[shipped])
                found.append(torch.from_numpy(logits))
            return torch.stack(found)

        by = np.full(self.log.n_users, "cloud", dtype="<U7")
        spec = self.graphs.spec
        by[self.users["patched"]] = {"": "cloud", "memory": "memory"}.get(spec["method"], "patch")
        smallest = spec["sizes"]["smallest"]

        def enough(events: Ints) -> npt.NDArray[np.bool_]:
            starts, ends = self.place[self.log.history_start[events]], self.place[self.log.history_end[events]]
            held: npt.NDArray[np.bool_] = np.minimum(ends - starts, self.ring) >= smallest
            return held

        return Served(head, by, enough)
