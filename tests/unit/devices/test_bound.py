"""One device, or a minority of them, cannot decide what all others get."""

import numpy as np
import pytest
import torch
from tampered import rewrite
from world import DISTILL, PATCH, World, dcclctl, done, sets

from dcclctl.artifacts import PatchSet
from dcclctl.devices.bound import ABSURD, BoundedPatches, bounded
from dcclctl.store.store import Artifact, Store

honest = np.random.default_rng(1).normal(size=(400, 8)) * np.random.default_rng(2).gamma(4, 1, (400, 1))


def test_the_bound_hardly_moves_however_long_a_minority_is() -> None:
    mean = np.full(8, 0.5)
    clean = bounded(honest + mean, mean)
    assert not clean.rejected.any() and clean.clipped.mean() < 0.05
    for share, factor in ((0.05, 1e4), (0.2, 100.0), (0.2, -10.0)):
        sent = honest.copy()
        sent[: int(share * len(sent))] *= factor
        found = bounded(sent + mean, mean)
        assert clean.bound <= found.bound < 2 * clean.bound
        assert np.linalg.norm(found.theta[~found.rejected] - mean, axis=1).max() <= found.bound * 1.001
        assert found.rejected.sum() + found.clipped.sum() >= share * len(sent) * 0.8
        assert not found.rejected[int(share * len(sent)) :].any()


def test_what_is_within_the_bound_stays_to_the_bit_and_bounding_twice_changes_nothing() -> None:
    once = bounded(honest, np.zeros(8))
    assert np.array_equal(once.theta[~once.clipped], honest[~once.clipped])
    kept = once.theta[~once.rejected].astype(np.float32).astype(np.float64)
    again = bounded(kept, np.zeros(8))
    assert again.bound == pytest.approx(once.bound, rel=1e-5) and not again.clipped.any()


@pytest.mark.parametrize("theta", [np.zeros((5, 3)), np.ones((1, 3)), np.empty((0, 3))])
def test_few_or_equal_devices_lose_nothing(theta: np.ndarray) -> None:
    found = bounded(theta, np.zeros(3))
    assert not found.rejected.any() and not found.clipped.any()


def test_devices_that_learned_nothing_do_not_lower_the_bound() -> None:
    found = bounded(np.concatenate([np.zeros((300, 8)), honest[:100]]), np.zeros(8))
    assert found.bound == bounded(honest[:100], np.zeros(8)).bound


def with_theta(store: Store, artifact: Artifact, change: "dict[int, float]") -> PatchSet:
    """The patches with θ̂ of some rows of the first shard multiplied."""
    name = "theta-00000.safetensors"
    tensors = artifact.read_tensors(name)
    for row, factor in change.items():
        tensors["theta"][row] *= factor
    return PatchSet(rewrite(store, artifact, tensors={name: tensors}))


def test_distill_bounds_names_and_counts(shop, world: World) -> None:  # type: ignore[no-untyped-def]
    store = Store(shop)
    clean = store.resolve("patches@1")
    users = PatchSet(clean).users.filter(shard=0)["user_id"].to_list()
    made = with_theta(store, clean, {3: 1e4, 5: -1e4})
    result = dcclctl("distill", "--patches", made.ref, *DISTILL, store=shop)
    assert result.exit_code == 0, result.stderr
    assert f"2 patches of {made.ref}" in result.stderr and users[3] in result.stderr and users[5] in result.stderr
    facts = store.resolve("cloud@latest").facts
    assert facts["patches_rejected"] == 2
    assert facts["teachers"] == PatchSet(clean).users.height - 2
    assert not any(user in str(facts) for user in ("'u", '"u'))
    # without them, and with the others as they were, the same weights come out
    without = BoundedPatches(made)
    codes, patched = without.codes()
    own = made.users.filter(shard=0)["user_index"].to_list()
    assert not patched[own[3]] and not codes[own[5]].any()
    assert not without.users.filter(user_index=own[3])["kept"][0]
    limit = without.facts_of_bound()["patch_bound"]
    assert ABSURD * limit < 1e4


def test_unpatched_teachers_need_no_bound(shop) -> None:  # type: ignore[no-untyped-def]
    done("distill", "--teachers=unpatched", *DISTILL, store=shop)
    assert "patch_bound" not in Store(shop).resolve("cloud@latest").facts


def test_a_memory_patch_a_million_times_too_long_is_refused(shop) -> None:  # type: ignore[no-untyped-def]
    done("memory", store=shop)
    own = sets("patch.memory", epochs=1, hidden_size=4)
    made = done("patch", "--method=memory", "--cloud=cloud@1", *own, "--threads=1", store=shop)
    store = Store(shop)
    artifact = store.resolve(made["ref"])
    name = "memory_patch.safetensors"
    longer = {each: weight * 1e6 for each, weight in artifact.read_tensors(name).items()}
    bad = rewrite(store, artifact, tensors={name: longer})
    for command in (("distill", "--patches", bad.ref), ("evaluate", bad.ref), ("recommend", bad.ref)):
        result = dcclctl(*command, "--threads=1", store=shop)
        assert result.exit_code == 3 and name in result.stderr and bad.ref in result.stderr, result.output
    stretched = {each: weight[:1] for each, weight in artifact.read_tensors(name).items()}
    bad = rewrite(store, artifact, seed=5, tensors={name: stretched})
    result = dcclctl("evaluate", bad.ref, "--threads=1", store=shop)
    assert result.exit_code == 3 and "of the shape" in result.stderr


def test_fine_tuned_layers_are_bounded_around_zero(shop) -> None:  # type: ignore[no-untyped-def]
    made = done("patch", "--method=fine-tune", "--cloud=cloud@1", "--users=tail", "--threads=1", store=shop)
    store = Store(shop)
    bad = with_theta(store, store.resolve(made["ref"]), {0: 1e4})
    assert BoundedPatches(bad).facts_of_bound()["patches_rejected"] == 1
    assert torch.isfinite(BoundedPatches(bad).codes()[0]).all()
    assert PATCH  # the world's own patches are MetaPatch
