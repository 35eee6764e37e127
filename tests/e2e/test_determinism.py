"""The same work under other circumstances: equal ids where that is promised, equal to a stated tolerance elsewhere."""

import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch
from world import EVALUATE, PATCH, TRAIN, World, done, replaced

#: how the work of a stage may be spread; the first is what the others are compared with
SPREAD = {"1 thread": ("--threads=1",), "2 threads": ("--threads=2",), "8 threads": ("--threads=8",)}
OTHERS = [name for name in SPREAD if name != "1 thread"]
#: sums of floats in another order: relative for what is learned, absolute for figures of given weights
LEARNED, FIGURES = 1e-4, 1e-6


@pytest.fixture(scope="module")
def spread(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The world, with the same patches and the same evaluation made under every circumstance."""
    store = world.copy(tmp_path_factory.mktemp("spread") / "store")
    for flags in SPREAD.values():
        done("patch", "--users=tail", "--cloud=cloud@1", *replaced(PATCH, *flags), store=store)
        done("evaluate", "cloud@1", "patches@1", "--against=cloud@1", *replaced(EVALUATE, *flags), store=store)
    return World(store, world.log, world.ids)


@pytest.mark.parametrize("environment", [{"POLARS_MAX_THREADS": "8"}, {"PYTHONHASHSEED": "5"}])
def test_a_dataset_has_the_same_id_in_any_process(environment: dict[str, str], world: World, tmp_path: Path) -> None:
    sides = ("--users", world.log.with_name("users.csv"), "--items", world.log.with_name("items.csv"))
    command = [sys.executable, "-m", "dcclctl", "ingest", world.log, *sides, "--json", "--store", tmp_path / "store"]
    ran = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=os.environ | environment, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    assert world.ids["ingest"] in ran.stdout


@pytest.mark.parametrize("name", OTHERS)
def test_patches_do_not_depend_on_how_the_work_is_spread(name: str, spread: World) -> None:
    numbers = {
        config["threads"]: number
        for number in spread.store.numbers("patches")
        for config in [spread.artifact(f"patches@{number}").config]
    }
    one, other = (spread.artifact(f"patches@{numbers[int(each.split()[0])]}") for each in ("1 thread", name))
    files = [file for file in one.manifest["files"] if file.startswith("theta-")]
    assert len(files) == 3
    for file in files:
        a, b = one.read_tensors(file), other.read_tensors(file)
        assert torch.equal(a["user_index"], b["user_index"])
        assert (a["theta"] - b["theta"]).abs().max() <= LEARNED * a["theta"].abs().max()


@pytest.mark.parametrize("name", OTHERS)
def test_figures_of_given_weights_do_not_depend_on_it(name: str, spread: World) -> None:
    found = {}
    for number in spread.store.numbers("evaluation"):
        artifact = spread.artifact(f"evaluation@{number}")
        if (
            artifact.config["on"] == "test"
            and len([role for role in artifact.inputs if role.startswith("subject")]) == 2
        ):
            found[artifact.config["threads"]] = artifact.read_table("aggregate.parquet")
    one, other = found[1], found[int(name.split()[0])]
    assert one.columns == other.columns and one.height == other.height > 0
    for column in one.columns:
        if one[column].dtype == pl.Float64:
            assert (one[column].is_null() == other[column].is_null()).all()
            assert ((one[column] - other[column]).abs().max() or 0) <= FIGURES, column
        else:
            assert one[column].equals(other[column]), column


def test_the_tolerance_is_not_the_reason(spread: World) -> None:
    """Another seed is far outside it."""
    other = done("patch", "--users=tail", "--cloud=cloud@1", *PATCH, "--seed=1", store=spread.root)["ref"]
    a, b = (spread.artifact(ref).read_tensors("theta-00000.safetensors")["theta"] for ref in ("patches@1", other))
    assert (a - b).abs().max() > 100 * LEARNED * a.abs().max()


def test_equal_training_in_another_process_has_the_same_id(world: World, tmp_path: Path) -> None:
    store = world.copy(tmp_path / "store")
    command = [sys.executable, "-m", "dcclctl", "train", *TRAIN, "--force", "--json", "--store", str(store)]
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONHASHSEED": "7"}, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert world.ids["train"] in ran.stdout
