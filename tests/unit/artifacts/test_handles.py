"""Artifacts that do not belong together are refused where they are opened, with both ids."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from world import EVALUATE, TRAIN, World, dcclctl, done, ingest, write_log

from dcclctl.artifacts import CloudModel, PatchSet
from dcclctl.devices.basis_files import basis_of, encoder_of
from dcclctl.errors import ArtifactError
from dcclctl.models.din import DinSettings
from dcclctl.models.kind import kind_of
from dcclctl.stages.ingest import ingest as ingest_stage
from dcclctl.stages.train import train
from dcclctl.store.store import Artifact, Store

OTHER = "0123456789ab" + "0" * 52


def tampered(artifact: Artifact, *path: str, value: Any = OTHER) -> Artifact:
    """The artifact with one entry of its manifest changed (as if it had been made so)."""
    manifest = copy.deepcopy(artifact.manifest)
    place = manifest
    for key in path[:-1]:
        place = place[key]
    assert place[path[-1]] != value
    place[path[-1]] = value
    return replace(artifact, manifest=manifest)


def refused(error: pytest.ExceptionInfo[ArtifactError], *texts: str) -> None:
    for text in texts:
        assert text in error.value.what, error.value.what
    assert "dcclctl artifacts lineage" in error.value.remedy


def test_what_a_handle_says_of_its_artifact(shop: Path) -> None:
    made, cloud = Store(shop).resolve("cloud@1"), CloudModel(Store(shop).resolve("cloud@1"))
    assert (cloud.ref, cloud.id, cloud.reused) == ("cloud@1", made.id, False)
    assert (cloud.config, cloud.facts) == (made.config, made.facts)
    assert (cloud.model, cloud.history, cloud.sizes["hidden_sizes"], cloud.round) == ("din", 8, [16, 8], 0)
    assert cloud.negatives == made.config["din"]["negatives"]
    assert cloud.store.resolve("cloud@1").id == made.id
    assert cloud.parent is None and cloud.dataset.ref == "dataset@1"
    distilled = CloudModel(Store(shop).resolve("cloud@2"))
    assert distilled.parent is not None and distilled.parent.id == cloud.id and distilled.round == 1
    patches = PatchSet(Store(shop).resolve("patches@1"))
    assert (patches.method, patches.settings["patch_size"], patches.cloud.id) == ("metapatch", 4, cloud.id)
    assert patches.memory is None and not patches.own_basis
    assert train(cloud.dataset, {"epochs": 1, "threads": 1}).reused is False
    assert train(cloud.dataset, {"epochs": 1, "threads": 1}).reused is True


def test_handles_on_one_dataset_share_its_tensors(world: World) -> None:
    # each of another store object, and the second one made before anything was read through the first
    first, second = world.cloud(1).dataset, world.cloud(2).dataset
    assert first.log is second.log is world.dataset().log


def test_another_id_map(world: World) -> None:
    for handle, reference in ((PatchSet, "patches@1"), (CloudModel, "cloud@1")):
        with pytest.raises(ArtifactError) as error:
            handle(tampered(world.artifact(reference), "facts", "id_map"))
        refused(error, "the id map", OTHER[:12], world.dataset().id_map[:12])


def test_patches_of_another_basis(shop: Path) -> None:
    done("patch", "--method=metapatch", "--cloud=cloud@2", "--threads=1", store=shop)
    made = Store(shop).resolve("patches")
    PatchSet(made)
    with pytest.raises(ArtifactError) as error:
        PatchSet(tampered(made, "files", "basis.safetensors", "sha256"))
    refused(error, "the basis Θ", OTHER[:12], made.file_id("basis.safetensors")[:12])


def test_patches_with_a_memory_of_another_dataset(shop: Path, tmp_path: Path) -> None:
    other = ingest(tmp_path / "log", shop, "--split=per-user")["ref"]
    memories = [done("memory", f"--dataset={ref}", store=shop) for ref in ("dataset@1", other)]
    patches = done("patch", "--cloud=cloud@1", "--memory=memory@1", "--set=epochs=1", "--threads=1", store=shop)["ref"]
    made = Store(shop).resolve(patches)
    assert PatchSet(made).memory is not None
    with pytest.raises(ArtifactError) as error:
        PatchSet(tampered(made, "inputs", "memory", "id", value=memories[1]["id"]))
    refused(error, "the dataset", Store(shop).resolve(other).id[:12], Store(shop).resolve("dataset@1").id[:12])


def test_an_input_that_is_gone(world: World) -> None:
    with pytest.raises(ArtifactError, match="is not in the store"):
        PatchSet(tampered(world.artifact("patches@1"), "inputs", "cloud", "id"))


def test_handles_of_the_world_fit(world: World) -> None:
    patches = PatchSet(world.artifact("patches@1"))
    codes, patched = patches.codes()
    assert codes.shape == (60, 4)
    assert patched.sum() == patches.users.height == 44
    assert not codes[~patched].any()
    assert (codes[patched].abs().sum(1) > 0).all()


def test_log_tensors_say_what_the_tables_say(world: World) -> None:
    dataset = world.dataset()
    log, items, users = dataset.log, dataset.items, dataset.users
    for item, categories in enumerate(items["category_indices"].to_list()):
        row = log.item_categories[item].tolist()
        assert [code for code in row if code != log.n_categories] == categories
    assert log.profile.tolist() == [list(row) for row in users.select("profile_age", "profile_city").rows()]
    assert all(int(log.profile[:, column].max()) < size for column, size in enumerate(log.profile_sizes))


def test_weights_come_back_bit_by_bit(world: World) -> None:
    model = kind_of("din").module(world.cloud(), torch.device("cpu"))
    saved = world.artifact("cloud@1").read_tensors("model.safetensors")
    named = dict(model.named_parameters())
    assert named.keys() == saved.keys()
    for name, weight in saved.items():
        assert torch.equal(named[name], weight)


def test_an_encoder_only_after_distilling(world: World) -> None:
    assert not world.cloud(1).has_encoder and not world.cloud(1).basis_id
    assert encoder_of(world.cloud(1)) is None and basis_of(world.cloud(1)) is None
    assert world.cloud(2).has_encoder and world.cloud(2).basis_id
    encoder, basis = encoder_of(world.cloud(2)), basis_of(world.cloud(2))
    assert encoder is not None and basis is not None
    assert encoder.out.shape[0] == basis.size == 4


def test_same_seed_same_start(world: World) -> None:
    kind, settings = kind_of("din"), DinSettings(**world.cloud().sizes)
    one, two, three = (
        kind.new(world.dataset().log, settings, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one.item_table, two.item_table)
    assert not torch.equal(one.item_table, three.item_table)


def test_a_cloud_that_is_gone_stops_every_command(shop: Path) -> None:
    """A store in which the patches' cloud has gone: the commands say so, with no traceback."""
    folder = Store(shop).resolve("cloud@1").path
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    for command in (["distill", "--patches=patches@1"], ["evaluate", "patches@1"], ["score", "patches@1", "--user=u1"]):
        result = dcclctl(*command, store=shop)
        assert result.exit_code == 3
        assert "is not in the store" in result.stderr and "dcclctl train" in result.stderr
    # made again, it has the same id, and everything works as before
    assert done("train", *TRAIN, store=shop)["reused"] is False
    assert done("evaluate", "patches@1", *EVALUATE, store=shop)["subjects"] == ["patches@1"]


def test_a_dataset_that_is_found_again_says_so_while_the_first_handle_is_in_use(tmp_path: Path) -> None:
    log, store = write_log(tmp_path / "log"), Store(tmp_path / "store")
    first, again = ingest_stage([log], store), ingest_stage([log], store)
    assert (first.id, first.reused, again.reused) == (again.id, False, True)
