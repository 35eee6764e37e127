"""The store: committed artifacts in a folder or a bucket. Artifacts are made only here.

Layout: `STORE/<kind>/v/000007/` committed, `STORE/<kind>/work/<key>/` in the making, `STORE/<kind>/refs/<alias>`.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dcclctl.compute import OnProgress, no_progress
from dcclctl.errors import ArtifactError, UsageError, closest
from dcclctl.store.artifact import Artifact, damaged
from dcclctl.store.bucket import Bucket, Disk, is_url
from dcclctl.store.disk import NUMBER_DIGITS, LocalDisk
from dcclctl.store.leases import Leases
from dcclctl.store.manifest import (
    KINDS,
    MANIFEST,
    MANIFEST_HASH,
    MAX_BYTES,
    Input,
    inputs_document,
    read_manifest,
    work_key,
)
from dcclctl.store.references import check_alias, is_alias, parse_reference
from dcclctl.store.work import Incoming, Work

__all__ = ["Artifact", "Input", "NotMade", "Step", "Store", "Work"]


@dataclass(frozen=True)
class Step:
    """An artifact that a planned command needs.

    Attributes:
        stage, kind, config: of the artifact. amount: of work, in the stage's own unit.
        found: the artifact, if the store has it; None: it is to be made.
    """

    stage: str
    kind: str
    config: dict[str, Any]
    amount: float
    found: Artifact | None = None


class NotMade(Exception):
    """A plan has come to an artifact that is not there, so that nothing can be computed from it."""


#: The largest file that holds an id or a name.
_SMALL = 4096


def _head(stage: str, kind: str, config: dict[str, Any], seed: int, inputs: dict[str, Input]) -> dict[str, Any]:
    """The fields of a manifest that are known before the work."""
    return {"stage": stage, "kind": kind, "config": config, "seed": seed, "inputs": inputs_document(inputs)}


class Store:
    """A folder or a bucket of artifacts.

    Args:
        root: the folder, which the first `begin` creates, or s3://BUCKET/PREFIX. disk: the file system; None: what root names.
        remark: called with one line when the store waits for another process or replaces a damaged artifact.
        leases: keep other processes from deleting what this object uses, which writes a small file.
        on_progress: of what the store itself does, and of opening what is in it; see compute.OnProgress.
    """

    def __init__(
        self,
        root: Path | str,
        disk: Disk | None = None,
        remark: Callable[[str], None] = lambda line: None,
        leases: bool = True,
        on_progress: OnProgress = no_progress,
    ) -> None:
        self.on_progress = on_progress
        #: where it is
        self.disk: Disk = disk or LocalDisk()
        #: the folder; of a store in a bucket, what stands for it in paths
        self.root = Path(root)
        if disk is None and is_url(root):
            self.disk = Bucket(root, on_progress)
            self.root = self.disk.root
        self._remark = remark
        self._plan: list[Step] | None = None
        self._on_record: Callable[[dict[str, Any]], None] | None = None
        #: references of what was committed through this object
        self.committed: list[str] = []
        #: what this object keeps other processes from deleting
        self.leases = Leases(self.root, self.disk, leases)

    @property
    def name(self) -> str:
        """The store as people are told of it."""
        return self.disk.shown(self.root)

    @property
    def address(self) -> str:
        """What opens this store in another process, wherever that works."""
        return str(self.root.absolute()) if self.disk.is_local else self.name

    def exists(self) -> bool:
        """Is there a store already?

        Raises:
            ArtifactError: the path cannot be used, e.g. a link that leads to itself.
        """
        return self.disk.is_folder(self.root)

    # -- finding

    def resolve(self, reference: str, kind: str | None = None) -> Artifact:
        """The artifact with this reference.

        Args:
            reference: 'cloud@7', 'cloud@3fa9c2d1', 'cloud@latest', 'cloud@my-alias', or 'cloud' for the newest.
            kind: the required kind; None accepts any.

        Raises:
            UsageError: not a reference, another kind, or no such artifact; the message says which ones there are.
            ArtifactError: the artifact is damaged.
        """
        wanted = parse_reference(reference)
        if kind is not None and wanted.kind != kind:
            raise UsageError(f"{reference} is of kind {wanted.kind}, but {kind} is needed here", self._choices(kind))
        return self._in_use(self.load(wanted.kind, self.number_of(reference)))

    def number_of(self, reference: str) -> int:
        """The number of the version that a reference means, which may be damaged.

        Raises:
            UsageError: not a reference, or no such artifact; the message says which ones there are.
        """
        wanted = parse_reference(reference)
        if wanted.by == "latest":
            return self._latest_number(wanted.kind)
        if wanted.by == "number":
            if int(wanted.name) in self.numbers(wanted.kind):
                return int(wanted.name)
        elif wanted.by == "alias":
            if wanted.name in self.alias_names(wanted.kind):
                return self._number_with(wanted.kind, self._alias_target(wanted.kind, wanted.name))
        else:
            found = {id: number for number, id in self._ids(wanted.kind) if id.startswith(wanted.name)}
            if len(found) > 1:
                which = ", ".join(f"{wanted.kind}@{number} ({id[:12]})" for id, number in found.items())
                raise UsageError(f"{reference} could be {which}", "Type more digits, or the number.")
            if found:
                return next(iter(found.values()))
        seeds = self.group(wanted.kind, wanted.name) if wanted.by == "alias" else []
        if seeds:
            raise UsageError(
                f"{reference} is a group of {len(seeds)} seeds, and one artifact is needed here",
                f"Name one, e.g. {reference}-{seeds[0]}; or add --seeds where the command has it.",
            )
        meant = closest(wanted.name, [*self.alias_names(wanted.kind), "latest"]) if wanted.by == "alias" else None
        hint = f"Did you mean {wanted.kind}@{meant}? " if meant else ""
        raise UsageError(f"there is no {reference} in the store {self.name}", hint + self._choices(wanted.kind))

    def latest(self, kind: str) -> Artifact:
        """The artifact with the highest number.

        Raises:
            UsageError: there is none yet; the remedy is the command that makes one.
            ArtifactError: it is damaged; an older one is never returned instead.
        """
        return self._in_use(self.load(kind, self._latest_number(kind)))

    def _latest_number(self, kind: str) -> int:
        numbers = self.numbers(kind)
        if not numbers:
            raise UsageError(
                f"there is no {kind} in the store {self.name} yet",
                f"Run first: {KINDS[kind]}   (or name another store with --store DIR)",
            )
        return numbers[-1]

    def find(self, kind: str, id: str) -> Artifact:
        """The newest version with this full id.

        Raises:
            ArtifactError: gone, or damaged.
        """
        return self._in_use(self.load(kind, self._number_with(kind, id)))

    def _number_with(self, kind: str, id: str) -> int:
        numbers = [number for number, found in self._ids(kind) if found == id]
        if not numbers:
            raise ArtifactError(
                f"the {kind} with the id {id[:12]}… is not in the store {self.name}",
                f"See what is damaged with 'dcclctl artifacts verify', or make it again: {KINDS[kind]}",
            )
        return numbers[-1]

    def _in_use(self, artifact: Artifact) -> Artifact:
        """The artifact, which from now on is not deleted while this store object lives."""
        if not self._leased(artifact):
            raise ArtifactError(f"{artifact.ref} has just been deleted by another command", "Name another one.")
        return artifact

    def _leased(self, artifact: Artifact) -> bool:
        return self.leases.add(artifact.id, lambda: self.disk.exists(artifact.path / MANIFEST))

    def artifacts(self, kind: str | None = None) -> list[Artifact]:
        """All artifacts of a kind, or of all kinds if None, oldest first.

        Raises:
            ArtifactError: a manifest is damaged.
        """
        kinds = list(KINDS) if kind is None else [kind]
        return [self.load(each, number) for each in kinds for number in self.numbers(each)]

    def numbers(self, kind: str) -> list[int]:
        """Version numbers of a kind, ascending, including those of damaged artifacts."""
        return self.disk.numbers(self._versions(kind))

    def folder(self, kind: str, number: int) -> Path:
        """The folder of a version, which need not exist."""
        return self._versions(kind) / f"{number:0{NUMBER_DIGITS}d}"

    def load(self, kind: str, number: int) -> Artifact:
        """One version, after checking its manifest against the recorded hash.

        Raises:
            ArtifactError: the manifest is missing, damaged, or of a format that this program does not read.
        """
        path = self.folder(kind, number)
        try:
            data = self.disk.read(path / MANIFEST, MAX_BYTES)
            id = self._recorded_id(kind, number)
        except FileNotFoundError as error:
            if not self.disk.exists(path):
                raise ArtifactError(f"{kind}@{number} is not in the store {self.name}", self._choices(kind)) from error
            raise damaged(kind, number, f"{Path(error.filename).name} is missing", self.disk.shown(path)) from error
        except ArtifactError as error:
            raise damaged(kind, number, error.what, self.disk.shown(path)) from error
        if hashlib.sha256(data).hexdigest() != id:
            problem = f"{MANIFEST} does not have the SHA-256 in {MANIFEST_HASH}"
            raise damaged(kind, number, problem, self.disk.shown(path))
        return Artifact(kind, number, path, id, read_manifest(data, kind, f"{kind}@{number}"), self, disk=self.disk)

    def verify(self, kind: str, number: int) -> dict[str, str]:
        """Damaged file of one version → what is wrong with it; {} if the version is whole. Reads every byte."""
        try:
            return self.load(kind, number).verify()
        except ArtifactError as error:
            return {MANIFEST: f"cannot be trusted: {error.what}"}

    def remake(self, kind: str, number: int) -> str:
        """The command that makes a version again: as its manifest says, or the kind's where the manifest is damaged."""
        try:
            return self.load(kind, number).command
        except ArtifactError:
            return KINDS[kind]

    def _recorded_id(self, kind: str, number: int) -> str:
        path = self.folder(kind, number)
        text = self.disk.read(path / MANIFEST_HASH, _SMALL).decode("ascii", "replace")
        id, name = text[:64], text[64:]
        if name != f"  {MANIFEST}\n":
            raise damaged(kind, number, f"{MANIFEST_HASH} is not a hash of {MANIFEST}", self.disk.shown(path))
        return id

    def _ids(self, kind: str) -> Iterator[tuple[int, str]]:
        """(number, recorded id) of every version, ascending."""
        numbers = self.numbers(kind)
        self.disk.read_ahead([self.folder(kind, number) / MANIFEST_HASH for number in numbers])
        for number in numbers:
            try:
                yield number, self._recorded_id(kind, number)
            except (FileNotFoundError, ArtifactError):
                continue

    # -- aliases

    def tag(self, artifact: Artifact, alias: str) -> str:
        """Give an artifact an alias; an existing alias moves to it.

        Returns:
            The reference of the other artifact that had the alias before, e.g. 'cloud@3'; '' if none had it.

        Raises:
            UsageError: the alias looks like a number, an id or 'latest', or has other characters than an alias may have.
        """
        check_alias(alias)
        if self._plan is not None:
            return ""
        before = ""
        with suppress(FileNotFoundError, ArtifactError):
            if (target := self._alias_target(artifact.kind, alias)) != artifact.id:
                before = f"{artifact.kind}@{self._number_with(artifact.kind, target)}"
        self.disk.put(self._refs(artifact.kind) / alias, f"{artifact.id}\n".encode())
        return before

    def aliases(self, artifact: Artifact) -> list[str]:
        """Sorted aliases of an artifact."""
        return self.names(artifact.kind).get(artifact.id, [])

    def names(self, kind: str) -> dict[str, list[str]]:
        """Id → its sorted aliases. A file that holds no id is left out."""
        found: dict[str, list[str]] = {}
        for name in self.alias_names(kind):
            with suppress(FileNotFoundError, ArtifactError):
                found.setdefault(self._alias_target(kind, name), []).append(name)
        return found

    def untag(self, kind: str, alias: str) -> None:
        """Delete an alias."""
        self.disk.delete(self._refs(kind) / alias)

    def group(self, kind: str, name: str) -> list[int]:
        """Seeds of the trainings that are named together: [0, 1] where there are the aliases NAME-0 and NAME-1."""
        ends = [alias.removeprefix(f"{name}-") for alias in self.alias_names(kind) if alias.startswith(f"{name}-")]
        return sorted(int(end) for end in ends if end.isdecimal() and end == str(int(end)))

    def alias_names(self, kind: str) -> list[str]:
        """Aliases of all artifacts of a kind."""
        return [name for name in self.disk.names(self._refs(kind)) if is_alias(name)]

    def _alias_target(self, kind: str, alias: str) -> str:
        return self.disk.read(self._refs(kind) / alias, _SMALL).decode("ascii", "replace").strip()

    # -- making

    @contextmanager
    def plan(self) -> Iterator[list[Step]]:
        """Plan the commands of the body: nothing is made, written or waited for.

        Yields:
            The artifacts that they need, in order; filled while the body runs. The body ends where it needs an artifact
            that is not there.
        """
        steps: list[Step] = []
        self._plan = steps
        try:
            with suppress(NotMade):
                yield steps
        finally:
            self._plan = None

    def plan_also(self, step: Step) -> None:
        """Add what is made from an artifact that is not there; only while `plan` runs."""
        if self._plan is not None:
            self._plan.append(step)

    @contextmanager
    def begin(
        self,
        stage: str,
        kind: str,
        config: dict[str, Any],
        seed: int,
        inputs: dict[str, Input],
        force: bool = False,
        amount: float = 0,
    ) -> Iterator[Work]:
        """Make one artifact, or find it if it exists. Of two equal calls at the same time, one computes and both get it.

        If the body fails or the process is killed, finished files stay and the next equal call continues with them.

        Args:
            stage: name of the stage, e.g. 'train'. kind: kind of the artifact.
            config: resolved configuration with all defaults; no paths, because they would change the id.
            seed: seed of every random draw.
            inputs: role ('dataset', 'cloud', 'log:events.csv') → what it is made from.
            force: compute even if it exists, and delete what a killed run has left.
            amount: of work, in any unit of the stage's own; later plans compare with it.

        Yields:
            The work; if `reused` is set, the body returns that artifact and writes nothing.

        Raises:
            NotMade: the store plans, and the artifact is not there.
        """
        head = _head(stage, kind, config, seed, inputs)
        key = work_key(head)
        folder = self.root / kind / "work" / key
        if self._plan is not None:
            found = None if force else self._committed(kind, key)
            self._plan.append(Step(stage, kind, config, amount, found))
            if found is None:
                raise NotMade(f"{stage} is to be done")
            yield Work(self, folder, head, key, replace(found, reused=True))
            return
        self.disk.scratch.make_folder(folder.parent)
        self.disk.make_folder(self._versions(kind))

        def waiting() -> None:
            self._remark(f"another process is making the same {kind}: waiting for it")

        with self.disk.lock(folder.with_name(f"{key}.lock"), waiting):
            found = None if force else self._committed(kind, key)
            work = Work(self, folder, head, key, found and replace(found, reused=True))
            if force or work.reused:
                work.clear()
            if not work.reused:
                work.open()
                work.note_run(amount=amount)
            work.listener = self._on_record
            if self._on_record is not None:
                for figures in work.recorded():
                    self._on_record(figures)
            yield work

    def key_of(self, stage: str, kind: str, config: dict[str, Any], seed: int, inputs: dict[str, Input]) -> str:
        """The key of a work, see `begin`."""
        return work_key(_head(stage, kind, config, seed, inputs))

    def made(self, kind: str, key: str) -> Artifact:
        """The artifact with this key.

        Raises:
            ArtifactError: there is none.
        """
        found = self._committed(kind, key)
        if found is None:
            raise ArtifactError(f"the {kind} that another process was to make is not there", "Run the command again.")
        return found

    def join(self, kind: str, key: str) -> Work:
        """The work of another process that makes an artifact and lets this one write some of its files."""
        return Work(self, self.root / kind / "work" / key, {"kind": kind}, key, None)

    @contextmanager
    def listening(self, on_record: Callable[[dict[str, Any]], None] | None) -> Iterator[None]:
        """Call a function with every line of figures that works record meanwhile; it may raise, to stop the work.

        Lines that a stopped run or a reused artifact has already recorded come first, so that the same work says the same
        however often it was stopped.
        """
        before, self._on_record = self._on_record, on_record
        try:
            yield
        finally:
            self._on_record = before

    def _committed(self, kind: str, key: str) -> Artifact | None:
        """The newest undamaged artifact with this key; a damaged one is made again under a new number."""
        for number in reversed(self.numbers(kind)):
            try:
                artifact = self.load(kind, number)
            except ArtifactError:
                continue
            if key != work_key(artifact.manifest):
                continue
            if not self._leased(artifact):
                continue
            problems = artifact.verify(every_byte=self.disk.is_local)
            if not problems:
                if self._plan is None:
                    # The process that made it may have died before it reached the disk.
                    self.disk.sync(self._versions(kind))
                return artifact
            name, problem = next(iter(problems.items()))
            self._remark(f"{artifact.ref} is damaged ({name} {problem}): making it again")
        return None

    @contextmanager
    def adding(self, kind: str, id: str, again: bool = False) -> Iterator[Incoming]:
        """Take in an artifact that is made already, e.g. from an archive; what is not committed in the body is removed.

        Args:
            kind: one of KINDS. id: full id, which the caller has checked. again: also if it is there already, under a new number.
        """
        folder = self.root / kind / "work" / f"import-{id}"
        scratch = self.disk.scratch
        scratch.make_folder(folder.parent)
        self.disk.make_folder(self._versions(kind))
        with self.disk.lock(folder.with_name(f"{folder.name}.lock"), lambda: None):
            there = None
            with suppress(ArtifactError):
                found = None if again else self.find(kind, id)
                there = None if found is None or found.verify(every_byte=self.disk.is_local) else found
            scratch.remove(folder)
            if there is None:
                scratch.make_folder(folder)
            try:
                yield Incoming(self, folder, there)
            finally:
                scratch.remove(folder)

    # -- deleting, see hygiene.py

    def trash(self, kind: str, number: int) -> Path:
        """Take a version out of the store in one step, and return what is to be deleted; its number is never given again."""
        return self.disk.discard(self.folder(kind, number))

    def in_trash(self, used: set[str]) -> list[Path]:
        """What killed deletions left, and in a bucket killed commits.

        Args:
            used: ids that running processes use or make, see `leases.in_use`.
        """
        return self.disk.remains(self.root, used)

    def empty_trash(self, folders: list[Path]) -> None:
        """Delete folders of the trash; one that another process deletes at the same time is no error."""
        for folder in folders:
            self.disk.remove(folder)
        for place in {folder.parent for folder in folders}:
            self.disk.sync(place)  # else a power failure brings it back

    def dead_work(self, remove: bool) -> tuple[list[Path], int]:
        """Folders and files that dead runs left, and their size in bytes; deleted if `remove`."""
        found, size, scratch = [], 0, self.disk.scratch
        for kind in KINDS:
            work = self.root / kind / "work"
            names = scratch.names(work)
            for key in sorted({name.partition(".")[0] for name in names}):
                held = self.disk.try_lock(work / f"{key}.lock")
                if held is None:
                    continue
                with held:
                    left = [work / name for name in names if name in (key, f"{key}.state")]
                    found += left
                    size += sum(sum(scratch.sizes(path).values()) for path in left)
                    for path in reversed(left) if remove else ():
                        scratch.remove(path)
            if remove and any(path.parent == work for path in found):
                scratch.sync(work)
        return found, size

    def size_of(self, folder: Path) -> int:
        """Bytes of all files below a folder."""
        return sum(self.disk.sizes(folder).values())

    # -- places and hints

    def _versions(self, kind: str) -> Path:
        return self.root / kind / "v"

    def _refs(self, kind: str) -> Path:
        return self.root / kind / "refs"

    def _choices(self, kind: str) -> str:
        numbers = self.numbers(kind)
        if not numbers:
            return f"None of this kind is there yet; run first: {KINDS[kind]}"
        shown = ", ".join(f"{kind}@{number}" for number in numbers[-5:])
        aliases = "".join(f", {kind}@{name}" for name in self.alias_names(kind))
        return f"Type one of: {'… ' if len(numbers) > 5 else ''}{shown}{aliases}"
