"""`dcclctl audit` as a person or a script sees it."""

import json
from pathlib import Path

from tampered import rewrite
from world import EVALUATE, PATCH, dcclctl, done

from dcclctl.store.store import Store


def test_a_clean_lineage(shop: Path) -> None:
    result = dcclctl("audit", store=shop)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[-1].startswith("evaluation@1  ")
    assert len(lines) > 10 and "evaluation@1" in lines[0]
    assert all(line.startswith("proven  ") for line in lines[1:-1])
    document = done("audit", "dataset@1", store=shop)
    assert document["passed"] is True
    assert (document["ref"], document["leaks"], document["remarks"]) == ("dataset@1", [], [])
    assert {finding["artifact"] for finding in document["proven"]} >= {"dataset@1", "cloud@2", "patches@1"}


def test_a_leak_is_named_and_exits_3(shop: Path) -> None:
    patches = done("patch", "--on=valid", *PATCH, store=shop)["ref"]
    evaluation = done("evaluate", patches, *EVALUATE, "--on=valid", store=shop)["ref"]
    result = dcclctl("audit", evaluation, store=shop)
    assert result.exit_code == 3
    assert f"LEAK    {evaluation}: {patches}: {patches} learned from valid" in result.stdout
    assert f"error: {evaluation}: {patches}: {patches} learned from valid" in result.stderr
    # what holds all the same is still said
    assert "proven  dataset@1: " in result.stdout
    result = dcclctl("audit", evaluation, "--json", store=shop)
    assert result.exit_code == 3
    document = json.loads(result.stdout)
    assert document["passed"] is False
    assert len(document["leaks"]) == 1


def test_a_hostile_id_in_a_leak_is_inert(shop: Path) -> None:
    store = Store(shop)
    patches = store.resolve("patches@1")
    users = patches.read_table("users.parquet")
    hostile = users.with_columns(user_id=users["user_id"].replace({users["user_id"][0]: "\x1b[31m[red]\u202e"}))
    made = rewrite(store, patches, tables={"users.parquet": hostile.with_columns(events=users["events"] + 1)})
    result = dcclctl("audit", made.ref, store=shop)
    assert result.exit_code == 3
    for stream in (result.stdout, result.stderr):
        assert "[31m[red]" in stream
        assert "\x1b" not in stream
        assert "\u202e" not in stream


def test_an_empty_store_says_what_to_run(tmp_path: Path) -> None:
    result = dcclctl("audit", store=tmp_path / "none")
    assert result.exit_code == 2
    assert "Run first: dcclctl ingest LOG" in result.stderr
