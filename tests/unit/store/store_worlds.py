"""Small artifacts for the tests of the store."""

from pathlib import Path

import polars as pl
import torch

from dcclctl.store.store import Artifact, Input, Store
from dcclctl.tables import EVENTS, PATCHED_USERS

RAW = Input("raw", "a" * 64)


def events(rows: int = 5) -> pl.DataFrame:
    columns = {"user_index": range(rows), "item_index": range(rows), "time_us": range(rows), "label": 1, "period": 0}
    columns |= {"share": [row / rows for row in range(rows)]}
    return pl.DataFrame(columns, schema=EVENTS.schema())


def patched_users(rows: int = 5) -> pl.DataFrame:
    columns = {"user_index": range(rows), "user_id": [f"u{row}" for row in range(rows)], "shard": 0, "row": range(rows)}
    losses = {"events": 3, "loss_before": 0.5, "loss_after": 0.25, "kept": True}
    return pl.DataFrame(columns | losses, schema=PATCHED_USERS.schema())


def make_dataset(store: Store, rows: int = 5, force: bool = False) -> Artifact:
    config = {"split": "global", "rows": rows}
    with store.begin("ingest", "dataset", config, 7, {"log:events.csv": RAW}, force) as work:
        if work.reused:
            return work.reused
        work.write_table("events.parquet", events(rows))
        work.write_json("rejects.json", {"bad time": 2})
        return work.commit({"users": rows, "items": rows, "events": rows, "rejects": {"bad time": 2}})


def make_cloud(store: Store, dataset: Artifact, epochs: int = 1, force: bool = False) -> Artifact:
    with store.begin(
        "train", "cloud", {"epochs": epochs, "model": "din", "on": ["cloud"]}, 0, {"dataset": dataset.as_input()}, force
    ) as work:
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
