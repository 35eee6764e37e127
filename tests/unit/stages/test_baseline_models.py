"""Baselines through the commands: train, evaluate, score, audit, continue, and what they cannot do."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from world import NEW_USERS, World, dcclctl, done, ingest, sets

from dcclctl.artifacts import CloudModel
from dcclctl.config import TrainConfig
from dcclctl.errors import UsageError
from dcclctl.models import counts
from dcclctl.models.kind import MODELS, kind_of
from dcclctl.stages.settings import resolve
from dcclctl.store.store import Artifact, Store

CLOSED = ("popularity", "recent", "gp-topfreq", "item-knn", "ease", "ials", "tifu-knn", "up-cf")
FACTORS = ("bpr", "fm", "neumf")
BASELINES = (*CLOSED, *FACTORS)
QUICK = ("--epochs=8", "--patience=0", "--batch-size=128", "--learning-rate=0.03", "--set=item_size=8")
#: what one model alone reads
OWN = {
    "ease": sets("train.ease", ridge=20),
    "item-knn": sets("train.item-knn", neighbours=10),
    "recent": sets("train.recent", newest=0.1),
    "ials": sets("train.ials", item_size=8, sweeps=4),
    "tifu-knn": sets("train.tifu-knn", neighbours=20),
    "up-cf": sets("train.up-cf", neighbours=20),
    "bpr": QUICK,
    "fm": (*QUICK, "--set=history=8"),
    "neumf": (*QUICK, "--set=hidden_sizes=16,8"),
}


def train_flags(model: str) -> tuple[str, ...]:
    return ("train", f"--model={model}", "--threads=1", *OWN.get(model, ()))


@pytest.fixture(scope="module")
def baselines(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """A store with every baseline, and what train said of each."""
    root = world.copy(tmp_path_factory.mktemp("baselines") / "store")
    return root, {model: done(*train_flags(model), store=root) for model in BASELINES}


def artifact_of(baselines: tuple[Path, dict[str, dict[str, Any]]], model: str) -> Artifact:
    return Store(baselines[0]).resolve(baselines[1][model]["ref"])


def aggregates(store: Path, reference: str) -> dict[tuple[str, str, str], float]:
    """(subject, group, metric) → value of an evaluation."""
    table = Store(store).resolve(reference).read_table("aggregate.parquet")
    return {(s, g, m): v for s, g, m, v in table.select("subject", "group", "metric", "value").iter_rows()}


def test_every_kind_of_model_is_offered(world: World) -> None:
    shown = "".join(dcclctl("train", "--help").stdout.split())
    assert set(MODELS) == {"din", "sasrec", "gru4rec", *BASELINES}
    for model in MODELS:
        assert f"{model}," in shown or f"{model}." in shown or f"{model};" in shown, model
    result = dcclctl("train", "--model=ese", store=world.root)
    assert result.exit_code == 2 and "Did you mean 'ease'?" in result.stderr


@pytest.mark.parametrize("model", BASELINES)
def test_facts_and_files(world: World, baselines: tuple[Path, dict[str, dict[str, Any]]], model: str) -> None:
    artifact, made = artifact_of(baselines, model), baselines[1][model]
    events = world.dataset().artifact.read_table("events.parquet").filter(pl.col("period") == 0)
    facts, tensors = artifact.facts, artifact.read_tensors("model.safetensors")
    assert facts["trained_on_events"] == events.height
    assert facts["trained_on_users"] == events["user_index"].n_unique()
    assert facts["parameters"] == made["parameters"] == sum(tensor.numel() for tensor in tensors.values())
    assert artifact.read_json("model.json")["model"] == model
    if model in CLOSED:
        assert (made["epochs"], made["best_epoch"], made["best_valid_loss"]) == (0, 0, None)
    else:
        assert made["epochs"] == len(facts["epochs"]) == 8


@pytest.mark.parametrize("model", BASELINES)
def test_all_are_evaluated_and_better_than_chance(
    baselines: tuple[Path, dict[str, dict[str, Any]]], model: str
) -> None:
    root, made = baselines
    found = done("evaluate", made[model]["ref"], "--k=10", "--threads=1", store=root)
    table = Store(root).resolve(found["ref"]).read_table("per_user.parquet")
    new = table.filter(pl.col("group") == "new")
    assert new.height == NEW_USERS and table["auc"].null_count() == 0
    values = aggregates(root, found["ref"])
    gauc = next(value for (_, group, metric), value in values.items() if (group, metric) == ("tail", "gauc"))
    alike = ("popularity", "recent", "gp-topfreq")  # among first events nobody had a candidate before
    floor = 0.5 if model in alike else 0.55  # users differ in their taste, not in how popular it is
    assert gauc > floor


def test_popularity_counts_the_training_period(world: World, baselines: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    events = world.dataset().artifact.read_table("events.parquet").filter(pl.col("period") == 0)
    expected = np.bincount(events["item_index"], minlength=80) + 1
    logits = artifact_of(baselines, "popularity").read_tensors("model.safetensors")["logits"].double()
    odds = logits.exp().numpy()
    assert odds / odds.sum() == pytest.approx(expected / expected.sum(), rel=1e-5)
    newest = events.sort("time_us").tail(events.height // 10)
    counted = artifact_of(baselines, "recent").facts["counted_events"]
    # a moment at the edge is counted whole
    moment = events.filter(pl.col("time_us") == newest["time_us"][0]).height
    assert newest.height <= counted <= newest.height + moment


def test_recent_of_a_log_without_clock_times_takes_the_newest_of_each_user(tmp_path: Path) -> None:
    lines = ["user_id,item_id,timestamp"]
    lines += [f"u{user},{'new' if at == 17 else f'i{at % 3}'},{at}" for user in range(5) for at in range(20)]
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    flags = ("--time-unit=ordinal", "--split=leave-one-out", "--repeats=keep")
    done("ingest", tmp_path / "log.csv", *flags, store=tmp_path / "store")
    made = done(
        "train", "--model=recent", "--on=cloud,device", "--set=newest=0.05", "--threads=1", store=tmp_path / "store"
    )
    artifact = Store(tmp_path / "store").resolve(made["ref"])
    assert artifact.facts["counted_events"] == 5  # the 18th event of each user, a 'new'
    dataset = CloudModel(artifact).dataset
    logits = artifact.read_tensors("model.safetensors")["logits"]
    assert dataset.items["item_id"][int(logits.argmax())] == "new"
    assert (logits == logits.max()).sum() == 1 and len(logits.unique()) == 2


def test_an_item_is_its_own_neighbour_where_repeats_are_kept(world: World, tmp_path: Path) -> None:
    store = tmp_path / "store"
    ingest(tmp_path / "log", store, "--repeats=keep")
    made = done("train", "--model=item-knn", "--threads=1", store=store)
    assert own_neighbours(Store(store).resolve(made["ref"])) > 0
    found = done("evaluate", made["ref"], "--k=10", "--threads=1", store=store)
    assert found["ref"] == "evaluation@1"


def test_own_counts_are_popularity_unless_users_come_back_to_what_they_had(
    baselines: tuple[Path, dict[str, dict[str, Any]]], tmp_path: Path
) -> None:
    root, made = baselines
    pair = ("popularity", "gp-topfreq")
    found = done("evaluate", *(made[model]["ref"] for model in pair), "--threads=1", store=root)
    by_model = [ranking(root, found["ref"], made[model]["id"]) for model in pair]
    assert by_model[0] == by_model[1] and {"gauc", "hr@10"} <= {metric for _, metric in by_model[0]}
    store = tmp_path / "store"
    habits(tmp_path / "log.csv", store)
    trained = {model: done("train", f"--model={model}", "--threads=1", store=store) for model in pair}
    found = done("evaluate", *(one["ref"] for one in trained.values()), "--k=2", "--threads=1", store=store)
    hits = {model: ranking(store, found["ref"], one["id"])["all", "hr@2"] for model, one in trained.items()}
    assert hits["gp-topfreq"] == 1.0 and hits["popularity"] < 0.5


@pytest.mark.parametrize("model", ["tifu-knn", "up-cf", "ials"])
def test_repeats_are_ranked_by_models_of_baskets_and_the_list_of_a_user_holds_them(tmp_path: Path, model: str) -> None:
    store = tmp_path / "store"
    habits(tmp_path / "log.csv", store)
    made = done(*train_flags(model), store=store)
    found = done("evaluate", made["ref"], "--k=2", "--threads=1", store=store)
    assert ranking(store, found["ref"], made["id"])["all", "hr@2"] == 1.0
    (shown,) = done("score", made["ref"], "--user=u3", "--top=2", "--threads=1", store=store)["users"]
    assert "own6" in str(shown) and "own7" in str(shown)
    assert done("recommend", made["ref"], "--top=2", "--threads=1", store=store)["ref"] == "recommendations@1"


def test_decay_of_the_history_changes_scores_and_not_the_neighbours(world: World, tmp_path: Path) -> None:
    store = world.copy(tmp_path / "store")
    flags = ("train", "--model=item-knn", "--threads=1", "--set=train.item-knn.neighbours=10")
    made = [done(*flags, f"--set=train.item-knn.decay={decay}", store=store) for decay in (1, 0.5)]
    first, second = (Store(store).resolve(one["ref"]).read_tensors("model.safetensors") for one in made)
    assert all(torch.equal(first[name], second[name]) for name in first)
    found = done("evaluate", *(one["ref"] for one in made), "--threads=1", store=store)
    values = [ranking(store, found["ref"], one["id"]) for one in made]
    assert values[0] != values[1]


def ranking(store: Path, reference: str, model: str) -> dict[tuple[str, str], float]:
    """(group, metric) → value of one model's ranking in an evaluation; the rest is for probabilities, which counts are not."""
    found = aggregates(store, reference)
    return {
        (group, metric): value
        for (subject, group, metric), value in found.items()
        if subject == f"cloud@{model[:8]}" and metric not in ("log_loss", "ece")
    }


def habits(path: Path, store: Path) -> None:
    """Twelve users who have two items of their own again and again, and once in a while what everybody has."""
    own = [(f"own{2 * user}", f"own{2 * user + 1}") for user in range(12)]
    lines = ["user_id,item_id,timestamp"]
    lines += [
        f"u{user},{f'all{at % 3}' if at % 4 == 3 and at < 30 else own[user][at % 2]},{1_600_000_000 + 5000 * at + user}"
        for user in range(12)
        for at in range(40)  # what is tested, the newest tenth, is a user's own
    ]
    path.write_text("\n".join(lines) + "\n")
    done("ingest", path, "--split=per-user", "--repeats=keep", store=store)


def own_neighbours(artifact: Artifact) -> int:
    tensors = artifact.read_tensors("model.safetensors")
    source = torch.repeat_interleave(torch.arange(len(tensors["start"]) - 1), tensors["start"].diff())
    return int((source == tensors["target"]).sum())


def test_an_item_is_not_its_own_neighbour_among_first_events(baselines: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    assert own_neighbours(artifact_of(baselines, "item-knn")) == 0


@pytest.mark.parametrize("model", BASELINES)
def test_the_same_command_gives_the_same_artifact(
    baselines: tuple[Path, dict[str, dict[str, Any]]], world: World, tmp_path: Path, model: str
) -> None:
    made = done(*train_flags(model), "--force", store=world.copy(tmp_path / "again"))
    assert made["id"] == baselines[1][model]["id"]


@pytest.mark.parametrize("model", ["popularity", "item-knn", "ials", "tifu-knn", "up-cf", "fm"])
def test_score_explains_a_user_and_a_new_one(baselines: tuple[Path, dict[str, dict[str, Any]]], model: str) -> None:
    root, made = baselines
    for user in ("u1", "n2"):
        (found,) = done("score", made[model]["ref"], f"--user={user}", "--top=5", "--threads=1", store=root)["users"]
        assert user in str(found)


@pytest.mark.parametrize("model", BASELINES)
def test_the_audit_accepts_them(baselines: tuple[Path, dict[str, dict[str, Any]]], model: str) -> None:
    root, made = baselines
    found = dcclctl("audit", made[model]["ref"], store=root)
    assert found.exit_code == 0, found.output
    found = done(
        "audit", done("evaluate", made[model]["ref"], "--on=valid", "--threads=1", store=root)["ref"], store=root
    )
    looked = any("chose the best epoch" in remark["text"] for remark in found["remarks"])
    assert looked == (model in FACTORS)


def test_report_and_text_of_a_model_without_epochs(
    baselines: tuple[Path, dict[str, dict[str, Any]]], tmp_path: Path
) -> None:
    root, made = baselines
    text = dcclctl(*train_flags("ease"), store=root)
    assert text.exit_code == 0 and text.stdout.startswith("ease ") and "best valid AUC" not in text.stdout
    references = [made["ease"]["ref"], made["bpr"]["ref"]]
    evaluation = done("evaluate", *references, "--threads=1", store=root)["ref"]
    page = tmp_path / "page.html"
    result = dcclctl("report", evaluation, "--output", page, store=root)
    assert result.exit_code == 0, result.output
    assert f"Loss of bpr ({references[1]})" in page.read_text() and "Loss of ease" not in page.read_text()


@pytest.mark.parametrize("model", CLOSED)
def test_models_in_closed_form_are_not_continued(baselines: tuple[Path, dict[str, dict[str, Any]]], model: str) -> None:
    root, made = baselines
    result = dcclctl("train", f"--continue={made[model]['ref']}", "--on=device", "--threads=1", store=root)
    assert result.exit_code == 2
    assert f"--model {model} --on cloud,device" in result.stderr


@pytest.mark.parametrize("model", FACTORS)
def test_factor_models_continue_from_their_weights(
    baselines: tuple[Path, dict[str, dict[str, Any]]], model: str
) -> None:
    root, made = baselines
    arguments = (f"--continue={made[model]['ref']}", "--on=device", "--epochs=1", "--threads=1")
    artifact = Store(root).resolve(done("train", *arguments, "--learning-rate=1e-30", store=root)["ref"])
    parent = artifact_of(baselines, model)
    assert artifact.read_json("model.json") == parent.read_json("model.json")
    weights = artifact.read_tensors("model.safetensors")
    for name, weight in parent.read_tensors("model.safetensors").items():
        assert torch.equal(weight, weights[name]), name
    artifact = Store(root).resolve(done("train", *arguments, store=root)["ref"])
    assert artifact.config["model"] == model
    for name, value in (
        kind_of(model).Settings().model_dump(mode="json").items()
    ):  # its own defaults, not its parent's values
        if name not in (*parent.read_json("model.json"), "epochs"):
            assert artifact.config[model][name] == value, name
    assert done("audit", artifact.ref, store=root)["leaks"] == []


@pytest.mark.parametrize("model", ["ease", "fm"])
def test_patch_and_distill_say_that_they_need_another_model(
    baselines: tuple[Path, dict[str, dict[str, Any]]], model: str
) -> None:
    root, made = baselines
    result = dcclctl("patch", "--method=metapatch", f"--cloud={made[model]['ref']}", "--threads=1", store=root)
    assert result.exit_code == 2
    assert model in result.stderr and "dcclctl train --model din" in result.stderr


def test_ease_of_too_many_items_is_refused(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "memory_limit", lambda: 80 * 80 * 24 - 1)
    result = dcclctl("train", "--model=ease", "--threads=1", store=shop)
    assert result.exit_code == 2
    assert "80 items" in result.stderr and "GiB" in result.stderr and "item-knn" in result.stderr
    assert dcclctl("train", "--model=item-knn", "--threads=1", store=shop).exit_code == 0


def test_nothing_positive_to_learn_from(tmp_path: Path) -> None:
    lines = ["user_id,item_id,timestamp,rating"]
    lines += [
        f"u{user},i{at},{1_600_000_000 + 5000 * at + user},{5 if at > 5 else 1}"
        for user in range(5)
        for at in range(10)
    ]
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    done("ingest", tmp_path / "log.csv", "--label=rating>=4", "--split=per-user", store=tmp_path / "store")
    for model in ("popularity", "ease", "bpr"):
        result = dcclctl("train", f"--model={model}", "--threads=1", store=tmp_path / "store")
        assert result.exit_code == 3
        assert "no positive events in cloud" in result.stderr
    assert dcclctl("train", "--model=fm", "--epochs=1", "--threads=1", store=tmp_path / "store").exit_code == 0


@pytest.mark.parametrize(
    ("model", "setting"),
    [
        ("recent", "newest=0"),
        ("recent", "newest=1.1"),
        ("item-knn", "neighbours=0"),
        ("item-knn", "shrinkage=-1"),
        ("item-knn", "decay=0"),
        ("ease", "ridge=0"),
        ("ials", "unobserved=0"),
        ("tifu-knn", "own_share=1.1"),
        ("up-cf", "locality=0"),
    ],
)
def test_settings_out_of_range(world: World, model: str, setting: str) -> None:
    result = dcclctl("train", f"--model={model}", f"--set={setting}", store=world.root)
    assert result.exit_code == 2 and f"{setting.partition('=')[0]}: " in result.stderr
    assert f"See: dcclctl settings train --model {model}" in result.stderr


def test_file_and_flags_override_a_models_own_defaults(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text('[train]\nmodel = "bpr"\n[train.bpr]\nlearning_rate = 0.5\n')
    found: Any = resolve(TrainConfig, {"weight_decay": 0.25}, tmp_path / "settings.toml").settings
    assert found == kind_of("bpr").Settings(learning_rate=0.5, weight_decay=0.25)
    with pytest.raises(UsageError, match="learning"):
        resolve(TrainConfig, {"model": "bpr", "learning_rate": -1.0})
