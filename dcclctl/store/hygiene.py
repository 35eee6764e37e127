"""Deletes from a store what nobody needs (`collect`) or what is named (`remove`), never what a running process uses."""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from dcclctl.errors import ArtifactError, UsageError
from dcclctl.store.artifact import Artifact
from dcclctl.store.manifest import KINDS
from dcclctl.store.references import parse_reference
from dcclctl.store.snapshot import Snapshot
from dcclctl.store.store import Store

#: newest versions of each kind that `collect` keeps
KEEP = 3


@dataclass(frozen=True)
class Deleted:
    """What was deleted, or would be.

    Attributes:
        versions: whole versions. damaged: references of damaged versions. work: folders and files of dead runs.
        names: aliases that went with their artifacts, e.g. 'cloud@release'. trash: left by a deletion that was killed.
        in_use: versions that stay only because a running process uses them. size_bytes: of all that is deleted.
    """

    versions: list[Artifact] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    work: list[Path] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    trash: list[Path] = field(default_factory=list)
    in_use: list[Artifact] = field(default_factory=list)
    size_bytes: int = 0


def collect(store: Store, keep: int = KEEP, apply: bool = False) -> Deleted:
    """Delete what no name, no recent artifact and no running process needs.

    It keeps artifacts with a name, the newest `keep` of each kind, what running processes use, everything that these were
    made from, and every damaged version. It deletes all other versions, older copies of one artifact under another number,
    and what runs left that are dead.

    Args:
        keep: newest versions of each kind that stay. apply: False only tells.

    Raises:
        UsageError: `keep` is negative.
    """
    if keep < 0:
        raise UsageError(f"--keep {keep} is negative", "Give how many of each kind stay, e.g. --keep 3.")
    if not store.exists():
        return Deleted()
    with store.leases.hygiene():
        snapshot = Snapshot(store)
        recent = [artifact for kind in KINDS for artifact in snapshot.artifacts(kind)[-keep or len(snapshot.whole) :]]
        named = [artifact for artifact in snapshot.whole if snapshot.aliases(artifact)]
        kept = snapshot.below(recent + named)
        used = store.leases.in_use()
        kept_for_use = snapshot.below([artifact for artifact in snapshot.whole if artifact.id in used])
        versions = [
            artifact
            for artifact in snapshot.whole
            if (artifact.id not in kept and artifact.id not in kept_for_use)
            or not (snapshot.is_newest(artifact) or artifact in recent or artifact.id in used)
        ]
        in_use = [artifact for artifact in kept_for_use.values() if artifact.id not in kept]
        moved = [store.trash(artifact.kind, artifact.number) for artifact in versions] if apply else []
        left = [path for path in store.in_trash(used) if path not in moved]
    work, size = store.dead_work(apply)
    size += sum(artifact.size_bytes for artifact in versions) + sum(map(store.size_of, left))
    if apply:
        store.empty_trash(moved + left)
    return Deleted(versions, work=work, trash=left, in_use=in_use, size_bytes=size)


def remove(store: Store, references: list[str], force: bool = False) -> Deleted:
    """Delete the artifacts that are named, also damaged ones.

    Args:
        references: as for `Store.resolve`. force: also delete what was made from them, and their names.

    Raises:
        UsageError: no such artifact; or, without `force`, something was made from it or it has a name.
        ArtifactError: a running process uses it.
    """
    with store.leases.hygiene():
        snapshot = Snapshot(store)
        chosen: dict[tuple[str, int], Artifact | None] = {}
        for reference in references:
            chosen |= _meant(store, snapshot, reference)
        _add_users(snapshot, chosen, force)
        whole = [artifact for artifact in chosen.values() if artifact is not None]
        used = store.leases.in_use()
        busy = [artifact.ref for artifact in whole if artifact.id in used and _last_copy(snapshot, artifact, chosen)]
        if busy:
            raise ArtifactError(f"a running command uses {', '.join(busy)}", "Wait until it ends, then remove again.")
        names = [
            f"{artifact.kind}@{name}"
            for artifact in whole
            if _last_copy(snapshot, artifact, chosen)
            for name in snapshot.aliases(artifact)
        ]
        if names and not force:
            raise UsageError(
                f"{', '.join(names)} would name nothing any more",
                "Move the name with dcclctl artifacts tag, or delete it too: --force",
            )
        for name in dict.fromkeys(names):
            store.untag(*name.split("@"))
        moved = [store.trash(kind, number) for kind, number in chosen]
    store.empty_trash(moved)
    damaged = [f"{kind}@{number}" for (kind, number), artifact in chosen.items() if artifact is None]
    size = sum(artifact.size_bytes for artifact in whole)
    return Deleted(whole, damaged, names=list(dict.fromkeys(names)), size_bytes=size)


def _meant(store: Store, snapshot: Snapshot, reference: str) -> dict[tuple[str, int], Artifact | None]:
    """The version that a reference means; None for a damaged one, which only its number can name."""
    wanted = parse_reference(reference)
    if wanted.by == "number" and (wanted.kind, int(wanted.name)) in snapshot.damaged:
        return {(wanted.kind, int(wanted.name)): None}
    number = store.number_of(reference)
    found = [artifact for artifact in snapshot.artifacts(wanted.kind) if artifact.number == number]
    if not found:
        raise ArtifactError(
            f"{reference} is damaged", f"Remove it by its number: dcclctl artifacts rm {wanted.kind}@{number}"
        )
    return {(wanted.kind, number): found[0]}


def _last_copy(snapshot: Snapshot, artifact: Artifact, chosen: dict[tuple[str, int], Artifact | None]) -> bool:
    """Will no other whole version with its id be left?"""
    same = [other for other in snapshot.artifacts(artifact.kind) if other.id == artifact.id]
    return all((other.kind, other.number) in chosen or other.verify() for other in same)


def _add_users(snapshot: Snapshot, chosen: dict[tuple[str, int], Artifact | None], force: bool) -> None:
    """Add what was made from the chosen ones, or refuse."""
    waiting = [artifact for artifact in chosen.values() if artifact is not None]
    standing: defaultdict[str, list[str]] = defaultdict(list)
    while waiting:
        artifact = waiting.pop()
        if not _last_copy(snapshot, artifact, chosen):
            continue
        for user in snapshot.used_by[artifact.id]:
            if (user.kind, user.number) not in chosen:
                standing[artifact.ref].append(user.ref)
                if force:
                    chosen[user.kind, user.number] = user
                    waiting.append(user)
    if standing and not force:
        below, users = next(iter(standing.items()))
        raise UsageError(
            f"{', '.join(sorted(set(users)))} stand on {below}",
            f"Remove them first, or with it: dcclctl artifacts rm {below} --force",
        )
