"""The store: a directory of committed artifacts. Artifacts are made only here.

Layout: `STORE/<kind>/v/000007/` committed, `STORE/<kind>/work/<key>/` in the making, `STORE/<kind>/refs/<alias>`.
"""

import difflib
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dcclctl.errors import ArtifactError, UsageError
from dcclctl.store.artifact import MANIFEST, MANIFEST_HASH, Artifact, damaged
from dcclctl.store.disk import LocalDisk
from dcclctl.store.manifest import KINDS, Input, inputs_document, read_manifest, work_key
from dcclctl.store.references import NUMBER_DIGITS, check_alias, parse_reference
from dcclctl.store.work import Work

__all__ = ["Artifact", "Input", "Store", "Work"]


class Store:
    """A directory of artifacts.

    Args:
        root: the directory; it is created by the first `begin`. disk: the file system.
        remark: called with one line when the store waits for another process or replaces a damaged artifact.
    """

    def __init__(
        self, root: Path | str, disk: LocalDisk | None = None, remark: Callable[[str], None] = lambda line: None
    ) -> None:
        self.root = Path(root)
        self._disk = disk or LocalDisk()
        self._remark = remark
        self._on_record: Callable[[dict[str, Any]], None] | None = None

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
        if wanted.by == "latest":
            return self.latest(wanted.kind)
        if wanted.by == "number":
            if int(wanted.name) in self.numbers(wanted.kind):
                return self.load(wanted.kind, int(wanted.name))
        elif wanted.by == "alias":
            if wanted.name in self._alias_names(wanted.kind):
                return self.find(wanted.kind, self._alias_target(wanted.kind, wanted.name))
        else:
            found = {id: number for number, id in self._ids(wanted.kind) if id.startswith(wanted.name)}
            if len(found) > 1:
                which = ", ".join(f"{wanted.kind}@{number} ({id[:12]})" for id, number in found.items())
                raise UsageError(f"{reference} could be {which}", "Type more digits, or the number.")
            if found:
                return self.load(wanted.kind, *found.values())
        seeds = self.group(wanted.kind, wanted.name) if wanted.by == "alias" else []
        if seeds:
            raise UsageError(
                f"{reference} is a group of {len(seeds)} seeds, and one artifact is needed here",
                f"Name one, e.g. {reference}-{seeds[0]}; or add --seeds where the command has it.",
            )
        near = difflib.get_close_matches(wanted.name, [*self._alias_names(wanted.kind), "latest"], n=1)
        hint = f"Did you mean {wanted.kind}@{near[0]}? " if near and wanted.by == "alias" else ""
        raise UsageError(f"there is no {reference} in the store {self.root}", hint + self._choices(wanted.kind))

    def latest(self, kind: str) -> Artifact:
        """The artifact with the highest number.

        Raises:
            UsageError: there is none yet; the remedy is the command that makes one.
            ArtifactError: it is damaged; an older one is never returned instead.
        """
        numbers = self.numbers(kind)
        if not numbers:
            raise UsageError(
                f"there is no {kind} in the store {self.root} yet",
                f"Run first: {KINDS[kind]}   (or name another store with --store DIR)",
            )
        return self.load(kind, numbers[-1])

    def find(self, kind: str, id: str) -> Artifact:
        """The newest version with this full id.

        Raises:
            ArtifactError: gone, or damaged.
        """
        numbers = [number for number, found in self._ids(kind) if found == id]
        if not numbers:
            raise ArtifactError(
                f"the {kind} with the id {id[:12]}… is not in the store {self.root}",
                f"See what is damaged with 'dcclctl artifacts verify', or make it again: {KINDS[kind]}",
            )
        return self.load(kind, numbers[-1])

    def artifacts(self, kind: str | None = None) -> list[Artifact]:
        """All artifacts of a kind, or of all kinds if None, oldest first.

        Raises:
            ArtifactError: a manifest is damaged.
        """
        kinds = list(KINDS) if kind is None else [kind]
        return [self.load(each, number) for each in kinds for number in self.numbers(each)]

    def numbers(self, kind: str) -> list[int]:
        """Version numbers of a kind, ascending, including those of damaged artifacts."""
        names = self._disk.names(self._versions(kind))
        return sorted(int(name) for name in names if name.isdigit() and len(name) == NUMBER_DIGITS)

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
            data = self._disk.read(path / MANIFEST)
            id = self._recorded_id(kind, number)
        except FileNotFoundError as error:
            raise damaged(kind, number, f"{Path(error.filename).name} is missing", path) from error
        if hashlib.sha256(data).hexdigest() != id:
            raise damaged(kind, number, f"{MANIFEST} does not have the SHA-256 in {MANIFEST_HASH}", path)
        return Artifact(kind, number, path, id, read_manifest(data, kind, f"{kind}@{number}"), self)

    def verify(self, kind: str, number: int) -> dict[str, str]:
        """Damaged file of one version → what is wrong with it; {} if the version is whole. Reads every byte."""
        try:
            return self.load(kind, number).verify()
        except ArtifactError as error:
            return {MANIFEST: f"cannot be trusted: {error.what}"}

    def _recorded_id(self, kind: str, number: int) -> str:
        return self._disk.read(self.folder(kind, number) / MANIFEST_HASH)[:64].decode("ascii", "replace")

    def _ids(self, kind: str) -> Iterator[tuple[int, str]]:
        """(number, recorded id) of every version, ascending."""
        for number in self.numbers(kind):
            try:
                yield number, self._recorded_id(kind, number)
            except FileNotFoundError:
                continue

    # -- aliases

    def tag(self, artifact: Artifact, alias: str) -> None:
        """Give an artifact an alias; an existing alias moves to it.

        Raises:
            UsageError: the alias looks like a number, an id or 'latest', or has other characters than an alias may have.
        """
        check_alias(alias)
        refs = self._refs(artifact.kind)
        self._disk.make_folder(refs)
        self._disk.write(refs / alias, f"{artifact.id}\n".encode())
        self._disk.sync(refs)

    def aliases(self, artifact: Artifact) -> list[str]:
        """Sorted aliases of an artifact."""
        kind = artifact.kind
        return [name for name in self._alias_names(kind) if self._alias_target(kind, name) == artifact.id]

    def group(self, kind: str, name: str) -> list[int]:
        """Seeds of the trainings that are named together: [0, 1] where there are the aliases NAME-0 and NAME-1."""
        ends = [alias.removeprefix(f"{name}-") for alias in self._alias_names(kind) if alias.startswith(f"{name}-")]
        return sorted(int(end) for end in ends if end.isdecimal() and end == str(int(end)))

    def _alias_names(self, kind: str) -> list[str]:
        return [name for name in self._disk.names(self._refs(kind)) if not name.startswith(".")]

    def _alias_target(self, kind: str, alias: str) -> str:
        return self._disk.read(self._refs(kind) / alias).decode("ascii", "replace").strip()

    # -- making

    @contextmanager
    def begin(
        self, stage: str, kind: str, config: dict[str, Any], seed: int, inputs: dict[str, Input], force: bool = False
    ) -> Iterator[Work]:
        """Make one artifact, or find it if it exists. Of two equal calls at the same time, one computes and both get it.

        If the body fails or the process is killed, finished files stay and the next equal call continues with them.

        Args:
            stage: name of the stage, e.g. 'train'. kind: kind of the artifact.
            config: resolved configuration with all defaults; no paths, because they would change the id.
            seed: seed of every random draw.
            inputs: role ('dataset', 'cloud', 'log:events.csv') → what it is made from.
            force: compute even if it exists, and delete what a killed run has left.

        Yields:
            The work; if `reused` is set, the body returns that artifact and writes nothing.
        """
        head = {"stage": stage, "kind": kind, "config": config, "seed": seed, "inputs": inputs_document(inputs)}
        key = work_key(head)
        folder = self.root / kind / "work" / key
        self._disk.make_folder(folder.parent)
        self._disk.make_folder(self._versions(kind))

        def waiting() -> None:
            self._remark(f"another process is making the same {kind}: waiting for it")

        with self._disk.lock(folder.with_name(f"{key}.lock"), waiting):
            found = None if force else self._committed(kind, key)
            work = Work(self, self._disk, folder, head, key, found and replace(found, reused=True))
            if force or work.reused:
                work.clear()
            if not work.reused:
                work.open()
            work.listener = self._on_record
            if self._on_record is not None:
                for figures in work.recorded():
                    self._on_record(figures)
            yield work

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
            problems = artifact.verify()
            if not problems:
                # The process that made it may have died before it reached the disk.
                self._disk.sync(self._versions(kind))
                return artifact
            name, problem = next(iter(problems.items()))
            self._remark(f"{artifact.ref} is damaged ({name} {problem}): making it again")
        return None

    # -- places and hints

    def _versions(self, kind: str) -> Path:
        return self.root / kind / "v"

    def _refs(self, kind: str) -> Path:
        return self.root / kind / "refs"

    def _choices(self, kind: str) -> str:
        numbers = self.numbers(kind)
        if not numbers:
            return f"There is no {kind} yet; run first: {KINDS[kind]}"
        shown = ", ".join(f"{kind}@{number}" for number in numbers[-5:])
        aliases = "".join(f", {kind}@{name}" for name in self._alias_names(kind))
        return f"Type one of: {'… ' if len(numbers) > 5 else ''}{shown}{aliases}"
