"""Memories and memory patches through the commands, and what the audit says of them."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from tampered import patched_on, rewrite
from world import EVALUATE, PATCH, TRAIN, World, dcclctl, done, ingest

from dcclctl.artifacts import CloudModel, Dataset, PatchSet
from dcclctl.audit.finding import leaks
from dcclctl.devices.memory import method
from dcclctl.devices.memory.features import Memories
from dcclctl.devices.memory.method import patch_of, statistics_of
from dcclctl.devices.serving import Subject, serve
from dcclctl.events.log import DEVICE, TEST, Block, EventLog
from dcclctl.events.sampling import Ints, PairSet
from dcclctl.models.kind import open_backbone
from dcclctl.stages import memory as stage
from dcclctl.stages.audit import audit
from dcclctl.stages.memory import remember
from dcclctl.store.store import Artifact, Store

MEMORY = ("--size=8", "--neighbours=5", "--profile-window=3")
PATCHED = ("--method=memory", "--set=epochs=2", "--set=hidden_size=4", "--threads=1")
#: on cloud@3, which is cloud@1 trained further on the device period
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


def made(root: Path, *flags: str) -> Artifact:
    """The artifact of a patch command."""
    return Store(root).resolve(done("patch", *flags, store=root)["ref"])


@pytest.mark.parametrize("through", ["device", "cloud"])
def test_users_without_events_in_the_period_are_told_apart(own: Path, through: str) -> None:
    """Of the users without an event in the period, some are patched from older ones and some have none to patch from."""
    log, block = Dataset(Store(own).resolve("dataset")).log, Block.parse("device:1/8")
    active = set(log.user[log.events_in(block)])
    remembered = set(log.user[log.up_to(block) & (log.label > 0)])
    done("memory", *MEMORY, f"--counted-through={through}", store=own)
    flags = ("--users=all", f"--on={block}", *FRESH, "--set=min_history_quantile=0")
    shown = dcclctl("patch", *flags, store=own).stdout
    facts = Store(own).resolve("patches").facts
    idle, older = log.n_users - len(active), len(remembered - active)
    assert facts["smallest_memory"] == 1 and 0 < older < idle
    assert (facts["users_without_events"], facts["users_from_older"]) == (idle, older)
    said = f"{idle:,} of the chosen users have no event in {block}: {older:,} are patched from older events; "
    assert f"{said}the cloud model serves {idle - older:,} until they have an event" in shown
    assert f"events of {block} of {len(active):,} users" in dcclctl("audit", "patches", store=own).stdout


def logits_of(root: Path, reference: str, events: Ints) -> tuple[torch.Tensor, torch.Tensor]:
    """What the cloud model and a subject give the whole catalogue."""
    subject = Subject.of(reference, Store(root))
    backbone = open_backbone(subject.cloud, torch.device("cpu"))
    below = backbone.activations(events, None)
    return backbone.head(events, None, below), serve(subject, backbone).head(events, None, below)


def log_of(root: Path) -> EventLog:
    return Dataset(Store(root).resolve("dataset@1")).log


def leak_of(reference: str, root: Path) -> str:
    error = leaks(audit(Store(root).resolve(reference)))
    assert error is not None
    return str(error)


# -- the memory


def test_a_memory_is_the_newest_positive_items_of_everybody(remembering: Path) -> None:
    memory, dataset = Store(remembering).resolve("memory@1"), Dataset(Store(remembering).resolve("dataset@1"))
    table = memory.read_table("memory.parquet")
    expected: dict[str, list[int]] = {}
    events = dataset.artifact.read_table("events.parquet").filter((pl.col("period") <= DEVICE) & (pl.col("label") > 0))
    for user, item in events.select("user_index", "item_index").iter_rows():
        expected.setdefault(dataset.users["user_id"][user], []).insert(0, item)
    assert {row["user_id"]: row["items"] for row in table.to_dicts()} == {
        name: all[:8] for name, all in expected.items()
    }
    sizes = [len(expected[name]) for name in table["user_id"]]
    assert table["seen"].to_list() == sizes
    assert table["bytes"].to_list() == [8 + 4 * min(8, size) + 18 * min(3, size) for size in sizes]
    facts = memory.facts
    assert facts["users"] == table.height == len(expected) < dataset.users.height  # new users have none yet
    assert (facts["events"], facts["full"]) == (events.height, sum(size >= 8 for size in sizes))
    assert facts["bytes_per_user_largest"] == 40 + 3 * 18
    assert facts["profile_features"] == facts["features"][1:] and len(facts["features"]) == 1 + 14 + 4


def test_the_command_says_what_a_device_needs_and_finds_what_it_made(own: Path) -> None:
    again = done("memory", *MEMORY, store=own)
    assert (again["ref"], again["bytes_per_user"]) == ("memory@1", 94)
    tree = dcclctl("artifacts", "lineage", "patches@2", store=own).stdout
    assert all(name in tree for name in ("memory@1", "cloud@3", "cloud@1", "dataset@1"))
    assert done("memory", *MEMORY, "--force", store=own)["id"] == again["id"]  # the same bits
    earlier = dcclctl("memory", *MEMORY, "--counted-through=cloud", store=own)
    assert "to the end of cloud (dataset@1)" in earlier.stdout and "94 at most" in earlier.stdout
    assert Store(own).resolve("memory@latest").id != again["id"]
    for period in ("valid", "test"):  # models are chosen on valid and scored on test
        result = dcclctl("memory", f"--counted-through={period}", store=own)
        assert result.exit_code == 2 and "--counted-through" in result.stderr


def test_a_memory_goes_with_its_own_dataset_and_method_only(own: Path, tmp_path: Path) -> None:
    result = dcclctl("patch", "--memory=memory@1", *PATCH, store=own)
    assert result.exit_code == 2 and "--method metapatch uses no memory" in result.stderr
    ingest(tmp_path / "log", own, "--split=per-user")
    other = done("memory", "--dataset=dataset@2", *MEMORY, store=own)["ref"]
    result = dcclctl("patch", f"--memory={other}", *FRESH, store=own)
    assert result.exit_code == 3 and f"{other} is of dataset@2, but cloud@3 of dataset@1" in result.stderr
    # the newest memory of the dataset is taken, not the newest of all
    assert done("patch", "--users=tail", *FRESH, store=own)["ref"] == "patches@2"


def test_a_memory_made_on_the_way_is_said(shop: Path) -> None:
    shown = dcclctl("patch", "--cloud=cloud@1", *PATCHED, store=shop).stdout
    assert "memory@1 was made first" in shown
    assert "was made first" not in dcclctl("patch", "--cloud=cloud@1", "--users=tail", *PATCHED, store=shop).stdout


def test_a_block_without_events_teaches_nothing(own: Path) -> None:
    result = dcclctl("patch", "--on=device:2/100000", *FRESH, store=own)
    assert result.exit_code == 3 and "has an event in" in result.stderr and "device:2/100000" in result.stderr


def test_the_same_bits_twice(own: Path) -> None:
    assert made(own, *FRESH).id == made(own, *FRESH, "--force").id


# -- serving


def test_who_is_not_chosen_or_remembers_nothing_is_served_by_the_cloud_model(remembering: Path) -> None:
    """To the last bit; and the chosen ones who remember something are not."""
    patches = PatchSet(Store(remembering).resolve("patches@2"))
    log, smallest = log_of(remembering), patches.facts["smallest_memory"]
    events = np.arange(len(log.user))
    below, found = logits_of(remembering, "patches@2", events)
    tail = patches.cloud.dataset.users["group"].to_numpy() == "tail"
    served = tail[log.user] & (log.history_lengths(events, 8) >= smallest)
    assert 20 < served.sum() < len(events) - 20 and (tail[log.user] & ~served).sum() > 5
    assert (below == found).all(1).numpy().tolist() == (~served).tolist()
    # and the figures say so
    by = serve(Subject.of("patches@2", Store(remembering)), open_backbone(patches.cloud, torch.device("cpu"))).by
    assert set(by[tail]) == {"memory"} and set(by[~tail]) == {"cloud"}


def test_too_few_events_to_know_are_served_by_the_cloud_model(own: Path) -> None:
    flags = ("--set=truncated_share=0", "--set=min_history_quantile=0.6", *FRESH)
    patches = made(own, *flags)
    log = log_of(own)
    sizes = np.sort(np.maximum(log.history_lengths(log.events_in(DEVICE), 8), 1))
    smallest = patches.facts["smallest_memory"]
    assert smallest == sizes[int(0.6 * (len(sizes) - 1))] > 1
    shown = dcclctl("patch", *flags, store=own).stdout
    assert f"users whose memory holds fewer than {smallest} events are served by the cloud model" in shown
    events = np.arange(len(log.user))
    below, found = logits_of(own, patches.ref, events)
    few = log.history_lengths(events, 8) < smallest
    assert 20 < few.sum() < len(events) - 20
    assert (below == found).all(1).numpy().tolist() == few.tolist()
    # and whom the cloud model serves at every scored event is counted so
    scored = done("evaluate", patches.ref, "--threads=1", store=own)["ref"]
    table = Store(own).resolve(scored).read_table("per_user.parquet")
    tested = log.events_in(TEST)
    remembered = np.unique(log.user[tested[~few[tested]]])
    assert 0 < len(remembered) < table.height
    assert set(table.filter(served_by="memory")["user_index"]) == set(remembered)
    assert set(table["served_by"]) == {"memory", "cloud"}
    # events that are learned from with a truncated history lower it
    taught = made(own, "--set=truncated_share=1", "--set=min_history_quantile=0.3", *FRESH)
    assert taught.facts["smallest_memory"] < sizes[int(0.3 * (len(sizes) - 1))]


def test_a_patch_is_learned_and_served_at_its_own_frequency_of_clicks(own: Path) -> None:
    """With 12 negatives a click is rarer than the cloud model's 4 say: its logits are moved there, and back."""
    patches = PatchSet(made(own, "--set=negatives=12", *FRESH))
    assert patches.config["negatives"] == 12 and patches.memory is not None
    log, memory, shift = log_of(own), patches.memory, math.log(patches.cloud.negatives / 12)
    events = log.events_in(TEST)[:30]
    logits, found = logits_of(own, patches.ref, events)
    memories = Memories(log, statistics_of(memory), memory.size, 3, log.up_to(Block.parse(memory.counted_through)))
    expected = patch_of(patches)(memories.features(events, None), logits + shift) - shift
    remembers = torch.from_numpy(log.history_lengths(events, 8) >= patches.facts["smallest_memory"])
    assert remembers.sum() > 5
    torch.testing.assert_close(found[remembers], expected[remembers])


def test_placebos_and_the_guard(own: Path) -> None:
    flags = ("--set=learning_rate=0.3", "--set=epochs=8", "--method=memory", "--cloud=cloud@3", "--threads=1")
    plain, guarded = made(own, *flags), made(own, *flags, "--guard")
    table = guarded.read_table("users.parquet")
    lost = (table["loss_after"] >= table["loss_before"]).fill_null(False)
    assert 0 < lost.sum() < table.height
    assert (table["kept"] == ~lost).all() and plain.read_table("users.parquet")["kept"].all()
    log = log_of(own)
    events = log.events_in(TEST)
    names = (plain.ref, guarded.ref, f"{plain.ref}+shuffled", f"{plain.ref}+mean")
    found = {name: logits_of(own, name, events)[1] for name in names}
    below = logits_of(own, plain.ref, events)[0]
    off = torch.from_numpy(np.isin(log.user[events], table.filter(~pl.col("kept"))["user_index"].to_numpy()))
    assert found[guarded.ref][off].equal(below[off])
    assert found[guarded.ref][~off].equal(found[plain.ref][~off])
    assert not found[f"{plain.ref}+shuffled"].equal(found[plain.ref])
    assert found[f"{plain.ref}+mean"].equal(found[plain.ref])  # there is no θ̂ to average


def test_reports_and_explanations_know_memories(own: Path, tmp_path: Path) -> None:
    done("evaluate", "cloud@3", "patches@2", "patches@2+shuffled", "--against=cloud@3", "--threads=1", store=own)
    done("report", "-o", tmp_path / "page.html", store=own)
    page = (tmp_path / "page.html").read_text()
    assert "memory patches on din" in page and "memory patches of other users on din" in page
    assert "dcclctl memory --dataset" in page and "--memory " in page
    users = Dataset(Store(own).resolve("dataset@1")).users
    for group, by in (("tail", {"cloud", "memory"}), ("head", {"cloud"})):
        user = users.filter(pl.col("group") == group)["user_id"][0]
        (found,) = done("score", "patches@2", f"--user={user}", "--threads=1", store=own)["users"]
        assert set(found["served_by"].values()) == by


def test_patches_on_a_distilled_model_have_no_part_in_its_basis(own: Path) -> None:
    patches = made(own, "--cloud=cloud@2", *PATCHED)
    assert PatchSet(patches).own_basis and CloudModel(Store(own).resolve("cloud@2")).basis_id
    done("evaluate", patches.ref, *EVALUATE, store=own)
    result = dcclctl("evaluate", patches.ref, *EVALUATE, "--unpatched=encoder", store=own)
    assert result.exit_code == 2 and "--unpatched cloud" in result.stderr


@pytest.mark.parametrize("model", ["popularity", "item-knn", "bpr", "sasrec"])
def test_a_memory_goes_with_any_cloud_model(own: Path, model: str) -> None:
    epochs = ("--epochs=1",) if model in ("bpr", "sasrec") else ()
    cloud = done("train", f"--model={model}", *epochs, "--threads=1", store=own)["ref"]
    patches = made(own, f"--cloud={cloud}", *PATCHED).ref
    found = done("evaluate", patches, f"{patches}+shuffled", cloud, *EVALUATE, store=own)["metrics"]
    losses = [row["value"] for row in found if (row["metric"], row["group"]) == ("log_loss", "all")]
    assert len(set(losses)) == 3
    empty = np.flatnonzero(log_of(own).history_lengths(np.arange(200), 1) == 0)
    below, served = logits_of(own, patches, empty)
    assert below.equal(served)
    assert dcclctl("audit", patches, store=own).exit_code == 0


# -- what the patch is learned from (which model on which part: tests/unit/devices/memory/test_unseen_models.py)


def test_a_block_that_was_trained_on_in_two_steps_is_learned_whole(own: Path) -> None:
    done("train", "--continue=cloud@1", "--on=device:1/2", *ONCE, store=own)  # cloud@4
    patches = made(own, "--cloud=cloud@4", *PATCHED)
    ids = [Store(own).resolve(name).id for name in ("cloud@1", "cloud@4")]
    assert patches.facts["learned_with"] == [f"{ids[0]} on device:1/2", f"{ids[1]} on device:2/2"]
    assert patches.facts["events"] == patches.facts["events_read"] == len(log_of(own).events_in(DEVICE))
    assert dcclctl("audit", patches.ref, store=own).exit_code == 0


def test_a_model_that_learned_everything_at_once_is_patched_with_what_another_learned(own: Path) -> None:
    cloud = done("train", *TRAIN, "--on=cloud,device", "--epochs=1", store=own)["ref"]
    for refused in ((), (f"--learn-with={cloud}",)):
        result = dcclctl("patch", f"--cloud={cloud}", *PATCHED, *refused, store=own)
        assert result.exit_code == 2
        assert f"{cloud} was trained on cloud, device at once" in result.stderr
        assert "--learn-with REF" in result.stderr
    patches = made(own, f"--cloud={cloud}", "--learn-with=cloud@1", *PATCHED)
    assert patches.facts["learned_with"] == [f"{Store(own).resolve('cloud@1').id} on device"]
    # the patch is that of the model which was continued from cloud@1, and serves on another
    same, other = (patch_of(PatchSet(each)).state_dict() for each in (patches, made(own, *FRESH)))
    assert all(same[name].equal(other[name]) for name in same)
    events = log_of(own).events_in(TEST)[:20]
    below, served = logits_of(own, patches.ref, events)
    assert below.equal(logits_of(own, "patches@2", events)[0]) is False and not below.equal(served)
    assert dcclctl("audit", patches.ref, store=own).exit_code == 0


def test_a_model_to_learn_with_goes_with_its_own_dataset_and_method_only(own: Path, tmp_path: Path) -> None:
    result = dcclctl("patch", "--cloud=cloud@1", "--learn-with=cloud@1", *PATCH, store=own)
    assert result.exit_code == 2 and "--method memory" in result.stderr
    ingest(tmp_path / "log", own, "--split=per-user")
    other = done("train", *TRAIN, "--epochs=1", store=own)["ref"]
    result = dcclctl("patch", *FRESH, "--memory=memory@1", f"--learn-with={other}", store=own)
    assert result.exit_code == 3 and "leave --learn-with out" in result.stderr


def test_more_events_than_are_read(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "_ROWS", 60 * 129)
    patches = made(own, *FRESH)
    assert patches.facts["events_read"] == 60 < patches.facts["events"] == len(log_of(own).events_in(DEVICE))
    assert dcclctl("audit", patches.ref, store=own).exit_code == 0


@pytest.mark.parametrize(
    "setting", ["truncated_share=0", "order=never", "weight_decay=1", "learning_rate=0.1", "highest=2", "others=2"]
)
def test_what_is_learned_depends_on(own: Path, setting: str) -> None:
    usual, other = (made(own, f"--set={each}", *FRESH) for each in ("order=always", setting))
    assert usual.file_id("memory_patch.safetensors") != other.file_id("memory_patch.safetensors")


def test_what_is_held_back_is_not_learned_from_with_a_truncated_history_either(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leak that no figure shows: of each trial, and at last of the patch that is kept, the events that it learns from."""
    taught: list[Ints] = []
    learn = method.learn
    monkeypatch.setattr(
        method, "learn", lambda patch, rows, *more: taught.append(rows.events) or learn(patch, rows, *more)
    )
    made(own, "--set=truncated_share=1", "--held-back=0.3", *FRESH)
    trial, without_order, final = taught
    log = log_of(own)
    assert trial.tolist() == without_order.tolist() and set(final) == set(log.events_in(DEVICE))
    held = np.setdiff1d(final, trial)
    assert len(held) > 10
    for user in np.unique(log.user[held]):
        mine, kept_back = (np.unique(rows[log.user[rows] == user]) for rows in (final, held))
        assert kept_back.tolist() == mine[-len(kept_back) :].tolist()  # the newest


def test_the_order_of_events_counts_unless_held_back_events_say_otherwise(own: Path) -> None:
    patches = made(own, *FRESH)
    tried, losses = patches.facts["order_losses"], patches.read_table("users.parquet")["loss_after"]
    assert set(tried) == {"with", "without"}
    assert patches.facts["order"] == (tried["with"] <= tried["without"])
    # what is recorded of every user is what the trial of the chosen kind made of the held-back events
    assert losses.drop_nulls().mean() == pytest.approx(tried["with" if patches.facts["order"] else "without"])
    chosen = "always" if patches.facts["order"] else "never"
    alone = made(own, f"--set=order={chosen}", *FRESH)
    assert (alone.facts["order"], alone.facts["order_losses"]) == (patches.facts["order"], {})
    assert alone.file_id("memory_patch.safetensors") == patches.file_id("memory_patch.safetensors")
    assert alone.read_table("users.parquet")["loss_after"].equals(losses)
    shown = dcclctl("patch", *FRESH, store=own).stdout
    assert f"the patch {'uses' if patches.facts['order'] else 'ignores'} the order of events" in shown


def test_a_patch_without_order_makes_nothing_of_it(own: Path) -> None:
    patches = PatchSet(made(own, "--set=order=never", *FRESH))
    assert patches.memory is not None
    patch, facts = patch_of(patches), patches.memory.facts
    names = [*facts["features"], *(f"profile of {name}" for name in facts["profile_features"])]
    features = torch.randn(3, 4, len(names), generator=torch.Generator().manual_seed(0))
    plain = patch(features, torch.zeros(3, 4))
    ignored = set()
    for at, name in enumerate(names):
        changed = features.clone()
        changed[..., at] += 1
        if patch(changed, torch.zeros(3, 4)).equal(plain):
            ignored.add(name)
    assert ignored and ignored == {name for name in names if "order" in name}


def test_without_order_in_the_memory_there_is_nothing_to_choose(own: Path) -> None:
    done("memory", "--size=8", "--neighbours=5", "--profile-window=0", "--transition-window=0", store=own)
    patches = made(own, *FRESH)
    assert (patches.facts["order"], patches.facts["order_losses"]) == (False, {})
    refused = dcclctl("patch", "--set=order=always", *FRESH, store=own)
    assert refused.exit_code == 2 and "does not know the order of events" in refused.stderr


# -- nothing gives the label away


@pytest.mark.parametrize("leaky", [False, True])
def test_negatives_are_drawn_from_what_the_user_remembers_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leaky: bool
) -> None:
    """A log with repeats. The planted leak leaves out all that the user ever had: then no negative is in memory."""
    if leaky:
        monkeypatch.setattr(EventLog, "never_negative", lambda log, *blocks: PairSet(log.user, log.item, log.n_items))
    looked_at: list[tuple[bool, list[bool]]] = []
    features = Memories.of_candidates

    def spy(memories: Memories, events: Ints, candidates: torch.Tensor) -> torch.Tensor:
        held, mask = memories.log.histories(events, 100)
        for items, real, row in zip(held, mask, candidates.tolist(), strict=True):
            memory = set(items[real].tolist())
            # the own item fills places for which no other is left
            looked_at.append((row[0] in memory, [item in memory for item in row[1:] if item != row[0]]))
        return features(memories, events, candidates)

    monkeypatch.setattr(Memories, "of_candidates", spy)
    root = tmp_path / "store"
    ingest(tmp_path / "log", root, "--repeats=keep")
    done("train", *TRAIN, "--epochs=1", store=root)
    done("memory", "--size=100", "--neighbours=5", store=root)
    done("patch", *PATCHED, "--set=negatives=20", store=root)
    own_item = np.mean([own for own, _ in looked_at])
    drawn = np.mean([each for _, others in looked_at for each in others])
    assert own_item > 0.1
    assert drawn == 0 if leaky else drawn > 0.05


# -- the audit


def test_a_clean_chain_is_proven(remembering: Path) -> None:
    store = Store(remembering)
    findings = audit(store.resolve("patches@2"))
    assert leaks(findings) is None
    proven = "\n".join(f"{each.artifact}: {each.text}" for each in findings if each.kind == "proven")
    memory = store.resolve("memory@1").facts
    for said in (
        f"memory@1: holds and counts the {memory['events']:,} positive events of cloud, device, on {memory['users']} devices",
        f"memory@1: it and what it was made from learned from {store.resolve('dataset@1').read_table('events.parquet').filter(pl.col('period') <= 1).height:,} events (cloud, device), the last at",
        "patches@2: was learned from device with cloud@1, which was trained on none of those events",
    ):
        assert said in proven, said
    assert any(each.artifact == "memory@1" for each in audit(store.resolve("dataset@1")))


def remembered_until(root: Path, period: str) -> Artifact:
    """A memory that says `device` and knows more: everything up to the period is passed off as the device period's."""
    dataset = Dataset(Store(root).resolve("dataset@1"))
    log = dataset.log
    moved = np.where(log.period <= Block.parse(period).period, DEVICE, TEST)
    with pytest.MonkeyPatch.context() as patching:
        patching.setitem(dataset.__dict__, "log", replace(log, period=moved))
        return remember(dataset, {"size": 8, "neighbours": 5, "seed": 8}).artifact


@pytest.mark.parametrize("period", ["valid", "test"])
def test_a_memory_that_knows_later_events_is_found(own: Path, period: str) -> None:
    memory = remembered_until(own, period)
    said = leak_of(memory.ref, own)
    assert said.startswith(f"{memory.ref}: the device of user ") and "newest 8 items of cloud, device" in said
    if period == "test":
        return  # a memory that says so is refused before anything else is asked of it
    # an honest face: the configuration says what was done
    honest = rewrite(Store(own), memory, config={"counted_through": period})
    said = leak_of(honest.ref, own)
    assert f"{honest.ref}: it learned from cloud, device, valid" in said and "are in valid" in said
    patches = made(own, f"--memory={honest.ref}", *FRESH).ref
    evaluation = done("evaluate", patches, *EVALUATE, store=own)["ref"]
    for reference in (patches, evaluation):
        result = dcclctl("audit", reference, store=own)
        assert result.exit_code == 3
        assert f"LEAK    {honest.ref}: it learned from cloud, device, valid" in result.stdout


def test_statistics_that_were_counted_over_the_test_period_are_found(own: Path) -> None:
    """The rings are right; only what the cloud ships beside them is not."""
    tensors = remembered_until(own, "test").read_tensors(stage.STATISTICS_FILE)
    mixed = rewrite(Store(own), Store(own).resolve("memory@1"), tensors={stage.STATISTICS_FILE: tensors})
    said = leak_of(mixed.ref, own)
    assert "its statistics were not counted over cloud, device: the share of item 'i" in said


def test_a_memory_of_the_block_that_is_judged_is_found(own: Path) -> None:
    """Legal for test, and a leak where the device period itself is the judge."""
    patches = made(own, "--cloud=cloud@1", "--on=device:1/2", *PATCHED).ref
    evaluation = done("evaluate", patches, *EVALUATE, "--on=device:2/2", store=own)["ref"]
    assert f"{patches}: memory@1 learned from cloud, device, and" in leak_of(evaluation, own)


@pytest.mark.parametrize("period", ["valid", "test"])
def test_memory_patches_that_learned_from_later_events_are_found(own: Path, period: str) -> None:
    patches = patched_on(period, CloudModel(Store(own).resolve("cloud@3")), epochs=1)
    evaluation = done("evaluate", patches.ref, *EVALUATE, f"--on={period}", store=own)["ref"]
    result = dcclctl("audit", evaluation, store=own)
    assert result.exit_code == 3
    assert f"LEAK    {evaluation}: {patches.ref}: {patches.ref} learned from {period}, and" in result.stdout
    if period == "test":
        assert leak_of(patches.ref, own).startswith(f"{patches.ref}: it learned from test, and ")


def test_a_patch_learned_with_a_model_that_knew_the_answers_is_found(own: Path) -> None:
    store = Store(own)
    for name, said in (
        ("cloud@3", "was learned from device with cloud@3, which was trained on"),
        ("cloud@2", "which is not in its lineage"),
    ):
        facts: dict[str, Any] = {"learned_with": [f"{store.resolve(name).id} on device"]}
        lie = rewrite(store, store.resolve("patches@2"), seed=len(said), facts=facts)
        assert said in leak_of(lie.ref, own)


def test_a_memory_of_another_dataset_is_found(own: Path, tmp_path: Path) -> None:
    ingest(tmp_path / "log", own, "--split=per-user")
    other = Store(own).resolve(done("memory", "--dataset=dataset@2", *MEMORY, store=own)["ref"])
    patches = Store(own).resolve("patches@2")
    mixed = rewrite(Store(own), patches, inputs=patches.inputs | {"memory": other.as_input()})
    assert "in its lineage from" in leak_of(mixed.ref, own)
