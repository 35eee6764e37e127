"""Artifacts that do not belong together are refused where they are opened, with both ids."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dcclctl.stages.handles import CloudModel, Dataset, PatchSet, new_model
from world import EVALUATE, TRAIN, World, dcclctl, done, ingest

from dcclctl.config import TrainConfig
from dcclctl.errors import ArtifactError
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


def test_patches_of_another_cloud(world: World) -> None:
    patches, cloud = world.artifact("patches@1"), world.cloud(2)
    with pytest.raises(ArtifactError) as error:
        PatchSet(patches, cloud)
    refused(error, "patches@1 and cloud@2", "cloud model", world.ids["train"][:12], world.ids["distill"][:12])
    with pytest.raises(ArtifactError) as error:
        PatchSet(tampered(patches, "inputs", "cloud", "id"), world.cloud(1))
    refused(error, OTHER[:12], world.ids["train"][:12])


def test_patches_of_another_id_map(world: World) -> None:
    with pytest.raises(ArtifactError) as error:
        PatchSet(tampered(world.artifact("patches@1"), "facts", "id_map"), world.cloud())
    refused(error, "the id map", OTHER[:12], world.dataset().id_map[:12])


def test_patches_of_another_basis(shop: Path) -> None:
    done("patch", "--method=metapatch", "--cloud=cloud@2", "--threads=1", store=shop)
    place = Store(shop)
    made = place.resolve("patches")
    PatchSet.load(made, place)
    own = made.manifest["files"]["basis.safetensors"]["sha256"]
    with pytest.raises(ArtifactError) as error:
        PatchSet(
            tampered(made, "files", "basis.safetensors", "sha256"), CloudModel.load(place.resolve("cloud@2"), place)
        )
    refused(error, "the basis Θ", OTHER[:12], own[:12])


def test_a_cloud_of_another_dataset(world: World, tmp_path: Path) -> None:
    ingest(tmp_path / "log", tmp_path / "store", "--repeats=keep")
    other = Dataset(Store(tmp_path / "store").resolve("dataset"))
    with pytest.raises(ArtifactError) as error:
        CloudModel(world.artifact("cloud@1"), other)
    refused(error, "the dataset", world.ids["ingest"][:12], other.artifact.id[:12])
    with pytest.raises(ArtifactError) as error:
        CloudModel(tampered(world.artifact("cloud@1"), "facts", "id_map"), world.dataset())
    refused(error, "the id map", OTHER[:12], world.dataset().id_map[:12])


def test_an_input_that_is_gone(world: World) -> None:
    with pytest.raises(ArtifactError, match="is not in the store"):
        PatchSet.load(tampered(world.artifact("patches@1"), "inputs", "cloud", "id"), world.store)


def test_handles_of_the_world_fit(world: World) -> None:
    patches = PatchSet.load(world.artifact("patches@1"), world.store)
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
    model = world.cloud().module(TrainConfig(device="cpu", threads=1))
    saved = world.artifact("cloud@1").read_tensors("model.safetensors")
    named = dict(model.named_parameters())
    assert named.keys() == saved.keys()
    for name, weight in saved.items():
        assert torch.equal(named[name], weight)


def test_an_encoder_only_after_distilling(world: World) -> None:
    assert world.cloud(1).encoder() is None and world.cloud(1).basis() is None
    encoder = world.cloud(2).encoder()
    basis = world.cloud(2).basis()
    assert encoder is not None and basis is not None
    assert encoder.out.shape[0] == basis.size == 4


def test_same_seed_same_start(world: World) -> None:
    settings = world.cloud().settings
    one, two, three = (new_model(settings, world.dataset(), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
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
