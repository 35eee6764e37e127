"""Names: given with --name or RunOptions(name=…), and shown wherever an artifact is spoken of."""

from pathlib import Path

import pytest
from world import EVALUATE, World, dcclctl, done

from dcclctl.artifacts import CloudModel, Evaluation
from dcclctl.artifacts.names import describe, label, short_label
from dcclctl.devices.serving import Subject
from dcclctl.stages.evaluate import evaluate
from dcclctl.stages.run import RunOptions
from dcclctl.stages.train import train
from dcclctl.store.store import Store

ONCE = {"epochs": 1, "threads": 1}


def test_a_name_from_python_is_an_alias(shop: Path) -> None:
    store = Store(shop)
    dataset = CloudModel(store.resolve("cloud@1")).dataset
    made = train(dataset, ONCE, RunOptions(name="small"))
    assert store.resolve("cloud@small").id == made.id
    # the same artifact, found again, gets the name too; and a name moves to what it is given last
    assert train(dataset, ONCE, RunOptions(name="other")).reused
    assert store.resolve("cloud@other").id == made.id
    later = train(dataset, ONCE | {"seed": 1}, RunOptions(name="small"))
    assert later.id != made.id and store.resolve("cloud@small").id == later.id


@pytest.mark.parametrize(
    "command",
    [
        ("train", "--epochs=1", "--threads=1"),
        ("memory",),
        ("patch", "--method=fine-tune", "--users=tail", "--cloud=cloud@1", "--steps=1", "--threads=1"),
        ("distill", "--patches=patches@1", "--epochs=1", "--set=basis_epochs=0", "--threads=1"),
        ("evaluate", "cloud@1", *EVALUATE),
    ],
)
def test_every_stage_takes_a_name(shop: Path, command: tuple[str, ...]) -> None:
    made = done(*command, "--name=mine", store=shop)
    kind = made["ref"].partition("@")[0]
    assert made["name"] == "mine" and Store(shop).resolve(f"{kind}@mine").id == made["id"]
    shown = dcclctl(*command, "--name=mine", store=shop)
    assert f"{kind}@mine is {made['ref']}" in shown.stdout


def test_ingest_takes_a_name(world: World, tmp_path: Path) -> None:
    made = done("ingest", world.log, "--name=clicks", store=tmp_path)
    assert Store(tmp_path).resolve("dataset@clicks").id == made["id"]


@pytest.mark.parametrize("name", ["7", "latest", "a b", "-x", "a@b"])
def test_what_cannot_be_a_name_is_said_before_the_work_starts(shop: Path, name: str) -> None:
    result = dcclctl("train", "--epochs=1", "--threads=1", f"--name={name}", store=shop)
    assert result.exit_code == 2
    assert Store(shop).numbers("cloud") == [1, 2]


def test_labels(shop: Path) -> None:
    store = Store(shop)
    cloud = store.resolve("cloud@1")
    assert (label(cloud), short_label(cloud, "encoder")) == ("din (cloud@1)", "din+encoder (cloud@1)")
    store.tag(cloud, "control")
    assert label(cloud) == "control (cloud@1)" and short_label(cloud) == "control"
    assert label(cloud, "encoder") == "control+encoder (cloud@1)" and short_label(cloud, "mean") == "control+mean"


def test_what_an_artifact_is_in_words(shop: Path) -> None:
    store = Store(shop)
    store.tag(store.resolve("cloud@1"), "control")
    further = done("train", "--continue=cloud@control", "--on=device", "--epochs=1", "--threads=1", store=shop)
    memory = done("memory", store=shop)
    guarded = done("patch", "--cloud=cloud@control", "--guard", "--set=epochs=1", "--threads=1", store=shop)
    events = store.resolve("dataset@1").facts["events"]
    assert {reference: describe(store.resolve(reference)) for reference in ("dataset@1", "cloud@1", "patches@1")} == {
        "dataset@1": f"60 users, 80 items, {events:,} events",
        "cloud@1": "din trained on cloud",
        "patches@1": "metapatch patches on control",
    }
    assert describe(store.resolve("cloud@2")) == "din distilled from metapatch on control (momodistill), round 1"
    assert describe(store.resolve("evaluation@1")) == "3 models on test"
    assert describe(store.resolve(further["ref"])) == "control trained further on device"
    assert describe(store.resolve(memory["ref"])) == f"memories of {memory['users']} users up to device"
    assert describe(store.resolve(guarded["ref"])) == "memory patches on control, guarded"


def test_an_evaluation_knows_its_models_by_all_their_names(shop: Path) -> None:
    store = Store(shop)
    store.tag(store.resolve("cloud@1"), "control")
    references = ("cloud@control", "patches@1", "patches@1+mean", "cloud@2+encoder")
    subjects = [Subject.of(reference, store) for reference in references]
    made = evaluate(subjects, {"threads": 1, "k": [3], "against": "cloud@control"})
    names = [subject.name for subject in subjects]
    assert made.against == names[0] == f"cloud@{store.resolve('cloud@1').id[:8]}"
    assert made.subjects == dict(zip(names, ["cloud@1", "patches@1", "patches@1+mean", "cloud@2+encoder"], strict=True))
    assert list(made.labels.values()) == [
        "control (cloud@1)",
        "metapatch on control (patches@1)",
        "metapatch on control+mean (patches@1)",
        "din round 1+encoder (cloud@2)",
    ]
    # the artifact itself holds no name that another store does not know
    assert made.per_user["subject"].unique(maintain_order=True).to_list() == names
    store.tag(store.resolve("patches@1"), "devices")
    again = Evaluation(store.resolve(made.ref))
    assert list(again.labels.values())[1:3] == ["devices (patches@1)", "devices+mean (patches@1)"]


def test_tables_and_the_page_show_names(shop: Path, tmp_path: Path) -> None:
    store = Store(shop)
    store.tag(store.resolve("cloud@1"), "control")
    store.tag(store.resolve("patches@1"), "devices")
    command = ("evaluate", "cloud@1", "patches@1", "--against=cloud@control", *EVALUATE)
    shown = dcclctl(*command, "--max-drop=all.gauc=90%", "--markdown", tmp_path / "summary.md", store=shop)
    assert shown.exit_code == 0, shown.stderr
    for said in ("control", "devices (patches@1): users served:"):
        assert said in shown.stdout, shown.stdout
    found = done(*command, store=shop)
    assert found["subjects"] == ["cloud@1", "patches@1"]  # references, for programs
    assert found["names"] == {"cloud@1": "control (cloud@1)", "patches@1": "devices (patches@1)"}
    assert "devices" in (tmp_path / "summary.md").read_text()
    done("report", "-o", tmp_path / "page.html", store=shop)
    page = (tmp_path / "page.html").read_text()
    assert "devices" in page and "patches@1: metapatch patches on control" in page
    first = dcclctl("evaluate", "cloud@1", "patches@1", "--first-events=0", "--targets-after=1", *EVALUATE, store=shop)
    assert first.exit_code == 0 and "control" in first.stdout and "devices" in first.stdout
