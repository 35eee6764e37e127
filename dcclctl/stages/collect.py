"""`collect`: what devices sent back → patches. Devices are not trusted: every uplink is checked, and θ̂ is clipped."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dcclctl.artifacts import Bundle, PatchSet
from dcclctl.artifacts.cloud import BASIS_FILE
from dcclctl.artifacts.patches import shard_name
from dcclctl.config import CollectConfig
from dcclctl.devices.basis_files import PRIOR_FILE, read_basis, read_prior_mean, write_basis
from dcclctl.devices.bound import ABSURD, bounded
from dcclctl.devices.learner import shard_table, with_ids
from dcclctl.errors import DataError, UsageError
from dcclctl.stages.export import token_of
from dcclctl.stages.run import DEFAULT_RUN, NO_SETTINGS, RunOptions, Settings, named
from dcclctl.stages.settings import resolve
from dcclctl.store.store import Input

#: bytes of an uplink, at most; noise beyond this leaves nothing of θ̂, and its square is still a number
_LARGEST, _LARGEST_NOISE = 1 << 20, 1e150
#: why an uplink is rejected → in words
REASONS = {
    "unreadable": "no JSON object, or too large",
    "other-bundle": "of another bundle, or replayed from another round",
    "unknown-device": "its token belongs to no device",
    "twice": "two from one device; neither is used",
    "shape": "θ̂ has another length, or is no list of numbers",
    "not-finite": "θ̂ has a number that is not finite, or its noise is negative",
    "absurd": f"θ̂ is more than {ABSURD:g} times as far from the mean as the bound",
}


@dataclass(frozen=True)
class _Sent:
    """One uplink that can be used; see `_Uplinks`."""

    user: int
    theta: npt.NDArray[np.float64]
    events: int
    noise: float


@dataclass(frozen=True)
class _Uplinks:
    """What was sent, checked.

    Attributes:
        users: (U,) ascending. theta: (U, K). events: (U,) that each device says it learned from; 0 where it does not say.
        noise: (U,) standard deviation of the noise in each number of θ̂; 0 without differential privacy.
        rejected: reason → count. digest: SHA-256 of all that was read.
    """

    users: npt.NDArray[np.int64]
    theta: npt.NDArray[np.float64]
    events: npt.NDArray[np.int64]
    noise: npt.NDArray[np.float64]
    rejected: Counter[str]
    digest: str


def collect(
    bundle: Bundle, uplinks: Sequence[Path], settings: Settings = NO_SETTINGS, run: RunOptions = DEFAULT_RUN
) -> PatchSet:
    """Make patches of what devices learned.

    θ̂ with noise (see the runner's --dp) is moved towards the mean μ first, by the share of its expected squared distance that
    is noise; this uses nothing but what was sent. Then θ̂ farther from μ than a bound is moved to it. All uplinks decide the
    bound: their median distance plus some median absolute deviations, which a minority of dishonest devices can hardly move.

    Args:
        bundle: what the devices have. uplinks: files with one JSON object each or a line, or folders of such files.
        settings: see CollectConfig. run: how to run.

    Raises:
        UsageError: a bundle whose devices learn nothing, or a file that is not there.
        DataError: no uplink can be used.
    """
    config = resolve(CollectConfig, settings, run.config)
    patches = bundle.patches
    if patches is None or not bundle.spec["learning"]:
        raise UsageError(
            f"{bundle.ref}: its devices learn nothing that could come back",
            "Export patches made with --method metapatch.",
        )
    source, cloud = patches, patches.cloud
    read = _read(bundle, uplinks)
    if not len(read.users):
        raise DataError(
            f"none of {sum(read.rejected.values())} uplinks can be used: {in_words(read.rejected)}",
            f"An uplink is what a device of {bundle.ref} sent: one JSON object in a file, or one in each line.",
        )
    mean = read_prior_mean(source.artifact).numpy().astype(np.float64)
    clip = bundle.spec["learning"]["clip"]
    found = bounded(_shrunk(read, mean, clip), mean, config.deviations, config.max_norm)
    kept = np.flatnonzero(~found.rejected)
    if not len(kept):
        raise DataError(
            f"each of {len(read.users)} uplinks is absurdly far from the mean for a bound of {found.bound:g}",
            "Raise --max-norm, or leave it out: the bound is then learned from the uplinks.",
        )
    rejected = read.rejected + Counter(absurd=int(found.rejected.sum()))
    inputs = {
        "cloud": cloud.artifact.as_input(),
        "dataset": cloud.dataset.artifact.as_input(),
        "bundle": bundle.artifact.as_input(),
        "uplinks": Input("raw", read.digest),
    }
    recorded = {**source.config, "users": f"@sha256:{read.digest}", "guard": False, "collect": config.recorded()}
    with cloud.store.begin("collect", "patches", recorded, config.seed, inputs, run.force, len(read.users)) as work:
        if work.reused is not None:
            return named(PatchSet(work.reused), run)
        users = read.users[kept]
        tensors = {
            "theta": torch.from_numpy(found.theta[kept].astype(np.float32)),
            "user_index": torch.from_numpy(users),
            "events": torch.from_numpy(read.events[kept]),
            "losses": torch.full((len(users), 2), math.nan, dtype=torch.float64),
            "kept": torch.ones(len(users), dtype=torch.bool),
        }
        work.write_tensors(shard_name(0), tensors)
        work.write_tensors(PRIOR_FILE, source.artifact.read_tensors(PRIOR_FILE))
        write_basis(work, read_basis(source.artifact))
        work.write_table("users.parquet", with_ids(shard_table(0, tensors), cloud.dataset))
        facts = {
            **{name: source.facts[name] for name in ("id_map", "on", "own_basis", "patch_size", "bytes_per_user")},
            "users": len(users),
            "users_asked_for": len(users),
            "users_without_events": 0,
            "events": int(read.events[kept].sum()),
            "users_tested": 0,
            "users_improved": 0,
            "improved_share": None,
            "kept": len(users),
            "rejected": dict(sorted(rejected.items())),
            "bound": found.bound,
            "clipped": int(found.clipped.sum()),
            "with_noise": int((read.noise[kept] > 0).sum()),
            "clip": clip,
            "basis": source.artifact.file_id(BASIS_FILE),
        }
        return named(PatchSet(work.commit(facts)), run)


def _shrunk(read: _Uplinks, mean: npt.NDArray[np.float64], clip: float) -> npt.NDArray[np.float64]:
    """(U, K) the best linear estimate of each θ̂ before noise was added, for θ̂ around μ at a distance of `clip`."""
    variance = clip**2 / len(mean)
    share = np.where(read.noise > 0, variance / np.maximum(variance + read.noise**2, 1e-300), 1.0)
    return mean + (read.theta - mean) * share[:, None]


def in_words(rejected: "Counter[str] | dict[str, int]") -> str:
    """'3 unreadable (…), 1 shape (…)'."""
    return ", ".join(f"{count:,} {reason} ({REASONS[reason]})" for reason, count in sorted(rejected.items()) if count)


def _read(bundle: Bundle, uplinks: Sequence[Path]) -> _Uplinks:
    size, known = bundle.spec["sizes"]["theta"], bundle.spec["id"]
    devices = {token_of(bundle, user): user for user in range(bundle.cloud.dataset.users.height)}
    rejected: Counter[str] = Counter()
    found: dict[int, list[_Sent]] = {}
    digest = hashlib.sha256()
    for data in _documents(uplinks):
        digest.update(hashlib.sha256(data).digest())
        sent = _checked(data, known, devices, size)
        if isinstance(sent, str):
            rejected[sent] += 1
        else:
            found.setdefault(sent.user, []).append(sent)
    twice = [user for user, sent_by in found.items() if len(sent_by) > 1]
    rejected["twice"] += sum(len(found.pop(user)) for user in twice)
    first = [found[user][0] for user in sorted(found)]
    return _Uplinks(
        np.array([each.user for each in first], dtype=np.int64),
        np.array([each.theta for each in first]).reshape(len(first), size),
        np.array([each.events for each in first], dtype=np.int64),
        np.array([each.noise for each in first]),
        rejected,
        digest.hexdigest(),
    )


def _documents(uplinks: Sequence[Path]) -> Iterator[bytes]:
    """The content of every uplink; too long ones are cut, so that they are unreadable.

    Raises:
        UsageError: a file that cannot be read.
    """
    for place in uplinks:
        files = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
        for path in files:
            try:
                with path.open("rb") as file:
                    if path.stat().st_size <= _LARGEST and _is_json(whole := file.read()):
                        yield whole  # one object, in one line or several
                        continue
                    file.seek(0)
                    while line := file.readline(_LARGEST):
                        if line.strip():
                            yield line
                        while len(line) == _LARGEST and not line.endswith(b"\n"):
                            line = file.readline(_LARGEST)  # the rest of one that is too long
            except OSError as error:
                raise UsageError(
                    f"{path}: cannot read it ({error.strerror})", "Name files or folders of uplinks."
                ) from error


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def _checked(data: bytes, bundle: str, devices: dict[str, int], size: int) -> "_Sent | str":
    """What one uplink says, or the reason to reject it."""
    try:
        document: Any = json.loads(data)
    except (ValueError, RecursionError):
        return "unreadable"
    if not isinstance(document, dict):
        return "unreadable"
    if document.get("bundle") != bundle:
        return "other-bundle"
    token = document.get("token")
    if not isinstance(token, str) or token not in devices:
        return "unknown-device"
    theta, noise = document.get("theta"), document.get("noise", 0)
    if not isinstance(theta, list) or len(theta) != size:
        return "shape"
    if not all(type(each) in (int, float) for each in (*theta, noise)):
        return "shape"
    try:
        values = np.array([float(each) for each in (*theta, noise)])
    except OverflowError:
        return "not-finite"
    if not np.isfinite(values).all() or values[-1] < 0:
        return "not-finite"
    events = document.get("events")
    known = events if type(events) is int and 0 <= events < 1 << 31 else 0
    return _Sent(devices[token], values[:-1], known, min(float(values[-1]), _LARGEST_NOISE))
