"""Memories and memory-conditioned patches through the commands, and what the audit says of them."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from dcclctl.algorithm.memory import FEATURES, ORDER_FEATURES, Counting, Memories, count_statistics
from dcclctl.algorithm.memorypatch import MemoryPatch, MemoryRows, category_shares, learn, user_losses
from dcclctl.stages.patch_memory import MemoryDevices, lessons
from tampered import rewrite
from world import EVALUATE, PATCH, TRAIN, World, dcclctl, done, ingest, quiet_progress

from dcclctl.artifacts import CloudModel, Dataset, Memory, PatchSet
from dcclctl.audit.finding import leaks
from dcclctl.config import EvaluateConfig, MemoryConfig, PatchConfig
from dcclctl.devices.serving import Subject, serve
from dcclctl.errors import ArtifactError, UsageError
from dcclctl.events.log import CLOUD, DEVICE, TEST, Block, EventLog
from dcclctl.events.sampling import Ints, PairSet
from dcclctl.stages import patch_memory
from dcclctl.stages.audit import audit
from dcclctl.stages.evaluate import open_subjects
from dcclctl.stages.memory import remember
from dcclctl.stages.patch import patch
from dcclctl.store.store import Artifact, Store

MEMORY = ("--size=8", "--neighbours=5", "--track=3")
#: on cloud@3, which is cloud@1 trained further on the device period
PATCHED = ("--method=memory", "--memory-epochs=2", "--memory-hidden=4", "--threads=1")
FRESH = ("--cloud=cloud@3", *PATCHED)
ONCE = ("--epochs=1", "--patience=0", "--threads=1")


@pytest.fixture(scope="module")
def remembering(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world, cloud@3 (cloud@1 continued on device), memory@1 and patches@2 (of the tail, conditioned on memory@1)."""
    root = world.copy(tmp_path_factory.mktemp("remembering") / "store")
    done("train", "--continue=cloud@1", "--on=device", *ONCE, store=root)
    done("memory", *MEMORY, store=root)
    done("patch", "--users=tail", *FRESH, store=root)
    return root


@pytest.fixture
def own(remembering: Path, tmp_path: Path) -> Path:
    """A copy that a test may write to."""
    return World(remembering, remembering, {}).copy(tmp_path / "own")


def cloud_of(store: Store, reference: str) -> CloudModel:
    return CloudModel(store.resolve(reference))


def subject_of(root: Path, reference: str) -> Subject:
    return open_subjects([reference], Store(root))[0]


def logits_of(subject: Subject, events: Ints) -> tuple[torch.Tensor, torch.Tensor]:
    """What the cloud model and the subject give the whole catalogue."""
    config = EvaluateConfig(device="cpu", threads=1)
    backbone = subject.cloud.backbone(config)
    head, _ = serve(subject, config, backbone)
    below = backbone.activations(events, None)
    return backbone.head(events, None, below), head(events, None, below)


def leak_of(reference: str, root: Path) -> str:
    store = Store(root)
    error = leaks(audit(store.resolve(reference)))
    assert error is not None
    return str(error)


# -- the memory


def test_a_memory_is_the_newest_positive_items_of_everybody(remembering: Path) -> None:
    store = Store(remembering)
    memory = store.resolve("memory@1")
    dataset = Dataset.of(store.resolve("dataset@1"))
    table = memory.read_table("memory.parquet")
    expected: dict[str, list[int]] = {}
    events = dataset.artifact.read_table("events.parquet").filter((pl.col("period") <= DEVICE) & (pl.col("label") > 0))
    ids = dataset.users["user_id"]
    for user, item in (
        events.sort("user_index", "time_us", maintain_order=True).select("user_index", "item_index").iter_rows()
    ):
        expected.setdefault(ids[user], []).insert(0, item)
    assert {row["user_id"]: row["items"] for row in table.to_dicts()} == {
        name: all[:8] for name, all in expected.items()
    }
    assert table["seen"].to_list() == [len(expected[name]) for name in table["user_id"]]
    assert table["bytes"].to_list() == [
        8 + 4 * min(8, len(expected[name])) + 14 * min(3, len(expected[name])) for name in table["user_id"]
    ]
    facts = memory.facts
    assert facts["users"] == table.height == len(expected) < dataset.users.height  # new users have none yet
    assert facts["events"] == events.height
    assert facts["bytes_per_user_largest"] == 40 + 3 * 14
    assert facts["full"] == sum(len(all) >= 8 for all in expected.values())
    assert facts["features"] == [*FEATURES, *ORDER_FEATURES]
    assert facts["tracked"] == facts["features"][1:]
    assert not any("n" in name for name in table["user_id"])


def test_the_command_says_what_a_device_needs_and_finds_what_it_made(own: Path) -> None:
    again = done("memory", *MEMORY, store=own)
    assert (again["ref"], again["bytes_per_user"]) == ("memory@1", 82)
    tree = dcclctl("artifacts", "lineage", "patches@2", store=own).stdout
    assert all(name in tree for name in ("memory@1", "cloud@3", "cloud@1", "dataset@1"))
    forced = done("memory", *MEMORY, "--force", store=own)
    assert forced["id"] == again["id"]  # the same bits
    result = dcclctl("memory", *MEMORY, "--until=cloud", store=own)
    assert result.exit_code == 0
    assert "up to cloud (dataset@1)" in result.stdout
    assert "82 at most" in result.stdout
    assert done("memory", *MEMORY, "--until=cloud", store=own)["id"] != again["id"]
    assert dcclctl("artifacts", "verify", store=own).exit_code == 0
    shown = dcclctl("artifacts", "show", "memory@1", store=own)
    assert shown.exit_code == 0 and "bytes_per_user_largest" in shown.stdout


def test_a_memory_may_not_know_what_is_judged(own: Path) -> None:
    result = dcclctl("memory", "--until=valid", store=own)
    assert result.exit_code == 2 and "cloud or device" in result.stderr
    assert dcclctl("memory", "--until=test", store=own).exit_code == 2


def test_a_changed_byte_is_found(own: Path) -> None:
    file = Store(own).resolve("memory@1").file("statistics.safetensors")
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.unlink()  # a hard link: the other stores keep theirs
    file.write_bytes(data)
    result = dcclctl("artifacts", "verify", "memory@1", store=own)
    assert result.exit_code == 3 and "statistics.safetensors" in result.stdout + result.stderr


# -- the command line of patches


def test_where_nothing_is_remembered_yet_a_memory_is_made(shop: Path) -> None:
    result = dcclctl("patch", "--cloud=cloud@1", *PATCHED, store=shop)
    assert result.exit_code == 0 and "memory@1" in result.stdout
    made = Store(shop).resolve("patches@2").inputs["memory"]
    assert made == Store(shop).resolve("memory@1").as_input()
    done("patch", "--cloud=cloud@1", "--users=tail", *PATCHED, store=shop)
    assert Store(shop).numbers("memory") == [1]  # the second time there is one


def test_a_memory_goes_with_its_own_dataset_and_method_only(own: Path, tmp_path: Path) -> None:
    result = dcclctl("patch", "--memory=memory@1", *PATCH, store=own)
    assert result.exit_code == 2 and "--method metapatch has none" in result.stderr
    ingest(tmp_path / "log", own, "--split=per-user")
    other = done("memory", "--dataset=dataset@2", *MEMORY, store=own)["ref"]
    result = dcclctl("patch", f"--memory={other}", *FRESH, store=own)
    assert result.exit_code == 3 and "do not belong together" in result.stderr
    # the newest memory of the dataset is taken, not the newest of all
    assert done("patch", "--users=tail", *FRESH, store=own)["ref"] == "patches@2"


def test_a_block_without_events_teaches_nothing(own: Path) -> None:
    result = dcclctl("patch", "--on=device:2/100000", *FRESH, store=own)
    assert result.exit_code == 3 and "nothing to learn from" in result.stderr
    assert "device:2/100000" in result.stderr


def test_the_same_bits_twice(own: Path) -> None:
    for personal in ("none", "encoder", "device"):
        flags = (*FRESH, f"--personal={personal}", "--patch-size=3")
        assert done("patch", *flags, store=own)["id"] == done("patch", *flags, "--force", store=own)["id"]


def test_who_has_no_event_in_the_block_is_served_all_the_same(own: Path) -> None:
    result = dcclctl("patch", *FRESH, store=own)
    assert result.exit_code == 0
    assert "are served by what they remember" in result.stdout


# -- serving


def test_who_is_not_chosen_or_remembers_nothing_is_served_by_the_cloud_model(remembering: Path) -> None:
    """To the last bit; and the chosen ones who remember something are not."""
    subject = subject_of(remembering, "patches@2")
    log = subject.cloud.dataset.log
    events = log.events_in(TEST)
    below, found = logits_of(subject, events)
    tail = subject.cloud.dataset.users["group"].to_numpy() == "tail"
    remembers = log.history_lengths(events, 1) > 0
    served = tail[log.user[events]] & remembers
    assert 20 < served.sum() < len(events) - 20
    same = torch.from_numpy((below == found).all(1).numpy())
    assert same.numpy().tolist() == (~served).tolist()
    everything = np.flatnonzero(log.period < TEST)
    below, found = logits_of(subject, everything)
    empty = log.history_lengths(everything, 1) == 0
    chosen = tail[log.user[everything]]
    assert (empty & chosen).sum() > 5
    assert below[empty & chosen].equal(found[empty & chosen])


def test_who_remembers_less_than_was_learned_from_is_served_by_the_cloud_model(own: Path) -> None:
    plain = done("patch", "--memory-short=0", "--memory-floor=0.6", *FRESH, store=own)["ref"]
    facts = Store(own).resolve(plain).facts
    subject = subject_of(own, plain)
    log = subject.cloud.dataset.log
    device = log.events_in(DEVICE)
    sizes = np.maximum(log.history_lengths(device, 8), 1)
    assert facts["smallest_memory"] == np.sort(sizes)[int(0.6 * (len(sizes) - 1))] > 1
    shown = dcclctl("patch", "--memory-short=0", "--memory-floor=0.6", *FRESH, store=own).stdout
    assert f"who remembers fewer than {facts['smallest_memory']} events is served by the cloud model" in shown
    events = np.flatnonzero(log.period <= TEST)
    below, found = logits_of(subject, events)
    few = log.history_lengths(events, 8) < facts["smallest_memory"]
    assert 20 < few.sum() < len(events) - 20
    assert (below == found).all(1).numpy().tolist() == few.tolist()
    # whoever was learned from with a short memory lowers the floor
    taught = done("patch", "--memory-short=1", "--memory-floor=0.3", *FRESH, store=own)["ref"]
    assert Store(own).resolve(taught).facts["smallest_memory"] < np.sort(sizes)[int(0.3 * (len(sizes) - 1))]


def test_the_report_says_what_they_are_and_how_to_make_them(own: Path, tmp_path: Path) -> None:
    done("evaluate", "cloud@3", "patches@2", "patches@2+shuffled", "--against=cloud@3", "--threads=1", store=own)
    done("report", "-o", tmp_path / "page.html", store=own)
    page = (tmp_path / "page.html").read_text()
    assert "memory patches on cloud@3" in page
    assert "memory patches with shuffled memories on cloud@3" in page
    assert "dcclctl memory --dataset" in page and "--memory " in page


def test_placebos_and_the_guard(own: Path) -> None:
    plain = done(
        "patch", "--users=all", *FRESH, "--personal=device", "--patch-size=3", "--learning-rate=0.3", store=own
    )["ref"]
    guarded = done(
        "patch",
        "--users=all",
        *FRESH,
        "--personal=device",
        "--patch-size=3",
        "--learning-rate=0.3",
        "--guard",
        store=own,
    )["ref"]
    store = Store(own)
    table = store.resolve(guarded).read_table("users.parquet")
    lost = (table["loss_after"] >= table["loss_before"]).fill_null(False)
    assert 0 < lost.sum() < table.height
    assert (table["kept"] == ~lost).all()
    assert store.resolve(plain).read_table("users.parquet")["kept"].all()
    subjects = {name: subject_of(own, name) for name in (plain, guarded, f"{plain}+shuffled", f"{plain}+mean")}
    log = subjects[plain].cloud.dataset.log
    events = log.events_in(TEST)
    found = {name: logits_of(subject, events)[1] for name, subject in subjects.items()}
    below = logits_of(subjects[plain], events)[0]
    off = torch.from_numpy(np.isin(log.user[events], table.filter(~pl.col("kept"))["user_index"].to_numpy()))
    assert found[guarded][off].equal(below[off])
    assert found[guarded][~off].equal(found[plain][~off])
    assert not found[f"{plain}+shuffled"].equal(found[plain])
    assert not found[f"{plain}+mean"].equal(found[plain])
    names = (plain, f"{plain}+shuffled", f"{plain}+mean", "cloud@3")
    metrics = done("evaluate", *names, *EVALUATE, "--against=cloud@3", store=own)["metrics"]
    values = {row["subject"]: row["value"] for row in metrics if (row["metric"], row["group"]) == ("log_loss", "all")}
    assert len(set(values.values())) == 4


def test_a_lent_memory_is_another_users_before_the_period(remembering: Path) -> None:
    """Never of the event's own period: what strangers do meanwhile is not known."""
    from dcclctl.devices.serving import _lenders

    log = Dataset.of(Store(remembering).resolve("dataset@1")).log
    lend = _lenders(log, 0)
    events = log.events_in(TEST)
    rows = lend(events)
    assert (log.user[rows] != log.user[events]).all()
    known = np.isin(log.user[rows], log.user[log.period < TEST])
    assert known.sum() > 50
    assert (log.period[rows[known]] < TEST).all()
    assert not log.history_lengths(rows[~known], 1).any()  # new users have nothing to lend
    lenders = dict(zip(log.user[events].tolist(), log.user[rows].tolist(), strict=True))
    assert len(set(lenders.values())) == len(lenders)  # each to one


def test_one_user_is_explained(remembering: Path) -> None:
    users = Dataset.of(Store(remembering).resolve("dataset@1")).users
    tail = users.filter(pl.col("group") == "tail")["user_id"][0]
    head = users.filter(pl.col("group") == "head")["user_id"][0]
    found = done("score", "patches@2", f"--user={tail}", "--threads=1", store=remembering)
    assert set(found["served_by"].values()) == {"cloud", "memory"}
    other = done("score", "patches@2", f"--user={head}", "--threads=1", store=remembering)
    assert set(other["served_by"].values()) == {"cloud"}


def test_patches_on_a_distilled_model_have_no_part_in_its_basis(own: Path) -> None:
    made = done("patch", "--cloud=cloud@2", *PATCHED, store=own)["ref"]
    assert Store(own).resolve("cloud@2").manifest["files"].keys() >= {"basis.safetensors"}
    assert PatchSet(Store(own).resolve(made)).own_basis
    done("evaluate", made, *EVALUATE, store=own)
    result = dcclctl("evaluate", made, *EVALUATE, "--unpatched=encoder", store=own)
    assert result.exit_code == 2 and "--unpatched cloud" in result.stderr


@pytest.mark.parametrize("model", ["popularity", "item-knn", "bpr", "sasrec"])
def test_a_memory_goes_with_any_cloud_model(own: Path, model: str) -> None:
    cloud = done("train", f"--model={model}", "--epochs=1", "--threads=1", store=own)["ref"]
    made = done("patch", f"--cloud={cloud}", *PATCHED, "--personal=encoder", "--patch-size=2", store=own)["ref"]
    found = done("evaluate", made, f"{made}+shuffled", cloud, *EVALUATE, store=own)["metrics"]
    losses = [row["value"] for row in found if (row["metric"], row["group"]) == ("log_loss", "all")]
    assert len(set(losses)) == 3
    subject = subject_of(own, made)
    empty = np.flatnonzero(subject.cloud.dataset.log.history_lengths(np.arange(200), 1) == 0)
    below, served = logits_of(subject, empty)
    assert below.equal(served)
    assert dcclctl("audit", made, store=own).exit_code == 0


# -- which model the patch is learned with


def refs(taught: list[tuple[CloudModel, Block]]) -> list[tuple[str, Block]]:
    return [(model.artifact.ref, block) for model, block in taught]


def test_the_newest_model_that_had_not_seen_a_part_teaches_it(own: Path) -> None:
    store = Store(own)
    whole, first, second = Block(DEVICE), Block(DEVICE, 1, 2), Block(DEVICE, 2, 2)

    def taught(reference: str, block: Block) -> list[tuple[str, Block]]:
        return refs(lessons(cloud_of(store, reference), block, store))

    assert taught("cloud@1", whole) == [("cloud@1", whole)]  # it has not seen the block
    assert taught("cloud@3", whole) == [("cloud@1", whole)]
    assert taught("cloud@3", second) == [("cloud@1", second)]  # nothing outside the block
    assert taught("cloud@2", whole) == [("cloud@1", whole)]  # distilled on it
    done("train", "--continue=cloud@1", "--on=device:1/2", *ONCE, store=own)  # cloud@4
    assert taught("cloud@4", whole) == [("cloud@1", first), ("cloud@4", second)]
    done("train", "--continue=cloud@4", "--on=device:2/2", *ONCE, store=own)  # cloud@5
    assert taught("cloud@5", whole) == [("cloud@1", first), ("cloud@4", second)]
    assert taught("cloud@5", Block(DEVICE, 2, 4)) == [("cloud@1", Block(DEVICE, 2, 4))]
    done("train", "--continue=cloud@5", "--on=device", *ONCE, store=own)  # cloud@6 sees all of it again
    assert taught("cloud@6", whole) == [("cloud@1", first), ("cloud@4", second)]
    thirds = Block(DEVICE, 2, 3)
    assert taught("cloud@5", thirds) == [("cloud@1", Block(DEVICE, 3, 6)), ("cloud@4", Block(DEVICE, 4, 6))]
    done("train", "--continue=cloud@1", "--on=device:1/997", *ONCE, store=own)
    with pytest.raises(UsageError, match=r"997 parts(.|\n)*successive blocks"):
        taught("cloud@7", whole)


def test_what_the_teachers_learned_a_distilled_model_knows(own: Path) -> None:
    """cloud@1 is taught on the second half by patches that learned from the first."""
    patches = done("patch", "--cloud=cloud@1", "--on=device:1/2", *PATCH, store=own)["ref"]
    made = done(
        "distill", f"--patches={patches}", "--on=device:2/2", "--epochs=1", "--basis-epochs=1", "--threads=1", store=own
    )
    store = Store(own)
    taught = refs(lessons(cloud_of(store, made["ref"]), Block(DEVICE), store))
    assert taught == [("cloud@1", Block(DEVICE, 1, 2)), ("cloud@1", Block(DEVICE, 2, 2))]


def test_a_model_that_learned_everything_at_once_cannot_be_patched(own: Path) -> None:
    cloud = done("train", *TRAIN, "--on=cloud,device", "--epochs=1", store=own)["ref"]
    result = dcclctl("patch", f"--cloud={cloud}", *PATCHED, store=own)
    assert result.exit_code == 2
    assert f"{cloud} was trained on cloud, device at once" in result.stderr
    assert "dcclctl train --continue REF --on device" in result.stderr
    counts = done("train", "--model=popularity", "--on=cloud,device", "--threads=1", store=own)["ref"]
    result = dcclctl("patch", f"--cloud={counts}", *PATCHED, store=own)
    assert "dcclctl train --model popularity --on cloud" in result.stderr  # it cannot be continued


def test_a_block_seen_in_two_steps_is_learned_whole(own: Path) -> None:
    done("train", "--continue=cloud@1", "--on=device:1/2", *ONCE, store=own)
    made = done("patch", "--cloud=cloud@4", *PATCHED, store=own)["ref"]
    store = Store(own)
    facts = store.resolve(made).facts
    ids = [store.resolve(name).id for name in ("cloud@1", "cloud@4")]
    assert facts["learned_with"] == [f"{ids[0]} on device:1/2", f"{ids[1]} on device:2/2"]
    dataset = Dataset.of(store.resolve("dataset@1"))
    assert facts["events"] == facts["events_read"] == len(dataset.log.events_in(DEVICE))
    assert dcclctl("audit", made, store=own).exit_code == 0


def test_more_events_than_are_read(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patch_memory, "_ROWS", 300)
    made = Store(own).resolve(done("patch", *FRESH, store=own)["ref"])
    events = len(Dataset.of(Store(own).resolve("dataset@1")).log.events_in(DEVICE))
    assert made.facts["events_read"] == 300 // 5 < made.facts["events"] == events
    assert dcclctl("audit", made.ref, store=own).exit_code == 0


def devices_of(root: Path, **settings: Any) -> MemoryDevices:
    store = Store(root)
    cloud, config = cloud_of(store, "cloud@3"), PatchConfig(device="cpu", threads=1, negatives=4, **settings)
    memory = Memory(store.resolve("memory@1"), cloud.dataset)
    return MemoryDevices(lessons(cloud, Block(DEVICE), store), memory, config, lambda *_: None)


def test_some_events_are_learned_from_with_a_short_memory_too(remembering: Path) -> None:
    """In those rows cloud model and memory know the newest K events and nothing else, K from 1 to all, small ones often."""
    devices = devices_of(remembering, memory_short=0.5)
    whole, short = devices.rows()
    log = devices.log
    device = log.events_in(DEVICE)
    assert whole.events.tolist() == device.tolist()
    assert whole.held.tolist() == log.history_lengths(device, 8).tolist()
    assert set(short.events) < set(device)
    most = log.history_lengths(short.events, 8)
    assert 0.4 < len(short.events) / (whole.held > 0).sum() < 0.6
    assert (short.held >= 1).all() and (short.held <= most).all()
    assert {1, 2, 8} <= set(short.held.tolist())
    long = most == 8
    assert 0.2 < (short.held[long] == 1).mean() < 0.45  # log 2 / log 9 = 0.32
    # by hand: a log in which nothing but the K newest events of the user stands before the event
    model, memory = devices.lessons[0][0], devices.memory
    statistics = count_statistics(
        log, log.before(Block(DEVICE)), Counting(memory.size, 5, memory.config["shrinkage"], 10), 0
    )
    for row in np.flatnonzero(short.held < most)[:20]:
        event, held = int(short.events[row]), int(short.held[row])
        cut = replace(
            log, history_start=np.where(np.arange(len(log.user)) == event, log.history_end - held, log.history_start)
        )
        one = np.array([event])
        candidates = devices.samples(one, Block(DEVICE), 0).candidates
        found = Memories(cut, statistics, memory.size, 3).features(one, candidates)
        assert found.allclose(short.features[[row]], atol=1e-5)
        below = model.backbone(devices.config, cut)
        assert below.head(one, candidates, below.activations(one, candidates)).allclose(short.logits[[row]], atol=1e-5)


def test_none_are_shortened_if_not_asked_for_or_where_there_is_nothing_to_shorten(remembering: Path) -> None:
    assert not len(devices_of(remembering, memory_short=0.0).rows()[1].events)
    every = devices_of(remembering, memory_short=1.0)
    events = every.log.events_in(CLOUD)
    some, keep = every._shortened(events)
    assert some.tolist() == events[every.log.history_lengths(events, 1) > 0].tolist()
    assert len(some) < len(events) and (keep > 0).all()


def test_logits_are_compared_at_one_frequency_of_clicks(own: Path) -> None:
    """A patch learned with other negatives than its cloud model was trained with is learned and served at the same odds."""
    store = Store(own)
    four, twelve = (devices_of(own, memory_short=0.0, memory_epochs=1), devices_of(own, memory_short=0.0))
    twelve.config = twelve.config.model_copy(update={"negatives": 12})
    below = {name: devices.rows()[0].logits[:, 0] for name, devices in (("4", four), ("12", twelve))}
    assert four.lessons[0][0].negatives == 4
    torch.testing.assert_close(
        below["12"], below["4"] + math.log(4 / 12)
    )  # the first candidate is the event's own item
    made = done("patch", "--negatives=12", *FRESH, store=own)["ref"]
    subject = subject_of(own, made)
    assert subject.patches is not None
    log, memory = subject.cloud.dataset.log, subject.patches.memory
    assert memory is not None
    events = log.events_in(TEST)[:30]
    logits, found = logits_of(subject, events)
    inner = subject.patches.memory_patch()
    with torch.no_grad():
        seen = Memories(log, memory.statistics, memory.size, 3, log.up_to(memory.until)).features(events, None)
        popular = memory.statistics.popularity.expand(len(events), -1)
        expected = inner(seen, logits + math.log(4 / 12), popular, torch.zeros(len(events), 0)) - math.log(4 / 12)
    remembers = torch.from_numpy(log.history_lengths(events, 1) > 0)
    torch.testing.assert_close(found[remembers], expected[remembers])
    assert store.resolve(made).config["negatives"] == 12


def test_what_is_held_back_is_not_learned_from_in_short_either(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taught: list[Ints] = []

    def spy(patch: MemoryPatch, rows: MemoryRows, *more: Any) -> list[float]:
        taught.append(rows.events)
        return learn(patch, rows, *more)

    monkeypatch.setattr(patch_memory, "learn", spy)
    done("patch", "--memory-short=1", "--held-back=0.3", *FRESH, store=own)
    trial, without_order, final = taught
    assert trial.tolist() == without_order.tolist()
    log = cloud_of(Store(own), "cloud@3").dataset.log
    assert set(final) == set(log.events_in(DEVICE))
    held = np.setdiff1d(final, trial)
    assert len(held) > 10
    for user in np.unique(log.user[held]):
        mine = np.unique(final[log.user[final] == user])
        assert set(np.intersect1d(mine, held)) == set(mine[-len(np.intersect1d(mine, held)) :])


@pytest.mark.parametrize("better", [None, "with", "without"])
def test_order_counts_unless_held_back_events_are_foretold_better_without(
    own: Path, monkeypatch: pytest.MonkeyPatch, better: str | None
) -> None:
    judged: list[torch.Tensor] = []

    def spy(*arguments: Any) -> torch.Tensor:
        found = user_losses(*arguments)
        # the first trial is the one with order
        found[:, 1] += {None: 0, "with": -1, "without": 1}[better] if not judged else 0
        judged.append(found[:, 1])
        return found

    monkeypatch.setattr(patch_memory, "user_losses", spy)
    store = Store(own)
    made = store.resolve(done("patch", *FRESH, store=own)["ref"])
    tried = made.facts["order_losses"]
    assert [tried["with"], tried["without"]] == pytest.approx([float(losses.nanmean()) for losses in judged])
    assert made.facts["order"] == (tried["with"] <= tried["without"])
    assert better is None or made.facts["order"] == (better == "with")
    chosen = "always" if made.facts["order"] else "never"
    alone = store.resolve(done("patch", f"--memory-order={chosen}", *FRESH, store=own)["ref"])
    assert (alone.facts["order"], alone.facts["order_losses"]) == (made.facts["order"], {})
    first, second = (each.read_tensors("memory_patch.safetensors") for each in (made, alone))
    assert all(weight.equal(second[name]) for name, weight in first.items())
    # what is recorded of every user is what the trial of the chosen kind made of the held-back events
    after = made.read_table("users.parquet")["loss_after"].to_numpy()
    index = made.read_table("users.parquet")["user_index"].to_numpy()
    np.testing.assert_allclose(after, judged[0 if made.facts["order"] else 1].numpy()[index])


@pytest.mark.parametrize("personal", ["none", "device"])
def test_a_patch_without_order_makes_nothing_of_it(own: Path, personal: str) -> None:
    made = Store(own).resolve(done("patch", "--memory-order=never", f"--personal={personal}", *FRESH, store=own)["ref"])
    inner = PatchSet(made).memory_patch()
    names = [*made_memory(own).facts["features"], *(f"record of {name}" for name in made_memory(own).facts["tracked"])]
    features = torch.randn(3, 4, len(names), generator=torch.Generator().manual_seed(0))
    logits, codes = torch.zeros(3, 4), torch.ones(3, inner.code_size)
    popular = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    plain = inner(features, logits, popular, codes)
    for at, name in enumerate(names):
        changed = features.clone()
        changed[..., at] += 1
        assert inner(changed, logits, popular, codes).equal(plain) == ("order" in name), name


@pytest.mark.parametrize("popularity", [True, False])
def test_popularity_counts_where_it_is_asked_for(own: Path, popularity: bool) -> None:
    flag = "--memory-popularity" if popularity else "--no-memory-popularity"
    made = done("patch", flag, "--personal=encoder", *FRESH, store=own)["ref"]
    subject = subject_of(own, made)
    assert subject.patches is not None and subject.patches.memory is not None
    inner, memory = subject.patches.memory_patch(), subject.patches.memory
    n_numbers = len(memory.statistics.columns(memory.track))
    assert inner.inner.shape == (4, n_numbers + 1 + popularity)
    # as served, of all items and of some
    log = subject.cloud.dataset.log
    events = log.events_in(TEST)[:20]
    logits, found = logits_of(subject, events)
    with torch.no_grad():
        everything = Memories(log, memory.statistics, memory.size, memory.track, log.up_to(memory.until))
        seen = everything.features(events, None)
        users = torch.from_numpy(log.user[events])
        codes = inner.encode(
            torch.zeros(len(events), inner.code_size), log.profile[users], category_shares(log, events, memory.size)
        )
        everybody = memory.statistics.popularity.expand(len(events), -1)
        expected = inner(seen, logits, everybody, codes)
        other = inner(seen, logits, everybody + 1, codes)
    remembers = torch.from_numpy(log.history_lengths(events, 1) > 0)
    torch.testing.assert_close(found[remembers], expected[remembers])
    assert other.equal(expected) != popularity


def test_patches_of_before_popularity_counted_are_served_as_they_were(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An artifact that was made before there was the choice does not name it."""
    made = PatchSet.load(
        Store(own).resolve(done("patch", "--no-memory-popularity", *FRESH, store=own)["ref"]), Store(own)
    )
    monkeypatch.delitem(made.artifact.config, "memory_popularity")
    assert not made.memory_patch().popularity


def made_memory(root: Path) -> Artifact:
    return Store(root).resolve("memory@1")


def test_without_order_in_the_memory_there_is_nothing_to_choose(own: Path) -> None:
    done("memory", "--size=8", "--neighbours=5", "--track=0", "--lookback=0", store=own)
    made = Store(own).resolve(done("patch", *FRESH, store=own)["ref"])
    assert (made.facts["order"], made.facts["order_losses"]) == (False, {})
    inner = PatchSet(made).memory_patch()
    assert inner.inner.shape == (4, len(FEATURES) + 1)  # the features and the logit
    refused = dcclctl("patch", "--memory-order=always", *FRESH, store=own)
    assert refused.exit_code == 2
    assert "does not know the order of events" in refused.stderr


# -- nothing gives the label away


@pytest.mark.parametrize("leaky", [False, True])
def test_negatives_are_drawn_from_what_the_user_remembers_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leaky: bool
) -> None:
    """A log with repeats. The planted leak leaves out all that the user ever had: then no negative is in memory."""
    if leaky:
        monkeypatch.setattr(EventLog, "never_negative", lambda log, *blocks: PairSet(log.user, log.item, log.n_items))
    looked_at: list[tuple[bool, list[bool]]] = []

    def spy(memories: Memories, events: Ints, candidates: torch.Tensor) -> torch.Tensor:
        held, mask = memories.log.histories(events, 100)
        for items, real, row in zip(held, mask, candidates.tolist(), strict=True):
            memory = set(items[real].tolist())
            looked_at.append((row[0] in memory, [item in memory for item in row[1:]]))
        return features(memories, events, candidates)

    features = Memories.features
    monkeypatch.setattr(Memories, "features", spy)
    root = tmp_path / "store"
    ingest(tmp_path / "log", root, "--repeats=keep")
    done("train", *TRAIN, "--epochs=1", store=root)
    done("memory", "--size=100", "--neighbours=5", store=root)
    done("patch", *PATCHED, "--negatives=20", store=root)
    own, drawn = (np.mean([row[at] for row in looked_at]) for at in (0, 1))
    assert own > 0.1
    assert drawn == 0 if leaky else drawn > 0.05


# -- the audit


def test_a_clean_chain_is_proven(remembering: Path) -> None:
    store = Store(remembering)
    findings = audit(store.resolve("patches@2"))
    assert leaks(findings) is None
    proven = "\n".join(f"{each.artifact}: {each.text}" for each in findings if each.kind == "proven")
    memory = store.resolve("memory@1").facts
    for said in (
        f"memory@1: remembers and counts the {memory['events']:,} positive events of cloud, device: {memory['users']} devices",
        "memory@1: all that it and its ancestors learned from (cloud, device:",
        "patches@2: was learned from device with cloud@1, which had not been trained on any of it",
    ):
        assert said in proven, said
    assert any(each.artifact == "memory@1" for each in audit(store.resolve("dataset@1")))


def remembered_until(root: Path, period: str) -> Artifact:
    """The command line refuses it, and so does the stage: a memory that says `device` and was made with a later end."""
    store = Store(root)
    dataset = Dataset.of(store.resolve("dataset@1"))
    later = MemoryConfig(size=8, neighbours=5, until="valid").model_copy(update={"until": period})
    with pytest.raises(UsageError):
        remember(dataset, later, store)
    log = dataset.log
    # everything up to the wanted period is said to be of the device period
    moved = np.where(log.period <= Block.parse(period).period, DEVICE, 3)
    dataset.__dict__["log"] = type(log)(**{**log.__dict__, "period": moved})
    return remember(dataset, MemoryConfig(size=8, neighbours=5, until="device", seed=8), store)[0]


@pytest.mark.parametrize("period", ["valid", "test"])
def test_a_memory_that_knows_later_events_is_found(own: Path, period: str) -> None:
    memory = remembered_until(own, period)
    said = leak_of(memory.ref, own)
    assert said.startswith(f"{memory.ref}: what the device of user ")
    assert "newest 8 items of cloud, device" in said
    # an honest face: the configuration says what was done
    store = Store(own)
    honest = rewrite(store, memory, config={"until": period})
    said = leak_of(honest.ref, own)
    assert f"{honest.ref}: it learned from cloud, device, valid" in said and "are in valid" in said
    patches = done("patch", f"--memory={honest.ref}", *FRESH, store=own)["ref"]
    evaluation = done("evaluate", patches, *EVALUATE, store=own)["ref"]
    for reference in (patches, evaluation):
        result = dcclctl("audit", reference, store=own)
        assert result.exit_code == 3
        assert f"LEAK    {honest.ref}: it learned from cloud, device, valid" in result.stdout
    if period == "test":
        assert f"LEAK    {evaluation}: {patches}: {honest.ref} learned from" in result.stdout


def test_statistics_that_were_counted_over_the_test_period_are_found(own: Path) -> None:
    """The rings are right; only what the cloud ships beside them is not."""
    later, store = remembered_until(own, "test"), Store(own)
    tensors = later.read_tensors("statistics.safetensors")
    mixed = rewrite(store, store.resolve("memory@1"), tensors={"statistics.safetensors": tensors})
    said = leak_of(mixed.ref, own)
    assert "its statistics were not counted over cloud, device: the share of item 'i" in said


def test_a_memory_of_the_block_that_is_judged_is_found(own: Path) -> None:
    """Legal for test, and a leak where the device period itself is the judge."""
    made = done("patch", "--cloud=cloud@1", "--on=device:1/2", *PATCHED, store=own)["ref"]
    evaluation = done("evaluate", made, *EVALUATE, "--on=device:2/2", store=own)["ref"]
    assert f"{made}: memory@1 learned from cloud, device, and" in leak_of(evaluation, own)


@pytest.mark.parametrize("period", ["valid", "test"])
def test_memory_patches_that_learned_from_later_events_are_found(own: Path, period: str) -> None:
    store = Store(own)
    cloud = cloud_of(store, "cloud@3")
    config = PatchConfig(method="memory", threads=1, memory_epochs=1).model_copy(update={"on": period})
    memory = Memory(store.resolve("memory@1"), cloud.dataset)
    made, _ = patch(cloud, config, store, quiet_progress, memory=memory)
    evaluation = done("evaluate", made.ref, *EVALUATE, f"--on={period}", store=own)["ref"]
    result = dcclctl("audit", evaluation, store=own)
    assert result.exit_code == 3
    assert f"LEAK    {evaluation}: {made.ref}: {made.ref} learned from {period}, and" in result.stdout
    if period == "test":
        assert leak_of(made.ref, own).startswith(f"{made.ref}: it learned from test, and ")


def test_a_patch_learned_with_a_model_that_knew_the_answers_is_found(own: Path) -> None:
    store = Store(own)
    patches = store.resolve("patches@2")
    for name, said in (
        ("cloud@3", "was learned from device with cloud@3, which had been trained on"),
        ("cloud@2", "which is not in its lineage"),
    ):
        lie = rewrite(store, patches, seed=len(said), facts={"learned_with": [f"{store.resolve(name).id} on device"]})
        assert said in leak_of(lie.ref, own)


def test_a_memory_of_another_dataset_does_not_open(own: Path, tmp_path: Path) -> None:
    ingest(tmp_path / "log", own, "--split=per-user")
    other = done("memory", "--dataset=dataset@2", *MEMORY, store=own)["ref"]
    store = Store(own)
    patches = store.resolve("patches@2")
    mixed = rewrite(store, patches, inputs=patches.inputs | {"memory": store.resolve(other).as_input()})
    with pytest.raises(ArtifactError, match="do not belong together"):
        PatchSet(mixed)
    assert "in its lineage from" in leak_of(mixed.ref, own)
