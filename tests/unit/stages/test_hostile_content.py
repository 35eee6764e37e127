"""Artifacts with right hashes and content that no command writes: an error that names them, never a traceback."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tampered import rewrite
from world import World, dcclctl

from dcclctl.store.store import Artifact

#: what is wrong → (artifact, what it is changed to, the command that reads it, words of the message)
CASES: dict[str, tuple[str, Callable[[Artifact], dict[str, Any]], tuple[str, ...], str]] = {
    "a column is missing": (
        "evaluation@1",
        lambda own: {"tables": {"aggregate.parquet": own.read_table("aggregate.parquet").drop("users")}},
        ("report", "REF", "--output=r.html"),
        "does not fit",
    ),
    "rows are missing": (
        "evaluation@1",
        lambda own: {"tables": {"aggregate.parquet": own.read_table("aggregate.parquet")[1:]}},
        ("report", "REF", "--output=r.html"),
        "does not have one row for every group, model and metric",
    ),
    "a model that was not scored": (
        "evaluation@1",
        lambda own: {
            "tables": {"reliability.parquet": own.read_table("reliability.parquet").with_columns(subject=pl.lit("x"))}
        },
        ("report", "REF", "--output=r.html"),
        "has figures of 'x', which was not scored",
    ),
    "no categories": (
        "dataset@1",
        lambda own: {"tables": {"vocabulary.parquet": own.read_table("vocabulary.parquet").clear()}},
        ("memory", "--dataset=REF"),
        "has categories that the vocabulary does not have",
    ),
    "a setting of another type": (
        "memory@1",
        lambda own: {"config": {"shrinkage": "x"}},
        ("patch", "--method=memory", "--cloud=cloud@1", "--memory=REF", "--threads=1"),
        "its setting shrinkage is 'x'",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_content_that_no_command_writes(name: str, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, changes, words, says = CASES[name]
    monkeypatch.chdir(tmp_path)
    store = World(shop, shop, {}).store
    if reference == "memory@1":
        dcclctl("memory", store=shop)
    bad = rewrite(store, store.resolve(reference), **changes(store.resolve(reference)))
    ended = dcclctl(*(word.replace("REF", bad.ref) for word in words), store=shop)
    assert ended.exit_code == 3, ended.output
    assert bad.ref in ended.stderr and says in ended.stderr


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (lambda own: {"without": "profile"}, "profile must be"),
        (lambda own: {"theta": own["theta"][:, :1]}, "theta must be"),
        (lambda own: {"patched": own["patched"][:-1]}, "patched must be"),
        (lambda own: {"number": own["number"] + 1000}, "numbers items that the bundle does not hold"),
    ],
)
def test_users_rows_of_a_bundle(changes: Callable[[Any], dict[str, Any]], says: str, shop: Path) -> None:
    store = World(shop, shop, {}).store
    assert dcclctl("export", "patches@1", store=shop).exit_code == 0
    own = store.resolve("bundle@1").read_tensors("users.safetensors")
    new = changes(own)
    tensors = {name: tensor for name, tensor in (own | new).items() if name != new.get("without") and name != "without"}
    with store.begin("export", "bundle", {"x": 1}, 0, store.resolve("bundle@1").inputs) as work:
        for name in store.resolve("bundle@1").manifest["files"]:
            if name == "users.safetensors":
                work.write_tensors(name, tensors)
                continue
            with work.new_file(name) as path:
                path.write_bytes(store.resolve("bundle@1").read(name))
        bad = work.commit(store.resolve("bundle@1").facts)
    ended = dcclctl("score", bad.ref, "--user=u3", store=shop)
    assert ended.exit_code == 3, ended.output
    assert bad.ref in ended.stderr and says in ended.stderr
