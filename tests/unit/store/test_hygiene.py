"""Deleting: what goes, what stays, and that nothing goes that a running process uses."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from store_worlds import flip_bit, make_cloud, make_dataset
from typer.testing import CliRunner

import dcclctl
from dcclctl.cli.main import app
from dcclctl.errors import ArtifactError, UsageError
from dcclctl.store.disk import LocalDisk
from dcclctl.store.hygiene import collect, remove
from dcclctl.store.store import Store


def fill(place: Path | str) -> None:
    """dataset@1 and @2, cloud@1 and @2 on the first, cloud@3 on the second. No process uses any of them."""
    store = Store(place)
    first, second = make_dataset(store, 1), make_dataset(store, 2)
    make_cloud(store, first, 1)
    make_cloud(store, first, 2)
    make_cloud(store, second, 3)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with these artifacts."""
    fill(tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def filled(place: str) -> str:
    """A folder or a bucket with these artifacts."""
    fill(place)
    return place


def refs(root: Path | str) -> list[str]:
    return [artifact.ref for artifact in Store(root).artifacts()]


def deleted(root: Path | str, keep: int) -> list[str]:
    return [artifact.ref for artifact in collect(Store(root), keep, apply=True).versions]


def leases(root: Path | str) -> list[str]:
    """Files of the leases; a bucket also has a file there that tells the time."""
    store = Store(root)
    return [name for name in store.disk.names(store.root / "leases") if name != "clock"]


def test_what_nobody_needs_goes_and_what_a_kept_one_stands_on_stays(filled: str) -> None:
    assert [artifact.ref for artifact in collect(Store(filled), 1).versions] == ["dataset@1", "cloud@1", "cloud@2"]
    assert len(refs(filled)) == 5, "without apply nothing is deleted"
    assert deleted(filled, 1) == ["dataset@1", "cloud@1", "cloud@2"]
    assert refs(filled) == ["dataset@2", "cloud@3"]
    assert Store(filled).in_trash(set()) == []
    assert deleted(filled, 0) == ["dataset@2", "cloud@3"]


def test_a_name_keeps_an_artifact_and_its_inputs(filled: str) -> None:
    Store(filled).tag(Store(filled).load("cloud", 1), "release")
    assert deleted(filled, 0) == ["dataset@2", "cloud@2", "cloud@3"]
    assert refs(filled) == ["dataset@1", "cloud@1"]


def test_an_older_copy_of_an_artifact_goes(filled: str) -> None:
    store = Store(filled)
    make_cloud(store, store.load("dataset", 1), 1, force=True)
    del store
    Store(filled).tag(Store(filled).load("cloud", 4), "release")
    assert deleted(filled, 0) == ["dataset@2", "cloud@1", "cloud@2", "cloud@3"]
    assert Store(filled).load("cloud", 4).verify() == {}


def test_a_damaged_version_stays(root: Path) -> None:
    flip_bit(root / "cloud" / "v" / "000001" / "manifest.json", 9)
    assert deleted(root, 0) == ["dataset@1", "dataset@2", "cloud@2", "cloud@3"]
    assert Store(root).numbers("cloud") == [1]
    assert remove(Store(root), ["cloud@1"]).damaged == ["cloud@1"]
    assert Store(root).numbers("cloud") == []


def test_a_number_is_never_given_again(root: Path) -> None:
    remove(Store(root), ["cloud@3"])
    store = Store(root)
    assert make_cloud(store, store.load("dataset", 2), 9).number == 4
    collect(Store(root), 0, apply=True)
    (root / "cloud" / "v" / "000004").rename(root / "gone")  # by hand
    assert make_cloud(store, make_dataset(store, 2), 10).number == 5


def test_rm_refuses_while_something_stands_on_it(filled: str) -> None:
    with pytest.raises(UsageError, match="cloud@1, cloud@2 stand on dataset@1"):
        remove(Store(filled), ["dataset@1"])
    assert len(refs(filled)) == 5
    gone = remove(Store(filled), ["dataset@1"], force=True)
    assert {artifact.ref for artifact in gone.versions} == {"dataset@1", "cloud@1", "cloud@2"}
    assert refs(filled) == ["dataset@2", "cloud@3"]


def test_rm_refuses_a_named_one_and_with_force_the_name_goes_too(filled: str) -> None:
    Store(filled).tag(Store(filled).load("cloud", 1), "release")
    with pytest.raises(UsageError, match="cloud@release would name nothing"):
        remove(Store(filled), ["cloud@1"])
    assert remove(Store(filled), ["cloud@release"], force=True).names == ["cloud@release"]
    with pytest.raises(UsageError, match="there is no cloud@release"):
        Store(filled).resolve("cloud@release")


def test_one_of_two_copies_can_go_although_something_stands_on_it(filled: str) -> None:
    make_dataset(Store(filled), 1, force=True)
    remove(Store(filled), ["dataset@1"])
    store = Store(filled)
    assert store.load("cloud", 1).input("dataset").ref == "dataset@3"


def test_what_killed_runs_left_goes(root: Path) -> None:
    class Stop(Exception):
        pass

    with pytest.raises(Stop), Store(root).begin("patch", "patches", {}, 0, {}) as work:
        work.write_json("x.json", [1] * 1000)
        work.checkpoint({}, {"epoch": 1})
        raise Stop
    assert len(collect(Store(root), 9).work) == 2
    assert list((root / "patches" / "work").iterdir()) != []
    assert len(collect(Store(root), 9, apply=True).work) == 2
    assert list((root / "patches" / "work").iterdir()) == []


def test_a_deletion_that_was_killed_is_finished_by_the_next(filled: str) -> None:
    Store(filled).trash("cloud", 1)
    done = collect(Store(filled), 9, apply=True)
    assert (len(done.trash), Store(filled).in_trash(set())) == (1, [])


USE = """
import sys
from pathlib import Path
from dcclctl.store.store import Store
store = Store(sys.argv[1])
{use}
print("ready", flush=True)
sys.stdin.readline()
{end}
"""


@contextmanager
def process(root: Path | str, use: str, end: str = "") -> Iterator[subprocess.Popen[str]]:
    """Another process that has done `use`, and does `end` when the body is done."""
    command = [sys.executable, "-c", USE.format(use=use, end=end), str(root)]
    environment = os.environ | {"PYTHONPATH": str(Path(dcclctl.__file__).parents[1])}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        yield other
        if other.poll() is None:
            other.communicate("go\n", timeout=60)
            assert other.returncode == 0


def test_what_another_process_has_resolved_stays_with_its_inputs(filled: str) -> None:
    end = "assert used.verify() == {} and used.input('dataset').verify() == {}"
    with process(filled, "used = store.resolve('cloud@1')", end):
        assert deleted(filled, 0) == ["dataset@2", "cloud@2", "cloud@3"]
        assert [artifact.ref for artifact in collect(Store(filled), 0).in_use] == ["dataset@1", "cloud@1"]
        with pytest.raises(ArtifactError, match="a running command uses cloud@1"):
            remove(Store(filled), ["cloud@1"])
    assert deleted(filled, 0) == ["dataset@1", "cloud@1"], "the lease ends with the process"


def test_a_damaged_copy_does_not_free_what_is_in_use(root: Path) -> None:
    damaged = Store(root).resolve("cloud@1")
    flip_bit(next(damaged.path / name for name in damaged.manifest["files"]), 3)
    again = make_cloud(Store(root), Store(root).resolve("dataset@1"), 1)
    assert again.ref == "cloud@4" and again.id == damaged.id
    with process(root, "used = store.resolve('cloud@4')"):
        with pytest.raises(ArtifactError, match="a running command uses cloud@4"):
            remove(Store(root), ["cloud@4"])
        assert remove(Store(root), ["cloud@1"]).versions


def test_what_another_process_has_just_made_stays_and_its_work_too(filled: str) -> None:
    made = (
        "opened = store.begin('patch', 'patches', {}, 0, {}); work = opened.__enter__(); work.write_json('x.json', 1)"
    )
    end = "made = work.commit({}); opened.__exit__(None, None, None); assert made.verify() == {}"
    with process(filled, made, end):
        assert collect(Store(filled), 0, apply=True).work == []
    use = "opened = store.begin('patch', 'patches', {}, 1, {}); made = opened.__enter__().commit({})"
    with process(filled, use, "assert made.verify() == {}"):
        assert deleted(filled, 0) == ["patches@1"]


def test_a_killed_process_keeps_nothing(filled: str) -> None:
    with process(filled, "used = store.resolve('cloud@1')") as other:
        other.send_signal(signal.SIGKILL)
        other.wait(30)
        assert len(leases(filled)) == 2
    assert len(deleted(filled, 0)) == 5
    assert leases(filled) == []


COMMIT_AND_READ = """
import sys
from pathlib import Path
from dcclctl.errors import DcclError
from dcclctl.store.store import Store
root, name, turns = sys.argv[1], sys.argv[2], int(sys.argv[3])
done = missed = 0
for turn in range(turns):
    store = Store(root)
    with store.begin("ingest", "dataset", {"name": name, "turn": turn % 3}, 0, {}) as work:
        made = work.reused
        if made is None:
            work.write_json("x.json", [turn % 3] * 100)
            made = work.commit({})
    assert made.read_json("x.json") == [turn % 3] * 100
    try:
        found = store.resolve("dataset")
    except DcclError:
        missed += 1  # deleted before it was resolved
        continue
    assert len(found.read_json("x.json")) == 100, "what was resolved is there"
    assert found.verify() == {}
    done += 1
print(done, missed)
"""


def test_processes_that_commit_and_read_while_others_collect(place: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(dcclctl.__file__).parents[1])}
    turns = "5" if place.startswith("s3:") else "30"
    command = [sys.executable, "-c", COMMIT_AND_READ, place]
    workers = [
        subprocess.Popen(
            [*command, name, turns], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for name in ("a", "b", "c")
    ]
    collected = 0
    while any(worker.poll() is None for worker in workers):
        collected += len(collect(Store(place), 0, apply=True).versions)
    for worker in workers:
        out, errors = worker.communicate(timeout=60)
        assert worker.returncode == 0, errors
        assert int(out.split()[0]) > 0
    assert collected > 0
    collect(Store(place), 0, apply=True)
    assert Store(place).artifacts() == []


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["artifacts", *words])
    return result.exit_code, result.output


def test_the_commands(filled: str) -> None:
    where = ("--store", str(filled))
    code, text = run("gc", "--keep", "1", *where)
    assert code == 0
    assert "would delete din (cloud@1)" in text
    assert "to delete: dcclctl artifacts gc --apply" in text
    code, text = run("rm", "dataset@1", *where)
    assert (code, "cloud@1, cloud@2 stand on dataset@1" in text) == (2, True)
    code, text = run("rm", "cloud@1", "cloud@2", "--json", *where)
    assert json.loads(text.splitlines()[0])["artifacts"] == ["cloud@1", "cloud@2"]
    code, text = run("gc", "--keep", "0", "--apply", "--json", *where)
    assert json.loads(text.splitlines()[0])["artifacts"] == ["dataset@1", "dataset@2", "cloud@3"]
    assert refs(filled) == []


def test_what_is_deleted_is_off_the_disk_before_the_command_ends(tmp_path: Path) -> None:
    synced: list[str] = []

    class Watching(LocalDisk):
        def sync(self, path: Path) -> None:
            super().sync(path)
            synced.append(
                f"{path.name}, holding {sorted(each.name for each in path.iterdir())}" if path.is_dir() else ""
            )

    make_dataset(Store(tmp_path))
    store = Store(tmp_path, Watching())
    with pytest.raises(RuntimeError), store.begin("train", "cloud", {"x": 1}, 0, {}) as work:
        work.write_json("half.json", 1)
        raise RuntimeError("stopped")
    remove(Store(tmp_path, Watching()), ["dataset@1"])
    assert synced[-1] == "trash, holding []"
    store.dead_work(remove=True)
    assert synced[-1].startswith("work, holding []")
