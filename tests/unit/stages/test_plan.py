"""`--plan`: what would be reused and made, without making anything."""

import json
from pathlib import Path
from typing import Any

import pytest
from world import EVALUATE, PATCH, TRAIN, World, dcclctl, done, write_log

import dcclctl as api
from dcclctl.stages import plan as planning
from dcclctl.stages.plan import estimate
from dcclctl.store.store import Step, Store


def files(store: Path) -> dict[str, int]:
    """Every file and folder of a store, with the time of its last change."""
    return {str(path.relative_to(store)): path.lstat().st_mtime_ns for path in (store, *store.rglob("*"))}


def planned(*words: object, store: Path) -> list[tuple[str, str, str | None]]:
    """(stage, kind, reused reference or None) of each step; the store stays as it is."""
    before = files(store) if store.exists() else {}
    shown = dcclctl(*words, "--plan", "--json", store=store)
    assert shown.exit_code == 0, shown.stderr
    assert (files(store) if store.exists() else {}) == before
    steps: list[dict[str, Any]] = json.loads(shown.stdout)["plan"]
    for step in steps:
        assert step["reused"] == (step["ref"] is not None) == (step["estimated_seconds"] is None)
        assert step["reused"] or (step["estimated_seconds"] > 0 and step["estimated_memory_bytes"] > 1 << 20)
    return [(step["stage"], step["kind"], step["ref"]) for step in steps]


COMMANDS: dict[str, tuple[object, ...]] = {
    "train": ("train", *TRAIN),
    "memory": ("memory",),
    "patch": ("patch", "--users=tail", "--cloud=cloud@1", *PATCH),
    "distill": ("distill", "--epochs=2", "--threads=1"),
    "evaluate": ("evaluate", *EVALUATE),
}


def test_what_is_there_would_be_reused(shop: Path) -> None:
    assert planned(*COMMANDS["train"], store=shop) == [("train", "cloud", "cloud@1")]
    assert planned(*COMMANDS["patch"], store=shop) == [("patch", "patches", "patches@1")]
    assert planned(*COMMANDS["evaluate"], store=shop) == [("evaluate", "evaluation", "evaluation@1")]


def test_force_makes_it_again(shop: Path) -> None:
    assert planned(*COMMANDS["train"], "--force", store=shop) == [("train", "cloud", None)]


def test_what_is_not_there_would_be_made(shop: Path) -> None:
    assert planned("train", *TRAIN, "--seed=5", store=shop) == [("train", "cloud", None)]
    assert planned(*COMMANDS["memory"], store=shop) == [("memory", "memory", None)]
    assert planned(*COMMANDS["distill"], store=shop) == [("distill", "cloud", None)]


def test_a_memory_that_is_made_on_the_way_is_a_step_of_its_own(shop: Path) -> None:
    command = ("patch", "--cloud=cloud@1", "--set=patch.memory.epochs=1", "--threads=1")
    assert planned(*command, store=shop) == [("memory", "memory", None), ("patch", "patches", None)]
    done("memory", store=shop)
    assert planned(*command, store=shop) == [("patch", "patches", None)]


def test_each_of_several_evaluations_is_a_step(shop: Path) -> None:
    command = ("evaluate", "cloud@1", "--first-events=0,1", "--targets-after=2", *EVALUATE)
    assert planned(*command, store=shop) == [("evaluate", "evaluation", None)] * 2
    done("evaluate", "cloud@1", "--first-events=0", "--targets-after=2", *EVALUATE, store=shop)
    assert planned(*command, store=shop) == [
        ("evaluate", "evaluation", "evaluation@2"),
        ("evaluate", "evaluation", None),
    ]


def test_a_plan_creates_no_store(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log")
    assert planned("ingest", log, store=tmp_path / "store") == [("ingest", "dataset", None)]
    assert not (tmp_path / "store").exists()


def test_a_plan_gives_no_name(shop: Path) -> None:
    assert planned(*COMMANDS["train"], "--name=other", store=shop) == [("train", "cloud", "cloud@1")]
    assert dcclctl("artifacts", "show", "cloud@other", store=shop).exit_code == 2


def test_a_mistake_is_found_by_the_plan(shop: Path) -> None:
    result = dcclctl("train", "--set=train.din.epoch=3", "--plan", store=shop)
    assert result.exit_code == 2 and "Did you mean 'epochs'?" in result.stderr


def test_a_person_reads_a_table(shop: Path) -> None:
    shown = dcclctl(*COMMANDS["patch"], "--seed=8", "--plan", store=shop)
    assert "nothing has been done" in shown.stdout
    assert "make patches" in shown.stdout and "≈" in shown.stdout and "1 earlier run" in shown.stdout
    assert "reuse patches@1" in dcclctl(*COMMANDS["patch"], "--plan", store=shop).stdout


def test_python_plans_too(shop: Path) -> None:
    store = Store(shop)
    data = World(shop, shop, {}).dataset()
    with data.store.plan() as steps:
        api.train(data, epochs=1, threads=1)
        raise AssertionError("a plan ends where something is to be made")
    assert [(step.stage, step.found) for step in steps] == [("train", None)]
    assert api.train(data, model="popularity", threads=1).ref == f"cloud@{store.numbers('cloud')[-1]}"  # over again


@pytest.mark.parametrize("stage", planning._SECONDS)
def test_without_an_earlier_run_general_figures_are_used(tmp_path: Path, stage: str) -> None:
    few, many = (estimate(Step(stage, "cloud", {}, amount), Store(tmp_path)) for amount in (10, 10**9))
    assert few.runs == many.runs == 0
    assert few.seconds < many.seconds


def test_time_grows_with_the_work_as_in_earlier_runs(shop: Path) -> None:
    store = Store(shop)
    earlier = store.resolve("cloud@1")
    run = earlier.run
    assert run["amount"] > 0
    guess = estimate(Step("train", "cloud", earlier.config, 3 * run["amount"]), store)
    assert guess.runs == 1  # cloud@2 is distilled
    assert guess.seconds == pytest.approx(3 * run["seconds"])
    assert guess.memory_bytes == run["peak_memory_bytes"]
    other = estimate(Step("train", "cloud", earlier.config | {"model": "sasrec"}, 100), store)
    assert other.runs == 0
    more_threads = estimate(Step("train", "cloud", earlier.config | {"threads": 64}, run["amount"]), store)
    assert more_threads.runs == 1  # better than nothing
