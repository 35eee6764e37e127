"""Small artifacts for the tests of the store."""

from pathlib import Path

import polars as pl
import torch

from dcclctl.store.store import Artifact, Input, Store

RAW = Input("raw", "a" * 64)


def events(rows: int = 5) -> pl.DataFrame:
    return pl.DataFrame({"user_index": range(rows), "item_id": [f"item {row}" for row in range(rows)]})


def make_dataset(store: Store, rows: int = 5, force: bool = False) -> Artifact:
    config = {"split": "global", "rows": rows}
    with store.begin("ingest", "dataset", config, 7, {"log:events.csv": RAW}, force) as work:
        if work.reused:
            return work.reused
        work.write_table("events.parquet", events(rows))
        work.write_json("rejects.json", {"bad time": 2})
        return work.commit({"events": rows, "rejects": {"bad time": 2}})


def make_cloud(store: Store, dataset: Artifact, epochs: int = 1, force: bool = False) -> Artifact:
    with store.begin("train", "cloud", {"epochs": epochs}, 0, {"dataset": dataset.as_input()}, force) as work:
        if work.reused:
            return work.reused
        work.record({"epoch": 0, "loss": 0.7, "seconds": 1.5})
        tensors = {"weight": torch.arange(6.0).reshape(3, 2), "bias": torch.ones(2)}
        work.write_tensors("model.safetensors", tensors, {"sizes": [3, 2]})
        return work.commit({"loss": 0.5 / epochs})


def flip_bit(path: Path, position: int) -> None:
    """Change one bit, as a failing disk would."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << (position % 8)
    path.chmod(0o644)
    path.write_bytes(bytes(data))
