"""The public Python API: the stages as functions, and handles on what they make.

Every function takes the settings of its command as keyword arguments, in the short form (epochs=5) or in full
(**{"train.din.item_size": 64}); `dcclctl settings` lists them. All of them also take

    on_progress   called with (what, done, total, note)
    force         compute even if the store has the same artifact
    name          a name for the artifact, an alias of its kind
    config        a TOML file with settings
    executor      who works on the users, part by part, in evaluate, patch and memory: local, local:N, ray or ray://HOST:PORT

Importing or calling it changes nothing global: the number of torch's threads and its modes are put back.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dcclctl import artifacts
from dcclctl.artifacts import Bundle, Dataset, Evaluation, Memory, Recommendations, Tuning
from dcclctl.artifacts.handle import Handle
from dcclctl.audit.finding import Finding
from dcclctl.compute import no_progress
from dcclctl.devices.serving import Subject
from dcclctl.errors import UsageError
from dcclctl.stages.audit import audit
from dcclctl.stages.distill import distill as _distill
from dcclctl.stages.evaluate import evaluate as _evaluate
from dcclctl.stages.evaluate import with_baseline
from dcclctl.stages.forget import Forgotten
from dcclctl.stages.forget import forget as _forget
from dcclctl.stages.ingest import Sides
from dcclctl.stages.ingest import ingest as _ingest
from dcclctl.stages.memory import remember
from dcclctl.stages.patch import patch as _patch
from dcclctl.stages.recommend import recommend as _recommend
from dcclctl.stages.report import load_page
from dcclctl.stages.run import RunOptions
from dcclctl.stages.sample import write_sample as _write_sample
from dcclctl.stages.seeds import evaluate_seeds as _evaluate_seeds
from dcclctl.stages.seeds import seeded
from dcclctl.stages.train import train as _train
from dcclctl.stages.tune import TUNED, Search
from dcclctl.stages.tune import tune as _tune
from dcclctl.store.store import Artifact, Store

if TYPE_CHECKING:
    import polars as pl


class _Served(Handle):
    """A model that can serve users."""

    def recommend(self, users: str = "all", k: int = 10, **settings: Any) -> "pl.DataFrame":
        """The best k items of many users; the same as the `lists` of what the function `recommend` returns.

        Args:
            users: all, tail, head, new, @FILE with one id a line, or ID,ID,…
            settings: of `dcclctl recommend`, e.g. as_of="test", exclude="none".

        Returns:
            user_id, rank from 1, item_id, name, score, served_by; a user's best item first.

        Raises:
            UsageError: an unknown user.
        """
        settings |= {"users": users, "top": k}
        return _recommend(_subject(self, self.store), settings, _run(settings)).lists


class CloudModel(artifacts.CloudModel, _Served):
    """A cloud model that can recommend."""


class PatchSet(artifacts.PatchSet, _Served):
    """Patches on a cloud model that can recommend."""


_HANDLES: Mapping[str, type[Handle]] = {
    "dataset": Dataset,
    "cloud": CloudModel,
    "memory": Memory,
    "patches": PatchSet,
    "evaluation": Evaluation,
    "recommendations": Recommendations,
    "tuning": Tuning,
    "bundle": Bundle,
}


def load(reference: str, *, store: Store) -> Any:
    """The handle of an artifact that was made before, also by a command.

    Args:
        reference: e.g. "cloud@7", "cloud@release", or "dataset" for the newest.

    Returns:
        A Dataset, CloudModel, PatchSet, Memory, Evaluation, Recommendations, Bundle or Tuning.

    Raises:
        UsageError: there is no such artifact. ArtifactError: it is damaged.
    """
    artifact = store.resolve(reference)
    return _HANDLES[artifact.kind](artifact)


def ingest(
    logs: str | Path | Sequence[str | Path],
    *,
    store: Store,
    users: str | Path | None = None,
    items: str | Path | None = None,
    **settings: Any,
) -> Dataset:
    """Read logs into a dataset.

    Args:
        logs: a file, glob or folder, or several. store: where artifacts go.
        users, items: side tables with profiles of users, and with names and categories of items.
        settings: of `dcclctl ingest`, e.g. map={"user": "uid"}, split="per-user", repeats="keep".

    Raises:
        UsageError: a path, a setting or a column that does not exist.
        DataError: a log that cannot be read, or has too many bad rows.
    """
    paths = [logs] if isinstance(logs, str | Path) else logs
    sides = Sides(Path(users) if users else None, Path(items) if items else None)
    return _ingest([Path(path) for path in paths], store, settings, _run(settings), sides)


def train(data: Dataset, *, start: artifacts.CloudModel | None = None, **settings: Any) -> CloudModel:
    """Train a cloud model.

    Args:
        data: the log. start: train this model further.
        settings: of `dcclctl train`, e.g. model="sasrec", on="cloud,device", epochs=5.

    Raises:
        UsageError: a setting that the model does not read. DataError: no events. DivergedError: NaN loss.
    """
    data, start = _handle(data, "dataset"), _handle(start, "cloud", optional=True)
    return CloudModel(_train(data, settings, _run(settings), start).artifact)


def memory(data: Dataset, **settings: Any) -> Memory:
    """Make every device's memory: its user's newest events.

    Args:
        data: the log. settings: of `dcclctl memory`, e.g. size=100.

    Raises:
        UsageError: statistics that would count valid or test events.
    """
    return remember(_handle(data, "dataset"), settings, _run(settings))


def patch(
    cloud: artifacts.CloudModel,
    *,
    memory: Memory | None = None,
    learn_with: artifacts.CloudModel | None = None,
    **settings: Any,
) -> PatchSet:
    """Learn a patch for every chosen user.

    Args:
        cloud: the frozen model. memory: of the devices; None: the dataset's newest, made if there is none.
        learn_with: for method="memory", a cloud model that was not trained on the period; None: of those that `cloud` was
            continued from.
        settings: of `dcclctl patch`, e.g. users="tail", method="metapatch".

    Raises:
        UsageError: a setting that the method does not read, an unknown user, or a model that it cannot patch.
    """
    cloud, learn_with = _handle(cloud, "cloud"), _handle(learn_with, "cloud", optional=True)
    memory = _handle(memory, "memory", optional=True)
    return PatchSet(_patch(cloud, settings, _run(settings), memory, learn_with).artifact)


def distill(patches: artifacts.PatchSet, *, student: artifacts.CloudModel | None = None, **settings: Any) -> CloudModel:
    """Distil the patched models into a better cloud model.

    Args:
        patches: the teachers. student: the cloud model to train further; None: the one under the patches.
        settings: of `dcclctl distill`, e.g. method="momodistill", beta=0.5.

    Raises:
        UsageError: a student that cannot be taught, or teachers that have counted the events.
    """
    patches, student = _handle(patches, "patches"), _handle(student, "cloud", optional=True)
    return CloudModel(_distill(patches, settings, _run(settings), student).artifact)


#: a model, its reference, or its trainings
_Model = artifacts.CloudModel | artifacts.PatchSet | Bundle | str | Sequence[artifacts.CloudModel | artifacts.PatchSet]


def evaluate(
    models: Sequence[_Model], *, against: _Model | None = None, seeds: Sequence[int] = (), **settings: Any
) -> Evaluation:
    """Score models side by side on the same users.

    Args:
        models: handles, or references in the same store such as "patches@1+mean"; at least one handle.
        against: the baseline that every other model is compared with.
        seeds: that the models were trained with, at least two. A model is then the handles of its trainings in the order of
            the seeds, a reference such as "cloud@base" (base-0, base-1, …), or one handle that stands for all seeds.
        settings: of `dcclctl evaluate`, e.g. on="valid", candidates="all", k=[10].

    Raises:
        UsageError: a model named twice, or a setting out of its range. ArtifactError: two datasets.
    """
    models = [models] if isinstance(models, Handle | Artifact | str) else models
    flat = [
        each for model in (*models, against) for each in ([model] if not isinstance(model, list | tuple) else model)
    ]
    store = _store_of(flat)
    if seeds:
        groups = [_group(model, seeds, store) for model in models]
        baseline_group = None if against is None else _group(against, seeds, store)
        return _evaluate_seeds(groups, seeds, settings, _run(settings), baseline_group)
    subjects = [_subject(model, store) for model in models]
    if against is not None:
        baseline = _subject(against, store)
        subjects, settings["against"] = with_baseline(subjects, baseline), baseline.name
    return _evaluate(subjects, settings, _run(settings))


def tune(
    of: artifacts.Dataset | artifacts.CloudModel | artifacts.PatchSet,
    *,
    variants: Sequence[str] = (),
    space: Mapping[str, str] = MappingProxyType({}),
    given: Mapping[str, Any] = MappingProxyType({}),
    **settings: Any,
) -> Tuning:
    """Find the best settings on valid, of train for a dataset, of patch for a cloud model, of distill for patches.

    Args:
        of: the command's input. variants: models or methods, each with all trials. given: settings that stay as they are.
        space: setting → values to try, e.g. {"train.din.item_size": "16,32", "learning_rate": "1e-4..1e-2"}.
        settings: of `dcclctl tune`, e.g. trials=20, metric="tail.ndcg@10".

    Raises:
        UsageError: Optuna is missing, or an unknown variant, metric or setting.
    """
    of = _handle(of, *TUNED.values())
    command = next(name for name, kind in TUNED.items() if kind == of.artifact.kind)
    search = Search(command, variants, given, [f"{key}={values}" for key, values in space.items()])
    return _tune(of, search, settings, _run(settings))


def recommend(
    model: "artifacts.CloudModel | artifacts.PatchSet | Bundle",
    *,
    log: str | Path | Sequence[str | Path] = (),
    **settings: Any,
) -> Recommendations:
    """Make the lists of many users, after each user's last event.

    Args:
        model: a cloud model, patches or a bundle. log: new events of known and new users, in the form of the dataset's own log.
        settings: of `dcclctl recommend`, e.g. users="tail", top=20, candidates="@in-stock.txt", as_of="test".

    Returns:
        A handle: `lists` is one frame, `write("top.parquet")` writes a file.

    Raises:
        UsageError: an unknown user, or no candidate. DataError: a log that cannot be read.
    """
    logs = [log] if isinstance(log, str | Path) else log
    model = _handle(model, *_SERVING)
    return _recommend(_subject(model, model.store), settings, _run(settings), [Path(path) for path in logs])


def export(
    model: "artifacts.CloudModel | artifacts.PatchSet", *, to: str | Path | None = None, user: str = "", **settings: Any
) -> Bundle:
    """Write what a device needs to run patches, or a cloud model alone.

    Args:
        model: what to ship. to: also write it to this new folder, or .zip file.
        user: with `to`, also write user.json, what the device of this user alone is sent.
        settings: of `dcclctl export`, e.g. items="top:5000", precision="int8".

    Raises:
        UsageError: a model without a graph, unknown items or user, a place that exists, or a missing package.
    """
    from dcclctl.stages.export import export as run  # needs the packages of the extra `bundle`
    from dcclctl.stages.export import write_bundle

    bundle = run(_handle(model, "patches", "cloud"), settings, _run(settings))
    if to is not None:
        write_bundle(bundle, Path(to), user)
    return bundle


def collect(bundle: Bundle, uplinks: str | Path | Sequence[str | Path], **settings: Any) -> PatchSet:
    """Make patches of what devices learned and sent back; uplinks that cannot be trusted are rejected.

    Args:
        bundle: what the devices have. uplinks: files or folders of what they sent.
        settings: of `dcclctl collect`, e.g. max_norm=3.0.

    Raises:
        UsageError: a bundle whose devices learn nothing, or no such file. DataError: no uplink can be used.
    """
    from dcclctl.stages.collect import collect as run  # needs the packages of the extra `bundle`

    paths = [uplinks] if isinstance(uplinks, str | Path) else uplinks
    bundle = _handle(bundle, "bundle")
    return PatchSet(run(bundle, [Path(path) for path in paths], settings, _run(settings)).artifact)


def write_report(evaluations: Sequence[Evaluation], path: str | Path) -> Path:
    """Write evaluations as one HTML page that works offline, and return its path."""
    from dcclctl.report.html import render

    given = [evaluations] if isinstance(evaluations, Handle | Artifact) else evaluations
    Path(path).write_bytes(render(load_page([_handle(each, "evaluation") for each in given])).encode())
    return Path(path)


def write_sample(folder: str | Path) -> list[Path]:
    """Write the bundled log and its README into a folder, and return the files."""
    return _write_sample(Path(folder))


def forget(users: Sequence[str], store: Store, apply: bool = False) -> Forgotten:
    """Take users' ids and events out of all artifacts of a store, see docs/store.md.

    Args:
        users: their ids as the log has them. apply: False only tells what would be done.
    """
    return _forget(store, users, apply)


def find_leaks(made: Handle) -> list[Finding]:
    """Audit an artifact and everything that it was made from, and return the leaks: [] if it passes."""
    return [finding for finding in audit(_handle(made, *_HANDLES).artifact) if finding.kind == "leak"]


def _run(settings: dict[str, Any]) -> RunOptions:
    """Take the options that are not settings out of the keyword arguments."""
    config = settings.pop("config", None)
    return RunOptions(
        settings.pop("on_progress", None) or no_progress,
        settings.pop("force", False),
        settings.pop("name", ""),
        None if config is None else Path(config),
        executor=settings.pop("executor", "local"),
    )


#: kinds of what can serve users
_SERVING = ("cloud", "patches", "bundle")


def _handle(given: Any, *kinds: str, optional: bool = False) -> Any:
    """The handle that was given, or that of an artifact.

    Args:
        kinds: of the artifact, any of them. optional: None stays None.

    Raises:
        UsageError: an artifact of another kind, or something else.
    """
    if given is None and optional:
        return None
    if isinstance(given, Artifact) and given.kind in _HANDLES:
        given = _HANDLES[given.kind](given)
    wanted = " or ".join(_HANDLES[kind].__name__ for kind in kinds)
    if not isinstance(given, Handle):
        raise UsageError(
            f"a {wanted} is needed here, and {given!r} is none",
            f'Give what a function returned, or dcclctl.load("{kinds[0]}@1", store=store).',
        )
    if given.artifact.kind not in kinds:
        raise UsageError(f"a {wanted} is needed here, and {given.ref} is of kind {given.artifact.kind}", "")
    return given


def _store_of(models: Sequence[Any]) -> Store:
    handle = next((_handle(model, *_HANDLES) for model in models if isinstance(model, Handle | Artifact)), None)
    if handle is None:
        raise UsageError(
            "no model is a handle",
            'Give at least one that train or patch returned, or dcclctl.load("cloud@1", store=store).',
        )
    store: Store = handle.store
    return store


def _group(model: Any, seeds: Sequence[int], store: Store) -> list[Subject]:
    """What to score under each seed."""
    if isinstance(model, str):
        return [Subject.of(reference, store) for reference in seeded(model, seeds, store)]
    return [_subject(each, store) for each in (model if isinstance(model, list | tuple) else [model] * len(seeds))]


def _subject(model: Any, store: Store) -> Subject:
    """What a handle or a reference means."""
    if isinstance(model, str):
        return Subject.of(model, store)
    model = _handle(model, *_SERVING)
    if isinstance(model, artifacts.PatchSet):
        return Subject(model.cloud, model)
    if isinstance(model, artifacts.CloudModel):
        return Subject(model)
    return Subject(model.cloud, model.patches, "", model)
