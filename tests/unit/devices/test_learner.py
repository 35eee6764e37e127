"""How users are held back from and packed together, by plain loops; and that neither packing nor shards change what is learned."""

from pathlib import Path

import numpy as np
import pytest
import torch
from world import World

from dcclctl.devices.learner import held_back_of, packed
from dcclctl.stages.patch import patch
from dcclctl.store.store import Store


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.5, 1.0])
def test_the_newest_share_of_the_events_is_held_back(fraction: float) -> None:
    for count, held in enumerate(held_back_of(np.arange(60), fraction).tolist()):
        if fraction == 0 or count < 3:
            assert held == 0  # two events are too few to learn from one and test on the other
        else:
            assert held == min(max(1, int(count * fraction + 0.5)), count - 1)


@pytest.mark.parametrize("batch_rows", [1, 40, 200, 10**6])
def test_users_are_packed_with_others_of_similar_size(batch_rows: int) -> None:
    counts = np.random.default_rng(0).integers(1, 30, 50)
    batches = packed(counts, 5, batch_rows)
    assert sorted(np.concatenate(batches).tolist()) == list(range(50))
    assert all(len(users) == 1 or len(users) * counts[users].max() * 5 <= batch_rows for users in batches)
    largest = [counts[users].max() for users in batches]
    assert largest == sorted(largest)


@pytest.mark.parametrize("method", ["metapatch", "fine-tune"])
def test_shards_and_batches_change_nothing_but_the_last_digits(method: str, world: World, tmp_path: Path) -> None:
    store = Store(world.copy(tmp_path / "store"))
    cloud = World(store.root, world.log, {}).cloud()
    quick = {"method": method, "threads": 1, "prior": 0.1}
    if method == "metapatch":
        quick |= {"basis_epochs": 1, "patch_size": 4}
    one, many = (
        patch(cloud, {**quick, **how})
        for how in ({}, {"shard_users": 7, "batch_rows": 1})  # one user at a time
    )
    (ours, patched), (theirs, same) = one.codes(), many.codes()
    assert torch.equal(patched, same) and ours[patched].any(1).all()
    assert ((ours - theirs).norm(dim=1) <= 1e-3 * ours.norm(dim=1) + 1e-6).all()
    assert many.users["shard"].n_unique() > 1 == one.users["shard"].n_unique()
