"""A dataset in parts of users: every part is what the whole log says of these users."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from dcclctl.artifacts import Dataset
from dcclctl.events.log import CLOUD, DEVICE, TEST, VALID, Block, EventLog
from dcclctl.events.sampler import Sampler
from dcclctl.stages.ingest import ingest
from dcclctl.store.store import Store

BLOCKS = [Block(CLOUD), Block(DEVICE), Block.parse("device:2/3"), Block(VALID), Block.parse("test:1/7"), Block(TEST)]


def write_log(path: Path, users: int = 23, seed: int = 0) -> Path:
    """A log with ties in time, users of few events, and items that come late."""
    random = np.random.default_rng(seed)
    lines = ["user_id,item_id,timestamp,rating"]
    for user in range(users):
        for time in np.sort(random.integers(0, 60, random.integers(2, 14))).tolist():
            item = int(random.integers(0, 8 + time // 2))
            lines.append(f"u{user},i{item},{1_600_000_000 + 86_400 * time},{int(random.integers(1, 6))}")
    path.write_text("\n".join(lines) + "\n")
    return path


def made(folder: Path, split: str = "global", **settings: object) -> Dataset:
    folder.mkdir(exist_ok=True)
    log = write_log(folder / "log.csv")
    wanted = {"split": split, "label": "rating>=2", "repeats": "keep", "shard_users": 5} | settings
    return ingest([log], Store(folder / "store"), wanted)


@pytest.mark.parametrize("split", ["global", "per-user", "leave-one-out"])
def test_parts_together_are_the_whole_log(tmp_path: Path, split: str) -> None:
    dataset = made(tmp_path, split)
    whole, parts = dataset.log, [dataset.log_part(users) for users in dataset.parts]
    assert [len(users) for users in dataset.parts] == [5, 5, 5, 5, 3]
    for name in ("user", "item", "label", "period", "share"):
        assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name)), name
    assert torch.cat([part.sequence for part in parts]).equal(whole.sequence)
    for part in parts:
        rows = np.arange(len(part.user))
        places = part.places(rows)
        assert np.array_equal(whole.user[places], part.user)
        for mine, theirs in zip(part.histories(rows, 6), whole.histories(places, 6), strict=True):
            assert mine.equal(theirs[:, : mine.shape[1]])
        for block in BLOCKS:
            assert np.array_equal(part.catalogue(block), whole.catalogue(block)), block
            assert np.array_equal(part.places(part.events_in(block)), np.intersect1d(whole.events_in(block), places))
        for period in (CLOUD, DEVICE, VALID, TEST):
            assert np.array_equal(part.positives_before(period), whole.positives_before(period))


@pytest.mark.parametrize("repeats", ["keep", "first"])
def test_a_part_draws_the_negatives_of_the_whole_log(tmp_path: Path, repeats: str) -> None:
    dataset = made(tmp_path, repeats=repeats)
    samplers = [(log, Sampler(log, [DEVICE], 4, 3, "test", observed=True)) for log in _logs(dataset)]
    (_, drawn), *others = samplers
    for part, sampler in others:
        events = part.events_in(DEVICE)
        mine, theirs = sampler.draw(events, epoch=2), drawn.draw(part.places(events), epoch=2)
        for field in ("candidates", "labels", "weights"):
            assert getattr(mine, field).equal(getattr(theirs, field)), field


def _logs(dataset: Dataset) -> list[EventLog]:
    return [dataset.log, *(dataset.log_part(users) for users in dataset.parts)]


def test_any_consecutive_users_are_a_part(tmp_path: Path) -> None:
    dataset = made(tmp_path)
    whole = dataset.log
    for users in (range(3, 11), range(5, 10), range(23), range(22, 23)):
        part = dataset.log_part(users)
        rows = np.flatnonzero((whole.user >= users.start) & (whole.user < users.stop))
        assert np.array_equal(part.places(np.arange(len(part.user))), rows)
        assert np.array_equal(part.item, whole.item[rows])


def test_a_part_reads_the_files_of_its_users_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset(made(tmp_path).artifact)
    read: list[str] = []
    original = type(dataset.artifact).read
    monkeypatch.setattr(type(dataset.artifact), "read", lambda self, name: read.append(name) or original(self, name))
    dataset.log_part(range(6, 9))
    assert [name for name in read if name.startswith("events")] == ["events-00001.parquet"]


def test_a_dataset_of_one_part_is_the_same_log_as_one_of_many(tmp_path: Path) -> None:
    one, many = made(tmp_path / "one", shard_users=100), made(tmp_path / "many", shard_users=2)
    assert one.events.equals(many.events)
    assert [name for name in one.artifact.manifest["files"] if name.startswith("events")] == ["events.parquet"]
    assert one.log_part(range(23)) is one.log
    for field in fields(EventLog):
        mine, theirs = getattr(one.log, field.name), getattr(many.log, field.name)
        same = np.array_equal(mine, theirs) if isinstance(mine, np.ndarray) else mine is theirs or True
        assert same, field.name


def test_the_first_share_of_an_item_is_its_smallest(tmp_path: Path) -> None:
    dataset = made(tmp_path)
    events = dataset.events.with_columns(positive=(pl.col("label") > 0).cast(pl.Int64))
    expected = (
        events.group_by("item_index", "period")
        .agg(first_share=pl.col("share").min(), positives=pl.col("positive").sum())
        .sort("item_index", "period")
    )
    assert dataset.artifact.read_table("item_periods.parquet").equals(expected)
