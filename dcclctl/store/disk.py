"""The store's file system in one class. No other file of the store creates, renames, locks or lists.

An object store would be a second class with these methods. It cannot rename, so its `publish` would create
`manifest.json` under the next free number, on the condition that it does not exist.
"""

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dcclctl.errors import ArtifactError

#: Nothing is written when fewer bytes are free, so that there is room to stop in good order.
RESERVE_BYTES = 16 * 2**20

_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn an error of the operating system into one with a remedy."""
    try:
        yield
    except OSError as error:
        remedy = ""
        if error.errno in _FORBIDDEN:
            remedy = "Choose a store that you may write to with --store DIR, or mend its permissions."
        elif error.errno in (errno.EEXIST, errno.ENOTDIR):
            remedy = "Something there is not a folder; name another store with --store DIR."
        raise ArtifactError(f"cannot write {path}: {error.strerror or error}", remedy) from error


class LocalDisk:
    """A POSIX file system. A process may be killed in any method without damage to the store."""

    def names(self, folder: Path) -> list[str]:
        """Sorted names in a folder; [] if there is no such folder."""
        try:
            return sorted(entry.name for entry in folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def files(self, folder: Path) -> list[str]:
        """Sorted names, relative and with '/', of all files below a folder."""
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())

    def read(self, path: Path) -> bytes:
        """The bytes of a file.

        Raises:
            FileNotFoundError: there is no such file.
            ArtifactError: it cannot be read.
        """
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ArtifactError(f"cannot read {path}: {error.strerror}", "Mend its permissions or the disk.") from error

    def make_folder(self, folder: Path) -> None:
        """Create a folder and its parents and wait until they are on the disk."""
        missing = [place for place in (folder, *folder.parents) if not place.exists()]
        with _explained(folder):
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
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove(self, path: Path) -> None:
        """Remove a file or a whole folder if it exists."""
        with _explained(path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def freeze(self, folder: Path) -> None:
        """Make every file below a folder read-only, and wait until the folders are on the disk, the innermost first."""
        with _explained(folder):
            for place, _, names in os.walk(folder, topdown=False):
                for name in names:
                    (Path(place) / name).chmod(0o444)
                self.sync(Path(place))

    def publish(self, work: Path, versions: Path) -> int:
        """Commit a finished work folder: rename it to the next free number and return that number."""
        number = max((int(name) for name in self.names(versions) if name.isdigit()), default=0) + 1
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
            self.sync(versions)
            self.sync(work.parent)
        return number

    @contextmanager
    def lock(self, path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
        """Hold a lock. The kernel releases it when the process dies, so a dead process never holds one.

        Args:
            path: the lock file; it is removed at the end.
            on_wait: called before waiting for another process that holds the lock.
        """
        while True:
            with _explained(path):
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    on_wait()
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                # The process before us has removed the file that we waited for: another one may hold a newer file.
                if not _same_file(descriptor, path):
                    continue
                try:
                    yield
                    return
                finally:
                    path.unlink(missing_ok=True)
            finally:
                os.close(descriptor)


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
