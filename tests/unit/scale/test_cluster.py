"""Shards on a Ray cluster of two nodes: the artifact of one process, also after a process was lost."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_executor import SHARDS, made

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'dcclctl[ray]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's own


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two nodes on this machine; what runs on them finds the function of test_executor.py."""
    from ray.cluster_utils import Cluster

    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", os.pathsep.join(paths))
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        nodes.add_node(num_cpus=1)
        ray.init(address=nodes.address, log_to_driver=False, logging_level="error")
        yield
        ray.shutdown()
        nodes.shutdown()


def test_a_cluster_makes_the_artifact_of_one_process(tmp_path: Path, cluster: None) -> None:
    assert sum(node["Alive"] for node in ray.nodes()) == 2
    artifact, told = made(tmp_path / "cluster", "ray")
    assert artifact.id == made(tmp_path / "here", "local")[0].id
    assert sum(told) == 2 * SHARDS
    workers = {path.name.split("-")[2] for path in (tmp_path / "cluster" / "scratch").glob("done-*")}
    assert str(os.getpid()) not in workers


def test_a_shard_whose_process_is_lost_is_done_again(tmp_path: Path, cluster: None) -> None:
    artifact, told = made(tmp_path / "dying", "ray", dies=3, times=2)
    assert artifact.id == made(tmp_path / "here", "local")[0].id
    assert sum(told) == 2 * SHARDS
    assert len(list((tmp_path / "dying" / "scratch").glob("died-*"))) == 2


def test_an_error_of_the_work_is_raised(tmp_path: Path, cluster: None) -> None:
    from dcclctl.errors import DataError

    with pytest.raises(DataError, match="shard 4 is bad") as caught:
        made(tmp_path, "ray", fails=4)
    assert caught.value.remedy == "Mend it."
