"""`evaluate --targets`: what users come back to, and what is new to them, scored apart."""

import shutil
from pathlib import Path

import polars as pl
import pytest
from tampered import rewrite
from world import EVALUATE, World, dcclctl, done, ingest

from dcclctl.artifacts import Dataset
from dcclctl.config import EvaluateConfig
from dcclctl.evaluation import candidates
from dcclctl.evaluation.targets import targets_of
from dcclctl.events.log import TEST, Block
from dcclctl.stages.audit import audit
from dcclctl.store.store import Store


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose users come back to what they had; with popularity, and what each user had most often."""
    folder = tmp_path_factory.mktemp("again")
    ingest(folder, folder / "store", "--repeats=keep")
    for model in ("popularity", "gp-topfreq"):
        done("train", f"--model={model}", "--threads=1", store=folder / "store")
    return folder / "store"


def table_of(store: Path, reference: str) -> pl.DataFrame:
    return Store(store).resolve(reference).read_table("per_user.parquet")


def test_repeated_events_by_a_plain_loop(again: Path) -> None:
    dataset = Dataset(Store(again).resolve("dataset@1"))
    events = dataset.artifact.read_table("events.parquet").to_dicts()
    had: set[tuple[int, int]] = set()
    expected, moment = [], []
    for at, event in enumerate(events):
        key = (event["user_index"], event["item_index"])
        expected.append(key in had)
        moment += [key] if event["label"] else []
        following = events[at + 1] if at + 1 < len(events) else {"user_index": None, "time_us": None}
        if any(event[name] != following[name] for name in ("user_index", "time_us")):
            had, moment = had | set(moment), []  # what one moment has is new together
    log = dataset.log
    every = log.events_in(*range(4))
    assert log.interacted_before(every).tolist() == expected and 0 < sum(expected) < len(expected)
    block = log.events_in(Block(TEST))
    parts = {
        name: targets_of(dataset, dataset.log, block, EvaluateConfig(targets=name))
        for name in ("all", "repeat", "explore")
    }
    assert parts["repeat"].tolist() == [at for at in block if expected[at]]
    assert sorted([*parts["repeat"], *parts["explore"]]) == parts["all"].tolist() == block.tolist()


def test_both_parts_are_the_whole(again: Path) -> None:
    """Sums over a user's events of HR and MRR, from three evaluations with the same candidates."""
    sums = {}
    for targets in ("all", "repeat", "explore"):
        found = done("evaluate", "cloud@1", "cloud@2", f"--targets={targets}", *EVALUATE, store=again)
        table = table_of(again, found["ref"])
        metrics = [name for name in table.columns if name.startswith(("hr@", "mrr"))]
        sums[targets] = (
            table.with_columns(pl.col(metrics) * pl.col("events"))
            .group_by("subject", "user_index")
            .agg(pl.col("events", *metrics).sum())
        )
    parts = pl.concat([sums["repeat"], sums["explore"]]).group_by("subject", "user_index").agg(pl.exclude("^$").sum())
    keys = ["subject", "user_index"]
    whole, together = (each.sort(keys).drop(keys).to_numpy() for each in (sums["all"], parts))
    assert whole.shape[1] > 3 and together == pytest.approx(whole, abs=1e-9)


def test_both_parts_are_ranked_as_the_whole_is(again: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is affordable is asked of all events, not of those that are scored."""
    dataset = Dataset(Store(again).resolve("dataset@1"))
    block = dataset.log.events_in(Block(TEST))
    part = targets_of(dataset, dataset.log, block, EvaluateConfig(targets="explore"))
    monkeypatch.setattr(candidates, "_AFFORDABLE_PAIRS", len(part) * dataset.log.n_items)
    monkeypatch.setattr(candidates, "_SAMPLED", 5)
    assert len(part) < len(block)
    assert done("evaluate", "cloud@2", "--targets=explore", "--threads=1", store=again)["candidates"] == 5


def test_counting_what_a_user_had_ranks_what_comes_again_first(again: Path) -> None:
    found = {}
    for targets in ("repeat", "explore"):
        made = done("evaluate", "cloud@1", "cloud@2", f"--targets={targets}", *EVALUATE, store=again)["ref"]
        by_model = table_of(again, made).group_by("subject", maintain_order=True).agg(pl.col("auc").mean())["auc"]
        found[targets] = by_model[1] - by_model[0]
    assert found["repeat"] > 0.1 and found["explore"] < 0


def test_what_was_scored_is_said_and_proven(again: Path, tmp_path: Path) -> None:
    again = shutil.copytree(again, tmp_path / "store")  # one with a forged evaluation is of no use to others
    command = ("evaluate", "cloud@1", "cloud@2", "--targets=explore", "--against=cloud@1", *EVALUATE)
    shown = dcclctl(*command, "--markdown", tmp_path / "summary.md", store=again)
    assert shown.exit_code == 0 and "users, only of items that are new to the user" in " ".join(shown.stdout.split())
    assert "only of items that are new to the user" in (tmp_path / "summary.md").read_text()
    done("report", "evaluation@latest", "-o", tmp_path / "page.html", store=again)
    text = (tmp_path / "page.html").read_text()
    assert "The test period, only of items that are new to the user" in text and "--targets explore" in text
    store = Store(again)
    made = store.latest("evaluation")
    findings = audit(made)
    assert not [each for each in findings if each.kind == "leak"]
    assert any("events of test, only of items that are new to the user" in each.text for each in findings)
    forged = rewrite(store, made, config={"targets": "repeat"})
    leaks = [each.text for each in audit(forged) if each.kind == "leak"]
    assert leaks and "of test, only of items that the user interacted with before" in leaks[0]


def test_with_first_events_too(again: Path) -> None:
    asked = ("--first-events=1", "--targets-after=1", "--targets=repeat")
    shown = dcclctl("evaluate", "cloud@2", *asked, *EVALUATE, store=again)
    assert shown.exit_code == 0, shown.stderr
    assert "only of items that the user interacted with before" in " ".join(shown.stdout.split())


def test_among_first_events_nothing_comes_again(world: World, tmp_path: Path) -> None:
    shop = world.copy(tmp_path / "shop")
    result = dcclctl("evaluate", "cloud@1", "--targets=repeat", *EVALUATE, store=shop)
    assert result.exit_code == 3
    assert (
        "no event in test of an item that its user interacted with before" in result.stderr
        and "--repeats keep" in result.stderr
    )
    whole = done("evaluate", "cloud@1", "--targets=explore", *EVALUATE, store=shop)
    assert (
        table_of(shop, whole["ref"])
        .drop("subject")
        .equals(table_of(shop, done("evaluate", "cloud@1", *EVALUATE, store=shop)["ref"]).drop("subject"))
    )
    assert dcclctl("evaluate", "cloud@1", "--targets=new", *EVALUATE, store=shop).exit_code == 2
