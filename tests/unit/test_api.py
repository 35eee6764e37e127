"""The Python API takes handles and artifacts, and refuses what is neither with what to give instead."""

from pathlib import Path

import pytest
from world import World, quiet_progress

import dcclctl
from dcclctl.errors import UsageError

QUICK = {"threads": 1, "on_progress": quiet_progress}


@pytest.fixture
def own(world: World, tmp_path: Path) -> dcclctl.Store:
    return World(world.copy(tmp_path / "store"), world.log, world.ids).store


def test_what_a_command_made_is_loaded_as_a_handle(own: dcclctl.Store, world: World) -> None:
    cloud = dcclctl.load("cloud@1", store=own)
    assert isinstance(cloud, dcclctl.CloudModel) and cloud.id == world.ids["train"]
    assert cloud.recommend(k=2).height == 2 * cloud.dataset.users.height
    assert isinstance(dcclctl.load("dataset", store=own), dcclctl.Dataset)
    assert isinstance(dcclctl.load("patches@1", store=own), dcclctl.PatchSet)
    assert isinstance(dcclctl.load("evaluation", store=own), dcclctl.Evaluation)
    with pytest.raises(UsageError, match="cloud@77"):
        dcclctl.load("cloud@77", store=own)


def test_artifacts_stand_for_their_handles(own: dcclctl.Store, tmp_path: Path) -> None:
    cloud, patches = own.resolve("cloud@1"), own.resolve("patches@1")
    further = dcclctl.train(own.resolve("dataset@1"), start=cloud, on="device", epochs=1, **QUICK)
    assert further.parent is not None and further.parent.id == cloud.id
    found = dcclctl.evaluate([cloud, patches], against=cloud, **QUICK)
    assert set(found.aggregate["subject"]) == set(
        dcclctl.evaluate([further.parent, patches], **QUICK).aggregate["subject"]
    )
    assert len(dcclctl.evaluate(cloud, **QUICK).subjects) == 1
    page = dcclctl.write_report(own.resolve("evaluation"), tmp_path / "page.html")
    assert page.stat().st_size > 10_000
    assert dcclctl.find_leaks(patches) == []
    assert dcclctl.recommend(patches, users="tail", **QUICK).lists.height


def test_another_kind_is_refused(own: dcclctl.Store) -> None:
    data, cloud, patches = (dcclctl.load(f"{kind}@1", store=own) for kind in ("dataset", "cloud", "patches"))
    with pytest.raises(UsageError, match=r"a CloudModel is needed here, and patches@1 is of kind patches"):
        dcclctl.patch(patches)
    with pytest.raises(UsageError, match="a Dataset is needed here, and cloud@1 is of kind cloud"):
        dcclctl.train(cloud)
    with pytest.raises(UsageError, match="a PatchSet is needed here"):
        dcclctl.distill(cloud)
    with pytest.raises(UsageError, match="and dataset@1 is of kind dataset"):
        dcclctl.evaluate([data])
    with pytest.raises(UsageError, match=r"'cloud@1' is none\n.*dcclctl.load"):
        dcclctl.patch("cloud@1")
    with pytest.raises(UsageError, match=r"no model is a handle\n.*dcclctl.load"):
        dcclctl.evaluate(["cloud@1"])
    with pytest.raises(UsageError, match="a Dataset or CloudModel or PatchSet is needed here"):
        dcclctl.tune(dcclctl.load("evaluation", store=own))
