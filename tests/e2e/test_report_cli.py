"""`dcclctl report` on artifacts that the stages really made, and what is sent to trackers."""

import html
import json
import re
import shlex
from pathlib import Path

import pytest
from world import World, dcclctl, done


@pytest.fixture(scope="module")
def text(world: World, tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("report") / "report.html"
    assert dcclctl("report", "-o", output, store=world.root).exit_code == 0
    return output.read_text(encoding="utf-8")


def test_the_newest_evaluation_is_the_default(world: World, text: str, tmp_path: Path) -> None:
    made = done("report", "evaluation@1", "-o", tmp_path / "page.html", store=world.root)
    assert made["ref"] == "evaluation@1" and made["id"] == world.ids["evaluate"]
    written = (tmp_path / "page.html").read_bytes()
    assert made["bytes"] == len(written) < 2_000_000
    assert written.decode() == text  # and a second run writes the same bytes


def test_every_model_is_shown_with_what_it_is(text: str) -> None:
    for said in (
        "din trained on cloud",
        "metapatch patches on din",
        "distilled from metapatch on din (momodistill), round 1",
    ):
        assert said in text
    assert "din (cloud@1) (din trained on cloud)" in text  # the baseline: the first model, as none was named


def type_again(text: str, store: Path) -> dict[str, str]:
    """Type the commands of a report; every id that it promises has to come out. Shell variable → reference."""
    script = html.unescape(re.findall(r"<pre><code>(.*?)</code></pre>", text, re.S)[0]).splitlines()
    assert script[0] == "export DCCL_STORE=.dccl"
    made: dict[str, str] = {}
    for line in script[1:-1]:
        named = re.fullmatch(r"(\w+)=\$\(dcclctl (.*)\)  # ([0-9a-f]{12})", line)
        assert named, line
        filled = re.sub(r"\$\{(\w+)\}", lambda found: made[found[1]], named[2])
        words = [word for word in shlex.split(filled) if word != "--quiet"]
        result = done(*words, store=store)
        assert result["id"].startswith(named[3]), line
        made[named[1]] = result["ref"]
    assert re.fullmatch(r'dcclctl report "\$\{evaluation_\d\}" -o report.html', script[-1])
    return made


def test_the_commands_make_the_same_artifacts(
    world: World, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world.log.parent)
    made = type_again(text, tmp_path / "again")
    assert sorted(made) == ["cloud_1", "cloud_2", "dataset_1", "evaluation_1", "patches_1"]


def test_a_named_baseline_is_the_one_that_is_compared_with(
    world: World, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = done("train", "--continue=cloud@1", "--on=device", "--epochs=1", "--threads=1", store=shop)["ref"]
    models = ("cloud@1", control, "cloud@2+encoder")
    rare = "--set=evaluate.auc_negatives=20"  # has no flag
    done("evaluate", *models, f"--against={control}", "--k=10", "--threads=1", rare, store=shop)
    assert dcclctl("report", "-o", tmp_path / "page.html", store=shop).exit_code == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert f"din continued ({control}) (din trained further on device)" in text
    assert "not the strong control" not in text
    assert "its encoder patches every user" in text
    # in the store of the world, so that only what is new is computed
    monkeypatch.chdir(world.log.parent)
    assert set(type_again(text, shop)) >= {"cloud_3", "evaluation_2"}
    assert '"${cloud_2}+encoder" --against "${cloud_3}"' in html.unescape(text)
    assert html.unescape(text).count("train.din.item_size=") == 1  # a continued model keeps its sizes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evaluation@9"], "there is no evaluation@9"),
        (["cloud@1"], "is of kind cloud, but evaluation is needed"),
        (["evaluation@1", "evaluation@latest"], "named twice"),
        (["-o", "nowhere/report.html"], "cannot write nowhere/report.html"),
    ],
)
def test_mistakes_are_named(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = dcclctl("report", *arguments, store=world.root)
    assert result.exit_code == 2 and said in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_empty_store_says_what_to_run(tmp_path: Path) -> None:
    result = dcclctl("report", store=tmp_path / "none")
    assert result.exit_code == 2 and "Run first: dcclctl evaluate" in result.stderr


def test_tracking_does_not_change_the_artifact_and_brings_all_of_it(world: World, shop: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="not installed: pip install 'dcclctl[tensorboard]'")
    from world import DISTILL, EVALUATE, PATCH, TRAIN

    runs = tmp_path / "runs"
    for command, flags, was in (
        ("train", TRAIN, world.ids["train"]),
        ("patch", ("--users=tail", "--cloud=cloud@1", *PATCH), world.ids["patch"]),
        ("distill", DISTILL, world.ids["distill"]),
        ("evaluate", EVALUATE, world.ids["evaluate"]),
    ):
        made = done(command, *flags, f"--track=tensorboard:{runs}", store=shop)
        assert made["reused"] and made["id"] == was
    assert sorted(path.name.split("-")[0] for path in runs.iterdir()) == [
        "cloud@1",
        "cloud@2",
        "evaluation@1",
        "patches@1",
    ]


def test_records_of_real_artifacts(world: World) -> None:
    from dcclctl.stages.track import record_of

    cloud, evaluation = world.artifact("cloud@2"), world.artifact("evaluation@1")
    record = record_of(cloud)
    assert record.config["momodistill.beta"] == 0.1 and record.id == cloud.id
    names = ("train_loss", "valid_loss", "valid_auc")
    assert record.figures[0] == (1, {key: cloud.facts["epochs"][0][key] for key in names})
    assert (1, {"basis_loss": cloud.facts["basis_losses"][0]}) in record.figures
    assert record.lineage[0] == f"cloud@2 {cloud.id}"
    assert any(line.strip().startswith("log:events.csv: sha256") for line in record.lineage)
    assert json.loads(json.dumps(record.manifest)) == cloud.manifest
    scored = {name: value for step, values in record_of(evaluation).figures for name, value in values.items()}
    table = evaluation.read_table("aggregate.parquet").filter(group="tail", metric="ndcg@10")
    names = [f"{ref}/tail/ndcg@10" for ref in ("cloud@1", "patches@1", "cloud@2")]
    assert [scored[name] for name in names] == table["value"].to_list()


def test_an_unknown_tracker_is_refused_before_anything_is_computed(world: World) -> None:
    result = dcclctl("train", "--track=wandb", "--seed=9", store=world.root)
    assert result.exit_code == 2 and "no such tracker" in result.stderr
    assert world.store.numbers("cloud") == [1, 2] and not list(world.root.glob("cloud/work/*"))
