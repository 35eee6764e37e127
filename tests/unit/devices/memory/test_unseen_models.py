"""Cross-fitting: for each part of what devices learn from, the newest model of the lineage that was not trained on it."""

import pytest
from world import World

from dcclctl.artifacts import CloudModel
from dcclctl.devices.memory.method import learned_from, unseen_model_per_block
from dcclctl.errors import UsageError
from dcclctl.events.log import CLOUD, DEVICE, VALID, Block
from dcclctl.stages.distill import distill
from dcclctl.stages.memory import remember
from dcclctl.stages.patch import patch
from dcclctl.stages.train import train
from dcclctl.store.store import Store

WHOLE, FIRST, SECOND = Block(DEVICE), Block(DEVICE, 1, 2), Block(DEVICE, 2, 2)
QUICK = {"epochs": 1, "threads": 1}


@pytest.fixture(scope="module")
def start(world: World, tmp_path_factory: pytest.TempPathFactory) -> CloudModel:
    """cloud@1 of the world, trained on cloud, in a store of these tests' own."""
    store = Store(world.copy(tmp_path_factory.mktemp("lineage") / "store"))
    return World(store.root, world.log, {}).cloud(1)


def further(model: CloudModel, *on: str) -> CloudModel:
    """The model trained further, one block after another."""
    for block in on:
        model = train(model.dataset, {"on": [block], "patience": 0, **QUICK}, start=model)
    return model


def found(model: CloudModel, block: Block) -> list[tuple[str, Block]]:
    return [(unseen.id, part) for unseen, part in unseen_model_per_block(model, block)]


def test_a_model_that_was_not_trained_on_the_block_is_its_own_unseen_model(start: CloudModel) -> None:
    assert found(start, WHOLE) == [(start.id, WHOLE)]
    assert found(start, Block(DEVICE, 2, 3)) == [(start.id, Block(DEVICE, 2, 3))]
    half = further(start, "device:1/2")
    assert found(half, SECOND) == [(half.id, SECOND)]


def test_a_further_training_gives_its_parent(start: CloudModel) -> None:
    fresh = further(start, "device")
    assert found(fresh, WHOLE) == [(start.id, WHOLE)]
    assert found(fresh, SECOND) == [(start.id, SECOND)]  # nothing outside the block


def test_every_part_has_the_newest_model_that_has_not_seen_it(start: CloudModel) -> None:
    half = further(start, "device:1/2")
    both = further(half, "device:2/2")
    again = further(both, "device")  # sees all of it again
    for model in (half, both, again):
        assert found(model, WHOLE) == [(start.id, FIRST), (half.id, SECOND)]
    assert found(both, Block(DEVICE, 2, 4)) == [(start.id, Block(DEVICE, 2, 4))]
    # a block across the cut is cut there too
    assert found(both, Block(DEVICE, 2, 3)) == [(start.id, Block(DEVICE, 3, 6)), (half.id, Block(DEVICE, 4, 6))]


def test_the_parts_are_the_block_and_no_model_was_trained_on_its_part(start: CloudModel) -> None:
    model = further(start, "device:1/3", "device:2/3", "device:3/3")
    log = start.dataset.log
    for block in (WHOLE, FIRST, Block(DEVICE, 2, 5)):
        parts = unseen_model_per_block(model, block)
        rows = [event for _, part in parts for event in log.events_in(part)]
        assert sorted(rows) == log.events_in(block).tolist()
        for unseen, part in parts:
            assert not set(log.events_in(part)) & set(log.events_in(*learned_from(unseen.artifact)))


def test_what_the_teachers_learned_a_distilled_model_has_learned(start: CloudModel) -> None:
    """The student learns from the second half, its teachers from the first; a memory has counted events too."""
    settings = {"method": "metapatch", "on": "device:1/2", "basis_epochs": 1, "patch_size": 4, "threads": 1}
    taught = distill(patch(start, settings), {"on": "device:2/2", "basis_epochs": 1, **QUICK})
    assert learned_from(taught.artifact) == {Block(CLOUD), FIRST, SECOND}
    assert found(taught, WHOLE) == [(start.id, FIRST), (start.id, SECOND)]
    memory = remember(start.dataset, {"counted_through": "device:1/3", "size": 8, "neighbours": 5})
    teachers = patch(start, {"method": "memory", "on": "device:2/3", "hidden_size": 4, **QUICK}, memory=memory)
    taught = distill(teachers, {"method": "from-memory", "on": "device:3/3", **QUICK})
    thirds = [Block(DEVICE, part, 3) for part in (1, 2, 3)]
    assert learned_from(taught.artifact) == {Block(CLOUD), *thirds}
    assert found(taught, WHOLE) == [(start.id, part) for part in thirds]
    assert found(taught, Block(VALID)) == [(taught.id, Block(VALID))]


def test_models_that_were_trained_on_everything_at_once_are_refused_with_the_remedy(start: CloudModel) -> None:
    at_once = train(start.dataset, {"on": ["cloud", "device"], **QUICK})
    with pytest.raises(UsageError) as error:
        unseen_model_per_block(at_once, SECOND)
    assert f"{at_once.ref} was trained on cloud, device at once" in error.value.what
    assert "Every model in this lineage was trained on device:2/2" in error.value.what
    assert "dcclctl patch --learn-with REF" in error.value.remedy
    after = further(at_once, "device")
    with pytest.raises(UsageError) as error:
        unseen_model_per_block(after, WHOLE)
    assert (
        f"{at_once.ref}, the first model in the lineage of {after.ref}, was trained on cloud, device"
        in error.value.what
    )


def test_the_remedy_names_the_kind_of_model(start: CloudModel) -> None:
    counts = train(start.dataset, {"model": "popularity", "on": ["cloud", "device"], "threads": 1})
    with pytest.raises(UsageError) as error:
        unseen_model_per_block(counts, WHOLE)
    assert "a model that ends before device: dcclctl train --model popularity --on cloud" in error.value.remedy


def test_a_block_in_too_many_parts_is_refused(start: CloudModel) -> None:
    model = further(start, "device:1/997")
    with pytest.raises(UsageError) as error:
        unseen_model_per_block(model, WHOLE)
    assert f"{model.ref} was trained on device:1/997, which cut device into 997 parts" in error.value.what
    assert "device:1/3, device:2/3, device:3/3" in error.value.remedy
