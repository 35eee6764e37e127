"""Shards of users in this process, in local processes, and after a process has died: the same files."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dcclctl.errors import ArtifactError, DataError, UsageError
from dcclctl.scale.executor import Executor, for_each_shard
from dcclctl.scale.task import OnShard, ShardTask
from dcclctl.store.store import Artifact, Input, Store
from dcclctl.store.work import Work

FILE, SHARDS, HERE = "theta-{:05d}.safetensors", 5, "test_executor"
RAW = {"dataset": Input("raw", "a" * 64)}


def squares(store: Store, work: Work, arguments: dict[str, Any]) -> OnShard:
    """The work of these tests: a file for each shard. What the arguments ask for goes wrong once."""
    scratch = Path(arguments["scratch"])

    def on_shard(shard: int, on_done: Callable[[float], None]) -> None:
        on_done(1)
        if shard == arguments.get("dies"):
            tries = len(list(scratch.glob("died-*")))
            if tries < arguments["times"]:
                (scratch / f"died-{tries}").touch()
                os._exit(9)
        if shard == arguments.get("fails"):
            raise DataError(f"shard {shard} is bad", "Mend it.")
        if shard == arguments.get("breaks"):
            raise ZeroDivisionError("a bug")
        (scratch / f"done-{shard}-{os.getpid()}").touch()
        work.write_tensors(FILE.format(shard), {"theta": torch.arange(4) * shard})
        on_done(1)

    return on_shard


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes find this file."""
    here = str(Path(__file__).parent)
    monkeypatch.syspath_prepend(here)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((here, *filter(None, [os.environ.get("PYTHONPATH")]))))


def made(folder: Path, executor: str, shards: int = SHARDS, **arguments: Any) -> tuple[Artifact, list[float]]:
    """An artifact of all shards, and the amounts that were told."""
    scratch, told = folder / "scratch", list[float]()
    scratch.mkdir(parents=True, exist_ok=True)
    store = Store(folder / "store")
    with store.begin("patch", "patches", {}, 0, RAW) as work:
        given = {"scratch": str(scratch), **arguments}
        task = ShardTask.of(store, work, f"{HERE}:squares", given, (FILE,))
        for_each_shard(store, work, task, range(shards), Executor.parse(executor), told.append, lambda shard: 2.0)
        assert all(work.finished(FILE.format(shard)) for shard in range(shards))
        return work.commit({}), told


def test_the_same_artifact_in_any_number_of_processes(tmp_path: Path) -> None:
    artifacts = {}
    for executor in ("local", "local:1", "local:2"):
        artifact, told = made(tmp_path / executor.replace(":", "-"), executor)
        assert sum(told) == 2 * SHARDS
        artifacts[executor] = artifact.id
    assert len(set(artifacts.values())) == 1, artifacts
    workers = {path.name.split("-")[2] for path in (tmp_path / "local-2" / "scratch").iterdir()}
    assert str(os.getpid()) not in workers


def test_a_shard_whose_process_died_is_done_again(tmp_path: Path) -> None:
    artifact, told = made(tmp_path / "dying", "local:2", dies=3, times=2)
    assert artifact.id == made(tmp_path / "whole", "local")[0].id
    assert sum(told) == 2 * SHARDS
    assert len(list((tmp_path / "dying" / "scratch").glob("died-*"))) == 2


def test_a_shard_that_ends_every_process_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="3 processes died while they worked on part 1"):
        made(tmp_path, "local:2", dies=1, times=99)


@pytest.mark.parametrize("executor", ["local", "local:2"])
def test_an_error_of_the_work_is_raised_and_what_is_done_stays(tmp_path: Path, executor: str) -> None:
    with pytest.raises(DataError, match="shard 4 is bad") as caught:
        made(tmp_path, executor, fails=4)
    assert caught.value.remedy == "Mend it."
    done = {path.name.split("-")[1] for path in (tmp_path / "scratch").glob("done-*")}
    artifact, told = made(tmp_path, executor)
    assert artifact.id == made(tmp_path / "whole", "local")[0].id
    assert sum(told) == 2 * SHARDS
    again = [path.name.split("-")[1] for path in (tmp_path / "scratch").glob("done-*")]
    assert sorted(again) == sorted({*again}) or executor == "local:2"
    assert done <= set(again)


def test_a_bug_in_a_worker_keeps_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"in a worker process(.|\n)*ZeroDivisionError: a bug"):
        made(tmp_path, "local:1", breaks=0)


def test_a_task_is_one_line_of_text(tmp_path: Path) -> None:
    task = ShardTask(
        "a:b", {"text": "a\nb", "number": 1}, (FILE,), {"device": "cpu", "threads": 1}, "store", "patches", "k"
    )
    assert ShardTask.parse(task.text()) == task
    assert "\n" not in task.text()
    assert json.loads(task.text())["arguments"]["number"] == 1


@pytest.mark.parametrize("text", ["", "local:", "local:0", "local:2000", "local:x", "ray://", "ray:2", "spark"])
def test_other_executors_are_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Executor.parse(text)
    assert "local:N" in caught.value.remedy


def test_ray_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError) as caught:
        Executor.parse("ray")
    assert "dcclctl[ray]" in caught.value.remedy
