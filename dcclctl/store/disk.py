"""A store on a file system, in one class. No other file of the store creates, renames, locks or lists.

A store in a bucket is a second class, see bucket.py: it has the methods up to `publish`, and makes its artifacts on a
`LocalDisk`.
"""

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import Final

from dcclctl.errors import ArtifactError

#: Nothing is written when fewer bytes are free, so that there is room to stop in good order.
RESERVE_BYTES = 16 * 2**20
#: Digits in the folder name of a version.
NUMBER_DIGITS = 6

_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
#: Can files be opened relative to an open folder? Windows cannot.
_RELATIVE = os.open in os.supports_dir_fd
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_FOLDER = os.O_RDONLY | _NO_LINK | getattr(os, "O_DIRECTORY", 0)
#: Without waiting, because opening a FIFO waits for somebody who writes into it.
_FILE = os.O_RDONLY | _NO_LINK | getattr(os, "O_NONBLOCK", 0)


#: error number → what to do about it
REMEDIES = {
    **dict.fromkeys(_FORBIDDEN, "Choose a store that you may write to with --store DIR, or mend its permissions."),
    **dict.fromkeys(
        (errno.EEXIST, errno.ENOTDIR), "Something there is not a folder; name another store with --store DIR."
    ),
    errno.ELOOP: "A link there leads to itself; mend it, or name another store with --store DIR.",
    errno.ENAMETOOLONG: "That path is too long; name a shorter one with --store DIR.",
    errno.ENOSPC: "Free some space, then type the same command: it continues where it stopped.",
    errno.EDQUOT: "Your disk quota is used up: free some space, or name another store with --store DIR.",
    errno.EFBIG: "Files may not become that large here (ulimit -f): raise the limit, or use another --store DIR.",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "Too many files are open at once: raise the limit (ulimit -n 4096)."),
    errno.ENOMEM: "Memory is short: end other programs, or raise the limit (ulimit -v).",
    **dict.fromkeys(
        (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS),
        "This file system has no locks; name a store on a local disk with --store DIR (dcclctl doctor tries it).",
    ),
    errno.EIO: "The disk reports a fault: look into the system's log, and name a store on another one with --store DIR.",
}
#: how a library in Rust quotes an error of the operating system
_QUOTED = re.compile(r"\(os error (\d+)\)|Os \{ code: (\d+)")


def system_error(error: BaseException) -> OSError | None:
    """The error of the operating system that an exception is, or that a library quotes in it; None for all others."""
    if isinstance(error, OSError):
        return error
    found = _QUOTED.search(str(error))
    if found is None:
        return None
    number = int(found[1] or found[2])
    return OSError(number, os.strerror(number))


def explained(error: OSError, what: str) -> ArtifactError:
    """The error for people, with a remedy.

    Args:
        what: that could not be done, e.g. 'cannot write FILE'.
    """
    remedy = REMEDIES.get(error.errno or 0, "Check the disk, or name another store with --store DIR.")
    return ArtifactError(f"{what}: {error.strerror or error}", remedy)


@contextmanager
def _explained(path: Path, verb: str = "write") -> Iterator[None]:
    """Turn an error of the operating system into one with a remedy, also when a library hides it in its own."""
    try:
        yield
    except Exception as error:
        system = system_error(error)
        if system is None:
            raise
        raise explained(system, f"cannot {verb} {path}") from error


@contextmanager
def whole_file(path: Path) -> Iterator[BufferedWriter]:
    """Write a file outside a store whole or not at all; an existing file is replaced.

    Raises:
        OSError: it cannot be written. Nothing is left behind.
    """
    # beside the target, so that the last step is a rename on one file system
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def cache_folder() -> Path:
    """Where files are kept on this machine that can be fetched again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dcclctl"


def open_inside(folder: Path, name: str) -> BufferedReader:
    """Open a file for reading, only if it is a regular file that lies in the folder itself.

    Args:
        name: relative, with '/' between folders; no part may be a link, so that the file cannot lie elsewhere.

    Raises:
        FileNotFoundError: there is no such file. OSError: a link, a FIFO, a device, a folder, or unreadable.
    """
    if not _RELATIVE:
        inside = folder / name
        if any(place.is_symlink() for place in (inside, *inside.parents[: name.count("/") + 1])):
            raise OSError(errno.ELOOP, "it is a link", str(inside))
        return _regular(os.open(inside, _FILE), inside)
    *folders, last = name.split("/")
    place = os.open(folder, _FOLDER)
    try:
        for part in folders:
            inner = os.open(part, _FOLDER, dir_fd=place)
            os.close(place)
            place = inner
        return _regular(os.open(last, _FILE, dir_fd=place), folder / name)
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, error.strerror, str(folder / name)) from error
    finally:
        os.close(place)


def _regular(descriptor: int, path: Path) -> BufferedReader:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


class LocalDisk:
    """A POSIX file system. A process may be killed in any method without damage to the store."""

    #: Is reading a file no more than reading this machine's disk?
    is_local: Final = True

    @property
    def scratch(self) -> "LocalDisk":
        """The disk on which artifacts are made, in the folders `STORE/<kind>/work`."""
        return self

    def is_writable(self, root: Path) -> bool:
        """May this process write into the store?"""
        return os.access(root, os.W_OK)

    def numbers(self, versions: Path) -> list[int]:
        """Numbers of the committed versions, ascending."""
        return sorted(int(name) for name in self.names(versions) if is_number(name))

    def is_folder(self, path: Path) -> bool:
        """Is there a folder, perhaps behind a link? A link that leads to itself, or a path that is too long, is an error."""
        with _explained(path, "read"):
            try:
                return stat.S_ISDIR(path.stat().st_mode)
            except (FileNotFoundError, NotADirectoryError):
                return False

    def names(self, folder: Path) -> list[str]:
        """Sorted names in a folder; [] if there is no such folder."""
        with _explained(folder, "read"):
            try:
                return sorted(entry.name for entry in folder.iterdir())
            except (FileNotFoundError, NotADirectoryError):
                return []

    def shown(self, path: Path) -> str:
        """A place in the store as people are told of it."""
        return str(path)

    def exists(self, path: Path) -> bool:
        """Is there anything of this name, be it a link that leads nowhere?"""
        return os.path.lexists(path)

    def sizes(self, folder: Path) -> dict[str, int]:
        """Name, see `files`, of everything below a folder → its size in bytes."""
        return {name: (folder / name).lstat().st_size for name in self.files(folder)}

    def files(self, folder: Path) -> list[str]:
        """Sorted names, relative and with '/', of everything below a folder that is not a folder; links are not followed."""
        found = []
        for place, folders, names in os.walk(folder):
            names += [name for name in folders if (Path(place) / name).is_symlink()]
            found += [(Path(place) / name).relative_to(folder).as_posix() for name in names]
        return sorted(found)

    def read(self, path: Path, limit: int | None = None) -> bytes:
        """The bytes of a regular file; a link is not followed.

        Args:
            limit: the largest size that is read.

        Raises:
            FileNotFoundError: there is no such file.
            ArtifactError: it cannot be read, is no regular file, or is larger than the limit.
        """
        try:
            with open_inside(path.parent, path.name) as file:
                data = file.read() if limit is None else file.read(limit + 1)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise explained(error, f"cannot read {path}") from error
        if limit is not None and len(data) > limit:
            raise ArtifactError(f"{path} is larger than {limit:,} bytes", "dcclctl did not write it; remove it.")
        return data

    def read_ahead(self, paths: list[Path]) -> None:
        """Say which small files of versions are going to be read one after the other."""

    def open(self, folder: Path, name: str) -> BufferedReader:
        """Open a file of a version for reading, see `open_inside`."""
        return open_inside(folder, name)

    def copies(self, folder: Path, id: str) -> Path:
        """The folder on this machine that holds the files of a version: its own.

        Args:
            id: of the artifact.
        """
        return folder

    def fetch(self, folder: Path, name: str, id: str) -> None:
        """Bring a file of a version into the folder `copies`, where it is."""

    def drop_copy(self, folder: Path, name: str, id: str) -> bool:
        """Remove a damaged file from the folder `copies` so that it is fetched anew; False if that is the store itself."""
        return False

    def put(self, path: Path, data: bytes) -> None:
        """Write a small file of the store, with its folder, and wait until its name is on the disk."""
        self.make_folder(path.parent)
        self.write(path, data)
        self.sync(path.parent)

    def delete(self, path: Path) -> None:
        """Remove a file of the store, and wait until its name has left the disk."""
        self.remove(path)
        self.sync(path.parent)

    def make_folder(self, folder: Path) -> None:
        """Create a folder and its parents and wait until they are on the disk."""
        with _explained(folder):
            missing = [place for place in (folder, *folder.parents) if not place.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            for place in reversed(missing):
                self.sync(place.parent)

    @contextmanager
    def create(self, path: Path, expected_bytes: int = 0) -> Iterator[Path]:
        """Write a file whole or not at all: yield a temporary path, then fsync and rename.

        Args:
            path: where the file will be; an existing file is replaced.
            expected_bytes: its size if known, to refuse before the disk is full; else 0.

        Raises:
            ArtifactError: no space left, or no permission.
        """
        with _explained(path):
            free = shutil.disk_usage(path.parent).free
            if free < expected_bytes + RESERVE_BYTES:
                raise _full(path, free)
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
            try:
                yield temporary
                self.sync(temporary)
                self.rename(temporary, path)
            except BaseException as error:
                free = shutil.disk_usage(path.parent).free
                temporary.unlink(missing_ok=True)
                # Each library raises its own exception for a full disk.
                if isinstance(error, Exception) and free < RESERVE_BYTES:
                    raise _full(path, free) from error
                raise

    def write(self, path: Path, data: bytes) -> None:
        """Write a small file whole or not at all."""
        with self.create(path, len(data)) as temporary:
            temporary.write_bytes(data)

    def append(self, path: Path, data: bytes) -> None:
        """Add to the end of a file."""
        with _explained(path), path.open("ab") as file:
            file.write(data)

    def rename(self, source: Path, target: Path) -> None:
        """Rename in one step; an existing file is replaced."""
        source.rename(target)

    def sync(self, path: Path) -> None:
        """Wait until a file's bytes, or a folder's names, are on the disk."""
        if os.name == "nt" and path.is_dir():
            return  # Windows keeps the names of a folder by its own journal and cannot be asked to
        descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove(self, path: Path) -> None:
        """Remove a file or a whole folder if it exists."""
        with _explained(path):
            if path.is_dir() and not path.is_symlink():
                if os.name == "nt":  # where a read-only file cannot be deleted
                    for name in self.files(path):
                        (path / name).chmod(0o666)
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def freeze(self, folder: Path) -> None:
        """Make every file below a folder read-only, and wait until the folders are on the disk, the innermost first."""
        with _explained(folder):
            for place, _, names in os.walk(folder, topdown=False):
                for name in names:
                    path = Path(place) / name
                    path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o222)  # what the umask hid stays hidden
                self.sync(Path(place))

    def publish(self, work: Path, versions: Path) -> int:
        """Commit a finished work folder: rename it to the next number that was never given, and return that number."""
        given = versions.parent / "last"
        number = max(self.numbers(versions), default=0)
        self.give(given, number)
        number = max((int(name) for name in self.names(given) if is_number(name)), default=number) + 1
        with _explained(versions):
            while True:
                try:
                    self.rename(work, versions / f"{number:06d}")
                    break
                except OSError as error:
                    # Another process has taken this number meanwhile.
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                    number += 1
        try:
            self.sync(versions)
            self.sync(work.parent)
            self.give(given, number)
        except (OSError, ArtifactError) as error:
            reason = error.what if isinstance(error, ArtifactError) else error.strerror
            raise ArtifactError(
                f"{versions.parent.name}@{number} is made, but the disk did not confirm it: {reason}",
                "Mend the disk or its permissions, then type the same command: it finds what is made and confirms it.",
            ) from error
        return number

    def discard(self, folder: Path) -> Path:
        """Take a version out of the store in one step: move it to the trash, and return where it lies there.

        Its number is never given again.
        """
        versions = folder.parent
        kind, trash = versions.parent, versions.parent.parent / "trash"
        self.make_folder(trash)
        self.give(kind / "last", max(self.numbers(versions)))
        target = trash / f"{kind.name}-{int(folder.name)}-{secrets.token_hex(4)}"
        try:
            self.rename(folder, target)
            self.sync(versions)
        except OSError as error:
            raise explained(error, f"cannot delete {kind.name}@{int(folder.name)}") from error
        return target

    def remains(self, root: Path, used: set[str]) -> list[Path]:
        """Folders that hold no version and that nobody uses: what lies in the trash, left of a deletion that was killed.

        Args:
            used: ids of the artifacts that running processes use or make.
        """
        return [root / "trash" / name for name in self.names(root / "trash")]

    def give(self, given: Path, number: int) -> None:
        """Remember that a number was given, so that it is never given again, also after its version was deleted.

        The folder holds an empty file for it. Older ones are removed afterwards: however many processes do this at the same
        time, the file of the highest number stays.
        """
        if not number or f"{number:06d}" in self.names(given):
            return
        self.make_folder(given)
        with _explained(given):
            (given / f"{number:06d}").touch()
            self.sync(given)
            for name in self.names(given):
                if is_number(name) and int(name) < number:
                    (given / name).unlink(missing_ok=True)

    @contextmanager
    def lock(self, path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
        """Hold a lock. The kernel releases it when the process dies, so a dead process never holds one.

        Args:
            path: the lock file; it is removed at the end.
            on_wait: called before waiting for another process that holds the lock.
        """
        held = None
        # The process before us removes the file that we waited for: another one may hold a newer file.
        while held is None:
            held = self.try_lock(path, on_wait)
        with held:
            yield

    def try_lock(self, path: Path, on_wait: Callable[[], None] | None = None) -> "Held | None":
        """Take a lock; None if another process holds it, or if its file was removed meanwhile.

        Args:
            path: the lock file. on_wait: called before waiting for the process that holds it; None: do not wait.
        """
        from filelock import lock_descriptor

        with _explained(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o644)
            try:
                locked = lock_descriptor(descriptor, blocking=False)
                if not locked and on_wait is not None:
                    on_wait()
                    locked = lock_descriptor(descriptor)
                if locked and _same_file(descriptor, path):
                    return Held(path, descriptor)
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
        return None


class Held:
    """A lock that this process holds until `release`, or until the last reference to it is gone.

    Args:
        path: the lock file. descriptor: open on it.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        #: called before the lock is given back
        self.on_release: Callable[[], None] = lambda: None
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back and remove its file."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        try:
            self.on_release()
        finally:
            if os.name == "nt":  # where an open file cannot be removed
                os.close(descriptor)
                with suppress(OSError):
                    self.path.unlink()
            else:
                with suppress(OSError):
                    self.path.unlink()
                os.close(descriptor)

    def __enter__(self) -> "Held":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def is_number(name: str) -> bool:
    """Is it the folder name of a version, e.g. 000007?"""
    return len(name) == NUMBER_DIGITS and name.isascii() and name.isdigit() and int(name) > 0


def _full(path: Path, free: int) -> ArtifactError:
    return ArtifactError(
        f"no room for {path}: {free / 2**20:.0f} MiB are free on that disk",
        "Free some space, then type the same command: it continues where it stopped.",
    )


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
