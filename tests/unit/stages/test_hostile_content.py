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
    "no row of a model": (
        "evaluation@2",
        lambda own: {"tables": {"tail_minus_head.parquet": own.read_table("tail_minus_head.parquet").clear()}},
        ("report", "REF", "--output=r.html"),
        "does not have one row for every model and metric",
    ),
    "a figure that is none": (
        "memory@1",
        lambda own: {"facts": {"bytes_per_user_largest": []}},
        ("patch", "--method=memory", "--cloud=cloud@1", "--memory=REF", "--threads=1"),
        "its fact bytes_per_user_largest is []",
    ),
    "no events": (
        "dataset@1",
        lambda own: {"without": "events.parquet"},
        ("memory", "--dataset=REF"),
        "is one of 0 files, not of 1",
    ),
    "no users": (
        "dataset@1",
        lambda own: {"tables": {"users.parquet": own.read_table("users.parquet").clear()}},
        ("memory", "--dataset=REF"),
        "users.parquet does not have the rows 0 to 59",
    ),
    "an item of another number": (
        "dataset@1",
        lambda own: {
            "tables": {
                "items.parquet": own.read_table("items.parquet").with_columns(
                    item_index=pl.lit(2**31 - 1, pl.Int32)  # all of them
                )
            }
        },
        ("memory", "--dataset=REF"),
        "items.parquet does not have the rows 0 to 79",
    ),
    "a basis of whole numbers": (
        "patches@1",
        lambda own: {
            "tensors": {"basis.safetensors": {k: v.long() for k, v in own.read_tensors("basis.safetensors").items()}}
        },
        ("evaluate", "REF", "--threads=1"),
        "not 32-bit floats",
    ),
    "a mean of another size": (
        "patches@1",
        lambda own: {"tensors": {"prior.safetensors": {"mean": own.read_tensors("prior.safetensors")["mean"][:1]}}},
        ("distill", "--patches=REF", "--threads=1"),
        "mean must be float32 of the shape (4,)",
    ),
    "no mean": (
        "patches@1",
        lambda own: {"tensors": {"prior.safetensors": {"x": own.read_tensors("prior.safetensors")["mean"]}}},
        ("distill", "--patches=REF", "--threads=1"),
        "has no tensor mean",
    ),
    "weights of another type": (
        "cloud@1",
        lambda own: {
            "tensors": {"model.safetensors": {k: v.double() for k, v in own.read_tensors("model.safetensors").items()}}
        },
        ("score", "REF", "--user=u3"),
        "must be float32",
    ),
    "counts of other items": (
        "cloud@3",
        lambda own: {
            "tensors": {"model.safetensors": {k: v[:3] for k, v in own.read_tensors("model.safetensors").items()}}
        },
        ("score", "REF", "--user=u3"),
        "logits must be float32 of the shape (80,)",
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
    made = {
        "memory@1": ("memory",),
        "evaluation@2": ("evaluate", "cloud@1", "cloud@2", "--against=cloud@1", "--threads=1"),
        "cloud@3": ("train", "--model=popularity"),
    }
    if reference in made:
        dcclctl(*made[reference], store=shop)
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
