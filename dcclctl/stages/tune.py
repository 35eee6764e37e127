"""`tune`: settings of train, patch or distill → those with the best metric on valid.

Every trial is the artifact that the command itself would make, so trials are reused: by the same tuning that was stopped, by
one with more trials, and by the command with the best settings. The test period is never looked at.
"""

import importlib.util
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl

from dcclctl.artifacts import CloudModel, Dataset, Memory, PatchSet
from dcclctl.artifacts.tuning import Tuning
from dcclctl.config import TuneConfig, VariantSection
from dcclctl.devices.method import method_of
from dcclctl.devices.serving import Subject
from dcclctl.distillation.method import default_method
from dcclctl.errors import DivergedError, UsageError, nearest
from dcclctl.events.log import VALID, Block
from dcclctl.metrics.metric import lower_is_better, metric_names
from dcclctl.stages.distill import distill
from dcclctl.stages.evaluate import evaluate
from dcclctl.stages.memory import remember
from dcclctl.stages.patch import newest_memory, patch
from dcclctl.stages.run import DEFAULT_RUN, NO_SETTINGS, RunOptions, Settings, named
from dcclctl.stages.settings import COMMANDS, resolve, variant_section
from dcclctl.stages.space import changed_space
from dcclctl.stages.train import train
from dcclctl.tables import MAIN_GROUPS, TRIALS

#: what a command is tuned on: its input
TUNED: Mapping[str, str] = {"train": "dataset", "patch": "cloud", "distill": "patches"}
#: commands whose trainings say how well they rank valid after each epoch, by which a trial may be stopped early
_PRUNED = ("train", "distill")
#: trials that are drawn at random and run to their end, and epochs of a later one before it may be stopped; both the same
#: for any number of trials, so that a longer tuning begins with the trials of a shorter one
_FIRST_TRIALS, _FIRST_EPOCHS = 5, 2
#: of the work of a trial, the training's share in the progress that is shown
_TRAINING = 0.8


class _Pruned(Exception):
    """Stops a training that is worse than most."""


@dataclass(frozen=True)
class Search:
    """What to search.

    Attributes:
        command: train, patch or distill. variants: models or methods, each with all trials; (): the default one.
        given: settings of the command that stay as they are. space: KEY=VALUES, see space.changed_space.
    """

    command: str
    variants: Sequence[str] = ()
    given: Settings = field(default_factory=dict)
    space: Sequence[str] = ()


def tune(
    of: Dataset | CloudModel | PatchSet, search: Search, settings: Settings = NO_SETTINGS, run: RunOptions = DEFAULT_RUN
) -> Tuning:
    """Try settings of a command, the same number for each variant, and find those with the best metric on valid.

    Args:
        of: the command's input. search: what to try. settings: see TuneConfig; its seed, device and threads are those of
            every trial. run: how to run; `config` holds settings of the command too, from which the search starts.

    Raises:
        UsageError: Optuna is missing, an unknown variant, metric or setting, or a trial that would learn from valid.
        DivergedError: no trial of a variant came to an end.
    """
    if importlib.util.find_spec("optuna") is None:
        raise UsageError("tune needs a package that is not installed", "pip install 'dcclctl[tune]'")
    if search.command not in TUNED:
        raise UsageError(f"tune {search.command!r}: nothing to tune there", nearest(search.command, list(TUNED)))
    config = resolve(TuneConfig, settings, run.config)
    task = _Task(of, search, config, run)
    amount = config.trials * len(task.spaces) * int(_dataset(of).facts["events"])
    with of.store.begin("tune", "tuning", task.recorded(), config.seed, task.inputs(), run.force, amount) as work:
        if work.reused is not None:
            return named(Tuning(work.reused), run)
        rows: list[dict[str, Any]] = []
        for variant in task.spaces:
            rows += task.trials(variant, len(rows))
        table = pl.DataFrame(rows, schema=TRIALS.schema(), orient="row")
        work.write_table("trials.parquet", table)
        best = {variant: task.best_of(rows, variant) for variant in task.spaces}
        order = min if task.lower else max
        facts = {
            "group": task.group,
            "metric": task.column,
            "best": best,
            "best_variant": order(best, key=lambda name: best[name]["value"]),
            "id_map": _dataset(of).id_map,
        }
        return named(Tuning(work.commit(facts)), run)


class _Task:
    """One tuning: its spaces, and how a trial is made and scored."""

    def __init__(self, of: Any, search: Search, config: TuneConfig, run: RunOptions) -> None:
        self.of, self.search, self.config, self.run = of, search, config, run
        self.command, self.spec = search.command, COMMANDS[search.command]
        self.group, self.metric, self.k = _metric(config.metric)
        self.lower = lower_is_better(self.metric)
        self.column = ""
        self.common: dict[str, Any] = {"seed": config.seed, "device": config.device, "threads": config.threads}
        named_ones = list(search.variants) or [self._default()]
        sections = {name: variant_section(self.command, name) for name in named_ones}
        self.given = {name: self._given(name, list(sections)) for name in sections}
        #: variant → the configuration that its search starts from
        self.base = {name: self._resolved(name, {}) for name in sections}
        for base in self.base.values():
            on = base.on if isinstance(base.on, list) else [base.on]  # type: ignore[attr-defined]
            if any(Block.parse(block).period >= VALID for block in on):
                raise UsageError(
                    "tune chooses by the valid period: no trial may learn from it", "Choose another --set on=."
                )
        spaces = changed_space(self.command, self.spec.section, sections, search.space)
        self.spaces = {
            name: {
                key: values
                for key, values in space.items()
                if not {key.lstrip("."), f"{name}.{key}"} & set(self.given[name])
            }
            for name, space in spaces.items()
        }
        self.memory: Memory | None = None
        if self.command == "patch" and any(method_of(name).uses_memory for name in sections):
            dataset = _dataset(of)
            self.memory = newest_memory(dataset) or remember(dataset, run=replace(run, name="", force=False))

    def _default(self) -> str:
        """The variant of the file or of --set, or the command's default."""
        default = default_method(self.of) if self.command == "distill" else ""
        found = resolve(self.spec.section, self.search.given, self.run.config, default)
        assert isinstance(found, VariantSection)
        return found.variant

    def _given(self, variant: str, all_: list[str]) -> dict[str, Any]:
        """The settings that are given and that this variant reads, without those of the other variants; short names."""
        found = {}
        for key, value in self.search.given.items():
            short = key.removeprefix(f"{self.command}.")
            target, _, last = short.rpartition(".")
            others = [name for name in all_ if name != variant]
            reads = last in self.spec.own or last in variant_section(self.command, variant).model_fields
            elsewhere = any(last in variant_section(self.command, name).model_fields for name in others)
            if target in others or (not target and not reads and elsewhere):
                continue
            found[short] = value
        return found

    def _settings(self, variant: str, tried: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of one trial, as the stage takes them."""
        own = {(key[1:] if key.startswith(".") else f"{variant}.{key}"): value for key, value in tried.items()}
        return {**self.given[variant], **self.common, self.spec.choice: variant, **own}

    def _resolved(self, variant: str, tried: Mapping[str, Any]) -> VariantSection:
        found = resolve(self.spec.section, self._settings(variant, tried), self.run.config)
        assert isinstance(found, VariantSection)
        return found

    def recorded(self) -> dict[str, Any]:
        """Everything that the result depends on, beside seed and inputs."""
        defaults = {name: variant_section(self.command, name)().model_dump(mode="json") for name in self.spaces}
        common = self.spec.section().model_dump(mode="json", exclude={"seed", "settings"})
        return {
            **self.config.recorded(),
            "command": self.command,
            "choice": self.spec.choice,
            "base": {name: base.recorded() for name, base in self.base.items()},
            "space": {name: {key: each.text for key, each in space.items()} for name, space in self.spaces.items()},
            "defaults": {"": common, **defaults},
        }

    def inputs(self) -> dict[str, Any]:
        """The command's input, its dataset, and the memory that patches use."""
        found = {TUNED[self.command]: self.of.artifact.as_input(), "dataset": _dataset(self.of).artifact.as_input()}
        return found | ({"memory": self.memory.artifact.as_input()} if self.memory else {})

    def trials(self, variant: str, before: int) -> list[dict[str, Any]]:
        """All trials of one variant; `before`: trials of other variants."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        space, total = self.spaces[variant], self.config.trials
        pruner = optuna.pruners.MedianPruner(_FIRST_TRIALS, _FIRST_EPOCHS) if self.config.prune else None
        study = optuna.create_study(
            direction="minimize" if self.lower else "maximize",
            sampler=optuna.samplers.TPESampler(seed=self.config.seed, n_startup_trials=_FIRST_TRIALS),
            pruner=pruner or optuna.pruners.NopPruner(),
        )
        start = self._start(variant)
        if len(start) == len(space):  # the defaults are among the values: try them first
            study.enqueue_trial(start)
        rows: list[dict[str, Any]] = []
        for at in range(total if space else 1):
            trial = study.ask()
            tried = {key: values.draw(trial, key) for key, values in space.items()}

            def shown(share: float, at: int = at) -> None:
                done = before + at + share
                note = f"{variant}  trial {at + 1}/{total}"
                self.run.on_progress("tune", done, total * len(self.spaces), note)

            row: dict[str, Any] = {"variant": variant, "trial": at, "settings": json.dumps(tried, sort_keys=True)}
            row |= self._trial(variant, tried, trial, shown)
            done = row["state"] == "done"
            states = optuna.trial.TrialState
            states_of = {"done": states.COMPLETE, "pruned": states.PRUNED, "diverged": states.FAIL}
            study.tell(trial, row["value"] if done else None, states_of[row["state"]])
            rows.append(row)
        if all(row["state"] != "done" for row in rows):
            raise DivergedError(
                f"no trial of {variant} came to an end", f"Search other values: --space {self.command}.{variant}.KEY=…"
            )
        return rows

    def _start(self, variant: str) -> dict[str, Any]:
        """The values that the search starts from, of those settings whose values hold them."""
        base = self.base[variant]
        found = {}
        for key, values in self.spaces[variant].items():
            value = getattr(base, key[1:]) if key.startswith(".") else getattr(base.settings, key)
            start = values.holds(value)
            if start is not None:
                found[key] = start
        return found

    def _trial(
        self, variant: str, tried: Mapping[str, Any], trial: Any, shown: Callable[[float], None]
    ) -> dict[str, Any]:
        """Make one trial's artifact and score it: state, value, epochs, artifact and evaluation of a TRIALS row."""
        seen: dict[int, float] = {}

        def on_record(figures: dict[str, Any]) -> None:
            epoch, quality = figures.get("epoch"), figures.get("valid_ndcg", figures.get("valid_auc"))
            if epoch is None or quality is None or epoch in seen:  # a training that was stopped may say an epoch twice
                return
            seen[epoch] = quality
            trial.report(-quality if self.lower else quality, epoch)
            if trial.should_prune():
                raise _Pruned

        row: dict[str, Any] = {"state": "pruned", "value": None, "artifact": "", "evaluation": ""}
        run = RunOptions(
            lambda what, done, total, note: shown(_TRAINING * done / total if total else 0.0), config=self.run.config
        )
        prunes = self.config.prune and self.command in _PRUNED
        try:
            with self.of.store.listening(on_record if prunes else None):
                made = self._make(self._settings(variant, tried), run)
        except (_Pruned, DivergedError) as stopped:
            state = "pruned" if isinstance(stopped, _Pruned) else "diverged"
            return {**row, "state": state, "epochs": max(seen, default=None)}
        subject = Subject(made.cloud, made) if isinstance(made, PatchSet) else Subject(made)
        scoring = {"on": "valid", "k": [self.k], "candidates": self.config.candidates, **self.common}
        found = evaluate(
            [subject],
            scoring,
            RunOptions(
                lambda what, done, total, note: shown(_TRAINING + (1 - _TRAINING) * (done / total if total else 1))
            ),
        )
        values = {name.partition("/")[0]: (name, value) for name, value in _means(found.aggregate, self.group)}
        self.column, value = values[self.metric]
        if value is None or not math.isfinite(value):
            raise UsageError(
                f"--metric {self.config.metric}: no user of {self.group} has a value on valid",
                "Choose another, e.g. all.ndcg@10.",
            )
        epochs = len(made.facts["epochs"]) if made.facts.get("epochs") else None
        return {
            "state": "done",
            "value": value,
            "epochs": epochs,
            "artifact": f"{made.artifact.kind}@{made.id[:8]}",
            "evaluation": f"evaluation@{found.id[:8]}",
            "config": made.config,
        }

    def _make(self, settings: dict[str, Any], run: RunOptions) -> CloudModel | PatchSet:
        if self.command == "train":
            return train(self.of, settings, run)
        if self.command == "patch":
            uses = method_of(settings[self.spec.choice]).uses_memory
            return patch(self.of, settings, run, self.memory if uses else None)
        return distill(self.of, settings, run)

    def best_of(self, rows: Sequence[dict[str, Any]], variant: str) -> dict[str, Any]:
        """The best trial of a variant; of equal ones the first, so the defaults win a draw."""
        done = [row for row in rows if row["variant"] == variant and row["state"] == "done"]
        best = (min if self.lower else max)(done, key=lambda row: row["value"])
        return {name: best[name] for name in ("trial", "value", "artifact", "config")}


def _means(aggregate: pl.DataFrame, group: str) -> list[tuple[str, float | None]]:
    return [(str(name), value) for name, value in aggregate.filter(group=group).select("metric", "value").iter_rows()]


def _metric(text: str) -> tuple[str, str, int]:
    """'tail.hr@20' → group, metric, and the cut-off that the evaluation needs."""
    group, _, metric = text.partition(".")
    _, at, cut = metric.partition("@")
    k = int(cut) if at and cut.isdecimal() and int(cut) else 10
    if group not in MAIN_GROUPS:
        raise UsageError(f"--metric {text!r}: there is no group {group!r}", nearest(group, list(MAIN_GROUPS)))
    if metric not in metric_names([k]):
        raise UsageError(f"--metric {text!r}: there is no metric {metric!r}", nearest(metric, metric_names([k])))
    return group, metric, k


def _dataset(of: Any) -> Dataset:
    if isinstance(of, Dataset):
        return of
    cloud: CloudModel = of.cloud if isinstance(of, PatchSet) else of
    return cloud.dataset
