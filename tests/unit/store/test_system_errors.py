"""What the system refuses is exit 3 with a remedy, also where a library says it, and what is committed keeps its reference."""

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from store_worlds import events, make_dataset
from typer.testing import CliRunner

from dcclctl.cli.main import app
from dcclctl.errors import ArtifactError
from dcclctl.store.disk import REMEDIES, LocalDisk, system_error
from dcclctl.store.store import Store

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.mark.parametrize("number", sorted(REMEDIES))
@pytest.mark.parametrize(
    "as_said",
    [
        lambda number: OSError(number, os.strerror(number)),
        lambda number: RuntimeError(f"{os.strerror(number)} (os error {number})"),  # polars
        lambda number: RuntimeError(f'IoError(Os {{ code: {number}, kind: X, message: "x" }})'),  # safetensors
    ],
)
def test_an_error_of_a_library_has_a_remedy(store: Store, number: int, as_said: Callable[[int], Exception]) -> None:
    begun = store.begin("ingest", "dataset", {}, 0, {})
    with pytest.raises(ArtifactError) as caught, begun as work, work.new_file("a.json"):
        raise as_said(number)
    assert os.strerror(number) in caught.value.what and "a.json" in caught.value.what
    assert caught.value.remedy == REMEDIES[number] and caught.value.exit_code == 3


def test_other_errors_stay_as_they_are(store: Store) -> None:
    assert system_error(ValueError("column 7 (code 5)")) is None
    begun = store.begin("ingest", "dataset", {}, 0, {})
    with pytest.raises(ZeroDivisionError), begun as work, work.new_file("a.json"):
        raise ZeroDivisionError


@pytest.mark.parametrize("library", ["polars", "safetensors"])
def test_a_limit_that_a_library_meets_while_writing(tmp_path: Path, library: str) -> None:
    """The real thing: the kernel refuses the write in the library."""
    import torch

    with Store(tmp_path / "store").begin("ingest", "dataset", {}, 0, {}) as work:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        table, tensors = events(200_000), {"x": torch.arange(200_000)}
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            with pytest.raises(ArtifactError) as caught:
                if library == "polars":
                    work.write_table("events.parquet", table)
                else:
                    work.write_tensors("x.safetensors", tensors)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "File too large" in caught.value.what and "ulimit -f" in caught.value.remedy


def refused(number: int) -> Callable[..., Any]:
    def refuse(*given: Any, **more: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EACCES, errno.EIO])
def test_a_lock_that_the_system_refuses(store: Store, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr("filelock.lock_descriptor", refused(number))
    with pytest.raises(ArtifactError) as caught:
        make_dataset(store)
    assert os.strerror(number) in caught.value.what and "--store DIR" in caught.value.remedy


def test_what_is_committed_keeps_its_reference_though_it_cannot_be_tidied_up(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = LocalDisk.remove

    def not_after_the_commit(self: LocalDisk, path: Path) -> None:
        if path.name.endswith(".state") and store.numbers("dataset"):
            raise ArtifactError("cannot write", "")
        remove(self, path)

    monkeypatch.setattr(LocalDisk, "remove", not_after_the_commit)
    assert make_dataset(store).ref == "dataset@1"
    monkeypatch.undo()
    assert make_dataset(store).reused


@pytest.mark.parametrize("step", ["sync", "give"])
def test_a_commit_that_the_disk_does_not_confirm_is_named(
    store: Store, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    real = getattr(LocalDisk, step)

    def failing(self: LocalDisk, *given: Any) -> None:
        if store.numbers("dataset"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(self, *given)

    monkeypatch.setattr(LocalDisk, step, failing)
    with pytest.raises(ArtifactError, match="dataset@1 is made, but the disk did not confirm it: Input/output error"):
        make_dataset(store)
    monkeypatch.undo()
    found = make_dataset(store)
    assert found.reused and found.verify() == {} and make_dataset(store, 6).number == 2


def loop(folder: Path) -> Path:
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    return folder / "a"


PLACES: dict[str, Callable[[Path], Path]] = {
    "a loop of links": loop,
    "below a loop of links": lambda folder: loop(folder) / "store",
    "a long name": lambda folder: folder / ("x" * 300),
    "a long path": lambda folder: folder / "/".join("y" * 3000),
}
COMMANDS = [
    *(("artifacts", name) for name in ("list", "gc", "verify")),
    ("artifacts", "forget", "u1", "--apply"),
    ("artifacts", "rm", "cloud@1"),
    ("train",),
    ("report",),
    ("doctor",),
]


@pytest.mark.parametrize("place", PLACES)
def test_a_store_that_cannot_be_is_said(tmp_path: Path, place: str) -> None:
    log = tmp_path / "log.csv"
    log.write_text("user_id,item_id,timestamp\n" + "".join(f"u{n % 5},i{n % 7},{n}\n" for n in range(60)))
    path = PLACES[place](tmp_path)
    for command in (*COMMANDS, ("ingest", str(log))):
        result = CliRunner().invoke(app, [*command, "--store", str(path)])
        assert result.exit_code == 3, (command, result.output, result.exception)
        assert "--store DIR" in result.output


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not hold RLIMIT_AS")
def test_memory_that_is_short_is_said(tmp_path: Path) -> None:
    make_dataset(Store(tmp_path / "store"))
    code = (
        "import resource, sys\nfrom dcclctl.cli import artifacts\nfrom dcclctl.cli.main import app\n"
        "def short(*given, **more):\n    raise MemoryError\n"
        "from dcclctl.store import snapshot\nsnapshot.Snapshot.__init__ = short\n"
        "app(['artifacts', 'list', '--store', sys.argv[1]])"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "store")]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=100, cwd=ROOT)
    assert ended.returncode == 3 and "Cannot allocate memory" in ended.stderr and "Traceback" not in ended.stderr
