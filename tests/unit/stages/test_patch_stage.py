"""patch: who gets one, what it is made of, and what it does not depend on."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from world import N_USERS, PATCH, TRAIN, World, dcclctl, done, replaced

from dcclctl.artifacts import CloudModel, PatchSet
from dcclctl.errors import UsageError
from dcclctl.stages.chosen import chosen_users
from dcclctl.stages.memory import remember
from dcclctl.stages.patch import newest_memory, patch
from dcclctl.stages.run import RunOptions
from dcclctl.store.store import Store


def codes_of(store: Path, reference: str) -> dict[str, torch.Tensor]:
    """User id → θ̂, read from the files."""
    artifact = Store(store).resolve(reference)
    rows = artifact.read_table("users.parquet").to_dicts()
    return {
        row["user_id"]: artifact.read_tensors(f"theta-{row['shard']:05d}.safetensors")["theta"][row["row"]]
        for row in rows
    }


@pytest.mark.parametrize(
    "flag",
    [
        *(
            f"--set=patch.metapatch.{cut}"
            for cut in ("shard_users=1", "shard_users=7", "batch_rows=1", "batch_rows=200")
        ),
        "--threads=2",
    ],
)
def test_codes_do_not_depend_on_how_the_work_is_cut(world: World, shop: Path, flag: str) -> None:
    made = done("patch", "--users=tail", "--cloud=cloud@1", *replaced(PATCH, flag), store=shop)
    usual, other = codes_of(shop, "patches@1"), codes_of(shop, made["ref"])
    assert usual.keys() == other.keys() and not made["reused"]
    size = torch.stack(list(usual.values())).abs().max()
    assert size > 0.1  # large enough for a difference to show
    for user, code in usual.items():
        assert torch.allclose(code, other[user], rtol=1e-4, atol=1e-4 * float(size)), user


def test_one_user_alone_has_the_same_patch_as_among_all(world: World, shop: Path) -> None:
    """The basis is learned from everybody's events, so it does not depend on who is patched."""
    made = done("patch", "--users=u7", "--cloud=cloud@1", *PATCH, store=shop)
    code = codes_of(shop, made["ref"])["u7"]
    everybody = done("patch", "--users=all", "--cloud=cloud@1", *PATCH, store=shop)
    assert torch.allclose(code, codes_of(shop, everybody["ref"])["u7"], rtol=1e-4, atol=1e-5)


def test_the_model_stays_as_it_was(world: World, shop: Path) -> None:
    done("patch", "--cloud=cloud@1", *PATCH, "--seed=2", store=shop)
    assert Store(shop).verify("cloud", 1) == {}
    assert Store(shop).resolve("cloud@1").id == world.ids["train"]


def test_groups_ids_and_files(world: World, tmp_path: Path) -> None:
    dataset = world.dataset()
    for group, count in dataset.artifact.facts["groups"].items():
        members, spec = chosen_users(dataset, group)
        assert (len(members), spec) == (count, group)
        assert set(dataset.users["group"].gather(members)) == {group}
    assert len(chosen_users(dataset, "all")[0]) == N_USERS
    listed = tmp_path / "ids.txt"
    listed.write_text("u3\n\n  u1 \nn0\n")
    members, spec = chosen_users(dataset, f"@{listed}")
    assert set(dataset.users["user_id"].gather(members)) == {"u1", "u3", "n0"}
    assert spec.startswith("@sha256:") and str(tmp_path) not in spec
    assert np.array_equal(members, chosen_users(dataset, " u3, u1,n0")[0])
    assert np.array_equal(members, np.sort(members))


def test_a_file_from_an_editor_that_writes_a_byte_order_mark(world: World, tmp_path: Path) -> None:
    listed = tmp_path / "ids.txt"
    listed.write_text("u3\r\nu1\r\n", encoding="utf-8-sig", newline="")
    assert len(chosen_users(world.dataset(), f"@{listed}")[0]) == 2


def test_the_same_list_in_another_file_is_the_same_artifact(shop: Path, tmp_path: Path) -> None:
    made = []
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("u1\nu2\n")
        made.append(done("patch", f"--users=@{tmp_path / name}", "--cloud=cloud@1", *PATCH, store=shop))
    assert made[0]["id"] == made[1]["id"] and made[1]["reused"]


def test_named_users_are_not_in_the_manifest_and_their_order_does_not_matter(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "two.txt").write_text("u1\nu2\n")
    given = ("u1,u2", "u2, u1,u1", f"@{tmp_path / 'two.txt'}")
    made = [done("patch", f"--users={users}", "--cloud=cloud@1", *PATCH, store=shop) for users in given]
    assert len({each["id"] for each in made}) == 1
    manifest = Store(shop).resolve(made[0]["ref"]).manifest
    assert manifest["config"]["users"].startswith("@sha256:")
    assert '"u1' not in json.dumps(manifest) and "u1," not in json.dumps(manifest)
    other = done("patch", "--users=u1,u3", "--cloud=cloud@1", *PATCH, store=shop)
    assert other["id"] != made[0]["id"]


@pytest.mark.parametrize(
    ("users", "code", "messages"),
    [
        ("u1,u999,zz", 2, ["dataset@1 has no user u999, zz", "u"]),
        ("tial", 2, ["has no user tial", "tail, head, all, new, @FILE"]),
        (",", 2, ["--users is empty"]),
        ("@nowhere.txt", 2, ["cannot read nowhere.txt", "one user id a line"]),
        ("@", 2, ["cannot read", "one user id a line"]),
        ("new", 3, ["has an event in device", "--unpatched encoder"]),
    ],
)
def test_users_that_cannot_be_patched(world: World, users: str, code: int, messages: list[str]) -> None:
    result = dcclctl("patch", f"--users={users}", "--cloud=cloud@1", *PATCH, store=world.root)
    assert result.exit_code == code
    assert all(message in result.stderr for message in messages), result.stderr


def test_ids_with_commas_are_chosen_by_a_file(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text(
        "user,item,time\n" + "".join(f'"{name}, 1",i{n},{n}\n' for name in ("ä", "b", "c") for n in range(1, 6))
    )
    done("ingest", log, "--split=per-user", "--time-unit=ordinal", store=tmp_path / "store")
    done("train", "--model=popularity", store=tmp_path / "store")
    refused = dcclctl("recommend", "cloud@1", "--users=b, 1", store=tmp_path / "store")
    assert refused.exit_code == 2 and "Ids with commas go into @FILE, one a line." in refused.stderr
    (tmp_path / "some.txt").write_text("b, 1\n")
    made = done("recommend", "cloud@1", f"--users=@{tmp_path}/some.txt", "--exclude=none", store=tmp_path / "store")
    assert made["lists"] == 1


def test_chosen_users_without_events_are_counted(shop: Path) -> None:
    made = done("patch", "--users=u1,n0,n1", "--cloud=cloud@1", *PATCH, store=shop)
    assert (made["users"], made["users_without_events"]) == (1, 2)
    shown = dcclctl("patch", "--users=u1,n0,n1", "--cloud=cloud@1", *PATCH, store=shop).stdout
    assert "2 of the chosen users have no event in device and get no patch" in shown


def test_table_of_patched_users(world: World) -> None:
    artifact = world.artifact("patches@1")
    table = artifact.read_table("users.parquet")
    dataset = world.dataset()
    events = dataset.artifact.read_table("events.parquet").filter(pl.col("period") == 1)
    tail = dataset.users.filter(pl.col("group") == "tail")["user_index"]
    expected = events.filter(pl.col("user_index").is_in(tail.to_list())).group_by("user_index").len().sort("user_index")
    assert table["user_index"].to_list() == expected["user_index"].to_list()
    assert table["events"].to_list() == expected["len"].to_list()
    assert table["kept"].all()
    # fewer than three events: nothing can be held back
    assert table.filter(pl.col("events") < 3)["loss_after"].is_null().all()
    assert table.filter(pl.col("events") >= 3)["loss_after"].is_not_null().all()
    assert artifact.facts["users_tested"] == table.filter(pl.col("events") >= 3).height
    assert artifact.facts["bytes_per_user"] == 16


def test_guard_keeps_only_what_won_on_held_back_events(world: World, shop: Path) -> None:
    made = done("patch", "--users=tail", "--cloud=cloud@1", *PATCH, "--guard", store=shop)
    guarded = Store(shop).resolve(made["ref"]).read_table("users.parquet")
    free = Store(shop).resolve("patches@1").read_table("users.parquet")
    wins = (free["loss_after"] < free["loss_before"]).fill_null(False)
    assert 0 < wins.sum() < len(wins)
    assert guarded["kept"].to_list() == wins.to_list()
    assert made["kept"] == wins.sum()
    usual, now = codes_of(shop, "patches@1"), codes_of(shop, made["ref"])
    for user, won in zip(guarded["user_id"], wins, strict=True):
        assert torch.equal(now[user], usual[user] if won else torch.zeros_like(usual[user]))
    codes, patched = PatchSet(Store(shop).resolve(made["ref"])).codes()
    assert int(patched.sum()) == made["kept"]
    assert not codes[~patched].any()
    shown = dcclctl("patch", "--users=tail", "--cloud=cloud@1", *PATCH, "--guard", store=shop).stdout
    assert f"the guard kept {made['kept']} patches and switched {len(wins) - made['kept']} off" in shown


def test_no_guard_on_the_command_line_wins_over_the_file(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text("[patch]\nguard = true\n")
    flags = ("--users=tail", "--cloud=cloud@1", "--config", tmp_path / "settings.toml", *PATCH)
    made = done("patch", *flags, "--no-guard", store=shop)
    assert (made["ref"], made["reused"]) == ("patches@1", True)
    assert done("patch", *flags, store=shop)["ref"] == "patches@2"


def test_a_cloud_with_a_basis_brings_its_sizes(world: World, shop: Path) -> None:
    made = done("patch", "--method=metapatch", "--cloud=cloud@2", "--threads=1", store=shop)
    artifact = Store(shop).resolve(made["ref"])
    assert (artifact.config["metapatch"]["patch_size"], artifact.config["metapatch"]["bottleneck"]) == (4, 2)
    files = (artifact.manifest["files"], world.artifact("cloud@2").manifest["files"])
    assert files[0]["basis.safetensors"] == files[1]["basis.safetensors"]  # Θ is frozen on the device


def test_part_of_a_period(world: World, shop: Path) -> None:
    whole = done("patch", "--cloud=cloud@1", *PATCH, store=shop)
    parts = [done("patch", "--cloud=cloud@1", *PATCH, f"--on=device:{part}/2", store=shop) for part in (1, 2)]
    events = [Store(shop).resolve(made["ref"]).facts["events"] for made in (whole, *parts)]
    assert events[0] == events[1] + events[2] and events[1] > 0 and events[2] > 0


def test_the_newest_cloud_is_patched_by_default(shop: Path) -> None:
    assert done("patch", *PATCH, store=shop)["cloud"] == "cloud@2"
    done("train", *TRAIN, "--seed=9", store=shop)
    assert done("patch", *PATCH, store=shop)["cloud"] == "cloud@3"


def test_diverged_basis_is_exit_4(shop: Path) -> None:
    result = dcclctl("patch", "--cloud=cloud@1", "--set=patch.metapatch.basis_learning_rate=1e30", *PATCH, store=shop)
    assert result.exit_code == 4
    assert "--set patch.metapatch.basis_learning_rate" in result.stderr


@pytest.mark.parametrize("method", ["metapatch", "memory"])
def test_patches_see_as_many_negatives_as_their_cloud_model_did(shop: Path, method: str) -> None:
    """Else a patch learns that clicks are more frequent, or rarer, than the model beneath says."""
    cloud = done("train", *TRAIN, "--epochs=1", "--set=negatives=7", store=shop)["ref"]
    flags = (f"--cloud={cloud}", f"--method={method}", "--threads=1")
    made = Store(shop).resolve(done("patch", *flags, store=shop)["ref"])
    assert made.config["negatives"] == 7
    fewer = Store(shop).resolve(done("patch", *flags, "--set=patch.negatives=2", store=shop)["ref"])
    assert fewer.config["negatives"] == 2
    assert done("patch", *flags, "--set=negatives=7", store=shop)["reused"]


def test_without_a_memory_one_is_made_on_the_way(shop: Path, tmp_path: Path) -> None:
    """Also from Python, with the settings of the file; the next patches take the same one."""
    store = Store(shop)
    cloud = CloudModel(store.resolve("cloud@1"))
    file = tmp_path / "dccl.toml"
    file.write_text("[memory]\nsize = 7\n[patch.memory]\nepochs = 1\n")
    assert newest_memory(cloud.dataset) is None
    made = patch(cloud, {"threads": 1}, RunOptions(config=file))
    assert (made.method, made.settings["epochs"]) == ("memory", 1)
    assert made.memory is not None and made.memory.ref == "memory@1" and made.memory.size == 7
    again = patch(cloud, {"threads": 1, "users": "tail"}, RunOptions(config=file))
    assert again.memory is not None and again.memory.id == made.memory.id
    assert store.numbers("memory") == [1]
    other = remember(cloud.dataset, {"size": 9})
    chosen = patch(cloud, {"threads": 1, "users": "tail"}, RunOptions(config=file), memory=made.memory)
    assert chosen.reused and chosen.id == again.id
    newest = patch(cloud, {"threads": 1, "users": "tail"}, RunOptions(config=file))
    assert newest.memory is not None and newest.memory.id == other.id
    for method in ("metapatch", "fine-tune"):
        with pytest.raises(UsageError, match="uses no memory"):
            patch(cloud, {"threads": 1, "method": method}, memory=other)


def test_a_memory_is_made_for_methods_that_use_one_only(shop: Path) -> None:
    made = patch(CloudModel(Store(shop).resolve("cloud@1")), {"method": "fine-tune", "steps": 1, "threads": 1})
    assert made.memory is None and Store(shop).numbers("memory") == []
