"""A store in a bucket of S3, or of a service that speaks its protocol: one class with the methods of `LocalDisk`.

The layout is that of a folder. What a bucket lacks is done otherwise:

- There is no rename. A number is claimed by creating `v/NNNNNN/manifest.sha256`, on the condition that it does not exist. Then
  the files are uploaded. Creating `manifest.json`, on the same condition, commits them: without it nobody sees the version.
- A version that is deleted, and one whose commit was never finished, first gets an empty `manifest.json`, which stays. It takes
  the version away in one step, makes its commit impossible, and keeps its number from being given again.
- No lock ends with its process. A lock is an object that its holder renews; one that was not renewed for `EXPIRES` seconds of
  the server's clock may be taken over. A holder that was asleep so long may find that another one makes the same artifact.
- Artifacts are made on this machine, and a file that is read is fetched to it once. The cache knows it by the artifact's id,
  so its bytes are compared with a hash at each reading like those of any file.
"""

import errno
import hashlib
import io
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dcclctl.compute import OnProgress, Phase, no_progress
from dcclctl.errors import ArtifactError, BucketError, UsageError
from dcclctl.store.disk import NUMBER_DIGITS, Held, LocalDisk, cache_folder, is_number
from dcclctl.store.manifest import MANIFEST, MANIFEST_HASH, MAX_BYTES

if TYPE_CHECKING:
    from obstore.store import S3Store

#: seconds after its last renewal at which a lock may be taken over, and between two renewals
EXPIRES, RENEWED = 60.0, 10.0
#: seconds between two looks at a lock that another machine holds, at most; and until its age is asked for
_LOOK, _PATIENCE = 0.3, 2.0
#: bytes of one request, and requests at the same time
_PART, _PARALLEL = 8 * 2**20, 4
#: small files that never change, of which many are read at a time
_SMALL, _READERS = (MANIFEST, MANIFEST_HASH, "run.json"), 16
#: the most parts that an object may have is 10,000
_MOST_PARTS = 9_000

_URL = re.compile(r"s3:/{1,2}([A-Za-z0-9][A-Za-z0-9._-]+)/*([^?#\x00-\x1f]*)")
#: where the environment says who asks; the last three are of containers and of Kubernetes
_CREDENTIALS = (
    *("AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
    *("AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_WEB_IDENTITY_TOKEN_FILE"),
)
#: where the environment names the service, the first one first
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_STATUS = re.compile(r"status code: (\d+[^:\n]*)")


def is_url(root: Path | str) -> bool:
    """Does it name a bucket? A Path has lost one of the slashes."""
    return str(root).startswith("s3:/")


class Bucket:
    """A store below one prefix of a bucket.

    Args:
        url: s3://BUCKET/PREFIX. on_progress: of uploads and downloads.

    Raises:
        UsageError: not such a URL, no credentials in the environment, or the package obstore is missing.
    """

    is_local: Final = False

    def __init__(self, url: Path | str, on_progress: OnProgress = no_progress) -> None:
        found = _URL.fullmatch(str(url))
        prefix = found[2].strip("/") if found else ""
        if not found or {".", ".."} & set(prefix.split("/")) or "//" in prefix:
            raise UsageError(f"{str(url)!r} names no bucket", "Write --store s3://BUCKET/PREFIX.")
        self._name = found[1]
        self.url = f"s3://{self._name}/{prefix}".rstrip("/")
        self._endpoint = next(filter(None, map(os.environ.get, _ENDPOINTS)), "")
        self._objects = _client(self._name, prefix, self._endpoint)
        self._on_progress = on_progress
        #: the disk on which artifacts are made
        self.scratch = LocalDisk()
        place = hashlib.sha256(f"{self._endpoint} {self.url}".encode()).hexdigest()[:12]
        here = cache_folder() / "stores" / f"{self._name}-{place}"
        #: stands for the URL in paths; what is in the making lies there
        self.root = here / "store"
        self._copies = here / "artifacts"
        self._probed = False
        #: key of one of _SMALL → the ETag that it had when it was listed or read last, and its bytes under an ETag
        self._etags: dict[str, str] = {}
        self._known: dict[str, tuple[str, bytes]] = {}
        #: what was written with `append`
        self._appended: dict[Path, bytes] = {}

    def shown(self, path: Path) -> str:
        """A place in the store as people are told of it: its URL, or its path on this machine."""
        if not path.is_relative_to(self.root) or self._is_scratch(path):
            return str(path)
        return f"{self.url}/{self._key(path)}".rstrip("/")

    def _is_scratch(self, path: Path) -> bool:
        return path.relative_to(self.root).parts[1:2] == ("work",)

    def _key(self, path: Path) -> str:
        return "" if path == self.root else path.relative_to(self.root).as_posix()

    # -- reading

    def is_folder(self, root: Path) -> bool:
        """Is there anything in the store?"""
        import obstore

        with self._asking(root, "list"):
            return bool(next(obstore.list(self._objects, self._key(root) or None, chunk_size=1), []))

    def is_writable(self, root: Path) -> bool:
        """May this process write into the store? Makes sure that the bucket can do what a store needs."""
        try:
            self._probe()
        except _Denied:
            return False
        return True

    def numbers(self, versions: Path) -> list[int]:
        """Numbers of the committed versions, ascending."""
        return [number for number, committed in self._given(versions).items() if committed]

    def _given(self, versions: Path) -> dict[int, bool]:
        """Every number that was given, ascending → whether its version is committed, and not deleted."""
        found: dict[int, bool] = {}
        for name, object in self._list(versions).items():
            number, _, file = name.partition("/")
            if is_number(number):
                found[int(number)] = found.get(int(number), False) or (file == MANIFEST and object["size"] > 0)
                if file in _SMALL:
                    self._etags[self._key(versions / name)] = object["e_tag"]
        return dict(sorted(found.items()))

    def names(self, folder: Path) -> list[str]:
        """Sorted names in a folder; [] if there is no such folder."""
        return sorted({name.partition("/")[0] for name in self._list(folder)})

    def sizes(self, folder: Path) -> dict[str, int]:
        """Name, relative and with '/', of everything below a folder → its size in bytes."""
        return {name: object["size"] for name, object in sorted(self._list(folder).items())}

    def _list(self, folder: Path) -> dict[str, Any]:
        """Name below a folder → the object's size, ETag and time of change."""
        import obstore

        key = self._key(folder)
        with self._asking(folder, "list"):
            found = obstore.list(self._objects, key or None).collect()
        return {str(object["path"])[len(key) :].lstrip("/"): object for object in found}

    def exists(self, path: Path) -> bool:
        """Is there a file of this name, or a committed version?"""
        import obstore

        if path.parent.name == "v":
            path = path / MANIFEST
        try:
            with self._asking(path, "read"):
                size = obstore.head(self._objects, self._key(path))["size"]
        except FileNotFoundError:
            return False
        return size > 0 or path.name != MANIFEST

    def read(self, path: Path, limit: int | None = None) -> bytes:
        """The bytes of a small file.

        Args:
            limit: the largest size that is read.

        Raises:
            FileNotFoundError: there is no such file. ArtifactError: it is larger than the limit.
        """
        import obstore

        key = self._key(path)
        etag, data = self._known.get(key, ("", b""))
        if etag and etag == self._etags.get(key) and (limit is None or len(data) <= limit):
            return data
        with self._asking(path, "read"):
            found = obstore.get(self._objects, key)
            if limit is not None and found.meta["size"] > limit:
                raise ArtifactError(
                    f"{self.shown(path)} is larger than {limit:,} bytes", "dcclctl did not write it; remove it."
                )
            data = bytes(found.bytes())
        if path.name == MANIFEST and not data:
            raise FileNotFoundError(errno.ENOENT, "its version was deleted", str(path))
        if path.name in _SMALL:
            self._etags[key] = found.meta["e_tag"] or ""
            self._known[key] = (self._etags[key], data)
        return data

    def read_ahead(self, paths: list[Path]) -> None:
        """Read small files of versions, many at a time, so that `read` has them at hand."""

        def read(path: Path) -> None:
            with suppress(FileNotFoundError, ArtifactError):
                self.read(path, MAX_BYTES)

        with ThreadPoolExecutor(_READERS) as pool:
            list(pool.map(read, paths))

    def open(self, folder: Path, name: str) -> BufferedReader:
        """Open a file of a version for reading from the bucket, a few parts at a time."""
        import obstore

        path = folder / name
        with self._asking(path, "read"):
            size = obstore.head(self._objects, self._key(path))["size"]
        return BufferedReader(_Parts(self, path, size))

    def part(self, path: Path, start: int, end: int) -> bytes:
        """Bytes `start` to `end` of a file; of many, several requests at a time."""
        import obstore

        starts = range(start, end, _PART)
        ends = [min(each + _PART, end) for each in starts]
        with self._asking(path, "read"):
            parts = obstore.get_ranges(self._objects, self._key(path), starts=[*starts], ends=ends, coalesce=0)
        return b"".join(parts)

    # -- copies on this machine

    def copies(self, folder: Path, id: str) -> Path:
        """The folder on this machine for the fetched files of a version.

        Args:
            id: of the artifact, from which the hash of every file follows.
        """
        return self._copies / id

    def fetch(self, folder: Path, name: str, id: str) -> None:
        """Bring a file of a version into the folder `copies`, whole or not at all, unless it is there."""
        copy = self._copies / id / name
        if self.scratch.exists(copy):
            return
        with self.open(folder, name) as remote:
            size = remote.seek(0, os.SEEK_END)
            remote.seek(0)
            phase = Phase(self._on_progress, "fetch", size / 1e6, "MB")
            self.scratch.make_folder(copy.parent)
            with self.scratch.create(copy, size) as temporary, temporary.open("wb") as file:
                while data := remote.read(_PART):
                    file.write(data)
                    phase.add(len(data) / 1e6, name)

    def drop_copy(self, folder: Path, name: str, id: str) -> bool:
        """Remove a damaged file from the folder `copies` so that it is fetched anew; False if it is not there."""
        copy = self._copies / id / name
        there = self.scratch.exists(copy)
        self.scratch.remove(copy)
        return there

    # -- writing

    def put(self, path: Path, data: bytes) -> None:
        """Write a small file; an existing one is replaced."""
        import obstore

        self._etags.pop(self._key(path), None)
        with self._asking(path, "write"):
            obstore.put(self._objects, self._key(path), data)

    def delete(self, path: Path) -> None:
        """Remove a file if it exists."""
        self._delete([path])

    def append(self, path: Path, data: bytes) -> None:
        """Add to the end of a file that only this object writes."""
        self._appended[path] = self._appended.get(path, b"") + data
        self.put(path, self._appended[path])

    def make_folder(self, folder: Path) -> None:
        """Nothing: a bucket has no folders."""

    def sync(self, path: Path) -> None:
        """Nothing: what a bucket has confirmed is there to stay."""

    def publish(self, work: Path, versions: Path) -> int:
        """Commit a finished work folder under the next number that was never given, and return that number.

        The folder becomes this machine's copy of the artifact.
        """
        manifest, claim = (work / MANIFEST).read_bytes(), (work / MANIFEST_HASH).read_bytes()
        number = max(self._given(versions), default=0)
        while True:
            number += 1
            place = versions / f"{number:0{NUMBER_DIGITS}d}"
            if not self._replace(place / MANIFEST_HASH, claim, ""):
                continue  # another process has taken this number meanwhile
            self._upload(work, place)
            if self.replace(place / MANIFEST, manifest, ""):
                break
            self.remove(place)  # gc took this process for dead, which then must not commit what gc deletes
        try:
            self.scratch.make_folder(self._copies)
            self.scratch.rename(work, self._copies / hashlib.sha256(manifest).hexdigest())
        except (OSError, ArtifactError):
            self.scratch.remove(work)  # such a copy is there already
        return number

    def _upload(self, work: Path, place: Path) -> None:
        """Upload the files of a version, several at a time, but for the manifest and its hash."""
        import obstore

        sizes = {name: (work / name).stat().st_size for name in self.scratch.files(work)}
        phase = Phase(self._on_progress, "upload", sum(sizes.values()) / 1e6, "MB")

        def upload(name: str) -> None:
            part = max(_PART, sizes[name] // _MOST_PARTS + 1)
            key = self._key(place / name)
            with self._asking(place / name, "write"):
                obstore.put(self._objects, key, work / name, chunk_size=part, max_concurrency=_PARALLEL)

        names = [name for name in sizes if name not in (MANIFEST, MANIFEST_HASH)]
        with ThreadPoolExecutor(_PARALLEL) as pool:
            for name, _ in zip(names, pool.map(upload, names), strict=True):
                phase.add(sizes[name] / 1e6, name)

    def discard(self, folder: Path) -> Path:
        """Take a version out of the store in one step, and return what is left of it, to be removed.

        Its number is never given again.
        """
        id = ""
        with suppress(FileNotFoundError):
            id = self.read(folder / MANIFEST_HASH).decode("ascii", "replace")[:64]
        self.put(folder / MANIFEST, b"")
        if re.fullmatch(r"[0-9a-f]{64}", id):
            self.scratch.remove(self._copies / id)
        return folder

    def remains(self, root: Path, used: set[str]) -> list[Path]:
        """Folders that hold no version and that nobody uses: left of a deletion, or of a commit, that was killed.

        Args:
            used: ids of the artifacts that running processes use or make.
        """
        found: dict[Path, dict[str, int]] = {}
        for name, object in self._list(root).items():
            kind, *rest = name.split("/", 3)
            if len(rest) == 3 and rest[0] == "v" and is_number(rest[1]):
                found.setdefault(root / kind / "v" / rest[1], {})[rest[2]] = object["size"]
        return [folder for folder, sizes in sorted(found.items()) if self._is_left(folder, sizes, used)]

    def _is_left(self, folder: Path, sizes: dict[str, int], used: set[str]) -> bool:
        if sizes.get(MANIFEST):
            return False
        if MANIFEST in sizes or MANIFEST_HASH not in sizes:
            return set(sizes) != {MANIFEST}
        try:
            return self.read(folder / MANIFEST_HASH).decode("ascii", "replace")[:64] not in used
        except FileNotFoundError:
            return False

    def remove(self, path: Path) -> None:
        """Remove a file, or what is left of a version that is not committed; from then on it cannot be."""
        if path.parent.name != "v":
            self._delete([path])
        elif self._replace(path / MANIFEST, b"", "") or not self.exists(path):
            self._delete([path / name for name in self.sizes(path) if name != MANIFEST])

    def _delete(self, paths: list[Path]) -> None:
        import obstore

        if paths:
            with self._asking(paths[0], "delete"):
                obstore.delete(self._objects, [self._key(path) for path in paths])

    # -- locks

    @contextmanager
    def lock(self, path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
        """Hold a lock, see `LocalDisk.lock`."""
        held = None
        while held is None:
            held = self.try_lock(path, on_wait)
        with held:
            yield

    def try_lock(self, path: Path, on_wait: Callable[[], None] | None = None) -> Held | None:
        """Take a lock on this machine and in the bucket; None if another process holds it.

        Args:
            path: the lock's name. on_wait: called before waiting for the process that holds it; None: do not wait.
        """
        self._probe()
        self.scratch.make_folder(path.parent)
        held = self.scratch.try_lock(path, on_wait)
        if held is None:
            return None
        try:
            lease = self._take(path, on_wait is None)
            began = time.monotonic()
            if lease is None and on_wait is not None:
                on_wait()
            while lease is None and on_wait is not None:
                time.sleep(secrets.randbelow(1000) / 1000 * _LOOK)
                lease = self._take(path, time.monotonic() - began > _PATIENCE)
        except BaseException:
            held.release()
            raise
        if lease is None:
            held.release()
            return None
        held.on_release = lease.end
        return held

    def _take(self, path: Path, from_others: bool) -> "_Lease | None":
        """Take a lock in the bucket; None if another process holds it.

        Args:
            from_others: also one of another machine that was not renewed, for which the server's time is asked.
        """
        import obstore

        lease = _Lease(self, path, self._machine())
        if lease.take():
            return lease
        try:
            with self._asking(path, "read"):
                found = obstore.get(self._objects, self._key(path))
                owner = bytes(found.bytes()).split()[:1]
        except FileNotFoundError:
            return None
        # whoever of this machine held it is dead: its lock on this machine is free
        dead = owner == [lease.machine]
        if not dead and from_others:
            dead = (self._now() - found.meta["last_modified"]).total_seconds() > EXPIRES
        return lease if dead and lease.take(found.meta["e_tag"] or "") else None

    def replace(self, path: Path, data: bytes, etag: str) -> str:
        """Write a file that nobody else would write, on the condition that it has this ETag, or that there is none if it is ''.

        Returns:
            The new ETag; '' if the condition did not hold.
        """
        import obstore

        new = self._replace(path, data, etag)
        if new:
            return new
        # an answer may have been lost on its way: then the request was repeated, and what it found is ours
        try:
            with self._asking(path, "read"):
                found = obstore.get(self._objects, self._key(path))
                return (found.meta["e_tag"] or "") if bytes(found.bytes()) == data else ""
        except FileNotFoundError:
            return ""

    def _replace(self, path: Path, data: bytes, etag: str) -> str:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        mode: Any = {"e_tag": etag} if etag else "create"
        with self._asking(path, "write"):
            try:
                return obstore.put(self._objects, self._key(path), data, mode=mode)["e_tag"] or ""
            except (AlreadyExistsError, PreconditionError):
                return ""

    def _now(self) -> datetime:
        """The server's time, so that clocks of machines need not agree."""
        import obstore

        clock = self.root / "leases" / "clock"
        self.put(clock, b"")
        with self._asking(clock, "read"):
            return obstore.head(self._objects, self._key(clock))["last_modified"]

    def _machine(self) -> bytes:
        """What tells this machine's cache from others."""
        path = self.root / "machine"
        if not path.exists():
            self.scratch.make_folder(self.root)
            self.scratch.write(path, secrets.token_hex(8).encode())
        return self.scratch.read(path)

    # -- what can go wrong

    def _probe(self) -> None:
        """Make sure, once, that the bucket keeps conditions; without them two commits could get the same number.

        Raises:
            BucketError: it does not, or cannot be written.
        """
        if self._probed:
            return
        path = self.root / "leases" / f"probe-{secrets.token_hex(8)}.lock"  # so that one that is left is tidied up
        try:
            first = self._replace(path, b"1", "")
            keeps = not self._replace(path, b"2", "") and not self._replace(path, b"3", '"0"')
            keeps = keeps and bool(self._replace(path, b"4", first))
        except _Refused as error:
            raise BucketError(f"{self.url} refuses conditional writes: {error.what}", _NO_CONDITIONS) from error
        self.delete(path)
        if not keeps:
            raise BucketError(f"{self.url} ignores the conditions of writes (If-None-Match, If-Match)", _NO_CONDITIONS)
        self._probed = True

    @contextmanager
    def _asking(self, path: Path, verb: str) -> Iterator[None]:
        """Turn an error of the client into one with a remedy."""
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        try:
            yield
        except (BaseError, FileNotFoundError) as error:
            text = str(error)
            code = _CODE.search(text)
            status = _STATUS.search(text)
            said = code[1] if code else status[1].strip() if status else ""
            if said == "NoSuchBucket":
                remedy = "Make it, or mend --store, AWS_REGION or AWS_ENDPOINT_URL."
                raise BucketError(f"there is no bucket {self._name}", remedy) from None
            if isinstance(error, FileNotFoundError):
                raise FileNotFoundError(errno.ENOENT, "it is not in the bucket", str(path)) from None
            what = f"cannot {verb} {self.shown(path)}"
            if isinstance(error, PermissionDeniedError | UnauthenticatedError) or said.startswith(("401", "403")):
                raise _Denied(f"{what}: {said or 'permission denied'}", _PERMISSIONS) from None
            if said:
                raise _Refused(f"{what}: the service answers {said}", _ANSWERED) from None
            where = f" at {self._endpoint}" if self._endpoint else ""
            raise BucketError(f"{what}: no answer{where}", _NO_ANSWER) from None


class _Denied(BucketError):
    """Missing or wrong credentials, or credentials that do not allow this."""


class _Refused(BucketError):
    """An answer that says that the request cannot be done."""


_NO_CONDITIONS: Final = "Use a service that keeps them (S3, MinIO, R2 do), or a store on a disk: --store DIR."
_PERMISSIONS: Final = "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, and that they may list, read, write and delete there."
_ANSWERED: Final = "Check AWS_REGION and AWS_ENDPOINT_URL, then type the same command."
_NO_ANSWER: Final = "Check the network and AWS_ENDPOINT_URL, then type the same command: it continues where it stopped."


def _client(bucket: str, prefix: str, endpoint: str) -> "S3Store":
    """The client, with credentials, region and endpoint from the environment."""
    try:
        from obstore.store import S3Store
    except ImportError as error:
        raise UsageError(
            "a store in a bucket needs a package that is not installed", "pip install 'dcclctl[s3]'"
        ) from error
    if not any(os.environ.get(name) for name in _CREDENTIALS):
        raise UsageError(
            f"there are no credentials for the bucket {bucket} in the environment",
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. With the AWS CLI: "
            'eval "$(aws configure export-credentials --format env)"',
        )
    return S3Store(
        bucket,
        prefix=prefix or None,
        client_options={"allow_http": endpoint.startswith("http://"), "timeout": "5min"},
        retry_config={"max_retries": 5},
    )


class _Parts(io.RawIOBase):
    """A file of a bucket as a stream: a few parts are fetched at a time, so that its size does not matter.

    Args:
        bucket: the store. path: of the file. size: in bytes.
    """

    def __init__(self, bucket: Bucket, path: Path, size: int) -> None:
        self._bucket, self._path, self._size = bucket, path, size
        self._at = 0
        #: bytes that are fetched, and where they begin
        self._start, self._data = 0, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        if self._at >= self._size:
            return 0
        if not self._start <= self._at < self._start + len(self._data):
            end = min(self._at + _PARALLEL * _PART, self._size)
            self._start, self._data = self._at, self._bucket.part(self._path, self._at, end)
        begin = self._at - self._start
        data = self._data[begin : begin + len(buffer)]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class _Lease:
    """A lock in a bucket, renewed by a thread from `take` to `end`.

    Args:
        bucket: the store. path: the lock's name. machine: what tells this machine from others.
    """

    def __init__(self, bucket: Bucket, path: Path, machine: bytes) -> None:
        self._bucket, self._path, self.machine = bucket, path, machine
        self._etag = ""
        self._renewed = 0.0
        self._ended = threading.Event()

    def take(self, etag: str = "") -> bool:
        """Take the lock, if it is free, or if it still has an ETag.

        Returns:
            False if it has not.
        """
        if not self._write(etag):
            return False
        threading.Thread(target=self._renew, name=f"lock {self._path.name}", daemon=True).start()
        return True

    def _write(self, etag: str) -> bool:
        began = time.monotonic()
        # never the same bytes twice, because the ETag of equal bytes is equal
        body = b"%s %s\n" % (self.machine, secrets.token_hex(8).encode())
        new = self._bucket.replace(self._path, body, etag)
        if new:
            self._etag, self._renewed = new, began
        return bool(new)

    def _renew(self) -> None:
        while not self._ended.wait(RENEWED):
            with suppress(BucketError):  # the next one may get through
                if not self._write(self._etag):
                    return  # another process has taken it

    def end(self) -> None:
        """Give the lock back; one that another process may have taken over is left to it."""
        self._ended.set()
        if time.monotonic() - self._renewed < EXPIRES / 2:
            with suppress(BucketError):
                self._bucket.delete(self._path)


Disk = LocalDisk | Bucket
