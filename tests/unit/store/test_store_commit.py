"""Making artifacts: kills at every step, two at once, resuming, reuse."""

import errno
import fcntl
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import polars as pl
import pytest
import torch
from store_worlds import RAW, flip_bit, make_cloud, make_dataset, patched_users

import dcclctl
import dcclctl.store.work
from dcclctl.errors import ArtifactError
from dcclctl.store.disk import LocalDisk
from dcclctl.store.store import Store


class Killed(BaseException):
    """Stands for the end of the process."""


class TracingDisk(LocalDisk):
    """Writes down every primitive operation, and dies before or after the n-th one.

    Args:
        fatal: number of the step at which to die, from 0; each operation is two steps, before and after it.
    """

    def __init__(self, fatal: int = -1) -> None:
        self.steps: list[str] = []
        self.fatal = fatal

    def _around(self, what: str, operation: Callable[[], Any]) -> Any:
        self._step(f"before {what}")
        result = operation()
        self._step(f"after {what}")
        return result

    def _step(self, what: str) -> None:
        self.steps.append(what)
        if len(self.steps) == self.fatal + 1:
            raise Killed(what)

    def rename(self, source: Path, target: Path) -> None:
        self._around(f"rename {target.name}", lambda: super(TracingDisk, self).rename(source, target))

    def sync(self, path: Path) -> None:
        self._around(f"sync {path.name}", lambda: super(TracingDisk, self).sync(path))

    def remove(self, path: Path) -> None:
        self._around(f"remove {path.name}", lambda: super(TracingDisk, self).remove(path))

    def make_folder(self, folder: Path) -> None:
        self._around(f"make {folder.name}", lambda: super(TracingDisk, self).make_folder(folder))

    def freeze(self, folder: Path) -> None:
        self._around(f"freeze {folder.name}", lambda: super(TracingDisk, self).freeze(folder))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def anywhere(place: str) -> Store:
    return Store(place)


def _steps_of_a_commit(root: Path) -> list[str]:
    store = Store(root, disk := TracingDisk())
    make_dataset(store)
    return [*disk.steps]  # without those with which the store gives its lease back


def _check_after_kill(root: Path, clean_id: str) -> None:
    """Either nothing is committed, or all of it; the same command again gives the same artifact, and tidies up."""
    store = Store(root)
    for number in store.numbers("dataset"):
        assert store.verify("dataset", number) == {}
    again = make_dataset(store)
    assert again.id == clean_id
    assert again.verify() == {}
    assert store.numbers("dataset") == [1]
    assert list((root / "dataset" / "work").iterdir()) == []


def test_dying_at_every_step_leaves_all_or_something_to_resume(tmp_path: Path) -> None:
    clean_id = make_dataset(Store(tmp_path / "clean")).id
    steps = _steps_of_a_commit(tmp_path / "traced")
    assert len(steps) > 40
    for fatal in range(len(steps)):
        root = tmp_path / f"store-{fatal}"
        with pytest.raises(Killed):
            make_dataset(Store(root, TracingDisk(fatal)))
        _check_after_kill(root, clean_id)


SIGKILL_AT_EVERY_STEP = """
import os, signal, sys
from pathlib import Path
from dcclctl.store.disk import LocalDisk
from dcclctl.store.store import Input, Store

class DeadlyDisk(LocalDisk):
    def __init__(self, fatal):
        self.left = fatal
    def step(self):
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def rename(self, source, target):
        self.step(); super().rename(source, target); self.step()
    def sync(self, path):
        self.step(); super().sync(path); self.step()
    def remove(self, path):
        self.step(); super().remove(path); self.step()

def make(root, disk):
    with Store(root, disk).begin("ingest", "dataset", {}, 0, {"log:x": Input("raw", "a" * 64)}) as work:
        if work.reused:
            return work.reused
        for name in ("one.json", "folder/two.json"):
            if not work.finished(name):
                work.write_json(name, {"name": name})
        return work.commit({"files": 2})

for fatal in range(1000):
    root = Path(sys.argv[1]) / str(fatal)
    child = os.fork()
    if child == 0:
        make(root, DeadlyDisk(fatal))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    made = make(root, LocalDisk())
    assert made.number == 1 and made.verify() == {}, (fatal, made, made.verify())
    print(made.id, len(os.listdir(root / "dataset" / "work")))
    if status == 0:
        sys.exit(0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
sys.exit("never finished")
"""


def test_a_real_kill_at_every_step_leaves_all_or_something_to_resume(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SIGKILL_AT_EVERY_STEP, str(tmp_path)]
    environment = {"PYTHONPATH": str(Path(dcclctl.__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    results = done.stdout.splitlines()
    assert len(results) > 40
    (result,) = set(results)
    assert result.endswith(" 0"), "a lock, a state or a work folder was left behind"


def test_everything_is_on_the_disk_before_the_commit_point_and_the_commit_point_after_it(tmp_path: Path) -> None:
    steps = [step.removeprefix("before ") for step in _steps_of_a_commit(tmp_path) if step.startswith("before ")]
    (commit,) = (index for index, step in enumerate(steps) if step == "rename 000001")
    manifest = steps.index("rename manifest.json")
    assert steps.index("rename events.parquet") < steps.index("rename rejects.json") < manifest < commit
    for name in ("events.parquet", "rejects.json", "manifest.json"):
        written = steps.index(f"rename {name}")
        assert steps[written - 1].startswith(f"sync .{name}."), "renamed before its bytes were on the disk"
    folder = steps[commit - 2 : commit]
    assert folder[0].startswith("freeze ")
    assert folder[1].startswith("sync ")
    assert steps[commit + 1 : commit + 3] == ["sync v", "sync work"]


# -- two at once


def test_two_equal_calls_at_once_compute_once(store: Store, tmp_path: Path) -> None:
    entered, waiting = threading.Event(), threading.Event()
    computed: list[str] = []
    ids: dict[str, str] = {}

    def make(name: str, remark: Callable[[str], None]) -> None:
        with Store(store.root, remark=remark).begin("ingest", "dataset", {}, 0, {}) as work:
            if work.reused is None:
                entered.set()
                assert waiting.wait(30)
                computed.append(name)
                work.write_json("x.json", 1)
                ids[name] = work.commit({}).id
            else:
                ids[name] = work.reused.id

    first = threading.Thread(target=make, args=("first", lambda line: None))
    first.start()
    assert entered.wait(30)
    second = threading.Thread(target=make, args=("second", lambda line: waiting.set()))
    second.start()
    for thread in (first, second):
        thread.join(30)
    assert computed == ["first"]
    assert ids["first"] == ids["second"]
    assert store.numbers("dataset") == [1]


HOLD_THE_WORK = """
import sys
from pathlib import Path
from dcclctl.store.store import Store
with Store(Path(sys.argv[1])).begin("ingest", "dataset", {}, 0, {}) as work:
    print("inside", flush=True)
    sys.stdin.readline()
    work.write_json("x.json", 1)
    print(work.commit({}).id, flush=True)
"""


def test_another_process_is_waited_for(store: Store) -> None:
    environment = {"PYTHONPATH": str(Path(dcclctl.__file__).parents[1])}
    command = [sys.executable, "-c", HOLD_THE_WORK, str(store.root)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        stdin = other.stdin
        assert other.stdout.readline() == "inside\n"
        remarks: list[str] = []

        def let_it_finish(line: str) -> None:
            remarks.append(line)
            stdin.write("go\n")
            stdin.flush()

        with Store(store.root, remark=let_it_finish).begin("ingest", "dataset", {}, 0, {}) as work:
            assert work.reused is not None
            assert work.reused.id == other.stdout.readline().strip()
        assert other.wait(30) == 0
    assert remarks == ["another process is making the same dataset: waiting for it"]


def test_a_lock_whose_file_is_removed_by_its_holder_still_excludes(tmp_path: Path) -> None:
    disk, path = LocalDisk(), tmp_path / "work.lock"
    inside, most, rounds = 0, 0, 0

    def work() -> None:
        nonlocal inside, most, rounds
        for _ in range(40):
            with disk.lock(path, lambda: None):
                inside += 1
                most = max(most, inside)
                rounds += 1
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (most, rounds) == (1, 240)
    assert not path.exists()


def test_a_lock_file_replaced_while_waiting_is_not_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "work.lock"
    held = [_locked(path)]

    def release_and_let_another_in() -> None:
        if len(waits) == 0:
            path.unlink()
            held.append(_locked(path))
        waits.append(len(waits))
        held.pop(0).close()

    waits: list[int] = []
    with LocalDisk().lock(path, release_and_let_another_in):
        assert waits == [0, 1], "the lock on the removed file was taken for the lock"


def _locked(path: Path) -> BinaryIO:
    file = path.open("wb")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def test_a_number_that_was_taken_meanwhile_gives_the_next_one(store: Store) -> None:
    first = make_dataset(store, 1)

    class StaleDisk(LocalDisk):
        """Lists the versions as they were before the first commit."""

        def names(self, folder: Path) -> list[str]:
            return [] if folder.name in ("v", "last") else super().names(folder)

    second = make_dataset(Store(store.root, StaleDisk()), 2)
    assert second.number == 2
    assert (first.verify(), second.verify()) == ({}, {})
    assert store.latest("dataset") == second


# -- reuse and force


def test_the_same_work_is_reused(anywhere: Store) -> None:
    made = make_dataset(anywhere)
    with anywhere.begin("ingest", "dataset", {"rows": 5, "split": "global"}, 7, {"log:events.csv": RAW}) as work:
        assert work.reused == made


@pytest.mark.parametrize(
    "changed", [{"config": {"a": 2}}, {"seed": 1}, {"stage": "other"}, {"inputs": {"log:y": RAW}}, {"kind": "cloud"}]
)
def test_other_work_is_not_reused(anywhere: Store, changed: dict[str, Any]) -> None:
    head = {"stage": "ingest", "kind": "dataset", "config": {"a": (1,)}, "seed": 0, "inputs": {"log:x": RAW}}
    with anywhere.begin(**head) as work:
        work.commit({})
    with anywhere.begin(**head) as work:
        assert work.reused is not None
    with anywhere.begin(**{**head, **changed}) as work:
        assert work.reused is None


def test_force_makes_it_again_under_a_new_number(anywhere: Store) -> None:
    first = make_dataset(anywhere)
    again = make_dataset(anywhere, force=True)
    assert (first.number, again.number, first.id) == (1, 2, again.id)


def test_a_damaged_artifact_is_not_reused_and_the_user_hears_of_it(store: Store) -> None:
    first = make_dataset(store)
    flip_bit(first.path / "events.parquet", 60)
    remarks: list[str] = []
    again = make_dataset(Store(store.root, remark=remarks.append))
    assert (again.number, again.id) == (2, first.id)
    assert len(remarks) == 1
    assert "dataset@1 is damaged (events.parquet" in remarks[0]


# -- resuming


def _begin(store: Store, force: bool = False) -> Any:
    return store.begin("patch", "patches", {"users": "all"}, 0, {}, force)


class Stop(Exception):
    """Ends a stage in the middle."""


def _killed_after_two_shards(store: Store) -> None:
    with pytest.raises(Stop), _begin(store) as work:
        for shard in range(2):
            work.write_tensors(f"shards/{shard}.safetensors", {"theta": torch.full((2, 3), float(shard))})
        work.write_table("users.parquet", patched_users())
        work.checkpoint({"g": torch.ones(2)}, {"epoch": 1})
        work.record({"epoch": 0})
        raise Stop


def test_finished_shards_survive_and_only_the_missing_ones_are_done(anywhere: Store) -> None:
    _killed_after_two_shards(anywhere)
    assert anywhere.numbers("patches") == []
    with _begin(anywhere) as work:
        assert [work.finished(f"shards/{shard}.safetensors") for shard in range(3)] == [True, True, False]
        assert work.finished("users.parquet")
        assert torch.equal(work.read_tensors("shards/1.safetensors")["theta"], torch.ones(2, 3))
        assert work.read_table("users.parquet").equals(patched_users())
        work.write_json("last.json", [1])
        assert work.read_json("last.json") == [1]
        resumed = work.commit({})
    assert set(resumed.manifest["files"]) == {
        "shards/0.safetensors",
        "shards/1.safetensors",
        "users.parquet",
        "last.json",
    }
    assert resumed.manifest["tables"]["users.parquet"]["rows"] == 5
    assert resumed.run["resumed"] is True
    assert resumed.verify() == {}


def test_a_damaged_shard_is_not_finished(store: Store) -> None:
    _killed_after_two_shards(store)
    (shard,) = (store.root / "patches" / "work").rglob("1.safetensors")
    flip_bit(shard, shard.stat().st_size - 1)
    with _begin(store) as work:
        assert work.finished("shards/0.safetensors")
        assert not work.finished("shards/1.safetensors")
        with pytest.raises(ArtifactError, match=r"1\.safetensors is missing or damaged"):
            work.read_tensors("shards/1.safetensors")


def test_what_this_run_did_not_ask_for_stays_out(anywhere: Store) -> None:
    _killed_after_two_shards(anywhere)
    with _begin(anywhere) as work:
        work.write_json("only.json", 1)
        made = work.commit({})
    assert list(made.manifest["files"]) == ["only.json"]
    assert made.verify() == {}


def test_force_clears_what_a_killed_run_left(anywhere: Store) -> None:
    _killed_after_two_shards(anywhere)
    with _begin(anywhere, force=True) as work:
        assert not work.finished("users.parquet")
        assert work.load_checkpoint() is None


def test_other_package_versions_start_anew(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    _killed_after_two_shards(store)
    monkeypatch.setattr(dcclctl.store.work, "package_versions", lambda: {"torch": "99"})
    with _begin(store) as work:
        assert not work.finished("users.parquet")
        assert work.load_checkpoint() is None


def test_checkpoint_comes_back(store: Store) -> None:
    tensors = {"w": torch.randn(3, 2).t(), "step": torch.tensor(4), "rng": torch.get_rng_state()}
    with pytest.raises(Stop), _begin(store) as work:
        assert work.load_checkpoint() is None
        work.checkpoint({"old": torch.zeros(1)}, {"epoch": 0})
        work.checkpoint(tensors, {"epoch": 1, "best": 0.25})
        raise Stop
    with _begin(store) as work:
        loaded, state = work.load_checkpoint()
        assert state == {"epoch": 1, "best": 0.25}
        assert loaded.keys() == tensors.keys()
        assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
        made = work.commit({})
    assert made.manifest["files"] == {}


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(store: Store) -> None:
    with _begin(store) as work:
        work.checkpoint({"w": torch.zeros(1)}, {"epoch": 0})
        with pytest.raises(ValueError, match=r"state\.best is nan"):
            work.checkpoint({"w": torch.ones(1)}, {"best": float("nan")})
        assert work.load_checkpoint()[1] == {"epoch": 0}


@pytest.mark.parametrize("position", [0, 31, 32, 40, 100, -1])
def test_a_damaged_checkpoint_is_no_checkpoint(store: Store, position: int) -> None:
    _killed_after_two_shards(store)
    (path,) = (store.root / "patches" / "work").rglob("checkpoint")
    flip_bit(path, position % path.stat().st_size)
    with _begin(store) as work:
        assert work.load_checkpoint() is None


def test_metrics_of_a_killed_run_are_kept_but_not_its_torn_line(store: Store) -> None:
    _killed_after_two_shards(store)
    (path,) = (store.root / "patches" / "work").rglob("metrics.jsonl")
    path.write_bytes(path.read_bytes() + b'{"epoch": 1, "lo')
    with _begin(store) as work:
        work.record({"epoch": 0})  # again: the checkpoint was older than this line
        work.record({"epoch": 1})
        made = work.commit({})
    lines = (made.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"epoch": 0}, {"epoch": 1}]


def test_a_body_that_returns_without_commit_leaves_its_work(store: Store) -> None:
    with _begin(store) as work:
        work.write_json("x.json", 1)
    assert store.numbers("patches") == []
    with _begin(store) as work:
        assert work.finished("x.json")


def test_times_and_notes_change_no_id(anywhere: Store) -> None:
    ids = []
    for number in range(2):
        with _begin(anywhere, force=True) as work:
            work.note_run(device=f"cpu-{number}")
            work.record({"seconds": number})
            made = work.commit({"users": 3})
        ids.append(made.id)
        assert made.run["device"] == f"cpu-{number}"
    assert ids[0] == ids[1]


# -- what cannot be written


@pytest.mark.parametrize("name", ["", "/etc/x.json", "../x.json", "a/../x.json", "X.json", ".hidden.json", "a//b.json"])
def test_file_names_stay_inside(store: Store, name: str) -> None:
    with _begin(store) as work, pytest.raises(ValueError, match=r"must end|not a file name"):
        work.write_json(name, 1)


def test_a_stream_written_into_new_file_has_rows_and_schema(anywhere: Store) -> None:
    with _begin(anywhere) as work:
        with work.new_file("users.parquet") as path:
            patched_users(9).lazy().sink_parquet(path)
        made = work.commit({})
    assert made.manifest["tables"]["users.parquet"]["rows"] == 9


def test_a_file_that_fails_halfway_is_not_there(anywhere: Store) -> None:
    with _begin(anywhere) as work:
        work.write_json("x.json", 1)
        with pytest.raises(Stop), work.new_file("x.json") as path:
            path.write_bytes(b"half")
            raise Stop
        assert not work.finished("x.json")
        made = work.commit({})
    assert made.manifest["files"] == {}
    assert made.verify() == {}


def test_facts_that_are_not_numbers_fail_before_anything_is_committed(store: Store) -> None:
    with pytest.raises(ValueError, match=r"manifest\.facts\.loss is nan"), _begin(store) as work:
        work.commit({"loss": float("nan")})
    assert store.numbers("patches") == []


class _Usage:
    def __init__(self, free: int) -> None:
        self.free = free


@pytest.fixture
def free_bytes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """What the disk says that it has left, in turn; the last value stays."""
    answers = [10**12]
    monkeypatch.setattr(
        "dcclctl.store.disk.shutil.disk_usage", lambda path: _Usage(answers.pop(0) if len(answers) > 1 else answers[0])
    )
    yield answers


def test_a_full_disk_is_said_before_writing(store: Store, free_bytes: list[int]) -> None:
    with _begin(store) as work:
        free_bytes[:] = [20 * 2**20]
        work.write_json("small.json", 1)
        with pytest.raises(ArtifactError, match="no room for") as caught:
            work.write_tensors("big.safetensors", {"w": torch.zeros(2**21)})
        assert "continues where it stopped" in caught.value.remedy


def test_a_disk_that_fills_up_meanwhile_is_said(store: Store, free_bytes: list[int]) -> None:
    with _begin(store) as work:
        free_bytes[:] = [10**12, 0]
        with pytest.raises(ArtifactError, match="no room for"), work.new_file("x.parquet"):
            raise pl.exceptions.ComputeError("No space left on device")


@pytest.mark.parametrize(
    ("number", "said"), [(errno.EACCES, "--store DIR"), (errno.EROFS, "--store DIR"), (errno.EIO, "")]
)
def test_what_the_system_refuses_has_a_remedy(tmp_path: Path, number: int, said: str) -> None:
    class RefusingDisk(LocalDisk):
        def rename(self, source: Path, target: Path) -> None:
            raise OSError(number, "refused")

    with pytest.raises(ArtifactError, match=r"cannot write .*: refused") as caught:
        make_dataset(Store(tmp_path, RefusingDisk()))
    assert said in caught.value.remedy


def test_a_store_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="cannot write") as caught:
        make_dataset(Store(tmp_path / "file"))
    assert "--store DIR" in caught.value.remedy


def test_a_chain_of_stages_is_reused_as_a_whole(store: Store) -> None:
    first = make_cloud(store, make_dataset(store))
    assert make_cloud(store, make_dataset(store)) == first
