"""Several processes that train one model together: the weights of one process, and one artifact."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import world as shop_world
from safetensors.torch import load_file
from together import trained

from dcclctl.errors import UsageError
from dcclctl.models.world import World
from dcclctl.store.store import Store

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]


def run(*arguments: str | Path, port: int) -> subprocess.CompletedProcess[str]:
    """Two processes; the second one's port keeps two workers of the tests apart."""
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    command = [*TORCHRUN, f"--master-port={port}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def test_two_processes_learn_the_weights_of_one(tmp_path: Path) -> None:
    found = tmp_path / "weights.safetensors"
    done = run(Path(__file__).with_name("together.py"), found, port=29611)
    assert done.returncode == 0, done.stderr
    alone, together = trained(World()), load_file(found)
    assert alone.keys() == together.keys()
    for name, weight in alone.items():
        torch.testing.assert_close(together[name], weight, atol=2e-5, rtol=1e-4, msg=name)


def test_a_command_of_two_processes_makes_one_artifact_and_says_it_once(tmp_path: Path) -> None:
    store = tmp_path / "store"
    log = shop_world.write_log(tmp_path)
    shop_world.done("ingest", log, store=store)
    flags = ["train", "--model=sasrec", "--epochs=2", "--threads=1", "--json", f"--store={store}"]
    done = run("-m", "dcclctl", *flags, port=29640)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.strip().splitlines()
    made = Store(store).resolve(json.loads(line)["ref"])
    assert made.config["world_size"] == 2 and not made.verify()
    alone = shop_world.done("train", "--model=sasrec", "--epochs=2", "--threads=1", store=store)
    assert alone["id"] != made.id
    assert "world_size" not in Store(store).resolve(alone["ref"]).config
    mine, theirs = (Store(store).resolve(ref).facts["epochs"][0]["train_loss"] for ref in (alone["ref"], made.ref))
    assert mine == pytest.approx(theirs, rel=0.1)
    again = json.loads(run("-m", "dcclctl", *flags, port=29641).stdout)
    assert again["reused"] and again["id"] == made.id


def test_a_counted_model_is_made_by_one_process(tmp_path: Path) -> None:
    store = tmp_path / "store"
    shop_world.done("ingest", shop_world.write_log(tmp_path), store=store)
    done = run("-m", "dcclctl", "train", "--model=item-knn", f"--store={store}", port=29650)
    assert done.returncode != 0
    assert "torchrun has started 2" in done.stderr


def test_an_environment_without_a_meeting_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UsageError, match="MASTER_ADDR"):
        World.join(torch.device("cpu"))
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UsageError, match="no number of processes"):
        World.join(torch.device("cpu"))
