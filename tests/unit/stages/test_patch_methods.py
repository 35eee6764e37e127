"""patch --method …: every method through the same commands, with the same promises."""

from pathlib import Path

import polars as pl
import pytest
import torch
from world import DISTILL, EVALUATE, World, dcclctl, done, sets

from dcclctl.artifacts import CloudModel, PatchSet
from dcclctl.devices.basis_files import basis_of, read_basis, read_prior_mean
from dcclctl.devices.method import METHODS, method_of
from dcclctl.errors import UsageError
from dcclctl.stages.patch import patch
from dcclctl.stages.report import command_of
from dcclctl.store.store import Store

#: methods that learn numbers θ̂ for each user → how many in the tiny shop: hidden layers of 16 and 8 units, K = 4
SIZES = {"metapatch": 4, "fine-tune": 16 * 8 + 8 + 8 + 1}
OWN = {"metapatch": {"patch_size": 4, "bottleneck": 2, "basis_epochs": 2}, "fine-tune": {}}
each_method = pytest.mark.parametrize("method", list(SIZES))


def patched(
    store: Path, name: str, *flags: str, users: str = "tail", cloud: str = "cloud@1", **settings: object
) -> PatchSet:
    own: dict[str, object] = {"prior": 0.05, "shard_users": 20, "learning_rate": 0.05} | OWN[name] | settings
    given = (f"--users={users}", f"--cloud={cloud}", f"--method={name}", "--threads=1", *sets(f"patch.{name}", **own))
    return PatchSet(Store(store).resolve(done("patch", *given, *flags, store=store)["ref"]))


@each_method
def test_codes_and_losses_do_not_depend_on_how_the_work_is_cut(shop: Path, method: str) -> None:
    usual = patched(shop, method)
    codes, mask = usual.codes()
    size = float(codes.abs().max())
    assert size > 1e-3  # large enough for a difference to show
    for cut in ({"shard_users": 7}, {"batch_rows": 1}):
        other = patched(shop, method, **cut)
        assert other.artifact.id != usual.artifact.id
        again, same = other.codes()
        assert torch.equal(mask, same)
        torch.testing.assert_close(again, codes, rtol=1e-4, atol=5e-4 * size)
        columns = ["loss_before", "loss_after"]
        for column in columns:
            pair = [patches.users.sort("user_index")[column].drop_nulls().to_numpy() for patches in (usual, other)]
            assert len(pair[0]) == len(pair[1]) and abs(pair[0] - pair[1]).max() < 1e-3


@each_method
def test_facts_tables_and_evaluation(shop: Path, method: str) -> None:
    patches = patched(shop, method)
    facts = patches.artifact.facts
    assert patches.method == method and facts["own_basis"] == patches.own_basis == method_of(method).own_basis
    assert facts["patch_size"] == SIZES[method] and facts["bytes_per_user"] == 4 * SIZES[method]
    tested = patches.users.drop_nulls("loss_after")
    assert facts["users_tested"] == tested.height > 5
    assert (tested["loss_before"] != tested["loss_after"]).mean() > 0.8
    ref = patches.artifact.ref
    made = done("evaluate", "cloud@1", ref, f"{ref}+mean", f"{ref}+shuffled", *EVALUATE, store=shop)
    cloud, own, mean, shuffled = (
        Store(shop).resolve(made["ref"]).read_table("per_user.parquet").partition_by("subject", maintain_order=True)
    )
    served = own["served_by"] == "patch"
    assert served.sum() > 10 and (own.filter(served)["log_loss"] != cloud.filter(served)["log_loss"]).all()
    assert own.filter(~served)["log_loss"].equals(cloud.filter(~served)["log_loss"])
    assert (mean["log_loss"] != cloud["log_loss"]).all()
    assert (shuffled.filter(served)["log_loss"] != own.filter(served)["log_loss"]).any()


@each_method
def test_a_switched_off_patch_is_the_cloud_model_to_the_last_bit(shop: Path, method: str) -> None:
    patches = patched(shop, method, "--guard")
    kept = patches.users.filter("kept")["user_id"]
    assert 0 < len(kept) < patches.users.height
    codes, mask = patches.codes()
    assert int(mask.sum()) == len(kept) and not codes[~mask].any()
    made = done("evaluate", "cloud@1", patches.artifact.ref, *EVALUATE, store=shop)
    cloud, own = (
        Store(shop).resolve(made["ref"]).read_table("per_user.parquet").partition_by("subject", maintain_order=True)
    )
    off = ~own["user_id"].is_in(kept.to_list())
    columns = ["auc", "mrr", "log_loss"]
    assert own.filter(off).select(columns).equals(cloud.filter(off).select(columns))
    wins = patches.users.select((pl.col("loss_after") < pl.col("loss_before")).fill_null(False)).to_series()
    assert patches.users["kept"].equals(wins.alias("kept"))


@each_method
def test_the_same_command_gives_the_same_artifact(shop: Path, method: str) -> None:
    first = patched(shop, method)
    assert patched(shop, method, "--force").artifact.id == first.artifact.id


@each_method
@pytest.mark.parametrize("cloud", ["cloud@1", "cloud@2"])  # without and with a basis and an encoder
def test_any_patches_can_teach(shop: Path, method: str, cloud: str) -> None:
    patches = patched(shop, method, cloud=cloud)
    made = done("distill", "--patches", patches.artifact.ref, *DISTILL, store=shop)
    files = Store(shop).resolve(made["ref"]).manifest["files"]
    assert ("basis.safetensors" in files) == (method == "metapatch")


@each_method
def test_on_a_cloud_model_that_has_a_basis(shop: Path, method: str) -> None:
    """Methods that share the cloud's Θ keep it; those with one of their own say so, and U cannot serve with them."""
    patches = patched(shop, method, cloud="cloud@2")
    files = (patches.artifact.manifest["files"], Store(shop).resolve("cloud@2").manifest["files"])
    same = files[0].get("basis.safetensors") == files[1]["basis.safetensors"]
    assert same != patches.own_basis == (method == "fine-tune")
    result = dcclctl("evaluate", patches.artifact.ref, "--unpatched=encoder", *EVALUATE, store=shop)
    assert result.exit_code == (2 if patches.own_basis else 0)
    assert ("has a basis of its own" in result.stderr) == patches.own_basis


@pytest.mark.parametrize("model", ["popularity", "bpr", "sasrec"])
def test_a_cloud_model_without_a_place_for_the_patch_is_refused(shop: Path, model: str) -> None:
    ref = done("train", f"--model={model}", "--dataset=dataset@1", "--threads=1", store=shop)["ref"]
    for method in ("metapatch", "fine-tune"):
        if (method, model) == ("metapatch", "sasrec"):
            continue  # after its states
        result = dcclctl("patch", f"--cloud={ref}", f"--method={method}", "--threads=1", store=shop)
        assert result.exit_code == 2
        assert f"--method {method} cannot patch {ref}, a {model} model" in result.stderr
        assert "--method memory" in result.stderr and "dcclctl train --model din" in result.stderr


def test_what_is_expected_of_a_device_is_learned_from_all(shop: Path) -> None:
    """μ moves everybody; without it a strong prior leaves the cloud model as it is."""
    strong = {"prior": 1000, "basis_epochs": 12}
    free, held = (patched(shop, "metapatch", prior_mean=mean, **strong) for mean in ("learned", "zero"))
    mean = read_prior_mean(free.artifact)
    assert mean.norm() > 0.05 and not read_prior_mean(held.artifact).any()
    codes, has_patch = free.codes()
    torch.testing.assert_close(codes[has_patch], mean.repeat(int(has_patch.sum()), 1), atol=0.05, rtol=0)
    assert not codes[~has_patch].any()  # nobody else is moved
    assert held.codes()[0].abs().max() < 0.05 < mean.abs().max()


def test_a_distilled_basis_stays_and_gets_a_mean_of_its_own(shop: Path) -> None:
    first = patched(shop, "metapatch", users="all")
    cloud = done("distill", f"--patches={first.artifact.ref}", *DISTILL, store=shop)["ref"]
    second = patched(shop, "metapatch", cloud=cloud)
    given = basis_of(CloudModel(Store(shop).resolve(cloud)))
    assert given is not None and torch.equal(read_basis(second.artifact).theta, given.theta)
    assert read_prior_mean(second.artifact).any()
    assert not read_prior_mean(patched(shop, "metapatch", prior_mean="zero", cloud=cloud).artifact).any()


def test_a_distilled_basis_keeps_its_sizes(world: World) -> None:
    for name, value in (("patch_size", 8), ("bottleneck", 3)):
        with pytest.raises(UsageError, match=f"has a basis Θ with {name}"):
            patch(world.cloud(2), {"method": "metapatch", name: value, "threads": 1})


def test_the_report_names_a_setting_that_differs_from_the_methods_default(shop: Path) -> None:
    made = {artifact.id: artifact for artifact in (Store(shop).resolve("cloud@1"),)}
    command = command_of(patched(shop, "fine-tune").artifact, made)
    assert "--method fine-tune" in command and "--set patch.fine-tune.learning_rate=0.05" in command
    own = method_of("fine-tune").Settings().learning_rate
    same = patched(shop, "fine-tune", learning_rate=own).artifact
    assert "learning_rate" not in command_of(same, made)


def test_a_method_that_is_not_there(world: World) -> None:
    result = dcclctl("patch", "--method=memori", "--cloud=cloud@1", store=world.root)
    assert result.exit_code == 2
    assert "--method 'memori': there is no such method" in result.stderr and "Did you mean 'memory'?" in result.stderr
    assert set(METHODS) == {*SIZES, "memory"}
