"""Bugs that are planted in the program, to prove that the campaign finds them. They live in the campaign's processes only."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import _patch, patch


@dataclass(frozen=True)
class Plant:
    """A bug.

    Attributes:
        what: in words. part: the part of the campaign that must find it. patches: what replaces parts of the program.
        scenes: commands on which the part is tried; () for all. count: cases that are enough to find it.
    """

    what: str
    part: str
    patches: "Callable[[], list[_patch[Any]]]"
    scenes: tuple[str, ...] = ("ingest",)
    count: int = 12


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Plant a bug in this process for the body; '' plants none."""
    with ExitStack() as stack:
        for each in PLANTS[name].patches() if name else []:
            stack.enter_context(each)
        yield


def _disk(**methods: Any) -> "list[_patch[Any]]":
    from dcclctl.store.disk import LocalDisk

    return [patch.object(LocalDisk, name, method) for name, method in methods.items()]


def _no_sync_of(folders: bool) -> "list[_patch[Any]]":
    from dcclctl.store.disk import LocalDisk

    real = LocalDisk.sync

    def sync(self: Any, path: Path) -> None:
        if path.is_dir() != folders:
            real(self, path)

    return _disk(sync=sync)


def _manifest_first() -> "list[_patch[Any]]":
    """The version is there with its manifest, and its files come one by one."""
    from dcclctl.store.disk import LocalDisk

    def publish(self: Any, work: Path, versions: Path) -> int:
        number = max((int(name) for name in self.names(versions)), default=0) + 1
        target = versions / f"{number:06d}"
        target.mkdir()
        for name in sorted(self.files(work), key=lambda name: not name.startswith("manifest")):
            self.make_folder((target / name).parent)
            (work / name).rename(target / name)
        LocalDisk.sync(self, versions)
        return number

    return _disk(publish=publish)


def _written_in_place() -> "list[_patch[Any]]":
    """Files are written under their own name."""

    @contextmanager
    def create(self: Any, path: Path, expected_bytes: int = 0) -> Iterator[Path]:
        path.unlink(missing_ok=True)
        yield path
        self.sync(path)

    return _disk(create=create)


def _hash_not_compared() -> "list[_patch[Any]]":
    from dcclctl.store.artifact import Artifact

    def checked(self: Any, name: str, *_: Any, **__: Any) -> tuple[str, bytes]:
        path = self.path / name
        return "", path.read_bytes() if path.exists() else b""

    return [patch.object(Artifact, "_checked", checked)]


def _links_followed() -> "list[_patch[Any]]":
    from dcclctl.store import artifact, disk

    def open_inside(folder: Path, name: str) -> Any:
        if not (folder / name).resolve().is_file():
            raise FileNotFoundError(2, "no file", str(folder / name))
        return (folder / name).open("rb")

    return [patch.object(module, "open_inside", open_inside) for module in (artifact, disk)]


def _numbers_given_again() -> "list[_patch[Any]]":
    return _disk(give=lambda self, given, number: None)


def _no_lock() -> "list[_patch[Any]]":
    @contextmanager
    def lock(self: Any, path: Path, on_wait: Any) -> Iterator[None]:
        yield

    return _disk(lock=lock)


def _errors_not_explained() -> "list[_patch[Any]]":
    from typer.core import TyperGroup

    from dcclctl.cli.main import LazyGroup

    return [patch.object(LazyGroup, "invoke", lambda self, ctx: TyperGroup.invoke(self, ctx))]


def _says_nothing() -> "list[_patch[Any]]":
    from dcclctl.cli import main, process

    def silent(stopped: KeyboardInterrupt) -> int:
        return 128 + int(stopped.args[0])

    return [patch.object(main, "say_stopped", silent), patch.object(process, "say_stopped", silent)]


def _count_swallowed() -> "list[_patch[Any]]":
    from dcclctl.logs.quarantine import Quarantine

    real = Quarantine.add_batch

    def add_batch(self: Any, source: str, batch: Any, refused: Any) -> Any:
        kept = real(self, source, batch, refused)
        self.counts.pop("extra-fields", None)
        return kept

    return [patch.object(Quarantine, "add_batch", add_batch)]


def _leases_ignored() -> "list[_patch[Any]]":
    from dcclctl.store.leases import Leases

    return [patch.object(Leases, "in_use", lambda self, by_others=False: set())]


def _forgets_half() -> "list[_patch[Any]]":
    """Tables are left as they are."""
    from dcclctl.stages import forget

    def table(self: Any, artifact: Any, name: str, table: Any, numbers: Any) -> Any:
        return table, 0

    return [patch.object(forget._Rewriter, "_table", table)]


def _reader_trips() -> "list[_patch[Any]]":
    """A reader that has not thought of an empty array."""
    from dcclctl.logs import jsonl

    real = jsonl.parse_line

    def parse_line(line: str) -> Any:
        if line.startswith("{") and line.endswith("}") and ":[]" in line:
            raise IndexError(line)
        return real(line)

    return [patch.object(jsonl, "parse_line", parse_line)]


PLANTS: dict[str, Plant] = {
    "file not synced": Plant(
        "no fsync of a file's bytes", "power losses", lambda: _no_sync_of(folders=False), count=120
    ),
    "folder not synced": Plant("no fsync of folders", "power losses", lambda: _no_sync_of(folders=True), count=120),
    "manifest first": Plant("the manifest is there before the files", "kills", _manifest_first, count=60),
    "written in place": Plant(
        "files are written under their own names", "power losses", _written_in_place, ("train",), 200
    ),
    "skipped hash": Plant("hashes of files are not compared", "corruptions", _hash_not_compared, (), 30),
    "followed link": Plant("links in an artifact are followed", "hostile artifacts", _links_followed, (), 60),
    "number given again": Plant(
        "the number of a deleted artifact is given again", "sequences", _numbers_given_again, (), 60
    ),
    "no lock": Plant("commands do not wait for each other", "crowds", _no_lock, ("ingest",), 1),
    "raw error": Plant("errors of the system are not explained", "refusals", _errors_not_explained, count=20),
    "silent stop": Plant("Ctrl-C and SIGTERM end without a word", "signals", _says_nothing, count=6),
    "swallowed count": Plant("one reason of rejects is not counted", "logs", _count_swallowed, (), 200),
    "half forgotten": Plant("forget leaves tables as they are", "sequences", _forgets_half, (), 60),
    "leases ignored": Plant("what a command uses is deleted under it", "sequences", _leases_ignored, (), 100),
    "reader trips": Plant("a reader raises on a rare line", "readers", _reader_trips, (), 4000),
}
