"""New users: made by ingest, served with their first K events, and proven to be new by the audit."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from tampered import rewrite
from world import EVALUATE, World, dcclctl, done, ingest

from dcclctl.artifacts import CloudModel
from dcclctl.config import EvaluateConfig
from dcclctl.errors import UsageError
from dcclctl.evaluation import candidates
from dcclctl.evaluation.targets import of_new_users, one_each, seen_by_models, targets_of
from dcclctl.events.log import TEST, Block
from dcclctl.logs.split import new_users
from dcclctl.models.kind import kind_of
from dcclctl.stages.audit import audit
from dcclctl.store.store import Store

FIRST = ("--first-events=2,0,1", "--targets-after=2")
NEXT = ("--first-events=2,0,1", "--targets-after=next")


@pytest.mark.parametrize("split", ["global", "per-user", "leave-one-out"])
def test_made_new_users_have_nothing_before_test(tmp_path: Path, split: str) -> None:
    store = tmp_path / "store"
    before = ingest(tmp_path, store, f"--split={split}")
    after = ingest(tmp_path, store, f"--split={split}", "--new-users=0.3", "--seed=3")
    old, new = (Store(store).resolve(f"dataset@{number}") for number in (1, 2))
    ids = {"user_index": "user_id"}
    tables = [
        each.read_table("events.parquet").join(each.read_table("users.parquet"), on=list(ids)) for each in (old, new)
    ]
    was, now = (
        {group["user_id"][0]: group["period"].to_list() for group in table.partition_by("user_id")} for table in tables
    )
    # who has no event in the test of a global split is left alone; n0 … n4 are new without being made so
    made_new = [user for user in now if set(now[user]) == {TEST} and set(was[user]) != {TEST}]
    assert 8 <= len(made_new) <= 25
    assert was.keys() == now.keys()
    for user in was:
        expected = was[user]
        if user in made_new:
            expected = (
                [period for period in was[user] if period == TEST] if split == "global" else [TEST] * len(was[user])
            )
        assert now[user] == expected
    groups = dict(new.read_table("users.parquet").select("user_id", "group").iter_rows())
    assert {groups[user] for user in made_new} == {"new"}
    rows = after["rows"]
    assert rows["kept"] - sum(rows["dropped"].values()) == after["events"]
    assert before["events"] - after["events"] == rows["dropped"].get("new-users", 0)
    drawn = new_users(list(now), 0.3, 3)
    assert {user for user, each in zip(now, drawn, strict=True) if each and groups[user] == "new"} >= set(made_new)
    counted = sum(each and groups[user] == "new" for user, each in zip(now, drawn, strict=True))
    assert f"{counted} users drawn by --new-users 0.3 have no event before test" in after["remarks"]
    # the items of events that are gone are gone as well
    assert new.read_table("events.parquet")["item_index"].n_unique() == after["items"]
    texts = [f"{finding.kind}: {finding.text}" for finding in audit(new)]
    assert not [text for text in texts if text.startswith("leak")]
    assert [text for text in texts if "--new-users 0.3, drawn again" in text]


def test_the_audit_finds_an_event_before_test_of_a_user_made_new(tmp_path: Path) -> None:
    place = tmp_path / "store"
    ingest(tmp_path, place, "--new-users=0.3")
    store = Store(place)
    dataset = store.resolve("dataset@1")
    events = dataset.read_table("events.parquet")
    users = dataset.read_table("users.parquet")
    several = (pl.col("group") == "new") & pl.col("user_id").str.starts_with("u") & (pl.col("events") > 1)
    made_new = users.filter(several)["user_index"][0]
    # the user's first event, as if it had happened in the cloud period
    first = events["user_index"].to_list().index(made_new)
    row = pl.Series(range(events.height)) == first
    moved = events.with_columns(
        time_us=pl.when(row).then(pl.col("time_us").min()).otherwise("time_us"),
        period=pl.when(row).then(pl.lit(0, pl.Int8)).otherwise("period"),
    )
    # the seed decides who is new, so it stays; another setting makes it an artifact of its own
    forged = rewrite(store, dataset, seed=0, config={"max_reject": 0.5}, tables={"events.parquet": moved})
    leaks = [each.text for each in audit(forged) if each.kind == "leak"]
    assert len(leaks) == 1 and "a user that --new-users made new has an event before test" in leaks[0]
    assert repr(users["user_id"][made_new]) in leaks[0]


def settings(first: int, after: int | str = 2) -> EvaluateConfig:
    return EvaluateConfig(first_events=[first], targets_after=after, threads=1, device="cpu")


def test_histories_and_targets_by_a_plain_loop(world: World) -> None:
    dataset = world.dataset()
    events = dataset.artifact.read_table("events.parquet").to_dicts()
    block = dataset.log.events_in(Block(TEST))
    groups = dataset.users["group"].to_list()
    views = [seen_by_models(dataset.log, settings(first)) for first in (0, 1, 2)]
    expected: list[int] = []
    right_after: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for at, event in enumerate(events):
        own = [each for each in events if each["user_index"] == event["user_index"] and each["label"]]
        earlier = [each["item_index"] for each in own if each["time_us"] < event["time_us"]]
        if groups[event["user_index"]] == "new" and len(earlier) >= 2:
            expected.append(at)
        if groups[event["user_index"]] == "new" and len(earlier) in right_after:
            right_after[len(earlier)].append(at)
        for first, view in enumerate(views):
            items, mask = view.histories(np.array([at]), 8)
            assert items[mask].tolist() == earlier[:first][::-1]
    assert expected
    for first in (0, 1, 2):
        assert targets_of(dataset, dataset.log, block, settings(first)).tolist() == expected
        assert right_after[first]
        assert targets_of(dataset, dataset.log, block, settings(first, "next")).tolist() == right_after[first]


def test_without_the_flag_nothing_changes(world: World) -> None:
    dataset = world.dataset()
    block = dataset.log.events_in(Block(TEST))
    assert seen_by_models(dataset.log, EvaluateConfig()) is dataset.log
    assert targets_of(dataset, dataset.log, block, EvaluateConfig()) is block


def test_one_evaluation_for_each_k(world: World) -> None:
    asked = EvaluateConfig(first_events=[12, 0, 3, 3])
    assert [(each.first_events, each.targets_after) for each in one_each(asked)] == [([0], 12), ([3], 12), ([12], 12)]
    following = EvaluateConfig(first_events=[12, 0], targets_after="next")
    assert [(each.first_events, each.targets_after) for each in one_each(following)] == [([0], "next"), ([12], "next")]
    with pytest.raises(UsageError, match="one evaluation has one K"):
        seen_by_models(world.dataset().log, asked)
    with pytest.raises(UsageError, match="at most --targets-after 2"):
        seen_by_models(world.dataset().log, settings(3))


def test_figures_are_those_of_the_cut_histories(shop: Path) -> None:
    """AUC of every user again, from the model's layers and histories that are cut by hand."""
    done("evaluate", "cloud@1", *FIRST, *EVALUATE, "--candidates=all", store=shop)
    store = Store(shop)
    cloud = CloudModel(store.resolve("cloud@1"))
    model, log = kind_of(cloud.model).module(cloud, torch.device("cpu")), cloud.dataset.log
    catalogue = torch.arange(log.n_items)
    tables = {}
    for number, first in ((2, 0), (3, 1), (4, 2)):
        made = store.resolve(f"evaluation@{number}")
        assert made.facts["first_events"] == first
        tables[first] = made.read_table("per_user.parquet")
        targets = targets_of(cloud.dataset, cloud.dataset.log, log.events_in(Block(TEST)), settings(first))
        top = {int(user): [] for user in log.user[targets]}
        for event in targets.tolist():
            start, end = log.history_start[event], log.history_end[event]
            history = log.sequence[start:end][:first].flip(0)
            keys = model.embed(history if first else torch.zeros(1, dtype=torch.int64))[None]
            query = model.embed(catalogue)[None]
            mask = torch.full((1, max(first, 1)), bool(first))
            profile = model.embed_profile(log.profile[log.user[event]][None])
            with torch.no_grad():
                z1 = model.first_layer(query, model.interest_of_many(query, keys, mask), profile)
                logits = model.logits(model.second_layer(z1))[0]
            own = {int(item) for item in log.item[(log.user == log.user[event])]}
            others = [item for item in np.unique(log.item).tolist() if item not in own]
            top[int(log.user[event])].append(float(1 / (1 + (logits[others] >= logits[log.item[event]]).sum())))
        for row in tables[first].to_dicts():
            assert row["mrr"] == pytest.approx(np.mean(top[row["user_index"]]), rel=1e-6)
            assert row["events"] == len(top[row["user_index"]])
    assert not tables[0]["auc"].equals(tables[2]["auc"])
    assert tables[0]["events"].equals(tables[2]["events"])


def test_models_side_by_side_at_the_same_k(shop: Path) -> None:
    found = done(
        "evaluate", "cloud@2", "cloud@2+encoder", "cloud@1", *FIRST, *EVALUATE, "--against=cloud@2", store=shop
    )
    assert [each["first_events"] for each in found["evaluations"]] == [0, 1, 2]
    assert [each["ref"] for each in found["evaluations"]] == ["evaluation@2", "evaluation@3", "evaluation@4"]
    assert (found["ref"], found["against"]) == ("evaluation@4", "cloud@2")
    figures = {(row["first_events"], row["subject"], row["metric"]): row for row in found["metrics"]}
    assert len(figures) == len(found["metrics"]) == 3 * 3 * 7
    for (first, subject, metric), row in figures.items():
        baseline = figures[first, "cloud@2", metric]
        if subject == "cloud@2":
            assert row["difference"] is None
        elif row["value"] is not None:
            assert row["difference"] == pytest.approx(row["value"] - baseline["value"], abs=1e-12)
    assert figures[2, "cloud@1", "gauc"]["difference"] != 0
    for number in (2, 3, 4):
        findings = audit(Store(shop).resolve(f"evaluation@{number}"))
        assert not [each for each in findings if each.kind == "leak"]
        assert "by new users after their first 2" in "".join(each.text for each in findings)
    again = done(
        "evaluate", "cloud@2", "cloud@2+encoder", "cloud@1", *FIRST, *EVALUATE, "--against=cloud@2", store=shop
    )
    assert all(each["reused"] for each in again["evaluations"])


def test_what_comes_next_is_scored_with_all_that_came_before(shop: Path) -> None:
    """The history is exactly K events long by itself, so the figures are those of the events in an evaluation of all."""
    found = done("evaluate", "cloud@2", "cloud@1", *NEXT, *EVALUATE, "--against=cloud@2", store=shop)
    store = Store(shop)
    dataset, block = CloudModel(store.resolve("cloud@1")).dataset, Block(TEST)
    log, sizes = dataset.log, []
    for evaluation in found["evaluations"]:
        made = store.resolve(evaluation["ref"])
        first = evaluation["first_events"]
        targets = targets_of(dataset, log, log.events_in(block), settings(first, "next"))
        assert (log.history_end[targets] - log.history_start[targets] == first).all()
        assert (evaluation["users"], evaluation["events"]) == (len(np.unique(log.user[targets])), len(targets))
        sizes.append(evaluation["users"])
        findings = audit(made)
        assert not [each for each in findings if each.kind == "leak"]
        assert f"by new users right after their first {first}" in "".join(each.text for each in findings)
    assert sizes[0] >= sizes[1] >= sizes[2] > 0
    # a user's events in test are what comes next at one K or another: together they are an evaluation of all, uncut
    done("evaluate", "cloud@2", *EVALUATE, store=shop)
    whole = store.resolve("evaluation@5").read_table("per_user.parquet")
    parts = pl.concat(store.resolve(f"evaluation@{number}").read_table("per_user.parquet") for number in (2, 3, 4))
    own = parts.filter(pl.col("subject") == whole["subject"][0])
    sums = own.group_by("user_index").agg(
        pl.col("events").sum(), (pl.col("mrr", "log_loss") * pl.col("events")).sum() / pl.col("events").sum()
    )
    both = sums.join(whole, on="user_index", suffix="_whole").filter(pl.col("events") == pl.col("events_whole"))
    assert both.height and (both["events"] > 1).any()
    for metric in ("mrr", "log_loss"):
        np.testing.assert_allclose(both[metric], both[f"{metric}_whole"], rtol=1e-5)


def test_a_k_without_events_is_said_before_anything_is_scored(shop: Path) -> None:
    before = len(Store(shop).numbers("evaluation"))
    result = dcclctl("evaluate", "cloud@2", "--first-events=0,400", "--targets-after=next", *EVALUATE, store=shop)
    assert result.exit_code == 3 and "before which a new user has exactly 400 others" in result.stderr
    assert "Leave that K out" in result.stderr and len(Store(shop).numbers("evaluation")) == before
    lonely = dcclctl("evaluate", "cloud@2", "--targets-after=next", store=shop)
    assert lonely.exit_code == 2 and "read with --first-events only" in lonely.stderr


def test_all_k_rank_the_same_number_of_candidates(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is affordable is asked of all events of new users, not of those that one K happens to score."""
    store = Store(shop)
    dataset = CloudModel(store.resolve("cloud@1")).dataset
    block = dataset.log.events_in(Block(TEST))
    counts = [len(targets_of(dataset, dataset.log, block, settings(first, "next"))) for first in (0, 2)]
    assert min(counts) < len(of_new_users(dataset, dataset.log, block))
    monkeypatch.setattr(candidates, "_AFFORDABLE_PAIRS", min(counts) * dataset.log.n_items)
    monkeypatch.setattr(candidates, "_SAMPLED", 5)
    found = done("evaluate", "cloud@2", *NEXT, "--threads=1", store=shop)
    assert found["candidates"] == 5
    assert {row["metric"] for row in found["metrics"] if row["metric"].startswith("mrr")} == {"mrr/5"}


def test_the_table_of_what_comes_next_says_so(shop: Path, tmp_path: Path) -> None:
    shown = dcclctl("evaluate", "cloud@2", "cloud@1", *NEXT, *EVALUATE, "--against=cloud@2", store=shop).stdout
    assert "what comes right after each new user's first K events" in " ".join(shown.split())
    done("report", "evaluation@3", "-o", tmp_path / "page.html", store=shop)
    text = (tmp_path / "page.html").read_text()
    assert "their first 1 events, on what comes right after" in text and "--targets-after next" in text
    wrong = dcclctl("evaluate", "--first-events=1", "--targets-after=soon", store=shop)
    assert wrong.exit_code == 2 and "next" in wrong.stderr and "soon" in wrong.stderr
    nobody = dcclctl("evaluate", "--first-events=400", "--targets-after=next", "--threads=1", store=shop)
    assert nobody.exit_code == 3 and "has exactly 400 others" in nobody.stderr


def test_the_audit_finds_events_that_should_not_have_been_scored(shop: Path) -> None:
    done("evaluate", "cloud@1", *FIRST, *EVALUATE, store=shop)
    store = Store(shop)
    made = store.resolve("evaluation@4")
    table = made.read_table("per_user.parquet").with_columns(events=pl.col("events") + 1)
    leaks = [
        each.text for each in audit(rewrite(store, made, tables={"per_user.parquet": table})) if each.kind == "leak"
    ]
    assert leaks and "was not scored on the" in leaks[0] and "by new users after their first 2" in leaks[0]
    forged = rewrite(store, made, config={"targets_after": "next"})
    leaks = [each.text for each in audit(forged) if each.kind == "leak"]
    assert leaks and "by new users right after their first 2" in leaks[0]


def test_the_table_has_k_down_and_models_across(shop: Path) -> None:
    shown = dcclctl("evaluate", "cloud@2", "cloud@1", *FIRST, *EVALUATE, "--against=cloud@2", store=shop).stdout
    told = shown.splitlines()
    at = next(number for number, line in enumerate(told) if "cloud@2" in line and "value" in line)
    header, *lines = [line for line in told[at:] if line.strip()]
    assert header.index("cloud@2") < header.index("cloud@1")
    cells = [[line[:12].strip(), line[12:].split()[0]] for line in lines[:4]]
    assert cells == [["GAUC", "0"], ["", "1"], ["", "2"], ["HR@10", "0"]]
    users = {line[12:].split()[1] for line in lines[:12]}
    assert users == {f"{Store(shop).resolve('evaluation@2').facts['users']:,}"}
    assert shown.count("evaluation@") == 3
    alone = dcclctl("evaluate", "cloud@2", *FIRST, *EVALUATE, store=shop).stdout
    assert "at the same K" not in alone and "New users served" in alone


def test_what_cannot_be_asked(shop: Path) -> None:
    gate = dcclctl("evaluate", "--first-events=1", "--max-drop=all.gauc=1%", "--against=cloud@1", store=shop)
    assert gate.exit_code == 2 and "a gate reads one" in gate.stderr
    nobody = dcclctl("evaluate", "--first-events=1", "--targets-after=500", "--threads=1", store=shop)
    assert nobody.exit_code == 3 and "no new user with more than 500 events" in nobody.stderr
    assert "--new-users" in nobody.stderr
    negative = dcclctl("evaluate", "--first-events=-1", store=shop)
    assert negative.exit_code == 2


def test_a_page_says_how_new_users_were_served(shop: Path, tmp_path: Path) -> None:
    done("evaluate", "cloud@2", "cloud@1", *FIRST, *EVALUATE, "--against=cloud@2", store=shop)
    done("report", "evaluation@3", "-o", tmp_path / "page.html", store=shop)
    text = (tmp_path / "page.html").read_text()
    assert "new users with a history of their first 1 events" in text
    assert "--first-events 1 --targets-after 2" in text


def test_a_memory_holds_the_first_events_and_nothing_else(shop: Path) -> None:
    """Patches that are conditioned on the device's memory: an empty one is the cloud model, two events are not."""
    fresh = done("train", "--continue=cloud@1", "--on=device", "--epochs=1", "--patience=0", "--threads=1", store=shop)
    done("memory", store=shop)
    patches = done(
        "patch", f"--cloud={fresh['ref']}", "--set=patch.memory.min_history_quantile=0", "--threads=1", store=shop
    )
    models = (patches["ref"], fresh["ref"])
    found = done("evaluate", *models, f"--against={fresh['ref']}", *FIRST, *EVALUATE, store=shop)
    gained = {
        row["first_events"]: row["difference"]
        for row in found["metrics"]
        if row["metric"] == "log_loss" and row["subject"] == models[0]
    }
    assert gained[0] == 0
    assert gained[1] != 0 and gained[2] not in (0, gained[1])
