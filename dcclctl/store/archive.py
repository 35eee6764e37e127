"""Artifacts as one file, for a colleague or a CI cache: a plain tar archive of what is inside their hashes.

Equal artifacts give equal bytes: what stands outside the hash (run.json, metrics.jsonl) stays behind. An archive is input:
it is read as a stream, one header at a time, and nothing in it decides where a byte is written. Every file is named by a
manifest whose SHA-256 is the artifact's id, and is compared with it before the artifact is committed.
"""

import hashlib
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from dcclctl.compute import Phase
from dcclctl.errors import ArtifactError, DataError, UsageError
from dcclctl.store.artifact import Artifact
from dcclctl.store.canonical import canonical
from dcclctl.store.disk import open_inside, whole_file
from dcclctl.store.manifest import KINDS, MANIFEST, MAX_BYTES, read_manifest
from dcclctl.store.references import is_alias
from dcclctl.store.snapshot import Snapshot
from dcclctl.store.store import Store

INDEX = "index.json"
#: version of the archive's layout
ARCHIVE_FORMAT = 1
_BLOCK, _CHUNK, _INDEX_BYTES = tarfile.BLOCKSIZE, 2**20, 16 * 2**20


@dataclass(frozen=True)
class Imported:
    """What `import_archive` did.

    Attributes:
        new: artifacts that were added. present: those that the store had already. names: aliases that were given.
        names_taken: aliases that mean something else in this store and were left as they are.
    """

    new: list[Artifact]
    present: list[Artifact]
    names: list[str]
    names_taken: list[str]


def export_archive(store: Store, references: list[str], path: Path) -> list[Artifact]:
    """Write artifacts and everything that they were made from into one file.

    Args:
        references: as for `Store.resolve`. path: of the file; an existing one is replaced, whole or not at all.

    Returns:
        The artifacts in the file, each after its inputs.

    Raises:
        UsageError: no such artifact, or the file cannot be written.
        ArtifactError: one of them, or something that they need, is damaged or gone.
    """
    chosen = [store.resolve(reference) for reference in references]
    snapshot = Snapshot(store)
    found = list(snapshot.below(chosen).values())
    for artifact in found:
        for role, given in artifact.inputs.items():
            if given.kind != "raw":
                artifact.input(role)
    index = {
        "format": ARCHIVE_FORMAT,
        "artifacts": [{"kind": artifact.kind, "id": artifact.id} for artifact in found],
        "names": {f"{artifact.kind}@{name}": artifact.id for artifact in found for name in snapshot.aliases(artifact)},
    }
    try:
        phase = Phase(store.on_progress, "export", sum(artifact.size_bytes for artifact in found) / 1e6, "MB")
        with whole_file(path) as out:
            _add(out, INDEX, canonical(index, "index"))
            for artifact in found:
                inside = f"{artifact.kind}/{artifact.id}"
                _add(out, f"{inside}/{MANIFEST}", artifact.disk.read(artifact.path / MANIFEST, MAX_BYTES))
                for name in sorted(artifact.manifest["files"]):
                    _add(out, f"{inside}/{name}", artifact.read(name))
                    phase.add(artifact.manifest["files"][name]["bytes"] / 1e6, artifact.ref)
            out.write(bytes(2 * _BLOCK))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", "Choose another file with -o FILE.") from error
    return found


def _add(out: IO[bytes], name: str, data: bytes) -> None:
    """One file of the archive; nothing of the machine, the clock or the user is in its header."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o444
    out.write(info.tobuf(tarfile.USTAR_FORMAT))
    out.write(data)
    out.write(bytes(-len(data) % _BLOCK))


def import_archive(store: Store, path: Path) -> Imported:
    """Add the artifacts of a file to the store; each is checked whole before it is committed.

    An artifact that the store already has is left alone, a damaged one is mended: the whole copy gets a new number. A name
    is given where it is free.

    Raises:
        UsageError: there is no such file.
        DataError: it is not such an archive, or is damaged, cut, or not what it says.
    """
    try:
        file = open_inside(path.absolute().parent, path.name)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", "Give a file that artifacts export wrote.") from error
    with file:
        return _Reader(store, path, file).run()


class _Reader:
    """Reads one archive.

    Args:
        store: where the artifacts go. path: of the archive, for errors. file: open on it.
    """

    def __init__(self, store: Store, path: Path, file: BufferedReader) -> None:
        self._store, self._path, self._file = store, path, file
        self._phase = Phase(store.on_progress, "import", path.stat().st_size / 1e6, "MB")

    def run(self) -> Imported:
        index = self._index()
        done = Imported([], [], [], [])
        for kind, id in index["artifacts"]:
            self._artifact(kind, id, done)
        if any(self._exactly(2 * _BLOCK)) or self._file.read(1):
            raise self._bad("holds more than its index says")
        by_id = {artifact.id: artifact for artifact in done.new + done.present}
        for name, id in index["names"].items():
            kind, _, alias = name.partition("@")
            taken = [other for other, names in self._store.names(kind).items() if alias in names]
            if taken not in ([], [id]):
                done.names_taken.append(name)
            elif not taken:
                self._store.tag(by_id[id], alias)
                done.names.append(name)
        return done

    def _bad(self, problem: str) -> DataError:
        return DataError(f"{self._path} {problem}", "Export it again: dcclctl artifacts export REF -o FILE")

    def _exactly(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) != size:
            raise self._bad("is cut")
        self._phase.add(size / 1e6)
        return data

    def _header(self, name: str, limit: int) -> int:
        """Size of the next file, which must have this name and be a plain file of at most `limit` bytes."""
        block = self._exactly(_BLOCK)
        try:
            info = tarfile.TarInfo.frombuf(block, "ascii", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise self._bad(f"is no archive of artifacts: {error}") from error
        if info.type != tarfile.REGTYPE or info.name != name:
            raise self._bad(f"holds {info.name!r:.120} where {name} should be")
        if not 0 <= info.size <= limit:
            raise self._bad(f"says that {name} has {info.size} bytes")
        return info.size

    def _whole(self, name: str, limit: int) -> bytes:
        size = self._header(name, limit)
        data = self._exactly(size)
        self._exactly(-size % _BLOCK)
        return data

    def _chunks(self, size: int) -> Iterator[bytes]:
        left = size
        while left:
            chunk = self._exactly(min(left, _CHUNK))
            left -= len(chunk)
            yield chunk
        self._exactly(-size % _BLOCK)

    def _index(self) -> dict[str, Any]:
        try:
            index = json.loads(self._whole(INDEX, _INDEX_BYTES))
            if index["format"] != ARCHIVE_FORMAT:
                raise self._bad(f"has format {index['format']!r:.20}, and this dcclctl reads {ARCHIVE_FORMAT}")
            artifacts = [(str(each["kind"]), str(each["id"])) for each in index["artifacts"]]
            names = {str(name): str(id) for name, id in dict(index["names"]).items()}
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise self._bad(f"has an index that cannot be read: {error}") from error
        ids = {id for _, id in artifacts}
        known = all(kind in KINDS and len(id) == 64 and not set(id) - set("0123456789abcdef") for kind, id in artifacts)
        right = all(
            name.partition("@")[0] in KINDS and is_alias(name.partition("@")[2]) and id in ids
            for name, id in names.items()
        )
        if not (known and right and len(ids) == len(artifacts)):
            raise self._bad("has an index with unknown kinds, ids or names")
        return {"artifacts": artifacts, "names": names}

    def _artifact(self, kind: str, id: str, done: Imported) -> None:
        """Read one artifact; commit it unless the store has it whole."""
        name = f"{kind}@{id[:12]}"
        data = self._whole(f"{kind}/{id}/{MANIFEST}", MAX_BYTES)
        if hashlib.sha256(data).hexdigest() != id:
            raise self._bad(f"holds a manifest of {name} that does not have this id")
        try:
            manifest = read_manifest(data, kind, name)
        except ArtifactError as error:
            raise self._bad(f"holds what is no artifact: {error.what}") from error
        for given in manifest["inputs"].values():
            if given["kind"] != "raw":
                try:
                    self._store.find(given["kind"], given["id"])
                except ArtifactError as error:
                    raise self._bad(f"lacks {given['kind']} {given['id'][:12]}, which {name} stands on") from error
        with self._store.adding(kind, id) as incoming:
            for file, listed in sorted(manifest["files"].items()):
                if self._header(f"{kind}/{id}/{file}", listed["bytes"]) != listed["bytes"]:
                    raise self._bad(f"holds {file} of {name} with another size than its manifest says")
                digest = hashlib.sha256()
                with incoming.new_file(file, listed["bytes"]) as out:
                    for chunk in self._chunks(listed["bytes"]):
                        digest.update(chunk)
                        out.write(chunk)
                    # before the file has its name
                    if digest.hexdigest() != listed["sha256"]:
                        raise self._bad(f"holds {file} of {name} with another SHA-256 than its manifest says")
            if incoming.there is None:
                done.new.append(incoming.commit(data, {"imported": datetime.now(UTC).isoformat(timespec="seconds")}))
            else:
                done.present.append(incoming.there)
