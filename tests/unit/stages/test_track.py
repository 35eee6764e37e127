"""What a tracker is told of an artifact."""

from world import World

from dcclctl.stages.track import record_of
from dcclctl.store.manifest import KINDS
from dcclctl.tables import MAIN_GROUPS


def test_every_kind_of_artifact_is_a_record(world: World) -> None:
    records = {artifact.kind: record_of(artifact) for artifact in world.store.artifacts()}
    assert set(records) == set(KINDS) - {"memory", "tuning", "recommendations", "bundle"}  # the small world has none
    for kind, record in records.items():
        assert record.ref.startswith(f"{kind}@") and "seed" in record.config and record.lineage
    assert not records["dataset"].figures
    assert {name for _, figures in records["cloud"].figures for name in figures} >= {"train_loss", "best_valid_loss"}
    named = [name.split("/") for _, figures in records["evaluation"].figures for name in figures]
    assert {group for _, group, _ in named} == set(MAIN_GROUPS)
