"""patches@N+mean and patches@N+shuffled: whose θ̂ a user is served with, and how the commands name them."""

import itertools
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from world import EVALUATE, PATCH, World, dcclctl, done

from dcclctl.devices.placebos import mean_code, shuffled_codes, shuffled_histories
from dcclctl.devices.serving import Subject, split_suffix
from dcclctl.errors import UsageError
from dcclctl.events.log import TEST
from dcclctl.stages.evaluate import evaluate, open_subjects
from dcclctl.store.store import Store


def codes(n_users: int = 40, n_patched: int = 13) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    patched = torch.zeros(n_users, dtype=torch.bool)
    patched[torch.randperm(n_users, generator=generator)[:n_patched]] = True
    return torch.randn(n_users, 4, generator=generator) * patched[:, None], patched


def test_everyone_gets_the_mean_of_the_patched() -> None:
    given, patched = codes()
    expected = given.numpy()[patched.numpy()].mean(0)
    found = mean_code(given, patched)
    assert found.shape == given.shape
    np.testing.assert_allclose(found.numpy(), np.tile(expected, (40, 1)), rtol=1e-5)


@pytest.mark.parametrize("n_patched", [2, 3, 13, 40])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shuffled_patches_are_the_same_patches_each_at_another_user(n_patched: int, seed: int) -> None:
    given, patched = codes(n_patched=n_patched)
    found = shuffled_codes(given, patched, seed)
    # all θ̂ differ, so equality of rows is identity
    same = (found[:, None] == given[None]).all(-1) & patched & patched[:, None]
    assert (same.sum(0)[patched] == 1).all() and (same.sum(1)[patched] == 1).all()
    assert not same.diagonal().any()
    assert not found[~patched].any()


def test_the_seed_says_who_gets_whose() -> None:
    given, patched = codes()
    first, again, other = (shuffled_codes(given, patched, seed) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_shuffled_histories_are_another_users_before_the_period(world: World) -> None:
    """Never of the event's own period: what others do meanwhile is not known."""
    log = world.dataset().log
    events = log.events_in(TEST)
    rows = shuffled_histories(log, 0)(events)
    assert (log.user[rows] != log.user[events]).all()
    known = np.isin(log.user[rows], log.user[log.period < TEST])
    assert known.sum() > 50
    assert (log.period[rows[known]] < TEST).all()
    assert not log.history_lengths(rows[~known], 1).any()  # new users have no history to give
    given_by = dict(zip(log.user[events].tolist(), log.user[rows].tolist(), strict=True))
    assert len(set(given_by.values())) == len(given_by)  # each to one
    assert not np.array_equal(rows, shuffled_histories(log, 1)(events))


def test_suffixes_are_read() -> None:
    for plain, suffix in (("patches@3", "mean"), ("patches@3", "shuffled"), ("cloud@a1", "encoder")):
        assert split_suffix(f"{plain}+{suffix}") == (plain, suffix)
    assert split_suffix("cloud") == ("cloud", "")


@pytest.mark.parametrize("reference", ["cloud@1+mean", "cloud@2+shuffled", "patches@1+encoder", "patches@1+mean+mean"])
def test_suffixes_that_mean_nothing(world: World, reference: str) -> None:
    result = dcclctl("evaluate", reference, *EVALUATE, store=world.root)
    assert result.exit_code == 2, result.output


def test_placebos_beside_the_patches_in_all_tables(shop: Path) -> None:
    references = ["patches@1", "patches@1+mean", "patches@1+shuffled", "cloud@1"]
    made = done("evaluate", *references, *EVALUATE, store=shop)
    assert made["subjects"] == references
    table = Store(shop).resolve("evaluation").read_table("per_user.parquet")
    parts = table.partition_by("subject", maintain_order=True)
    losses = [part["log_loss"].to_list() for part in parts]
    assert all(a != b for a, b in itertools.pairwise(losses))
    served = [set(part["served_by"]) for part in parts]
    assert served == [{"patch", "cloud"}, {"patch"}, {"patch", "cloud"}, {"cloud"}]
    # who has no patch is served by the cloud model also when patches are shuffled
    unpatched = parts[0]["served_by"] == "cloud"
    assert parts[2].filter(unpatched)["log_loss"].equals(parts[3].filter(unpatched)["log_loss"])


def test_the_mean_of_one_users_patch_is_that_users_patch(shop: Path) -> None:
    done("patch", "--users=u7", "--cloud=cloud@1", *PATCH, store=shop)
    done("evaluate", "patches@2", "patches@2+mean", "cloud@1", *EVALUATE, store=shop)
    table = Store(shop).resolve("evaluation").read_table("per_user.parquet")
    own, mean, cloud = table.partition_by("subject", maintain_order=True)
    mine = pl.col("user_id") == "u7"
    columns = ["log_loss", "auc", "mrr"]
    assert own.filter(mine).select(columns).equals(mean.filter(mine).select(columns))
    others = own.filter(~mine)["log_loss"]
    assert others.equals(cloud.filter(~mine)["log_loss"]) and (others != mean.filter(~mine)["log_loss"]).all()


def test_one_patch_cannot_be_shuffled(shop: Path) -> None:
    done("patch", "--users=u7", "--cloud=cloud@1", *PATCH, store=shop)
    result = dcclctl("evaluate", "patches@2+shuffled", *EVALUATE, store=shop)
    assert result.exit_code == 2 and "patches@2 keeps 1 patches, too few" in result.stderr


def test_against_a_placebo(shop: Path) -> None:
    made = done("evaluate", "patches@1", "--against=patches@1+mean", *EVALUATE, store=shop)
    artifact = Store(shop).resolve(made["ref"])
    name = Subject.of("patches@1+mean", Store(shop)).name
    assert artifact.config["against"] == name and name.endswith("+mean")
    assert made["subjects"] == ["patches@1+mean", "patches@1"]
    assert artifact.read_table("comparison.parquet").height > 0
    with pytest.raises(UsageError, match="named twice"):
        evaluate(open_subjects(["patches@latest+mean", "patches@1+mean"], Store(shop)))


def test_the_report_says_what_a_placebo_is(shop: Path, tmp_path: Path) -> None:
    done("evaluate", "patches@1+mean", "patches@1+shuffled", "--against=cloud@1", *EVALUATE, store=shop)
    result = dcclctl("report", "--output", tmp_path / "report.html", store=shop)
    assert result.exit_code == 0, result.stderr
    text = (tmp_path / "report.html").read_text()
    assert (
        "the mean patch for every user on din (cloud@1)" in text and "patches of other users on din (cloud@1)" in text
    )


def test_one_user_scored_with_the_mean_patch(world: World) -> None:
    (found,) = done("score", "patches@1+mean", "--user=n1", store=world.root)["users"]
    assert found["served_by"] == {"cloud": "cloud", "patched": "patch"}
