"""What running processes use, so that nothing is deleted under them.

A store object that resolves, finds or makes an artifact holds a lease: `STORE/leases/<name>.lock`, locked until the process
ends, and `<name>.ids`, the ids that it uses. An artifact is added to a lease and looked up again under the same lock,
`STORE/hygiene.lock`, under which `artifacts gc` and `rm` read the leases and move artifacts away. So one of the two comes
first: either the artifact is leased and stays, or it is gone and the command says so.
"""

import os
import secrets
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dcclctl.errors import ArtifactError, DcclError
from dcclctl.store.bucket import Disk
from dcclctl.store.disk import Held

_IDS = ".ids"


class Leases:
    """The leases of one store.

    Args:
        root: the store. disk: where it is. written: False for a look that may write nothing; then nothing is leased.
    """

    def __init__(self, root: Path, disk: Disk, written: bool = True) -> None:
        self._root, self._disk, self._written = root, disk, written
        self._folder = root / "leases"
        self._own: Held | None = None
        self._process = os.getpid()
        self._ids: set[str] = set()

    @contextmanager
    def hygiene(self) -> Iterator[None]:
        """Hold the lock under which artifacts are leased and moved away."""
        with self._disk.lock(self._root / "hygiene.lock", lambda: None):
            yield

    def add(self, id: str, is_there: Callable[[], bool]) -> bool:
        """Lease an artifact for as long as this object lives. A store that cannot be written is read without a lease.

        Args:
            is_there: whether it still is in the store.

        Returns:
            False if it has been deleted meanwhile.
        """
        if id in self._ids and self._process == os.getpid():
            return True
        if not self._written or not self._disk.is_writable(self._root):
            return is_there()
        try:
            with self.hygiene():
                if not is_there():
                    return False
                self._write(id)
        except ArtifactError:
            # No locks on this file system, or no room: then nobody can collect here either.
            return is_there()
        return True

    def _write(self, id: str) -> None:
        if self._own is None or self._process != os.getpid():
            self._disk.make_folder(self._folder)
            self._process, self._ids = os.getpid(), set()
            name = self._folder / f"{self._process}-{secrets.token_hex(4)}.lock"
            self._own = self._disk.try_lock(name)
            if self._own is not None:
                weakref.finalize(self, _end, self._disk, self._own, self._process)
        if self._own is not None:
            self._disk.append(self._own.path.with_suffix(_IDS), f"{id}\n".encode())
            self._ids.add(id)

    def in_use(self, by_others: bool = False) -> set[str]:
        """Ids that living processes use; what dead ones left is removed. Call it while `hygiene` is held.

        Args:
            by_others: leave out what this object itself has leased.
        """
        found: set[str] = set()
        for name in self._disk.names(self._folder):
            path = self._folder / name
            if path.suffix != ".lock" or (by_others and self._own is not None and path == self._own.path):
                continue
            dead = self._disk.try_lock(path)
            ids = path.with_suffix(_IDS)
            if dead is not None:
                self._disk.remove(ids)
                dead.release()
                continue
            with suppress(FileNotFoundError):
                found.update(self._disk.read(ids).decode("ascii", "replace").split())
        return found


def _end(disk: Disk, own: Held, process: int) -> None:
    """Give a lease back; a forked child leaves the lease of its parent alone."""
    if process == os.getpid():
        with suppress(DcclError):
            disk.remove(own.path.with_suffix(_IDS))
        own.release()
