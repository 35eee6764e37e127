"""Several seeds in one command: train, patch, distill and evaluate with --seeds."""

import json

import numpy as np
import polars as pl
import pytest

from dcclctl import api
from dcclctl.artifacts import CloudModel, Evaluation
from dcclctl.errors import UsageError
from dcclctl.stages.seeds import parse_seeds
from dcclctl.store.store import Store
from tests.world import DISTILL, EVALUATE, PATCH, TRAIN, dcclctl, done, ingest, replaced

ONE = replaced(TRAIN, "--epochs=1")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """base: three cloud models; mine: patches on them; one: a model that has no seeds."""
    folder = tmp_path_factory.mktemp("seeds")
    root = folder / "store"
    ingest(folder / "log", root)
    assert dcclctl("train", *ONE, "--seeds=0..2", "--name=base", "--quiet", store=root).stdout == "cloud@base\n"
    done("patch", *PATCH, "--cloud=cloud@base", "--seeds=0..2", "--name=mine", store=root)
    done("train", "--model=popularity", "--threads=1", "--name=one", store=root)
    return root


@pytest.fixture(scope="module")
def found(store):
    arguments = ("cloud@base", "patches@mine", "cloud@one", "--seeds=0..2", "--against=cloud@base", *EVALUATE)
    return done("evaluate", *arguments, "--max-drop=all.mrr=50%", store=store)


@pytest.mark.parametrize(("text", "seeds"), [("0..4", [0, 1, 2, 3, 4]), ("0,1,7", [0, 1, 7]), ("3..4, 9", [3, 4, 9])])
def test_seeds_are_read(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "3", "1..1", "4..0", "0,0", "0..2,1", "a", "-1..3", "0..1000000", "0...3"])
def test_what_is_no_list_of_seeds_is_refused(text):
    with pytest.raises(UsageError):
        parse_seeds(text)


def test_each_seed_is_an_ordinary_artifact(store):
    seeds = [CloudModel(Store(store).resolve(f"cloud@base-{seed}")) for seed in range(3)]
    assert [model.artifact.seed for model in seeds] == [0, 1, 2]
    alone = done("train", *ONE, "--seed=1", store=store)
    assert alone["reused"] and alone["id"] == seeds[1].id


def test_a_name_that_moves_to_another_model_says_so(store):
    moved = dcclctl("train", *ONE, "--seed=0", "--name=wandering", store=store)
    assert "wandering was" not in moved.stderr
    assert "wandering was" not in dcclctl("train", *ONE, "--seed=0", "--name=wandering", store=store).stderr
    moved = dcclctl("train", *ONE, "--seed=1", "--name=wandering", store=store)
    first = Store(store).resolve("cloud@base-0").ref
    assert f"the name cloud@wandering was {first}'s until now" in moved.stderr
    Store(store).untag("cloud", "wandering")


def test_patches_of_a_seed_stand_on_the_cloud_model_of_that_seed(store):
    for seed in range(3):
        patches = Store(store).resolve(f"patches@mine-{seed}")
        assert patches.seed == seed
        assert patches.input("cloud").id == Store(store).resolve(f"cloud@base-{seed}").id


def test_distill_takes_the_patches_of_each_seed(store):
    made = done("distill", *DISTILL, "--patches=patches@mine", "--seeds=0,2", "--name=taught", store=store)
    assert made["ref"] == "cloud@taught" and [each["seed"] for each in made["seeds"]] == [0, 2]
    for each in made["seeds"]:
        taught = Store(store).resolve(each["ref"])
        assert taught.seed == each["seed"]
        assert taught.input("patches").id == Store(store).resolve(f"patches@mine-{each['seed']}").id


def test_the_same_command_again_makes_nothing(store):
    again = done("train", *ONE, "--seeds=0..2", "--name=base", store=store)
    assert all(each["reused"] for each in again["seeds"])


def test_evaluation_holds_mean_spread_and_every_seed(store, found):
    assert found["seeds"] == [0, 1, 2] and found["against"] == "cloud@base"
    assert found["subjects"] == ["cloud@base", "patches@mine", "cloud@4"]
    alone = [
        done(
            "evaluate",
            f"cloud@base-{s}",
            f"patches@mine-{s}",
            "cloud@one",
            f"--against=cloud@base-{s}",
            *EVALUATE,
            store=store,
        )
        for s in range(3)
    ]
    assert all(each["reused"] for each in alone)  # they are what the evaluation was made from

    def value(rows, subject, column="value", **where):
        (row,) = (
            row for row in rows if row["subject"] == subject and all(row[key] == each for key, each in where.items())
        )
        return row[column]

    for group in ("all", "tail"):
        where = {"group": group, "metric": "ndcg@10"}
        singles = [value(each["metrics"], f"patches@{s + 1}", **where) for s, each in enumerate(alone)]
        assert value(found["metrics"], "patches@mine", **where) == pytest.approx(np.mean(singles))
        gains = [value(each["comparison"], f"patches@{s + 1}", "difference", **where) for s, each in enumerate(alone)]
        assert value(found["comparison"], "patches@mine", "difference", **where) == pytest.approx(np.mean(gains))
        for s in range(3):
            assert value(found["per_seed"], "patches@mine", seed=s, **where) == pytest.approx(singles[s])
            assert value(found["per_seed"], "patches@mine", "difference", seed=s, **where) == pytest.approx(gains[s])
            assert value(found["per_seed"], "patches@mine", "artifact", seed=s, **where) == f"patches@{s + 1}"
    # a baseline of three seeds moves even a model of one
    spread = [row["difference"] for row in found["per_seed"] if row["subject"] == "cloud@4" and row["group"] == "all"]
    assert len(set(spread)) > len(spread) // 2


def test_the_gate_reads_the_intervals_over_seeds_and_users(store, found):
    (rule,) = (row for row in found["gate"] if row["subject"] == "patches@mine")
    (row,) = (
        row
        for row in found["comparison"]
        if (row["subject"], row["group"], row["metric"]) == ("patches@mine", "all", "mrr")
    )
    assert (rule["low"], rule["high"]) == (-row["high"], -row["low"])


def test_the_reliability_of_all_seeds_is_that_of_their_rows_together(store, found):
    evaluation = Evaluation(Store(store).resolve(found["ref"]))
    pooled = evaluation.artifact.read_table("reliability.parquet").filter(pl.col("subject").str.starts_with("patches"))
    own = [
        Evaluation(evaluation.artifact.input(f"seed-{seed}"))
        .artifact.read_table("reliability.parquet")
        .filter(pl.col("subject").str.starts_with("patches"))
        for seed in range(3)
    ]
    assert pooled["rows"].to_list() == sum(table["rows"] for table in own).to_list()
    positives = [(table["observed"].fill_null(0) * table["rows"]).sum() for table in own]
    assert (pooled["observed"].fill_null(0) * pooled["rows"]).sum() == pytest.approx(sum(positives))


def test_headings_say_over_how_many_seeds(store, found, tmp_path):
    several = dcclctl(
        "evaluate", "cloud@base", "patches@mine", "--seeds=0..2", "--against=cloud@base", *EVALUATE, store=store
    )
    assert several.exit_code == 0
    assert "Means over users and 3 seeds" in several.stdout
    assert "95 % interval over 3 seeds and users" in several.stdout
    assert "standard deviation over the seeds 0, 1, 2" in several.stdout and " ± " in several.stdout
    assert "mine (3 seeds)" in several.stdout and "one seed" not in several.stdout
    markdown = tmp_path / "one.md"
    one = dcclctl(
        "evaluate",
        "cloud@base-0",
        "patches@mine-0",
        "--against=cloud@base-0",
        *EVALUATE,
        f"--markdown={markdown}",
        store=store,
    )
    assert "Means over users, one seed" in one.stdout and "95 % interval over users, one seed" in one.stdout
    assert "one seed" in markdown.read_text()
    for reference, said, other in ((found["ref"], "3 seeds", "one seed"), ("evaluation@1", "one seed", "3 seeds")):
        page = tmp_path / "page.html"
        assert dcclctl("report", reference, "-o", page, store=store).exit_code == 0
        title = page.read_text().partition('-title">')[2].partition("</h2>")[0]
        assert said in title and other not in title


def test_the_report_says_how_to_make_it_again(store, found, tmp_path):
    page = tmp_path / "page.html"
    assert dcclctl("report", found["ref"], "-o", page, store=store).exit_code == 0
    text = page.read_text()
    assert "--seeds 0,1,2" in text
    # the trainings of a model may also be listed; it is the same evaluation
    listed = ["cloud@1,cloud@2,cloud@3", "patches@1,patches@2,patches@3", "cloud@one"]
    again = done("evaluate", *listed, "--seeds=0,1,2", f"--against={listed[0]}", *EVALUATE, store=store)
    assert again["id"] == found["id"]


def test_audit_follows_every_seed(store, found):
    told = dcclctl("audit", found["ref"], store=store)
    assert told.exit_code == 0
    assert "cloud@3" in told.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", "--seeds=0..1"), "--name"),
        (("train", "--seeds=0..1", "--seed=3", "--name=x"), "same setting"),
        (("patch", "--seeds=0..1", "--name=x"), "--cloud"),
        (("distill", "--seeds=0..1", "--name=x"), "--patches"),
        (("patch", "--seeds=0..4", "--cloud=cloud@base", "--name=x"), "has no seed 3, 4"),
        (("patch", "--seeds=0..2", "--cloud=cloud@1,cloud@2", "--name=x"), "2 artifacts for 3 seeds"),
        (("evaluate", "--seeds=0..1"), "name the models"),
        (("evaluate", "cloud@one", "--seeds=0..1"), "same under all seeds"),
        (("evaluate", "cloud@base", "--seeds=0..1", "--first-events=0,1"), "--first-events"),
        (("evaluate", "cloud@base", "--seeds=0..1", "--against=cloud@base-0"), "the model of one seed"),
        (("evaluate", "cloud@base"), "group of 3 seeds"),
    ],
)
def test_what_cannot_be_done_is_said(store, arguments, said):
    result = dcclctl(*arguments, store=store)
    assert result.exit_code == 2 and said in result.stderr


def test_evaluate_takes_seeds_from_python(store, found):
    models = [CloudModel(Store(store).resolve(f"cloud@base-{seed}")) for seed in range(3)]
    made = api.evaluate([models, "patches@mine", "cloud@one"], against=models, seeds=[0, 1, 2], k=[3, 10], threads=1)
    assert made.id == found["id"]
    assert json.dumps(made.seeds) == "[0, 1, 2]"
