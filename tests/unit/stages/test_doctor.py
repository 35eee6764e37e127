"""`dcclctl doctor`: one line for each thing, the remedy beside a fault, exit 3 if there is one."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))
from store_worlds import flip_bit, make_cloud, make_dataset

from dcclctl.cli.main import app
from dcclctl.stages import doctor
from dcclctl.store.disk import LocalDisk
from dcclctl.store.store import Store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)
    return Store(tmp_path / "store")


def run(store: Store) -> tuple[int, dict[str, dict[str, object]], str]:
    """Exit code, check by name, and stderr."""
    result = CliRunner().invoke(app, ["doctor", "--json", "--store", str(store.root)])
    return result.exit_code, {check["name"]: check for check in json.loads(result.stdout)["checks"]}, result.stderr


def test_a_healthy_place(store: Store) -> None:
    code, checks, _ = run(store)
    assert code == 0
    assert set(checks) == {"versions", "threads", "GPU", "space", "rename", "locks", "artifacts", "dccl.toml"}
    assert "torch " in str(checks["versions"]["said"])
    assert not store.root.exists(), "it does not create a store"
    make_cloud(store, make_dataset(store))
    assert run(store)[1]["artifacts"]["said"] == "2 in the store, all manifests whole"
    assert [path.name for path in store.root.iterdir() if path.name.startswith(".doctor")] == []


def test_damage_and_what_is_gone_are_named_with_the_remedy(store: Store) -> None:
    cloud = make_cloud(store, make_dataset(store))
    flip_bit(cloud.input("dataset").path / "manifest.json", 9)
    result = CliRunner().invoke(app, ["doctor", "--store", str(store.root)])
    assert result.exit_code == 3
    faults = [line for line in result.stdout.splitlines() if line.startswith("FAULT")]
    assert ["dataset@1 is damaged" in faults[0], "cloud@1 stands on dataset" in faults[1]] == [True, True]
    assert "dcclctl artifacts rm dataset@1" in faults[0]
    assert "2 of " in result.stderr


def test_what_a_stopped_run_left_is_said(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.begin("patch", "patches", {}, 0, {}) as work:
        work.write_json("x.json", 1)
        raise ZeroDivisionError
    code, checks, _ = run(store)
    assert (code, checks["half-finished"]["ok"]) == (0, True)
    assert "gc --apply" in str(checks["half-finished"]["remedy"])
    assert len(store.dead_work(remove=False)[0]) == 2, "it deletes nothing"


def test_locks_and_renames_that_do_not_work_are_faults(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_lock(*_: object, **__: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("filelock.lock_descriptor", lambda *_, **__: True)
    assert run(store)[1]["locks"]["ok"] is False, "a lock that two can hold"
    monkeypatch.setattr("filelock.lock_descriptor", no_lock)
    monkeypatch.setattr(LocalDisk, "rename", no_lock)
    code, checks, errors = run(store)
    assert (code, checks["locks"]["ok"], checks["rename"]["ok"]) == (3, False, False)
    assert "--store DIR" in errors


def test_no_space_and_settings_that_cannot_be_read(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dccl.toml").write_text("[train]\nepochs = 3\n")
    assert "train" in str(run(store)[1]["dccl.toml"]["said"])
    (tmp_path / "dccl.toml").write_text("[train\n")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 1})())
    code, checks, _ = run(store)
    assert (code, checks["dccl.toml"]["ok"], checks["space"]["ok"]) == (3, False, False)
