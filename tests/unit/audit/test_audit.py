"""The audit: a clean lineage is proven, and every planted leak is found and named."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tampered import patched_on, rewrite
from world import EVALUATE, PATCH, TRAIN, World, done, ingest

from dcclctl.artifacts import CloudModel, Dataset
from dcclctl.audit.finding import Finding, leaks
from dcclctl.logs.split import iso
from dcclctl.stages.audit import audit, default_artifact
from dcclctl.store.store import Artifact, Input, Store

CLOUD, DEVICE, VALID, TEST = range(4)


def texts(findings: list[Finding], kind: str) -> list[str]:
    return [f"{finding.artifact}: {finding.text}" for finding in findings if finding.kind == kind]


def leak_of(reference: str, store: Path | Store) -> str:
    """The one error that an audit of the artifact ends with."""
    place = store if isinstance(store, Store) else Store(store)
    error = leaks(audit(place.resolve(reference)))
    assert error is not None
    return str(error)


def rewritten_events(shop: Path, change: Any) -> tuple[Store, Artifact]:
    """A dataset with other events and right hashes."""
    store = Store(shop)
    dataset = store.resolve("dataset@1")
    events = change(dataset.read_table("events.parquet")).sort("user_index", "time_us", maintain_order=True)
    return store, rewrite(store, dataset, tables={"events.parquet": events})


def name_of(store: Store, user: int, item: int) -> str:
    dataset = Dataset(store.resolve("dataset@1"))
    return f"user {dataset.users['user_id'][user]!r}, item {dataset.items['item_id'][item]!r}"


def test_a_clean_lineage_is_proven(world: World) -> None:
    findings = audit(world.artifact("evaluation@1"))
    assert texts(findings, "leak") == texts(findings, "remark") == []
    proven = "\n".join(texts(findings, "proven"))
    events = world.dataset().artifact.read_table("events.parquet")
    times = events.group_by("period").agg(pl.col("time_us").min().alias("first"), pl.col("time_us").max().alias("last"))
    first, last = (dict(times.select("period", name).iter_rows()) for name in ("first", "last"))
    assert last[DEVICE] < first[VALID]
    counts = dict(events["period"].value_counts().iter_rows())
    for said in (
        "of the 5 artifacts of the lineage",
        f"learned from the {counts[CLOUD]} events of cloud",
        f"learned from {counts[CLOUD] + counts[DEVICE]:,} events (cloud, device), the last at {iso(last[DEVICE])}, "
        f"before test begins at {iso(first[TEST])}",
        f"scored on the same {counts[TEST]} events of test",
        "each user has an item once",
    ):
        assert said in proven, said
    for kind in ("dataset", "cloud", "patches", "evaluation"):
        assert f"{kind}@1: " in proven


def test_a_dataset_is_audited_with_all_that_was_made_from_it(world: World) -> None:
    findings = audit(world.artifact("dataset@1"))
    assert {finding.artifact for finding in findings} == {
        "dataset@1",
        "cloud@1",
        "cloud@2",
        "patches@1",
        "evaluation@1",
    }
    assert leaks(findings) is None


@pytest.mark.parametrize("split", ["per-user", "leave-one-out"])
def test_a_split_per_user_is_proven_user_by_user(tmp_path: Path, split: str) -> None:
    root = tmp_path / "store"
    ingest(tmp_path, root, "--split", split)
    done("train", *TRAIN, "--epochs=1", store=root)
    done("patch", *PATCH, store=root)
    done("evaluate", *EVALUATE, store=root)
    store = Store(root)
    findings = audit(store.resolve("evaluation"))
    assert texts(findings, "leak") == []
    assert any("each before all of test of the same user" in text for text in texts(findings, "proven"))
    assert any("overlap in time" in text for text in texts(findings, "remark"))


def test_histories_are_counted_a_second_way(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Histories that hold the event itself: what an off-by-one in the log would do."""
    build = Dataset.log.compute

    def one_too_many(self: Dataset) -> Any:
        log = build(self)
        return replace(log, history_end=np.minimum(log.history_end + 1, len(log.sequence)))

    monkeypatch.setattr(Dataset, "log", property(one_too_many))
    assert "a history is not made of strictly earlier events" in leak_of("dataset@1", world.store)


def test_a_test_event_moved_into_training(shop: Path) -> None:
    def move(events: pl.DataFrame) -> pl.DataFrame:
        at = int(np.flatnonzero(events["period"].to_numpy() == TEST)[7])
        moved = pl.Series("period", [CLOUD if row == at else old for row, old in enumerate(events["period"])], pl.Int8)
        return events.with_columns(moved)

    store, dataset = rewritten_events(shop, move)
    original = store.resolve("dataset@1").read_table("events.parquet")
    event = original.filter(pl.col("period") == TEST).row(7, named=True)
    said = leak_of(dataset.ref, store)
    assert name_of(store, event["user_index"], event["item_index"]) in said
    assert "an event of test" in said
    assert "kept as one of cloud" in said
    assert texts(audit(dataset), "leak")[1].startswith(f"{dataset.ref}: an event before device")


def test_a_test_event_copied_into_training(shop: Path) -> None:
    def copy(events: pl.DataFrame) -> pl.DataFrame:
        copied = events.filter(pl.col("period") == TEST)[3].with_columns(pl.lit(CLOUD, pl.Int8).alias("period"))
        return pl.concat([copied, events])

    _, dataset = rewritten_events(shop, copy)
    assert any("is in two periods" in text for text in texts(audit(dataset), "leak"))


def test_a_test_event_copied_into_training_under_an_earlier_time(shop: Path) -> None:
    """Nothing is wrong with its time and period; but a user has an item twice in a log that keeps first events."""

    def copy(events: pl.DataFrame) -> pl.DataFrame:
        start = events["time_us"].min()
        copied = events.filter(pl.col("period") == TEST)[3].with_columns(
            pl.lit(CLOUD, pl.Int8).alias("period"), pl.lit(start, pl.Int64).alias("time_us")
        )
        return pl.concat([copied, events])

    store, dataset = rewritten_events(shop, copy)
    event = store.resolve("dataset@1").read_table("events.parquet").filter(pl.col("period") == TEST).row(3, named=True)
    said = leak_of(dataset.ref, store)
    assert "a user has an item twice" in said
    assert name_of(store, event["user_index"], event["item_index"]) in said


def test_events_out_of_order(shop: Path) -> None:
    store = Store(shop)
    dataset = store.resolve("dataset@1")
    events = dataset.read_table("events.parquet")
    swapped = pl.concat([events[1:2], events[0:1], events[2:]])
    assert events["time_us"][0] < events["time_us"][1]
    other = rewrite(store, dataset, tables={"events.parquet": swapped})
    assert "order of its user's times" in leak_of(other.ref, store)


def test_ids_that_are_not_those_of_the_id_map(shop: Path) -> None:
    store = Store(shop)
    dataset = store.resolve("dataset@1")
    users = dataset.read_table("users.parquet")
    other = rewrite(store, dataset, tables={"users.parquet": users.with_columns(pl.col("user_id").reverse())})
    assert "not those of its id map" in leak_of(other.ref, store)


def test_patches_trained_on_the_test_period(shop: Path) -> None:
    """The command line refuses it; a program that calls the stage need not."""
    store = Store(shop)
    made = patched_on("test", CloudModel(store.resolve("cloud@1")), method="metapatch", patch_size=4, basis_epochs=1)
    said = leak_of(made.ref, store)
    assert said.startswith(f"{made.ref}: it learned from test, and ")
    assert "of those events are in test, e.g. user 'n0', item" in said


def test_patches_judged_on_what_they_learned_from(shop: Path) -> None:
    patches = done("patch", "--on=valid", *PATCH, store=shop)["ref"]
    on_valid = done("evaluate", patches, *EVALUATE, "--on=valid", store=shop)["ref"]
    said = leak_of(on_valid, shop)
    assert said.startswith(f"{on_valid}: {patches}: {patches} learned from valid, and ")
    on_test = done("evaluate", patches, *EVALUATE, store=shop)["ref"]
    assert leaks(audit(Store(shop).resolve(on_test))) is None


def test_an_ancestor_that_learned_from_what_its_heir_is_judged_on(shop: Path) -> None:
    """The distilled cloud@2 itself was not told, but its teachers learned from the device period."""
    evaluation = done("evaluate", "cloud@2", *EVALUATE, "--on=device:1/2", store=shop)["ref"]
    found = texts(audit(Store(shop).resolve(evaluation)), "leak")
    assert [text.partition(" learned from")[0] for text in found] == [
        f"{evaluation}: cloud@2: patches@1",
        f"{evaluation}: cloud@2: cloud@2",
    ]


def test_a_model_judged_on_what_came_before_its_training(shop: Path) -> None:
    """No event is shared, but the model knows the future of what it is judged on."""
    patches = done("patch", "--cloud=cloud@1", "--on=device:2/2", *PATCH, store=shop)["ref"]
    past = done("evaluate", patches, *EVALUATE, "--on=device:1/2", store=shop)["ref"]
    assert "are not before device:1/2" in leak_of(past, shop)
    patches = done("patch", "--cloud=cloud@1", "--on=device:1/2", *PATCH, store=shop)["ref"]
    future = done("evaluate", patches, *EVALUATE, "--on=device:2/2", store=shop)["ref"]
    findings = audit(Store(shop).resolve(future))
    assert leaks(findings) is None
    assert [text for text in texts(findings, "remark") if "chose the best epoch by the valid period" in text]


def test_early_stopping_has_looked_at_valid(shop: Path) -> None:
    evaluation = done("evaluate", "cloud@1", *EVALUATE, "--on=valid", store=shop)["ref"]
    findings = audit(Store(shop).resolve(evaluation))
    assert texts(findings, "leak") == []
    assert len([text for text in texts(findings, "remark") if "cloud@1 chose the best epoch" in text]) == 1


def test_an_artifact_of_another_split(shop: Path, tmp_path: Path) -> None:
    store = Store(shop)
    other = ingest(tmp_path, shop, "--split", "leave-one-out")["ref"]
    patches = store.resolve("patches@1")
    mixed = rewrite(store, patches, inputs=patches.inputs | {"dataset": store.resolve(other).as_input()})
    said = leak_of(mixed.ref, store)
    assert (
        f"{mixed.ref}: is made from {other} (split leave-one-out), but cloud@1 in its lineage from dataset@1 " in said
    )


def test_another_id_map(shop: Path) -> None:
    store = Store(shop)
    mixed = rewrite(store, store.resolve("cloud@1"), facts={"id_map": "f" * 64})
    assert "by another id map (ffffffffffff)" in leak_of(mixed.ref, store)


def test_a_model_that_learned_from_more_than_it_says(shop: Path) -> None:
    store = Store(shop)
    cloud = store.resolve("cloud@1")
    more = rewrite(store, cloud, facts={"trained_on_events": cloud.facts["trained_on_events"] + 1})
    assert "says that it learned from" in leak_of(more.ref, store)
    patches = store.resolve("patches@1")
    users = patches.read_table("users.parquet")
    table = users.with_columns(
        pl.when(pl.col("user_index") == users["user_index"][2])
        .then(99)
        .otherwise("events")
        .cast(pl.Int32)
        .alias("events")
    )
    more = rewrite(store, patches, tables={"users.parquet": table})
    assert f"the patch of user {users['user_id'][2]!r} learned from 99 events" in leak_of(more.ref, store)


def test_a_model_of_unknown_making(shop: Path) -> None:
    store = Store(shop)
    cloud = store.resolve("cloud@1")
    with store.begin(
        "bought", "cloud", {}, 0, {"dataset": cloud.inputs["dataset"], "log": Input("raw", "a" * 64)}
    ) as work:
        made = work.commit({"id_map": cloud.facts["id_map"]})
    assert "was made by 'bought'" in leak_of(made.ref, store)


def test_an_evaluation_that_leaves_users_out(shop: Path) -> None:
    store = Store(shop)
    evaluation = store.resolve("evaluation@1")
    table = evaluation.read_table("per_user.parquet")
    lucky = table.filter(
        ~((pl.col("subject") == table["subject"][-1]) & (pl.col("user_index") == table["user_index"][0]))
    )
    other = rewrite(store, evaluation, tables={"per_user.parquet": lucky})
    assert f"{table['subject'][-1]} was not scored on the" in leak_of(other.ref, store)


def test_damaged_bytes(shop: Path) -> None:
    store = Store(shop)
    path = store.folder("dataset", 1) / "events.parquet"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.unlink()
    path.write_bytes(data)
    assert "dataset@1: events.parquet does not have the SHA-256" in leak_of("evaluation@1", store)


def test_what_is_audited_without_a_name(shop: Path, tmp_path: Path) -> None:
    assert default_artifact(Store(shop)).ref == "evaluation@1"
    ingest(tmp_path, tmp_path / "new")
    assert default_artifact(Store(tmp_path / "new")).ref == "dataset@1"
