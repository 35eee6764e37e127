"""A store as it was at one moment, every manifest and name read once: what stands on what, and what is damaged."""

from collections import defaultdict
from dataclasses import replace

from dcclctl.errors import ArtifactError
from dcclctl.store.artifact import RUN, Artifact
from dcclctl.store.manifest import KINDS, MANIFEST, MANIFEST_HASH
from dcclctl.store.store import Store


class Snapshot:
    """All versions of a store, read once.

    Attributes:
        whole: versions whose manifest is whole, by kind and number. damaged: (kind, number) → why it cannot be loaded.
        names: (kind, id) → its aliases, sorted. used_by: id → the versions that were made from it.
    """

    def __init__(self, store: Store) -> None:
        self.on_progress = store.on_progress
        self.whole: list[Artifact] = []
        self.damaged: dict[tuple[str, int], ArtifactError] = {}
        self.used_by: defaultdict[str, list[Artifact]] = defaultdict(list)
        self.names = {(kind, id): names for kind in KINDS for id, names in store.names(kind).items()}
        for kind in KINDS:
            numbers = store.numbers(kind)
            files = (MANIFEST, MANIFEST_HASH, RUN)
            store.disk.read_ahead([store.folder(kind, number) / name for number in numbers for name in files])
            for number in numbers:
                try:
                    self.whole.append(replace(store.load(kind, number), home=self))
                except ArtifactError as error:
                    self.damaged[kind, number] = error
        #: (kind, id) → its newest version
        self._newest = {(artifact.kind, artifact.id): artifact for artifact in self.whole}
        for artifact in self.whole:
            for id in sorted({given.id for given in artifact.inputs.values() if given.kind != "raw"}):
                self.used_by[id].append(artifact)

    @property
    def ids(self) -> set[tuple[str, str]]:
        """(kind, id) of everything that can be found."""
        return set(self._newest)

    def find(self, kind: str, id: str) -> Artifact:
        """The newest version with this full id.

        Raises:
            ArtifactError: gone, or damaged.
        """
        if (kind, id) not in self._newest:
            raise ArtifactError(
                f"the {kind} with the id {id[:12]}… is not in the store", f"Make it again: {KINDS[kind]}"
            )
        return self._newest[kind, id]

    def artifacts(self, kind: str | None = None) -> list[Artifact]:
        """All whole versions of a kind, or of all kinds."""
        return [artifact for artifact in self.whole if kind in (None, artifact.kind)]

    def aliases(self, artifact: Artifact) -> list[str]:
        """Sorted aliases of an artifact."""
        return self.names.get((artifact.kind, artifact.id), [])

    def is_newest(self, artifact: Artifact) -> bool:
        """Is it the version that a reference by id or name means?"""
        return self._newest[artifact.kind, artifact.id].number == artifact.number

    def below(self, artifacts: list[Artifact]) -> dict[str, Artifact]:
        """The artifacts and everything in the store that they were made from: id → newest version, inputs first."""
        found: dict[str, Artifact] = {}
        waiting = [(artifact, False) for artifact in reversed(artifacts)]
        while waiting:  # a loop, because a lineage may be deeper than Python's calls may be nested
            artifact, inputs_done = waiting.pop()
            if artifact.id in found:
                continue
            if inputs_done:
                found[artifact.id] = self.find(artifact.kind, artifact.id)
                continue
            waiting.append((artifact, True))
            for _, given in sorted(artifact.inputs.items()):
                if (given.kind, given.id) in self._newest and given.id not in found:
                    waiting.append((self._newest[given.kind, given.id], False))
        return found
