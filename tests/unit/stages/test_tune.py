"""Tuning: trials are ordinary artifacts, on valid only, reused, stopped early, the same every time."""

import json
import sys
import tomllib

import polars as pl
import pytest

import dcclctl as library
from dcclctl.artifacts import Dataset, Evaluation, Tuning
from dcclctl.config import TuneConfig
from dcclctl.errors import UsageError
from dcclctl.models.din import DinSettings
from dcclctl.models.factors import BprSettings
from dcclctl.stages.settings import COMMANDS, variant_section
from dcclctl.stages.space import changed_space, own_space, parse_values
from dcclctl.stages.track import record_of
from dcclctl.store.store import Store
from tests.world import PATCH, SMALL, dcclctl, done, ingest, sets

FIXED = (*sets("train.din", **{**SMALL, "item_size": "8"}, history=8, epochs=4, batch_size=32), "--threads=1")
DIN = ("tune", "train", "--model=din", *FIXED, "--space=train.din.learning_rate=1e-5..0.1")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune")
    ingest(folder / "log", folder / "store")
    return folder / "store"


@pytest.fixture(scope="module")
def tuned(store):
    """9 trials of DIN, some of them stopped early."""
    made = done(*DIN, "--trials=9", store=store)
    return Tuning(Store(store).resolve(made["ref"]))


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [("1e-4..1e-2", 0.003, 0.1), ("0.0..0.5", 0.0, 0.6), ("16,32", 16, 64), ("1..64", None, None)],
)
def test_values_are_read(text, inside, outside):
    name = "item_size" if text in ("16,32", "1..64") else "dropout" if text == "0.0..0.5" else "learning_rate"
    values = parse_values(f"train.din.{name}", text, DinSettings, name)
    assert values.log == (text in ("1e-4..1e-2", "1..64")) and values.whole == (text == "1..64")
    if inside is not None:
        assert values.holds(inside) is not None and values.holds(outside) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("learning_rate", "1e-2..1e-4"),
        ("learning_rate", "0..1"),  # a step size is above 0
        ("learning_rate", "a..b"),
        ("learning_rate", "1..inf"),
        ("item_size", "1.5..4"),
        ("item_size", "16,many"),
        ("item_size", ""),
        ("hidden_sizes", "8..64"),
        ("hidden_sizes", "64|32"),
    ],
)
def test_what_are_no_values_is_refused(name, text):
    with pytest.raises(UsageError):
        parse_values(name, text, DinSettings, name)


def test_choices_may_be_lists():
    values = parse_values("hidden_sizes", "64,32|16,8", DinSettings, "hidden_sizes")
    assert values.choices == ("64,32", "16,8") and values.holds((64, 32)) == "64,32"


@pytest.mark.parametrize("command", ["train", "patch", "distill"])
def test_every_default_is_among_the_values_that_are_tried(command):
    for variant in COMMANDS[command].variants:
        section = variant_section(command, variant)
        for name, values in own_space(f"{command}.{variant}", section).items():
            assert values.holds(getattr(section(), name)) is not None, f"{command}.{variant}.{name}"


def test_every_model_that_learns_has_values_to_try():
    for name in COMMANDS["train"].variants:
        section = variant_section("train", name)
        assert own_space(name, section) or set(section.model_fields) == {"negatives"}, name


def test_space_is_changed_by_full_and_by_short_names():
    sections = {"din": DinSettings, "bpr": BprSettings}
    found = changed_space(
        "train", COMMANDS["train"].section, sections, ["learning_rate=0.1..0.2", "train.din.item_size=8,16"]
    )
    assert found["din"]["learning_rate"].text == found["bpr"]["learning_rate"].text == "0.1..0.2"
    assert found["din"]["item_size"].text == "8,16" and found["bpr"]["item_size"].text == "16,32,64,128"
    for wrong in ("train.ease.ridge=1..2", "learning=0.1..0.2", "din.item_size", "train.model=din,bpr|"):
        with pytest.raises(UsageError):
            changed_space("train", COMMANDS["train"].section, sections, [wrong, "train.seed=a,b"])


def test_trials_are_the_artifacts_that_train_makes(store, tuned):
    best = tuned.facts["best"]["din"]
    artifact = Store(store).resolve(best["artifact"])
    assert artifact.config == best["config"] and artifact.manifest["stage"] == "train"
    tried = json.loads(tuned.trials.filter(trial=best["trial"])["settings"][0])
    flags = [f"--set=train.din.{name}={value}" for name, value in tried.items()]
    assert done("train", *FIXED, *flags, store=store)["id"] == artifact.id


def test_the_first_trial_has_the_settings_as_they_are(store, tuned):
    first = tuned.trials["artifact"][0]
    assert done("train", *FIXED, store=store)["id"].startswith(first.partition("@")[2])


def test_every_value_is_the_metric_on_valid(store, tuned):
    finished = tuned.trials.filter(state="done")
    for row in finished.to_dicts():
        evaluation = Evaluation(Store(store).resolve(row["evaluation"]))
        assert evaluation.facts["on"] == "valid"
        (name,) = evaluation.subjects
        assert row["artifact"] == name
        value = evaluation.aggregate.filter(group="all", metric="ndcg@10")["value"][0]
        assert row["value"] == value
    assert tuned.facts["best"]["din"]["value"] == finished["value"].max()
    assert all(Store(store).load("evaluation", at).config["on"] == "valid" for at in Store(store).numbers("evaluation"))


def test_bad_trials_are_stopped_early(tuned):
    pruned = tuned.trials.filter(state="pruned")
    assert pruned.height and pruned["epochs"].max() < 4
    assert pruned["trial"].min() >= 5 and set(pruned["artifact"]) == {""}


def test_the_same_command_costs_nothing_and_a_longer_one_begins_with_the_same_trials(store, tuned):
    again = done(*DIN, "--trials=9", store=store)
    assert again["reused"] and again["id"] == tuned.id
    before = len(Store(store).numbers("cloud"))
    longer = Tuning(Store(store).resolve(done(*DIN, "--trials=11", store=store)["ref"]))
    assert longer.trials.head(9).equals(tuned.trials)
    assert len(Store(store).numbers("cloud")) <= before + 2


def test_another_seed_finds_something_else(store, tuned):
    other = Tuning(Store(store).resolve(done(*DIN, "--trials=3", "--seed=1", store=store)["ref"]))
    assert other.trials["settings"].to_list()[1:] != tuned.trials["settings"].to_list()[1:3]


def test_a_tuning_that_was_stopped_in_another_store_goes_on_to_the_same_end(tuned, tmp_path, monkeypatch):
    """Stopped in the middle of the fifth training, between what an epoch says and its checkpoint."""
    root = tmp_path / "store"
    ingest(tmp_path / "log", root)
    from dcclctl.models import training

    save, calls = training.FitState.save, []

    def stop(self, work):
        calls.append(self.epoch)
        if len(calls) == 15:
            raise KeyboardInterrupt
        save(self, work)

    monkeypatch.setattr(training.FitState, "save", stop)
    assert dcclctl(*DIN, "--trials=9", store=root).exit_code == 130
    assert not Store(root).numbers("tuning") and Store(root).numbers("cloud")
    monkeypatch.setattr(training.FitState, "save", save)
    assert done(*DIN, "--trials=9", store=root)["id"] == tuned.id


def test_several_models_have_equal_budgets_and_the_file_makes_the_best_again(store, tmp_path):
    file = tmp_path / "best.toml"
    made = done(
        "tune",
        "train",
        "--model=din,item-knn,popularity",
        "--trials=3",
        *FIXED,
        "-o",
        file,
        "--metric=tail.hr@5",
        store=store,
    )
    trials = pl.DataFrame(made["trials"])
    counts = dict(trials["variant"].value_counts().iter_rows())
    assert counts == {"din": 3, "item-knn": 3, "popularity": 1}  # popularity has nothing to try
    assert made["metric"] == "tail.hr@5"
    best = max(made["best"], key=lambda each: each["value"])
    document = tomllib.loads(file.read_text())
    assert document["train"]["model"] == best["name"]
    for each in made["best"]:
        again = done("train", "--config", file, "--model", each["name"], store=store)
        assert again["reused"] and again["ref"] == each["ref"]


def test_lower_is_better_where_it_is(store):
    made = done("tune", "train", "--model=item-knn", "--trials=4", "--threads=1", "--metric=all.log_loss", store=store)
    assert made["best"][0]["value"] == min(row["value"] for row in made["trials"])


def test_patches_are_tuned_on_their_cloud_model(store):
    done("train", *FIXED, "--name=base", store=store)
    flags = [flag for flag in PATCH if flag.startswith("--set") and "learning_rate" not in flag]
    made = done(
        "tune", "patch", "--method=metapatch", "--cloud=cloud@base", "--trials=3", "--threads=1", *flags,
        "--space=patch.held_back=0.1..0.4", store=store,
    )  # fmt: skip
    assert made["best"][0]["ref"].startswith("patches@")
    patches = Store(store).resolve(made["best"][0]["ref"])
    assert patches.input("cloud").id == Store(store).resolve("cloud@base").id
    assert all(0.1 <= json.loads(row["settings"])[".held_back"] <= 0.4 for row in made["trials"])


def test_distillation_is_tuned(store):
    done("train", *FIXED, "--name=base", store=store)
    done("patch", *PATCH, "--cloud=cloud@base", store=store)
    fixed = sets("distill.momodistill", epochs=2, basis_epochs=1, encoder_size=4)
    made = done("tune", "distill", "--trials=3", "--threads=1", *fixed, store=store)
    assert made["best"][0]["name"] == "momodistill" and made["best"][0]["ref"].startswith("cloud@")


def test_what_is_printed(store, tuned):
    printed = dcclctl(*DIN, "--trials=9", store=store).stdout
    assert "all NDCG@10" in printed and "stopped early" in printed and "one seed" in printed
    assert tuned.ref in dcclctl("artifacts", "list", "--kind=tuning", store=store).stdout
    assert dcclctl("artifacts", "show", tuned.ref, store=store).exit_code == 0
    assert dcclctl("audit", tuned.ref, store=store).exit_code == 0
    assert "Tried by tune: 3e-4..2e-2" in dcclctl("settings", "train", "--model=din").stdout


def test_a_tracker_gets_every_trial(tuned):
    figures = record_of(tuned.artifact).figures
    values = {at: own["din/all.ndcg@10"] for at, own in figures}
    assert values == dict(tuned.trials.filter(state="done").select("trial", "value").iter_rows())


def test_tune_from_python(store):
    data = Dataset(Store(store).resolve("dataset@1"))
    made = library.tune(data, variants=["item-knn"], space={"neighbours": "5,10"}, trials=2, threads=1)
    assert set(made.trials["variant"]) == {"item-knn"} and made.best == "item-knn"
    assert tomllib.loads(made.toml())["train"]["model"] == "item-knn"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("tune", "report"), "nothing to tune"),
        (("tune", "train", "--method=metapatch"), "has no --method"),
        (("tune", "train", "--model=dinn"), "no such model"),
        (("tune", "train", "--model=din,din"), "twice"),
        (("tune", "train", "--metric=all.ndgc@10"), "ndcg@10"),
        (("tune", "train", "--metric=tale.ndcg@10"), "tail"),
        (("tune", "train", "--set=train.din.epohcs=3"), "epochs"),
        (("tune", "train", "--space=train.din.epohcs=3..4"), "epochs"),
        (("tune", "train", "--set=on=cloud,valid"), "valid"),
        (("tune", "train", "-o", "nowhere/best.toml"), "no folder"),
    ],
)
def test_what_cannot_be_done_is_said(store, arguments, said):
    result = dcclctl(*arguments, store=store)
    assert result.exit_code == 2 and said in result.stderr


def test_a_missing_package_is_said_with_its_remedy(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "optuna" else object())
    result = dcclctl("tune", "train", "--trials=2", store=store)
    assert result.exit_code == 2 and "pip install 'dcclctl[tune]'" in result.stderr


def test_the_number_of_trials_is_documented_as_it_is():
    assert TuneConfig().trials == 20 and TuneConfig().metric == "all.ndcg@10"
