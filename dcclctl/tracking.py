"""Sends a stage's results to TensorBoard or MLflow after its artifact is committed.

The same command makes the same artifact with and without `--track`. A record is sent once: a destination that already has
the artifact is not changed.
"""

import importlib.util
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcclctl.errors import DcclError, UsageError

EXPERIMENT = "dcclctl"
#: tag of an MLflow run that holds the artifact's id: `dcclctl artifacts show KIND@ID`
ID_TAG = "dcclctl.artifact_id"
#: MLflow refuses longer values of a parameter
_LONGEST_VALUE = 6000


@dataclass(frozen=True)
class Record:
    """What a tracker receives about one artifact.

    Attributes:
        ref, id, stage: which artifact, and its command. config: resolved configuration, dotted keys.
        lineage: the tree of inputs, one line for each. manifest: the artifact's manifest.
        figures: (step, name → value); the step is the epoch, or 0 for figures of the whole artifact.
    """

    ref: str
    id: str
    stage: str
    config: dict[str, Any]
    lineage: list[str]
    figures: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    manifest: dict[str, Any] = field(default_factory=dict)


#: record → destination, for people
Tracker = Callable[[Record], str]


def open_trackers(targets: list[str] | None) -> list[Tracker]:
    """Open the trackers that `--track` names; called before the work, so that a missing package is reported first.

    Args:
        targets: 'tensorboard', 'tensorboard:DIR' (default runs), 'mlflow', 'mlflow:URI' (default $MLFLOW_TRACKING_URI, else
            the folder mlruns). None: no tracking.

    Raises:
        UsageError: an unknown tracker, or its package is not installed.
    """
    return [_open(target) for target in targets or []]


def _open(target: str) -> Tracker:
    name, _, place = target.partition(":")
    if name not in ("tensorboard", "mlflow"):
        raise UsageError(f"--track {target!r}: there is no such tracker", "Use tensorboard[:DIR] or mlflow[:URI].")
    if importlib.util.find_spec(name) is None:
        raise UsageError(f"--track {name} needs a package that is not installed", f"pip install 'dcclctl[{name}]'")
    if name == "tensorboard":
        folder = Path(place or "runs")
        return lambda record: _to_tensorboard(record, folder)
    uri = place or os.environ.get("MLFLOW_TRACKING_URI") or "mlruns"
    return lambda record: _to_mlflow(record, uri)


def _to_tensorboard(record: Record, folder: Path) -> str:
    """Write an event file under `folder`/<reference>-<id>."""
    from torch.utils.tensorboard import SummaryWriter

    run = folder / f"{record.ref}-{record.id[:12]}"
    if run.is_dir() and any(run.iterdir()):
        return f"tensorboard: {run} (was there)"
    try:
        with SummaryWriter(str(run)) as writer:
            for step, values in record.figures:
                for name, value in values.items():
                    writer.add_scalar(name, value, step)
            settings = {"stage": record.stage, "artifact": f"{record.ref} {record.id}", **record.config}
            configuration = [f"{key} = {_text(value)}" for key, value in settings.items()]
            # four spaces make it code in Markdown, so text from a log has no effect
            for title, lines in (("configuration", configuration), ("lineage", record.lineage)):
                writer.add_text(title, "\n".join(f"    {line}" for line in lines))
    except OSError as error:
        raise _failed("tensorboard", str(folder), error) from error
    return f"tensorboard: {run}"


def _to_mlflow(record: Record, uri: str) -> str:
    """Make a run in the experiment `dcclctl`, tagged with the artifact's id."""
    # Since 3.7, MLflow's folder store, which needs no database, must be enabled.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    try:
        client = MlflowClient(tracking_uri=uri if "://" in uri or uri == "databricks" else Path(uri).resolve().as_uri())
        found = client.get_experiment_by_name(EXPERIMENT)
        experiment = found.experiment_id if found else client.create_experiment(EXPERIMENT)
        there = client.search_runs([experiment], f"tags.`{ID_TAG}` = '{record.id}' and attributes.status = 'FINISHED'")
        if there:
            return f"mlflow: run {there[0].info.run_id} at {uri} (was there)"
        run = client.create_run(experiment, run_name=record.ref).info.run_id
        now = int(time.time() * 1000)
        figures = [(step, name, value) for step, values in record.figures for name, value in values.items()]
        metrics = [Metric(_mlflow_name(name), value, now, step) for step, name, value in figures]
        params = [Param(_mlflow_name(key), _text(value)[:_LONGEST_VALUE]) for key, value in record.config.items()]
        tags = {ID_TAG: record.id, "dcclctl.ref": record.ref, "dcclctl.stage": record.stage}
        # MLflow accepts at most 1,000 at once
        for start in range(0, len(metrics), 1000):
            client.log_batch(run, metrics=metrics[start : start + 1000])
        client.log_batch(run, params=params, tags=[RunTag(key, value) for key, value in tags.items()])
        client.log_text(run, "\n".join(record.lineage) + "\n", "lineage.txt")
        client.log_dict(run, record.manifest, "manifest.json")
        client.set_terminated(run)
    except (MlflowException, OSError) as error:
        raise _failed("mlflow", uri, error) from error
    return f"mlflow: run {run} at {uri}"


def _failed(tracker: str, place: str, error: Exception) -> DcclError:
    return UsageError(
        f"--track {tracker}: cannot write to {place}: {error}",
        "The artifact itself is committed. Mend the destination and type the same command again: it only sends.",
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _mlflow_name(name: str) -> str:
    """'tail/cloud@3/ndcg@10' → 'tail/cloud_at_3/ndcg_at_10': MLflow allows few characters."""
    return re.sub(r"[^\w\-./ ]", "_", name.replace("@", "_at_"))
