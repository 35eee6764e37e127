"""Records sent to the real TensorBoard and MLflow libraries, and read back with them."""

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest

from dcclctl.errors import UsageError
from dcclctl.tracking import ID_TAG, Record, open_trackers

RECORD = Record(
    ref="cloud@3",
    id="ab" * 32,
    stage="train",
    config={"seed": 7, "on": ["cloud", "device"], "learning_rate": 0.5, "note": "<script>alert(1)</script>"},
    lineage=["cloud@3 abab", "  dataset: dataset@1 cdcd", "    log:<b>.csv: sha256 efef"],
    figures=[(1, {"train_loss": 0.75}), (2, {"train_loss": 0.5}), (0, {"cloud@3/tail/ndcg@10": 0.25})],
    manifest={"kind": "cloud", "seed": 7},
)


def need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install 'dcclctl[{package}]'")


def read_events(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, str]]:
    """scalar → (step, value) in order; text → its content."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util.tensor_util import make_ndarray

    scalars: dict[str, list[tuple[int, float]]] = {}
    texts: dict[str, str] = {}
    for path in folder.glob("events.*"):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                array = make_ndarray(value.tensor)
                if value.metadata.plugin_data.plugin_name == "text":
                    texts[value.tag] = array.item(0).decode()
                else:
                    scalars.setdefault(value.tag, []).append((event.step, float(array.item())))
    return scalars, texts


def test_everything_arrives_in_tensorboard(tmp_path: Path) -> None:
    need("tensorboard")
    [track] = open_trackers([f"tensorboard:{tmp_path / 'runs'}"])
    assert "cloud@3" in track(RECORD)
    scalars, texts = read_events(tmp_path / "runs" / f"cloud@3-{'ab' * 6}")
    assert scalars == {"train_loss": [(1, 0.75), (2, 0.5)], "cloud@3/tail/ndcg@10": [(0, 0.25)]}
    configuration = texts["configuration/text_summary"].splitlines()
    assert "    seed = 7" in configuration and '    on = ["cloud", "device"]' in configuration
    assert f"    artifact = cloud@3 {'ab' * 32}" in configuration
    assert "      dataset: dataset@1 cdcd" in texts["lineage/text_summary"].splitlines()
    # every line is code in Markdown, so that no name from a log becomes markup
    assert all(line.startswith("    ") for text in texts.values() for line in text.splitlines())


def test_an_artifact_is_sent_to_tensorboard_once(tmp_path: Path) -> None:
    need("tensorboard")
    [track] = open_trackers([f"tensorboard:{tmp_path}"])
    track(RECORD)
    assert "was there" in track(RECORD)
    assert len(list(tmp_path.rglob("events.*"))) == 1


def client(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library's own imports
        from mlflow.tracking import MlflowClient

        return MlflowClient(tracking_uri=folder.as_uri())


def test_everything_arrives_in_mlflow_and_leads_back_to_the_artifact(tmp_path: Path) -> None:
    need("mlflow")
    [track] = open_trackers([f"mlflow:{(tmp_path / 'runs').as_uri()}"])
    track(RECORD)
    reader = client(tmp_path / "runs")
    [run] = reader.search_runs([reader.get_experiment_by_name("dcclctl").experiment_id])
    assert run.info.run_name == "cloud@3" and run.info.status == "FINISHED"
    assert run.data.tags[ID_TAG] == "ab" * 32
    assert run.data.params == {
        "seed": "7",
        "on": '["cloud", "device"]',
        "learning_rate": "0.5",
        "note": "<script>alert(1)</script>",
    }
    assert [(m.step, m.value) for m in reader.get_metric_history(run.info.run_id, "train_loss")] == [
        (1, 0.75),
        (2, 0.5),
    ]
    assert run.data.metrics["cloud_at_3/tail/ndcg_at_10"] == 0.25
    lineage = Path(reader.download_artifacts(run.info.run_id, "lineage.txt", str(tmp_path))).read_text()
    assert lineage.splitlines() == RECORD.lineage
    assert {file.path for file in reader.list_artifacts(run.info.run_id)} == {"lineage.txt", "manifest.json"}


def test_an_artifact_is_sent_to_mlflow_once(tmp_path: Path) -> None:
    need("mlflow")
    [track] = open_trackers([f"mlflow:{tmp_path / 'runs'}"])
    first, second = track(RECORD), track(RECORD)
    assert second == f"{first} (was there)"


def test_two_trackers_at_once_are_two_trackers() -> None:
    need("tensorboard")
    need("mlflow")
    assert len(open_trackers(["tensorboard", "mlflow"])) == 2


def test_no_tracking_is_no_tracker() -> None:
    assert open_trackers(None) == []


@pytest.mark.parametrize("target", ["wandb", "", ":runs"])
def test_an_unknown_tracker_names_the_known_ones(target: str) -> None:
    with pytest.raises(UsageError, match="no such tracker") as caught:
        open_trackers([target])
    assert "tensorboard[:DIR] or mlflow[:URI]" in caught.value.remedy


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(UsageError) as caught:
        open_trackers([name])
    assert caught.value.remedy == f"pip install 'dcclctl[{name}]'"


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_destination_that_cannot_be_written_is_an_error_without_a_traceback(name: str, tmp_path: Path) -> None:
    need(name)
    (tmp_path / "file").write_text("in the way")
    [track] = open_trackers([f"{name}:{tmp_path / 'file'}"])
    with pytest.raises(UsageError, match="cannot write"):
        track(RECORD)
