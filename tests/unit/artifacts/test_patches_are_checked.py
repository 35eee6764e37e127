"""Patches with right hashes and wrong meaning end every command that opens them, with exit 3 and the name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from tampered import rewrite
from world import World, dcclctl

from dcclctl.store.store import Artifact, Store

THETA, USERS = "theta-00000.safetensors", "users.parquet"


def theta(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Artifact], dict[str, Any]]:
    return lambda artifact: {"tensors": {THETA: change(artifact.read_tensors(THETA))}}


def users(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Callable[[Artifact], dict[str, Any]]:
    return lambda artifact: {"tables": {USERS: change(artifact.read_table(USERS))}}


def with_value(tensors: dict[str, Any], value: float) -> dict[str, Any]:
    tensors["theta"][1, 2] = value
    return tensors


def first_row(**values: Any) -> Callable[[pl.DataFrame], pl.DataFrame]:
    def change(table: pl.DataFrame) -> pl.DataFrame:
        for name, value in values.items():
            new = [value, *table[name].to_list()[1:]]
            table = table.with_columns(pl.Series(name, new, dtype=table[name].dtype))
        return table

    return change


BAD: dict[str, tuple[Callable[[Artifact], dict[str, Any]], str]] = {
    "NaN": (theta(lambda t: with_value(t, float("nan"))), "not finite in 1 rows of theta"),
    "infinity": (theta(lambda t: with_value(t, float("inf"))), "not finite"),
    "another width": (theta(lambda t: {**t, "theta": torch.zeros(20, 9)}), "9 numbers, and 4 are declared"),
    "one row": (theta(lambda t: {**t, "theta": torch.zeros(1, 4)}), "has 1 rows"),
    "a vector": (theta(lambda t: {**t, "theta": torch.zeros(4)}), "matrix"),
    "double": (theta(lambda t: {**t, "theta": t["theta"].double()}), "32-bit"),
    "whole numbers": (theta(lambda t: {**t, "theta": t["theta"].long()}), "32-bit"),
    "no θ̂": (theta(lambda t: {"events": t["events"]}), "matrix"),
    "no shard": (lambda artifact: {"without": THETA}, THETA),
    "size of 1e9": (lambda artifact: {"facts": {"patch_size": 10**9}}, "1,000,000,000 are declared"),
    "size of text": (lambda artifact: {"facts": {"patch_size": "4"}}, "its fact patch_size"),
    "negative size": (lambda artifact: {"facts": {"patch_size": -4}}, "declare"),
    "a user twice": (users(lambda t: pl.concat([t, t.head(2)])), "2 users more than once"),
    "unknown user": (users(first_row(user_index=10**6)), "the dataset does not have"),
    "negative user": (users(first_row(user_index=-1)), "the dataset does not have"),
    "negative row": (users(first_row(row=-1)), "negative"),
    "row beyond": (users(first_row(row=9999)), "row 9,999"),
    "unknown shard": (users(first_row(shard=77)), "theta-00077"),
    "null user": (users(first_row(user_index=None)), "nulls"),
    "another column": (users(lambda t: t.drop("events")), "columns"),
    "another type": (users(lambda t: t.with_columns(pl.col("user_index").cast(pl.Int64))), "Int64"),
    "basis of another size": (
        lambda artifact: {"tensors": {"basis.safetensors": {"origin": torch.zeros(1), "theta": torch.zeros(1, 4)}}},
        "basis.safetensors",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_patches_are_checked_where_they_are_opened(world: World, tmp_path: Path, what: str) -> None:
    store = Store(world.copy(tmp_path / "store"))
    change, said = BAD[what]
    good = store.resolve("patches@1")
    bad = rewrite(store, good, **change(good))
    for command in (("evaluate", bad.ref), ("distill", "--patches", bad.ref)):
        result = dcclctl(*command, "--threads=1", store=store.root)
        assert result.exit_code == 3, result.output
        assert bad.ref in result.stderr and said in result.stderr and "dcclctl" in result.stderr


@pytest.mark.parametrize("command", ["recommend", "score", "export"])
def test_every_command_that_serves_patches_checks_them(world: World, tmp_path: Path, command: str) -> None:
    store = Store(world.copy(tmp_path / "store"))
    good = store.resolve("patches@1")
    bad = rewrite(store, good, **BAD["NaN"][0](good))
    words = (command, bad.ref, "--user", "u1") if command == "score" else (command, bad.ref)
    result = dcclctl(*words, store=store.root)
    assert result.exit_code == 3 and bad.ref in result.stderr, result.output


@pytest.mark.parametrize("change", [lambda w: w * float("nan"), lambda w: w[:1]])
def test_weights_of_a_cloud_model_are_checked(world: World, tmp_path: Path, change: Any) -> None:
    store = Store(world.copy(tmp_path / "store"))
    good = store.resolve("cloud@1")
    tensors = good.read_tensors("model.safetensors")
    name = next(iter(tensors))
    bad = rewrite(store, good, tensors={"model.safetensors": {**tensors, name: change(tensors[name])}})
    result = dcclctl("evaluate", bad.ref, "--threads=1", store=store.root)
    assert result.exit_code == 3 and bad.ref in result.stderr and "model.safetensors" in result.stderr, result.output
