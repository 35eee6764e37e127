"""The gate on real models: a planted regression stops the release, a harmless change does not."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from tampered import rewrite
from typer.testing import Result
from world import EVALUATE, SMALL, dcclctl, done, sets

from dcclctl.artifacts import Evaluation
from dcclctl.store.store import Store

N_USERS, TASTES = 200, 5
HOSTILE = ("<script>alert(1)</script>", "=cmd|' /C calc'!A0", "[/red] | `x` @here", "ev\x1b[31mil")


def write_log(folder: Path) -> Path:
    """200 users and 150 items of five tastes. Half the users stay with their taste, half go on to the next at every step.

    One item of history does not tell which half a user belongs to, so a patch has much to add and much to lose. The
    first users are named to do harm wherever an id is shown.
    """
    draw = np.random.default_rng(0)
    lines = []
    for user in range(N_USERS):
        name = HOSTILE[user] if user < len(HOSTILE) else f"u{user}"
        n_events = int(draw.integers(20, 30))
        tastes = user % TASTES + (user // TASTES % 2) * np.arange(n_events)
        items = tastes % TASTES + TASTES * draw.permutation(30)[:n_events]
        for item, day in zip(items, np.sort(draw.uniform(0, 100, n_events)), strict=True):
            lines.append((day, f'"{name}",i{item},{1_600_000_000 + int(day * 86_400)}'))
    log = folder / "events.csv"
    log.write_text("\n".join(["user_id,item_id,timestamp", *(line for _, line in sorted(lines))]) + "\n")
    items = [f"i{item},taste {item % TASTES}" for item in range(30 * TASTES)]
    (folder / "items.csv").write_text("\n".join(["item_id,category", *items]) + "\n")
    return log


#: strong enough patches that some users gain and some lose
PATCH = (
    *("--method=metapatch", "--threads=1", "--prior=0.1", "--learning-rate=0.1"),
    *sets("patch.metapatch", patch_size=4, bottleneck=2, basis_epochs=10, basis_learning_rate=0.02),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cloud@release (good), cloud@hardly-trained, patches@1 (good), patches@2 (the same with Θ shuffled and enlarged)."""
    folder = tmp_path_factory.mktemp("release")
    root = folder / "store"
    done("ingest", write_log(folder), "--items", folder / "items.csv", "--periods=40,35,10,15", store=root)
    train = ("train", *sets("train.din", **SMALL, history=1), "--batch-size=64", "--threads=1")
    done(*train, "--epochs=8", "--learning-rate=0.01", "--name=release", store=root)
    done(*train, "--epochs=1", "--learning-rate=0.00001", "--name=hardly-trained", store=root)
    done("patch", "--cloud=cloud@release", *PATCH, store=root)
    place = Store(root)
    good = place.resolve("patches@1")
    basis = good.read_tensors("basis.safetensors")
    shuffled = torch.randperm(len(basis["theta"]), generator=torch.Generator().manual_seed(0))
    basis["theta"] = 3 * basis["theta"][shuffled]
    rewrite(place, good, tensors={"basis.safetensors": basis})
    return root


def evaluate(store: Path, *arguments: object) -> Result:
    return dcclctl("evaluate", *arguments, *EVALUATE, store=store)


@pytest.mark.parametrize(
    ("candidate", "against"), [("patches@2", "patches@1"), ("cloud@hardly-trained", "cloud@release")]
)
@pytest.mark.parametrize("rule", ["tail.ndcg@10=1%", "all.gauc=0.01", "head.gauc=0"])
def test_a_real_regression_fails_the_gate(store: Path, candidate: str, against: str, rule: str) -> None:
    result = evaluate(store, candidate, "--against", against, "--max-drop", rule)
    assert result.exit_code == 4
    assert "gate failed: 1 of 1 rules failed (" in result.stderr
    assert "FAIL" in result.stdout
    # committed before it fails
    ref = re.search(r"All metrics are in (evaluation@\d+)\.", result.stderr)
    assert ref
    baseline = Store(store).resolve(against)
    assert Store(store).resolve(ref[1]).config["against"] == f"{baseline.kind}@{baseline.id[:8]}"


def test_the_better_model_passes(store: Path) -> None:
    result = evaluate(
        store, "patches@1", "--against=cloud@release", "--max-drop=tail.ndcg@10=0", "--max-drop=all.gauc=0"
    )
    assert result.exit_code == 0, result.stderr
    assert "FAIL" not in result.stdout
    assert "inconclusive" not in result.stdout.partition("Gate:")[2]


def test_another_batch_size_is_harmless(store: Path) -> None:
    """The same weights under another id, scored in other batches: nothing may drop by anything."""
    place = Store(store)
    same = rewrite(place, place.resolve("patches@1"), seed=7)
    rules = [
        f"--max-drop={group}.{metric}=0" for group in ("all", "tail") for metric in ("ndcg@10", "gauc", "log_loss")
    ]
    result = evaluate(store, same.ref, "--against=patches@1", "--set=evaluate.batch_events=17", *rules)
    assert result.exit_code == 0, result.stderr
    tables = [
        place.resolve(
            done("evaluate", "patches@1", *EVALUATE, f"--set=evaluate.batch_events={batch}", store=store)["ref"]
        )
        for batch in (17, 256)
    ]
    one, other = (table.read_table("aggregate.parquet")["value"].drop_nulls().to_numpy() for table in tables)
    assert np.abs(one - other).max() < 1e-6


def test_an_unchanged_candidate_passes(store: Path) -> None:
    """A pipeline that trains the same model again gets the same artifact: no mistake, and no drop."""
    result = evaluate(store, "cloud@1", "--against=cloud@release", "--max-drop=all.ndcg@10=0")
    assert result.exit_code == 0, result.stderr
    assert "is compared with itself" in result.stdout
    assert "no difference at all" in result.stdout
    assert "Gate passed: 1 of 1 rules, but release (cloud@1) was compared with itself" in result.stdout


def test_an_inconclusive_drop_does_not_fail_but_says_how_many_users_it_takes(store: Path, tmp_path: Path) -> None:
    """Another seed of the same model: differences of chance."""
    place = Store(store)
    cloud = place.resolve("cloud@release")
    weights = cloud.read_tensors("model.safetensors")
    noise = torch.Generator().manual_seed(1)
    weights = {name: value + 0.02 * torch.randn(value.shape, generator=noise) for name, value in weights.items()}
    other = rewrite(place, cloud, tensors={"model.safetensors": weights})
    xml, rules = (
        tmp_path / "gate.xml",
        [f"--max-drop={group}.hr@10=0" for group in ("all", "head", "tail", "activity-00")],
    )
    result = evaluate(store, other.ref, "--against=cloud@release", *rules, "--junit", xml)
    assert result.exit_code == 0, result.stderr
    assert "users would settle it" in result.stdout.partition("Gate:")[2]
    assert "too few users to tell" in result.stdout.partition("Gate:")[2]
    suite = ET.parse(xml).getroot()
    assert int(suite.attrib["skipped"]) >= 2
    assert suite.attrib["failures"] == "0"
    assert "Gate inconclusive, which does not fail without --strict: " in result.stdout
    assert "Gate passed" not in result.stdout

    page = tmp_path / "gate.md"
    outputs = ("--junit", xml, "--markdown", page)
    strict = evaluate(store, other.ref, "--against=cloud@release", *rules, "--strict", *outputs, "--json")
    assert strict.exit_code == 4
    said = json.loads(strict.stdout)
    assert (said["gate_verdict"], said["strict"]) == ("fail", True)
    assert said["gate_headline"].startswith("Gate failed, because --strict asks every rule to pass: ")
    assert page.read_text().startswith(f"## {said['gate_headline']}\n")
    assert ET.parse(xml).getroot().attrib["name"] == said["gate_headline"]


def test_gate_file_junit_markdown_and_json(store: Path, tmp_path: Path) -> None:
    gate, xml, page = tmp_path / "gate.toml", tmp_path / "gate.xml", tmp_path / "gate.md"
    gate.write_text(
        '[[rule]]\ngroup = "tail"\nmetric = "ndcg@10"\nmax_drop = "5%"\nsubject = "patches@2"\n'
        '[[rule]]\ngroup = "all"\nmetric = "hr@3"\nmax_drop = 1\n'
    )
    outputs = ("--gate", gate, "--junit", xml, "--markdown", page)
    result = evaluate(store, "patches@1", "patches@2", "--against=patches@1", *outputs, "--json")
    assert result.exit_code == 4
    document = json.loads(result.stdout)
    assert [(row["subject"], row["group"], row["verdict"]) for row in document["gate"]] == [
        ("patches@2", "tail", "fail"),
        ("patches@2", "all", "pass"),
    ]
    assert document["against"] == "patches@1"
    assert {row["verdict"] for row in document["comparison"]} <= {"better", "worse", "inconclusive"}
    assert len(document["worst_users"]) == 20 * 7

    root = ET.parse(xml).getroot()
    assert (root.attrib["tests"], root.attrib["failures"]) == ("2", "1")
    failed = root.findall(".//testcase[failure]")
    assert [(case.attrib["classname"], case.attrib["name"]) for case in failed] == [
        ("metapatch on release (patches@2)", "tail.ndcg@10 drops by at most 5%")
    ]
    text = page.read_text()
    assert text.startswith("## Gate failed: 1 of 2 rules failed (tail.ndcg@10)\n")
    assert "| metapatch on release (patches@2) | tail NDCG@10 | 5% = " in text


def test_sampled_metrics_are_found_and_called_sampled(store: Path) -> None:
    arguments = ("patches@2", "--against=patches@1", "--candidates=50", "--max-drop=tail.ndcg@10=1%")
    result = evaluate(store, *arguments)
    assert result.exit_code == 4
    assert "tail NDCG@10 sampled" in result.stdout
    assert "the gate compares sampled metrics" in result.stdout


def test_hostile_ids_are_inert_where_they_are_shown(store: Path, tmp_path: Path) -> None:
    page = tmp_path / "gate.md"
    result = evaluate(store, "cloud@hardly-trained", "--against=patches@1", "--markdown", page, "--json")
    hurt = {row["user_id"] for row in json.loads(result.stdout)["worst_users"]}
    assert hurt & set(HOSTILE)
    shown = evaluate(store, "cloud@hardly-trained", "--against=patches@1")
    for output in (shown.stdout, page.read_text()):
        assert "\x1b" not in output
    assert "<" not in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-drop=tail.ndcg@10=1%"], "Add --against REF"),
        (["--against=cloud@1", "--junit=x.xml"], "--junit writes the rules of a gate"),
        (["--against=cloud@1", "--strict"], "--strict reads the rules of a gate"),
        (
            ["--against=cloud@1", "--max-drop=tail.ndcg@100=1%"],
            "Did you mean 'ndcg@10'? Or add the cut-off: -k 3,10,100.",
        ),
        (["--against=cloud@1", "--max-drop=tail.ngcd@10=1%"], "Did you mean 'ndcg@10'?\n"),
        (["--against=cloud@1", "--max-drop=tale.ndcg@10=1%"], "Did you mean 'tail'?"),
        (["--against=cloud@1", "--max-drop=tail.ndcg@10"], "Write e.g. --max-drop tail.ndcg@10=1%"),
        (["--against=cloud@1", "--gate=none.toml"], "cannot read the gate none.toml"),
        (["--against=cloud@1", "--max-drop=all.mrr=0", "--junit=no/such/x.xml"], "there is no folder no/such"),
        (["--against=cloud@none"], "there is no cloud@none"),
    ],
)
def test_a_mistake_exits_2_before_anything_is_scored(store: Path, arguments: list[str], said: str) -> None:
    before = Store(store).numbers("evaluation")
    result = evaluate(store, "patches@1", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert Store(store).numbers("evaluation") == before


def test_a_rule_for_a_model_that_is_not_compared(store: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate.toml"
    gate.write_text('[[rule]]\ngroup = "all"\nmetric = "mrr"\nmax_drop = "1%"\nsubject = "patches@2"\n')
    result = evaluate(store, "patches@1", "--against=cloud@1", "--gate", gate)
    assert result.exit_code == 2
    assert "which is not compared here" in result.stderr


def test_the_baseline_is_in_the_id_and_its_number_is_not(store: Path, tmp_path: Path) -> None:
    place = Store(store)
    alone = place.resolve(done("evaluate", "cloud@1", "patches@1", *EVALUATE, store=store)["ref"])
    compared = [
        place.resolve(done("evaluate", "cloud@1", "patches@1", *EVALUATE, f"--against={name}", store=store)["ref"])
        for name in ("cloud@1", "cloud@release", "patches@1")
    ]
    assert len({each.id for each in (alone, *compared)}) == 3
    assert compared[0].config["against"] == f"cloud@{place.resolve('cloud@1').id[:8]}"
    for table in ("comparison.parquet", "tail_minus_head.parquet"):
        assert table not in alone.manifest["files"]
        assert all(table in each.manifest["files"] for each in compared)


def test_who_gains_more_is_said(store: Path) -> None:
    told = json.loads(evaluate(store, "patches@1", "cloud@1", "--against=cloud@1", "--json").stdout)
    by_group = {(row["group"], row["metric"]): row["difference"] for row in told["comparison"]}
    assert {row["subject"] for row in told["tail_minus_head"]} == {"patches@1"}
    for row in told["tail_minus_head"]:
        means = by_group["tail", row["metric"]], by_group["head", row["metric"]]
        assert row["difference"] == pytest.approx(means[0] - means[1], abs=1e-12)
    shown = evaluate(store, "patches@1", "cloud@1", "--against=cloud@1").stdout
    assert "(patches@1), gain of tail users minus gain of head users: " in shown


def test_who_gains_more_is_kept(store: Path) -> None:
    place = Store(store)
    first, turned = (
        Evaluation(place.resolve(done("evaluate", "patches@1", "cloud@1", *EVALUATE, against, store=store)["ref"]))
        for against in ("--against=cloud@1", "--against=patches@1")
    )
    table = first.tail_minus_head
    assert table["subject"].unique().to_list() == [turned.against]
    # what was kept is what is read: another table in its place is shown in its place
    another = table.with_columns(pl.col("difference") + 1)
    planted = rewrite(place, first.artifact, tables={"tail_minus_head.parquet": another})
    assert_frame_equal(Evaluation(planted).tail_minus_head, another)
    # against the other model it is the same difference the other way round
    assert turned.tail_minus_head["subject"].unique().to_list() == [first.against]
    assert turned.tail_minus_head["difference"].to_list() == pytest.approx([-value for value in table["difference"]])


def test_the_guard_shows_lift_and_harm_before_and_after(store: Path) -> None:
    guarded = done("patch", "--cloud=cloud@release", *PATCH, "--guard", store=store)
    assert 0 < guarded["kept"] < guarded["users"]
    result = evaluate(store, "cloud@release", "patches@1", guarded["ref"], "--against=cloud@release", "--json")
    harm = {
        row["subject"]: row
        for row in json.loads(result.stdout)["harm"]
        if row["group"] == "all" and row["metric"] == "ndcg@10"
    }
    # who has no patch any more ranks as the cloud model does
    assert harm[guarded["ref"]]["unchanged"] > harm["patches@1"]["unchanged"]
    assert harm[guarded["ref"]]["worse"] < harm["patches@1"]["worse"]
