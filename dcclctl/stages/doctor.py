"""`doctor`: does everything work that a command needs on this machine and in this store?"""

import os
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dcclctl.compute import cpu_quota, default_threads
from dcclctl.errors import ArtifactError, BucketError
from dcclctl.store.bucket import Bucket
from dcclctl.store.disk import RESERVE_BYTES, LocalDisk
from dcclctl.store.manifest import PACKAGES, package_versions
from dcclctl.store.snapshot import Snapshot
from dcclctl.store.store import Store

#: less free space than this is said, though commands still work
_LOW_BYTES = 2**30
CONFIG = "dccl.toml"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what. ok: False for a fault that stops commands. said: what was found. remedy: what to type; '' if nothing.
    """

    name: str
    ok: bool
    said: str
    remedy: str = ""


def examine(store: Store) -> list[Check]:
    """Look at the installation, the machine and the store; nothing is changed, and a store is not created."""
    place = _bucket(store, store.disk) if isinstance(store.disk, Bucket) else [*_disk(store.root), *_artifacts(store)]
    return [_versions(), _threads(), _gpu(), _space(store), *place, _config()]


def _versions() -> Check:
    versions = package_versions()
    missing = [name for name in PACKAGES if name not in versions]
    said = ", ".join(f"{name} {found}" for name, found in versions.items())
    if missing:
        return Check("versions", False, f"{said}; missing: {', '.join(missing)}", "Install them: pip install dcclctl")
    return Check("versions", True, said)


def _threads() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    why = [f"{cores} processors may be used"]
    quota = cpu_quota()
    if quota < cores:
        why.append(f"the container's quota is {quota:g}")
    if os.environ.get("OMP_NUM_THREADS"):
        why.append(f"OMP_NUM_THREADS is {os.environ['OMP_NUM_THREADS'][:20]}")
    if hasattr(os, "getloadavg"):
        why.append(f"load {os.getloadavg()[0]:.1f}")
    return Check("threads", True, f"{default_threads()}: {', '.join(why)}; change it with --threads N")


def _gpu() -> Check:
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check("GPU", False, f"torch cannot be imported: {error}", "Install it again: pip install torch")
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        said = f"{torch.cuda.get_device_name(0)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        return Check("GPU", True, said)
    if torch.backends.mps.is_available():
        return Check("GPU", True, "Apple's (mps)")
    return Check("GPU", True, "none that torch can use; commands run on the processor")


def _existing(root: Path) -> Path:
    """The store, or the folder in which it would be made."""
    return next(place for place in (root.absolute(), *root.absolute().parents) if place.is_dir())


def _space(store: Store) -> Check:
    free = shutil.disk_usage(_existing(store.root)).free
    said = f"{free / 2**30:.1f} GiB free for the store {store.name}"
    remedy = "Free some: dcclctl artifacts gc --apply" if free < _LOW_BYTES else ""
    return Check("space", free >= RESERVE_BYTES, said, remedy)


def _disk(root: Path) -> Iterator[Check]:
    """Do files, renaming and locks work where the store is?"""
    place, disk = _existing(root), LocalDisk()
    elsewhere = "Keep the store on a local disk: --store DIR"
    try:
        folder = Path(tempfile.mkdtemp(prefix=".doctor-", dir=place))
    except OSError as error:
        yield Check("store", False, f"{place} cannot be written: {error.strerror}", elsewhere)
        return
    try:
        try:
            disk.make_folder(folder / "work" / "one")
            disk.write(folder / "work" / "one" / "x", b"1")
            disk.make_folder(folder / "v")
            right = disk.publish(folder / "work" / "one", folder / "v") == 1
            disk.make_folder(folder / "work" / "two")
            disk.write(folder / "work" / "two" / "x", b"2")
            right &= disk.publish(folder / "work" / "two", folder / "v") == 2
            yield Check(
                "rename", right, "works on the store's disk" if right else "replaces a folder", elsewhere * (not right)
            )
        except (OSError, ArtifactError) as error:
            yield Check("rename", False, f"does not work on the store's disk: {error}".partition("\n")[0], elsewhere)
        try:
            with disk.lock(folder / "lock", lambda: None):
                excluded = disk.try_lock(folder / "lock") is None
            said = (
                "work on the store's disk" if excluded else "do not exclude: two commands could make the same artifact"
            )
            yield Check("locks", excluded, said, "" if excluded else elsewhere)
        except (OSError, ArtifactError) as error:
            yield Check("locks", False, f"do not work on the store's disk: {error}".partition("\n")[0], elsewhere)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _bucket(store: Store, bucket: Bucket) -> Iterator[Check]:
    """Does the bucket answer, and can it do what a store needs?"""
    try:
        writable = bucket.is_writable(store.root)
        said = "keeps the conditions of writes" if writable else "cannot be written with these credentials, only read"
        yield Check("bucket", True, f"{store.name} {said}")
        yield from _artifacts(store)
    except BucketError as error:
        yield Check("bucket", False, error.what, error.remedy)


def _artifacts(store: Store) -> Iterator[Check]:
    """Damaged artifacts by their manifests, and what dead runs left."""
    snapshot = Snapshot(store)
    for (kind, number), error in snapshot.damaged.items():
        remedy = f"{error.remedy} Then: dcclctl artifacts rm {kind}@{number}".replace("\n", " ")
        yield Check("artifact", False, error.what, remedy)
    for artifact in snapshot.whole:
        for role, given in artifact.inputs.items():
            if given.kind != "raw" and (given.kind, given.id) not in snapshot.ids:
                said = f"{artifact.ref} stands on {given.kind} {given.id[:12]} ({role}), which is gone or damaged"
                yield Check("artifact", False, said, f"See: dcclctl artifacts lineage {artifact.ref}")
    if not snapshot.damaged:
        said = f"{len(snapshot.whole)} in the store, all manifests whole"
        yield Check("artifacts", True, said, "Every byte is checked by: dcclctl artifacts verify")
    try:
        work, size = store.dead_work(remove=False)
    except ArtifactError:
        return
    if work:
        said = f"{len(work)} folders of runs that were stopped, {size / 2**20:.1f} MiB"
        yield Check("half-finished", True, said, "The same command continues; or delete: dcclctl artifacts gc --apply")


def _config() -> Check:
    path = Path(CONFIG)
    if not path.is_file():
        return Check(CONFIG, True, "none in this folder: settings come from flags and defaults")
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return Check(CONFIG, False, f"cannot be read: {error}", f"Mend it, or move it away: {path.absolute()}")
    return Check(CONFIG, True, f"{path.absolute()}: {', '.join(sorted(tables)) or 'empty'}")
