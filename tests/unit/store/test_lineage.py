"""ancestors(): everything that artifacts were made from."""

import gc
import weakref
from pathlib import Path

import pytest
from world import World

from dcclctl.errors import ArtifactError
from dcclctl.store.lineage import ancestors
from dcclctl.store.store import Artifact, Input, Store


def made(store: Store, seed: int, **inputs: Artifact | Input) -> Artifact:
    given = {role: each.as_input() if isinstance(each, Artifact) else each for role, each in inputs.items()}
    with store.begin("train", "cloud", {}, seed, given) as work:
        return work.commit({})


def test_a_diamond_has_its_root_once_and_inputs_come_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    root = made(store, 0, log=Input("raw", "a" * 64))  # a raw file is no artifact
    left, right = made(store, 1, cloud=root), made(store, 2, cloud=root)
    top = made(store, 3, patches=left, cloud=right, dataset=root)
    found = ancestors(top)
    assert {id: each.ref for id, each in found.items()} == {
        root.id: "cloud@1",
        right.id: "cloud@3",
        left.id: "cloud@2",
        top.id: "cloud@4",
    }
    order = list(found)
    for each in found.values():
        assert all(
            order.index(given.id) < order.index(each.id) for given in each.inputs.values() if given.kind != "raw"
        )
    assert list(ancestors(root)) == [root.id]
    other = made(store, 4, cloud=left)
    assert list(ancestors(left, other, top)) == [root.id, left.id, other.id, right.id, top.id]
    assert ancestors() == {}


def test_a_long_chain_is_walked_once(tmp_path: Path) -> None:
    """Each link has its parent in two roles: a walk of every path would take 2**40 steps."""
    store = Store(tmp_path)
    last = made(store, 0)
    for link in range(1, 41):
        last = made(store, link, cloud=last, patches=last)
    assert len(ancestors(last)) == 41


def test_what_was_walked_does_not_keep_its_store(tmp_path: Path) -> None:
    """A store that is kept would keep its lease, and `artifacts forget` would wait for it."""
    store = Store(tmp_path)
    ancestors(made(store, 1, cloud=made(store, 0)))
    kept = weakref.ref(store)
    gc.disable()
    try:
        del store
        assert kept() is None
    finally:
        gc.enable()


def test_of_the_world(world: World) -> None:
    found = [each.ref for each in ancestors(world.artifact("cloud@2")).values()]
    assert found == ["dataset@1", "cloud@1", "patches@1", "cloud@2"]


def test_an_ancestor_that_is_gone(shop: Path) -> None:
    store = Store(shop)
    for file in store.folder("cloud", 1).iterdir():
        file.unlink()
    store.folder("cloud", 1).rmdir()
    with pytest.raises(ArtifactError, match="is not in the store"):
        ancestors(store.resolve("cloud@2"))
