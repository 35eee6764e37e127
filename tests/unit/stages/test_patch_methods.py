"""patch --method …: every method through the same commands, with the same promises."""

from pathlib import Path

import polars as pl
import pytest
import torch
from dcclctl.stages.patch_methods import METHODS
from world import DISTILL, EVALUATE, World, dcclctl, done
from world import PATCH as METAPATCH

from dcclctl.artifacts import CloudModel, PatchSet, read_prior_mean
from dcclctl.config import METHOD_DEFAULTS, PatchConfig
from dcclctl.errors import UsageError
from dcclctl.stages.report import command_of
from dcclctl.store.store import Store

OTHERS = [name for name in METHODS if name != "metapatch"]
#: numbers of each user's code in the tiny shop: hidden layers of 16 and 8 units, K = 4
SIZES = dict.fromkeys(METHODS, 4) | {"label-correction": 5, "fine-tune": 16 * 8 + 8 + 8 + 1}
#: sizes and steps without a method
PATCH = METAPATCH[1:]
#: as PATCH, but a device step that suits hundreds of numbers too
MILD = (*PATCH[:-2], "--learning-rate=0.05", "--threads=1")


def patched(store: Path, method: str, *flags: str, users: str = "tail", cloud: str = "cloud@1") -> PatchSet:
    made = done("patch", f"--users={users}", f"--cloud={cloud}", f"--method={method}", *MILD, *flags, store=store)
    return PatchSet(Store(store).resolve(made["ref"]))


@pytest.mark.parametrize("method", OTHERS)
def test_codes_and_losses_do_not_depend_on_how_the_work_is_cut(shop: Path, method: str) -> None:
    usual = patched(shop, method)
    codes, mask = usual.codes()
    size = float(codes.abs().max())
    assert size > 1e-3  # large enough for a difference to show
    for flag in ("--shard-users=7", "--batch-rows=1"):
        other = patched(shop, method, flag)
        assert other.artifact.id != usual.artifact.id
        again, same = other.codes()
        assert torch.equal(mask, same)
        torch.testing.assert_close(again, codes, rtol=1e-4, atol=5e-4 * size)
        columns = ["loss_before", "loss_after"]
        for column in columns:
            pair = [patches.users.sort("user_index")[column].drop_nulls().to_numpy() for patches in (usual, other)]
            assert len(pair[0]) == len(pair[1]) and abs(pair[0] - pair[1]).max() < 1e-3


@pytest.mark.parametrize("method", OTHERS)
def test_facts_tables_and_evaluation(shop: Path, method: str) -> None:
    patches = patched(shop, method)
    facts = patches.artifact.facts
    assert facts["family"] == patches.family == METHODS[method].family
    assert facts["patch_size"] == SIZES[method] and facts["bytes_per_user"] == 4 * SIZES[method]
    judged = patches.users.drop_nulls("loss_after")
    assert facts["users_tested"] == judged.height > 5
    assert (judged["loss_before"] != judged["loss_after"]).mean() > 0.8
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


@pytest.mark.parametrize("method", OTHERS)
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


@pytest.mark.parametrize("method", OTHERS)
def test_the_same_command_gives_the_same_artifact(shop: Path, method: str) -> None:
    first = patched(shop, method)
    assert patched(shop, method, "--force").artifact.id == first.artifact.id


@pytest.mark.parametrize("method", OTHERS)
@pytest.mark.parametrize("cloud", ["cloud@1", "cloud@2"])  # without and with a basis and an encoder
def test_any_patches_can_teach(shop: Path, method: str, cloud: str) -> None:
    patches = patched(shop, method, cloud=cloud)
    made = done("distill", "--patches", patches.artifact.ref, *DISTILL, store=shop)
    files = Store(shop).resolve(made["ref"]).manifest["files"]
    assert ("basis.safetensors" in files) == (METHODS[method].family == "metapatch")


@pytest.mark.parametrize("method", list(METHODS))
def test_on_a_cloud_model_that_has_a_basis(shop: Path, method: str) -> None:
    """Methods that share the cloud's Θ keep it; those with one of their own say so, and U cannot serve with them."""
    patches = patched(shop, method, cloud="cloud@2")
    files = (patches.artifact.manifest["files"], Store(shop).resolve("cloud@2").manifest["files"])
    same = files[0].get("basis.safetensors") == files[1]["basis.safetensors"]
    assert same != METHODS[method].own_basis == patches.own_basis
    result = dcclctl("evaluate", patches.artifact.ref, "--unpatched=encoder", *EVALUATE, store=shop)
    assert result.exit_code == (2 if patches.own_basis else 0)
    assert ("has a basis of its own" in result.stderr) == patches.own_basis


def test_generated_codes_need_no_events_in_the_block(shop: Path) -> None:
    patches = patched(shop, "generated", users="all")
    assert patches.users.height == 60
    idle = patches.users.filter(pl.col("events") == 0)
    assert set(idle["user_id"]) >= {f"n{user}" for user in range(5)}
    codes, mask = patches.codes()
    assert mask.all() and codes.any(1).all()
    made = done("patch", "--users=new", "--cloud=cloud@1", "--method=generated", *MILD, store=shop)
    assert made["users"] == made["users_without_events"] == 5
    alone, _ = PatchSet(Store(shop).resolve(made["ref"])).codes()
    new = torch.from_numpy(idle.filter(pl.col("user_id").str.starts_with("n"))["user_index"].to_numpy().copy()).long()
    assert torch.equal(alone[new], codes[new])


def test_a_generated_code_on_trial_does_not_see_what_it_is_judged_on(shop: Path) -> None:
    """Held-back losses come from a shorter history than the code that is kept: they must change with --held-back."""
    some, more = (patched(shop, "generated", f"--held-back={share}") for share in (0.2, 0.6))
    assert torch.equal(some.codes()[0], more.codes()[0])
    assert not some.users["loss_after"].equals(more.users["loss_after"])


def test_similar_users_lend_more_with_more_weight(shop: Path) -> None:
    own = patched(shop, "metapatch").codes()[0]
    nothing = patched(shop, "similar-users", "--similar-weight=0").codes()[0]
    torch.testing.assert_close(nothing, own, rtol=1e-3, atol=1e-4)
    little, much = (patched(shop, "similar-users", f"--similar-weight={w}").codes()[0] for w in (0.05, 1.0))
    assert 0 < (little - own).norm() < (much - own).norm()


def test_methods_have_defaults_of_their_own_and_flags_win() -> None:
    plain = PatchConfig(method="metapatch")
    for method, own in METHOD_DEFAULTS.items():
        for name, value in own.items():
            assert getattr(PatchConfig(method=method), name) == value != getattr(plain, name)  # type: ignore[arg-type]
    assert PatchConfig(method="fine-tune", learning_rate=0.03).learning_rate == 0.03
    assert PatchConfig() == PatchConfig(method="memory")  # what is not named has its defaults too


def test_what_is_expected_of_a_device_is_learned_from_all(shop: Path) -> None:
    """μ moves everybody; without it a strong prior leaves the cloud model as it is."""
    flags = ("--prior=1000", "--basis-epochs=12")
    free, held = (patched(shop, "metapatch", f"--prior-mean={mean}", *flags) for mean in ("learned", "zero"))
    mean = read_prior_mean(free.artifact)
    assert mean.norm() > 0.05 and not read_prior_mean(held.artifact).any()
    codes, patched_users = free.codes()
    torch.testing.assert_close(codes[patched_users], mean.repeat(int(patched_users.sum()), 1), atol=0.05, rtol=0)
    assert not codes[~patched_users].any()  # nobody else is moved
    assert held.codes()[0].abs().max() < 0.05 < mean.abs().max()


def test_a_distilled_basis_stays_and_gets_a_mean_of_its_own(shop: Path) -> None:
    first = patched(shop, "metapatch", users="all")
    cloud = done("distill", f"--patches={first.artifact.ref}", *DISTILL, store=shop)["ref"]
    second = patched(shop, "metapatch", cloud=cloud)
    given = CloudModel(Store(shop).resolve(cloud)).basis()
    assert given is not None and torch.equal(second.basis().theta, given.theta)
    assert read_prior_mean(second.artifact).any()
    assert not read_prior_mean(patched(shop, "metapatch", "--prior-mean=zero", cloud=cloud).artifact).any()


@pytest.mark.parametrize("method", ["memory", "linearised", "random-basis", "generated", "item-space", "fine-tune"])
def test_a_mean_that_a_method_cannot_learn_is_refused(world: World, method: str) -> None:
    flags = (f"--method={method}", "--prior-mean=learned", "--cloud=cloud@1")
    result = dcclctl("patch", *flags, store=world.root)
    assert result.exit_code == 2 and "--prior-mean" in result.stderr and "metapatch" in result.stderr


def test_the_report_names_a_setting_that_differs_from_the_methods_default(shop: Path) -> None:
    made = {artifact.id: artifact for artifact in (Store(shop).resolve("cloud@1"),)}
    usual = patched(shop, "fine-tune").artifact
    command = command_of(usual, made)
    assert "--method fine-tune" in command and "--learning-rate 0.05" in command
    own = METHOD_DEFAULTS["fine-tune"]["learning_rate"]
    same = patched(shop, "fine-tune", f"--learning-rate={own}").artifact
    assert "--learning-rate" not in command_of(same, made)


def test_a_method_that_is_not_there(world: World) -> None:
    result = dcclctl("patch", "--method=magic", "--cloud=cloud@1", store=world.root)
    assert result.exit_code == 2 and "--method" in result.stderr
    with pytest.raises(UsageError, match="--newton-steps"):
        from dcclctl.config import resolve

        resolve(PatchConfig, newton_steps=0)
