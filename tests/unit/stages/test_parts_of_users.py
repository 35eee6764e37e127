"""The stages on a dataset in several parts of users: the figures of one part, and the same artifact with every executor."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import world
from polars.testing import assert_frame_equal
from tampered import rewrite
from world import quiet_progress

from dcclctl.artifacts import CloudModel, Dataset, Evaluation, PatchSet
from dcclctl.artifacts import dataset as dataset_module
from dcclctl.artifacts.memory import STATISTICS_FILE, TYPICAL_FILE
from dcclctl.config import DistillConfig
from dcclctl.devices.serving import Subject
from dcclctl.distillation.from_memory import FromMemory, FromMemorySettings
from dcclctl.distillation.method import DistillTask
from dcclctl.events.groups import UserGroups
from dcclctl.events.log import DEVICE, TEST, Block
from dcclctl.stages import patch as patching
from dcclctl.stages.audit import audit
from dcclctl.stages.distill import distill
from dcclctl.stages.evaluate import evaluate
from dcclctl.stages.export import export, user_document
from dcclctl.stages.ingest import Sides, ingest
from dcclctl.stages.memory import remember
from dcclctl.stages.recommend import recommend
from dcclctl.stages.run import RunOptions
from dcclctl.stages.score import score
from dcclctl.stages.train import train
from dcclctl.store.store import Artifact, Store

THREADS = {"threads": 1}
MEMORY = {"size": 8, "neighbours": 5, "profile_window": 3}
#: few numbers, and long steps, so that patches differ from the cloud model by more than rounding
META = {"patch_size": 4, "bottleneck": 2, "basis_epochs": 1, "learning_rate": 0.2, "prior": 0.05, "shard_users": 13}


class Shop:
    """The shop of world.py in parts of some users, with the models that the tests score."""

    def __init__(self, folder: Path, part: int) -> None:
        log = world.write_log(folder)
        sides = Sides(folder / "users.csv", folder / "items.csv")
        wanted = {"label": "rating>=3", "shard_users": part, "new_users": 0.2}
        self.store = Store(folder / "store")
        self.dataset: Dataset = ingest([log], self.store, wanted, sides=sides)
        self.knn = self.train(model="item-knn", on="cloud")
        self.gru = self.train(model="gru4rec", on="cloud", epochs=1, **{"train.gru4rec.item_size": 8})
        self.memory = remember(self.dataset, MEMORY)
        self.remembered = self.patch(method="memory", epochs=1, hidden_size=4)
        self.meta = self.patch(method="metapatch", **META)

    def train(self, **settings: object) -> CloudModel:
        return CloudModel(train(self.dataset, settings | THREADS).artifact)

    def patch(self, executor: str = "local", force: bool = False, **settings: object) -> PatchSet:
        run = RunOptions(force=force, executor=executor)
        memory = self.memory if settings["method"] == "memory" else None
        return patching.patch(self.gru, settings | THREADS, run, memory)

    def evaluate(self, executor: str = "local", **settings: object) -> Evaluation:
        subjects = [
            Subject(self.knn),
            Subject(self.gru),
            Subject(self.gru, self.meta),
            Subject(self.gru, self.remembered),
        ]
        given: Mapping[str, Any] = {"k": [3, 10], "against": subjects[1].name, **THREADS, **settings}
        return evaluate(subjects, given, RunOptions(force=True, executor=executor))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("whole"), 100)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("parts"), 17)


def short_names(shop: Shop) -> dict[str, str]:
    """Name of a subject → a name that is the same in both shops."""
    names = {each.name: f"{number}" for number, each in enumerate(map(Subject, (shop.knn, shop.gru)))}
    return names | {Subject(each.cloud, each).name: each.method for each in (shop.meta, shop.remembered)}


def comparable(table: pl.DataFrame, shop: Shop) -> pl.DataFrame:
    """The table with the same names of subjects in both shops."""
    return table.with_columns(pl.col("subject").replace(short_names(shop)))


def subjects_of(found: Evaluation, shop: Shop) -> dict[str, dict[str, Any]]:
    """What an evaluation says of each subject, by its short name."""
    return {short_names(shop)[name]: about for name, about in found.facts["subjects"].items()}


@pytest.mark.parametrize(
    "settings",
    [
        {"candidates": "all"},
        {"candidates": "20"},
        {"on": "device:1/2"},
        {"targets": "explore"},
        {"first_events": [1], "targets_after": "next"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_an_evaluation_in_parts_has_the_figures_of_one(whole: Shop, parts: Shop, settings: dict[str, Any]) -> None:
    one, many = whole.evaluate(**settings), parts.evaluate(**settings)
    assert [len(users) for users in parts.dataset.parts] == [17, 17, 17, 9]
    for table in ("per_user", "aggregate", "comparison"):
        mine, theirs = (comparable(getattr(each, table), shop) for each, shop in ((one, whole), (many, parts)))
        assert_frame_equal(mine, theirs, abs_tol=1e-6, rel_tol=1e-6)
    names = ("events", "users", "candidates", "items", "events_without_candidates", "events_with_few_candidates")
    assert {name: one.facts[name] for name in names} == {name: many.facts[name] for name in names}
    ones, manys = subjects_of(one, whole), subjects_of(many, parts)
    assert ones.keys() == manys.keys()
    for name, mine in ones.items():
        theirs = manys[name]
        assert mine["served_by"] == theirs["served_by"]
        for figure in ("coverage", "gini", "novelty", "ece"):
            assert mine[figure] == pytest.approx(theirs[figure], abs=1e-6) or mine[figure] is theirs[figure] is None
    bins = [
        comparable(each.artifact.read_table("reliability.parquet"), shop)
        for each, shop in ((one, whole), (many, parts))
    ]
    assert_frame_equal(*bins, abs_tol=1e-6, rel_tol=1e-6)
    assert sorted(many.artifact.manifest["files"]) == sorted(one.artifact.manifest["files"])


COUNTED = ("popularity", "recent", "gp-topfreq", "item-knn", "ease", "ials", "tifu-knn", "up-cf")


@pytest.mark.parametrize("model", COUNTED)
def test_a_counted_model_reads_part_after_part_and_is_that_of_the_whole(
    whole: Shop, parts: Shop, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = whole.train(model=model, on="cloud,device")
    monkeypatch.setattr(Dataset, "log", property(lambda self: pytest.fail("all events were read")))
    many = parts.train(model=model, on="cloud,device")
    assert one.artifact.facts == many.artifact.facts
    mine, theirs = (each.artifact.read_tensors("model.safetensors") for each in (one, many))
    assert mine.keys() == theirs.keys()
    assert all(tensor.equal(theirs[name]) for name, tensor in mine.items())


@pytest.mark.parametrize("given", [{"model": "tifu-knn"}, {"model": "item-knn", "train.item-knn.decay": 0.5}])
def test_baskets_of_a_part_are_those_of_the_whole(whole: Shop, parts: Shop, given: dict[str, Any]) -> None:
    found = []
    for shop in (whole, parts):
        model = shop.train(on="cloud", **given)
        found.append(evaluate([Subject(model)], {"candidates": "all", "on": "device", **THREADS}).per_user)
    assert_frame_equal(*(each.drop("subject") for each in found), abs_tol=1e-6, rel_tol=1e-6)


def test_a_bundle_is_made_part_by_part_and_is_that_of_the_whole(
    whole: Shop, parts: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    patched = []
    for shop in (whole, parts):
        cloud = shop.train(model="sasrec", on="cloud", epochs=1, **{"train.sasrec.item_size": 8})
        wanted = {"method": "memory", "epochs": 1, "hidden_size": 4, **THREADS}
        patched.append(patching.patch(cloud, wanted, RunOptions(), shop.memory))
    settings = {"items": "top:25"}
    one = export(patched[0], settings)
    monkeypatch.setattr(Dataset, "log", property(lambda self: pytest.fail("all events were read")))
    many = export(patched[1], settings)
    mine, theirs = ({name: path.read_bytes() for name, path in each.files().items()} for each in (one, many))
    specs = [json.loads(each.pop("bundle.json")) for each in (mine, theirs)]
    assert all(spec.pop("parents") for spec in specs)
    assert specs[0] == specs[1] and mine == theirs and "golden.safetensors" in mine
    users = [each.users() for each in (one, many)]
    assert users[0]["counted"].any() and all(tensor.equal(users[1][name]) for name, tensor in users[0].items())
    assert user_document(one, "u7")["events"] == user_document(many, "u7")["events"] != []


def found_of(artifact: Artifact) -> list[tuple[str, str]]:
    """Findings of an audit, without the number of files, and without names that are another in another store."""
    found = audit(artifact)[1:]
    return [(each.kind, re.sub(r"@[0-9a-f]+", "@", f"{each.artifact}: {each.text}")) for each in found]


@pytest.mark.parametrize("settings", [{}, {"targets": "explore"}, {"first_events": [1], "targets_after": "next"}])
def test_an_audit_in_parts_finds_what_one_of_the_whole_finds(
    whole: Shop, parts: Shop, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, many = whole.evaluate(**settings), parts.evaluate(**settings)
    expected = found_of(one.artifact)
    monkeypatch.setattr(Dataset, "log", property(lambda self: pytest.fail("all events were read")))
    assert found_of(many.artifact) == expected
    assert len(expected) > 10 and {kind for kind, _ in expected} == {"proven"}


def test_an_audit_in_parts_names_the_leak(parts: Shop) -> None:
    artifact = parts.dataset.artifact
    events = parts.dataset.events_of(2)
    at = int(np.flatnonzero(events["period"].to_numpy() == TEST)[3])
    moved = events.with_columns(
        pl.Series("period", [0 if n == at else p for n, p in enumerate(events["period"])], pl.Int8)
    )
    name = parts.dataset.users["user_id"][events["user_index"][at]]
    found = audit(rewrite(parts.store, artifact, tables={"events-00002.parquet": moved}))
    assert [f"user {name!r}" in each.text for each in found if each.kind == "leak"].count(True) >= 2
    strange = events.with_columns(
        pl.Series("user_index", [3 if n == at else u for n, u in enumerate(events["user_index"])], pl.Int32)
    )
    found = audit(rewrite(parts.store, artifact, seed=98, tables={"events-00002.parquet": strange}))
    assert f"not in the order of its user's times: user {parts.dataset.users['user_id'][3]!r}" in "".join(
        each.text for each in found if each.kind == "leak"
    )


@pytest.mark.parametrize("suffix", ["shuffled", "mean"])
def test_placebos_take_from_all_users(whole: Shop, parts: Shop, suffix: str) -> None:
    tables = []
    for shop in (whole, parts):
        for patches in (shop.meta, shop.remembered):
            if suffix == "mean" and patches is shop.remembered:
                continue
            found = evaluate([Subject(shop.gru, patches, suffix)], {"k": [3], **THREADS})
            tables.append(found.per_user.drop("subject"))
    half = len(tables) // 2
    for mine, theirs in zip(tables[:half], tables[half:], strict=True):
        assert_frame_equal(mine, theirs, abs_tol=1e-6, rel_tol=1e-6)


def test_every_executor_makes_the_same_evaluation(parts: Shop) -> None:
    shown: list[tuple[str, float, float]] = []
    here = parts.evaluate()
    subjects = [
        Subject(parts.knn),
        Subject(parts.gru),
        Subject(parts.gru, parts.meta),
        Subject(parts.gru, parts.remembered),
    ]
    given = {"k": [3, 10], "against": subjects[1].name, **THREADS}
    run = RunOptions(lambda what, done, total, note: shown.append((what, done, total)), True, executor="local:2")
    there = evaluate(subjects, given, run)
    assert here.id == there.id
    told = [(done, total) for what, done, total in shown if what == "evaluate"]
    assert told[-1] == (told[-1][1], 2 * here.facts["events"])
    assert np.all(np.diff([done for done, _ in told]) >= 0)


def test_every_executor_learns_the_same_patches(parts: Shop) -> None:
    here = parts.meta
    there = parts.patch(executor="local:2", force=True, method="metapatch", **META)
    assert not there.reused and here.id == there.id


def test_patches_learned_in_parts_are_those_of_the_whole(whole: Shop, parts: Shop) -> None:
    mine, theirs = whole.meta, parts.meta
    assert mine.users.drop("loss_before", "loss_after").equals(theirs.users.drop("loss_before", "loss_after"))
    torch.testing.assert_close(mine.codes()[0], theirs.codes()[0], atol=1e-5, rtol=0)


def test_a_memory_of_parts_is_that_of_the_whole(
    whole: Shop, parts: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_module, "_GROUP_USERS", 30)
    grouped = remember(parts.dataset, MEMORY, RunOptions(force=True))
    assert parts.dataset.groups.count > 1
    for other in (parts.memory, grouped):
        assert whole.memory.artifact.read_table("memory.parquet").equals(other.artifact.read_table("memory.parquet"))
        for name in (STATISTICS_FILE, TYPICAL_FILE):
            mine, theirs = whole.memory.artifact.read_tensors(name), other.artifact.read_tensors(name)
            assert mine.keys() == theirs.keys()
            for key, tensor in mine.items():
                torch.testing.assert_close(tensor, theirs[key], atol=1e-6, rtol=1e-5)


def test_teachers_of_a_group_say_what_they_say_among_all(parts: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each event's best items, with the teachers' logits. The other items are drawn for a batch."""
    settings = FromMemorySettings(negatives=4)
    config = DistillConfig(method="from-memory", settings=settings, on="device")
    task = DistillTask(
        parts.remembered, parts.gru, Block(DEVICE), config, settings, torch.device("cpu"), None, quiet_progress
    )
    monkeypatch.setattr(dataset_module, "_GROUP_USERS", 30)
    found: list[dict[int, tuple[list[int], torch.Tensor]]] = []
    for groups in (UserGroups.of(parts.dataset.log), parts.dataset.groups):
        said, method = {}, FromMemory()
        for number in range(groups.count):
            log = groups.open(number)
            objective, events = method.objective(task, log), log.events_in(DEVICE)
            rows, listed = objective.lists.find(events)
            assert listed.all()
            items, logits = (each[rows, : settings.highest] for each in (objective.lists.items, objective.lists.logits))
            for at, place in enumerate(log.places(events).tolist()):
                said[place] = items[at].tolist(), logits[at]
        found.append(said)
    whole, grouped = found
    assert whole.keys() == grouped.keys()
    for place, (items, logits) in whole.items():
        assert grouped[place][0] == items
        torch.testing.assert_close(grouped[place][1], logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", ["from-memory", "momodistill"])
def test_a_model_is_taught_group_by_group(parts: Shop, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if method == "momodistill":
        din = parts.train(model="din", on="cloud", epochs=1, **{"train.din.hidden_sizes": (8, 4)})
        patches = patching.patch(din, META | THREADS | {"method": "metapatch"}, RunOptions())
    else:
        patches = parts.remembered
    wanted = {"method": method, "epochs": 1, "on": "device", **THREADS}
    one = distill(patches, wanted)
    monkeypatch.setattr(dataset_module, "_GROUP_USERS", 30)
    assert parts.dataset.groups.count > 1
    monkeypatch.setattr(Dataset, "log", property(lambda self: pytest.fail("all events were read")))
    grouped = distill(PatchSet(patches.artifact), wanted, RunOptions(force=True))
    assert one.id != grouped.id
    for name in ("trained_on_events", "trained_on_users", "teachers", "mean_teacher_weight"):
        assert one.facts[name] == pytest.approx(grouped.facts[name])
    assert one.facts["epochs"][-1]["train_loss"] == pytest.approx(grouped.facts["epochs"][-1]["train_loss"], rel=0.1)
    losses = [each.facts["basis_losses"] for each in (one, grouped)]
    assert [len(each) for each in losses] == [5 * (method == "momodistill")] * 2
    assert all(each == sorted(each, reverse=True) for each in losses)
    assert losses[0][:1] == pytest.approx(losses[1][:1], rel=0.1)


def test_many_events_are_enough_to_learn_what_all_users_share(parts: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = parts.dataset.count_events(Block(DEVICE))
    assert np.array_equal(
        counts, np.bincount(parts.dataset.log.user[parts.dataset.log.events_in(DEVICE)], minlength=60)
    )
    assert parts.dataset.sample(counts, 1, 0, "test") is parts.dataset.log
    monkeypatch.setattr(dataset_module, "_GROUP_USERS", 17)
    some = parts.dataset.sample(counts, int(counts.sum()) // 3, 0, "test")
    assert 0 < len(some.user) < len(parts.dataset.log.user)
    assert counts[np.unique(some.user)].sum() >= counts.sum() // 3
    assert len(some.events_in(DEVICE)) == counts[np.unique(some.user)].sum()
    monkeypatch.setattr("dcclctl.devices.learner._SHARED_EVENTS", int(counts.sum()) // 3)
    patches = parts.patch(force=True, method="metapatch", **META)
    assert patches.users["user_index"].equals(parts.meta.users["user_index"])
    assert patches.id != parts.meta.id


@pytest.mark.parametrize("which", ["knn", "meta", "remembered", "remembered+shuffled"])
def test_lists_in_parts_are_those_of_the_whole(whole: Shop, parts: Shop, which: str) -> None:
    which, _, suffix = which.partition("+")
    found = []
    for shop in (whole, parts):
        model = getattr(shop, which)
        subject = Subject(model) if isinstance(model, CloudModel) else Subject(model.cloud, model, suffix)
        lists = recommend(subject, {"top": 4, "shard_users": 11, "as_of": "end", **THREADS})
        found.append(lists.lists)
        (one,) = score(subject, ["u7"], {"top": 4, "as_of": "end", **THREADS})
        ranking = list(one.rankings.values())[-1]  # of the patches, after that of their cloud model
        assert ranking["item_id"].to_list() == found[-1].filter(pl.col("user_id") == "u7")["item_id"].to_list()
    assert found[0].drop("score").equals(found[1].drop("score"))
    assert_frame_equal(*found, abs_tol=1e-5)


def test_the_events_of_some_users_are_theirs_alone(parts: Shop) -> None:
    users = np.array([3, 20, 58])
    some, whole = parts.dataset.log_with(users), parts.dataset.log
    rows = np.flatnonzero(np.isin(whole.user, users))
    assert np.array_equal(some.places(np.arange(len(some.user))), rows)
    assert np.array_equal(some.user, whole.user[rows]) and np.array_equal(some.item, whole.item[rows])


def test_one_user_reads_the_files_with_that_user_only(parts: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Dataset(parts.dataset.artifact)
    read: list[str] = []
    original = type(opened.artifact).read
    monkeypatch.setattr(type(opened.artifact), "read", lambda self, name: read.append(name) or original(self, name))
    score(Subject(parts.gru, parts.meta), ["u7"], THREADS)
    assert sum(name.startswith("events") for name in read) == 1
