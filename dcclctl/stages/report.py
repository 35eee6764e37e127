"""`report`: one or more evaluations with everything that they were made from → the content of a page."""

import math
import shlex
from collections.abc import Mapping
from typing import Any

import polars as pl

from dcclctl.config import SECTIONS
from dcclctl.metrics.groups import LOWER_IS_BETTER, paired_differences
from dcclctl.report.page import EvaluationPart, Fit, Model, Page, Round, Step
from dcclctl.report.text import plain
from dcclctl.stages.cold import targets_in_words
from dcclctl.stages.compare import comparison, harm_metric, harms, main_metrics, tail_minus_head_of_evaluation
from dcclctl.stages.evaluate import display_names
from dcclctl.stages.models import module_of
from dcclctl.stages.serve import ENCODER_SUFFIX, MEAN_SUFFIX, SHUFFLED_SUFFIX, SUFFIXES, split_suffix
from dcclctl.store.lineage import dotted
from dcclctl.store.store import Artifact, Store

#: Flags of `ingest` that name a file, by the role that the file has in the manifest.
_SIDE_TABLES = {"users": "--users", "items": "--items"}


def load_page(evaluations: list[Artifact], store: Store) -> Page:
    """Read the evaluations, their lineage, and how every model in it was made.

    Args:
        evaluations: at least one. store: where their lineage is.

    Raises:
        ArtifactError: something in the lineage is gone or damaged.
    """
    made = _ancestors(evaluations, store)
    clouds = [artifact for artifact in made.values() if artifact.kind == "cloud"]
    return Page(
        evaluations=[_part(evaluation, store, made) for evaluation in evaluations],
        fits=[
            Fit(
                cloud.ref,
                _cloud_role(cloud, made),
                cloud.facts["epochs"],
                cloud.facts["best_epoch"],
                cloud.facts["best_valid_loss"],
                cloud.config.get("criterion", "loss"),
                cloud.facts.get("best_valid_auc", math.nan),
            )
            for cloud in clouds
            if cloud.facts["epochs"]
        ],
        rounds=[
            Round(
                cloud.facts["round"],
                cloud.ref,
                made[cloud.inputs["patches"].id].ref,
                cloud.facts["teachers"],
                cloud.facts["trained_on_events"],
                cloud.facts["best_valid_loss"],
            )
            for cloud in sorted(clouds, key=_round)
            if "patches" in cloud.inputs
        ],
        steps=[_step(artifact, made) for artifact in made.values()],
    )


def _ancestors(evaluations: list[Artifact], store: Store) -> dict[str, Artifact]:
    """id → artifact, every one after its inputs."""
    made: dict[str, Artifact] = {}

    def visit(artifact: Artifact) -> None:
        for _, given in sorted(artifact.inputs.items()):
            if given.kind != "raw" and given.id not in made:
                visit(store.find(given.kind, given.id))
        made[artifact.id] = artifact

    for evaluation in evaluations:
        visit(evaluation)
    return made


def _round(cloud: Artifact) -> int:
    return int(cloud.facts.get("round", 0))


def _cloud_role(cloud: Artifact, made: dict[str, Artifact]) -> str:
    if "patches" in cloud.inputs:
        return f"distilled, round {_round(cloud)}"
    if "cloud" in cloud.inputs:
        on = "+".join(cloud.config["on"])
        return f"{made[cloud.inputs['cloud'].id].ref} trained further on {on}"
    return "frozen cloud model"


#: suffix of a reference → what it does, in the table of models
_PLACEBOS = {"": "patches", MEAN_SUFFIX: "everybody served by the mean patch", SHUFFLED_SUFFIX: "shuffled patches"}
_OF_MEMORY = _PLACEBOS | {"": "memory patches", SHUFFLED_SUFFIX: "memory patches with shuffled memories"}


def _model(name: str, ref: str, artifact: Artifact, about: dict[str, object], made: dict[str, Artifact]) -> Model:
    cloud = made[artifact.inputs["cloud"].id] if artifact.kind == "patches" else artifact
    if artifact.kind == "patches":
        kinds = _OF_MEMORY if "memory" in artifact.inputs else _PLACEBOS
        role = f"{kinds[split_suffix(name)[1]]} on {cloud.ref}" + (", guarded" if artifact.config["guard"] else "")
    else:
        role = "everybody served by its encoder" if name.endswith(ENCODER_SUFFIX) else _cloud_role(cloud, made)
    return Model(
        name=name,
        ref=ref,
        role=role,
        round=_round(cloud),
        patched=artifact.kind == "patches" or name.endswith(ENCODER_SUFFIX),
        served_by=about["served_by"],  # type: ignore[arg-type]
        ece=about["ece"],  # type: ignore[arg-type]
        coverage=about["coverage"],  # type: ignore[arg-type]
        placebo=split_suffix(name)[1] in SUFFIXES["patches"],
    )


def _part(evaluation: Artifact, store: Store, made: dict[str, Artifact]) -> EvaluationPart:
    """Compared with --against, or with the first model if none was named."""
    facts = evaluation.facts
    inputs = {role.split(":", 1)[1]: given for role, given in evaluation.inputs.items() if role.startswith("subject-")}
    models = [
        _model(name, ref, made[inputs[name].id], facts["subjects"][name], made)
        for name, ref in display_names(evaluation, store)
    ]
    per_user = evaluation.read_table("per_user.parquet")
    aggregate = evaluation.read_table("aggregate.parquet")
    measured = aggregate["metric"].unique(maintain_order=True).to_list()
    metric = harm_metric(measured)
    named = evaluation.config["against"]
    baseline, gains = None, {}
    compared, harm, worst, who = (pl.DataFrame() for _ in range(4))
    if len(models) > 1:
        baseline = next((model for model in models if model.name == named), models[0])
        if baseline.name == named:
            compared, harm, worst = (
                evaluation.read_table(f"{name}.parquet") for name in ("comparison", "harm", "worst_users")
            )
        else:
            compared = comparison(per_user, baseline.name, evaluation.seed)
            harm, worst = harms(per_user, baseline.name)
        worst = worst.filter(pl.col("metric") == metric)
        who = tail_minus_head_of_evaluation(evaluation, baseline.name).filter(pl.col("metric") == metric)
        sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
        column = "auc" if metric == "gauc" else metric
        for model in models:
            if model is not baseline:
                found = paired_differences(per_user, model.name, baseline.name)[column].drop_nulls()
                gains[model.name] = (sign * found).to_list()
    trained_further = baseline is not None and {"cloud"} == {
        role for role in made[inputs[baseline.name].id].inputs if role in ("cloud", "patches")
    }
    return EvaluationPart(
        ref=evaluation.ref,
        id=evaluation.id,
        on=facts["on"] + targets_in_words(evaluation.config) + _first_events(evaluation.config),
        dataset=made[evaluation.inputs["dataset"].id].ref,
        split=facts["split"],
        seed=evaluation.seed,
        events=facts["events"],
        users=facts["users"],
        users_without_auc=facts["users_without_auc"],
        candidates=facts["candidates"],
        negatives=evaluation.config["auc_negatives"] if facts["labels"] == "implicit" else 0,
        models=models,
        baseline=baseline,
        control=trained_further and baseline is not None and inputs[baseline.name].kind == "cloud",
        metrics=main_metrics(measured),
        metric=metric,
        aggregate=aggregate,
        comparison=compared,
        harm=harm,
        worst=worst,
        tail_minus_head=who,
        reliability=evaluation.read_table("reliability.parquet"),
        gains=gains,
    )


def _first_events(config: Mapping[str, Any]) -> str:
    """What to add to the period's name where only new users were scored (evaluate --first-events)."""
    if not config.get("first_events"):
        return ""
    return f", new users with a history of their first {config['first_events'][0]} events" + (
        ", on what comes right after" if config["targets_after"] == "next" else ""
    )


def _step(artifact: Artifact, made: dict[str, Artifact]) -> Step:
    return Step(
        ref=artifact.ref,
        id=artifact.id,
        stage=str(artifact.manifest["stage"]),
        inputs=[
            (role, given.id if given.kind == "raw" else made[given.id].ref) for role, given in artifact.inputs.items()
        ],
        config={"seed": artifact.seed, **dotted(artifact.config)},
        packages=artifact.manifest["packages"],
        command=command_of(artifact, made),
    )


def _variable(artifact: Artifact) -> str:
    """The shell variable that holds an artifact's reference: 'cloud@3' → 'cloud_3'."""
    return f"{artifact.kind}_{artifact.number}"


def command_of(artifact: Artifact, made: dict[str, Artifact]) -> str:
    """The shell line that makes an artifact again, its reference kept in a variable for the lines after it.

    Settings that have their default are left out. The list of users behind `--users @FILE` is not in an artifact, only
    its hash is: that file has to be at hand.

    Args:
        artifact: what to make. made: id → artifact of its inputs.
    """
    stage, config = str(artifact.manifest["stage"]), artifact.config
    words: list[str] = []
    left_out: set[str] = set()

    def variable(id: str, suffix: str = "") -> str:
        return f'"${{{_variable(made[id])}}}{suffix}"'

    inputs = artifact.inputs
    if stage == "ingest":
        for role in inputs:
            kind, name = role.split(":", 1)
            words += [_SIDE_TABLES[kind], shlex.quote(plain(name))] if kind in _SIDE_TABLES else []
        words = [shlex.quote(plain(role.split(":", 1)[1])) for role in inputs if role.startswith("log:")] + words
    elif stage == "train" and "cloud" in inputs:
        words, left_out = ["--continue", variable(inputs["cloud"].id)], set(module_of(artifact.config["model"]).SIZES)
    elif stage in ("train", "memory"):
        words = ["--dataset", variable(inputs["dataset"].id)]
    elif stage == "patch":
        words = ["--cloud", variable(inputs["cloud"].id)]
        if "memory" in inputs:
            words += ["--memory", variable(inputs["memory"].id)]
    elif stage == "distill":
        words = ["--patches", variable(inputs["patches"].id)]
        if inputs["cloud"].id != made[inputs["patches"].id].inputs["cloud"].id:  # a student of its own
            words += ["--cloud", variable(inputs["cloud"].id)]
        if "memory" in made[inputs["patches"].id].inputs:  # what they are asked by default is not what others are
            words += ["--lesson", str(config.get("lesson", "events"))]
            left_out = {"lesson"}
    else:
        subjects = {
            role.split(":", 1)[1]: variable(given.id, split_suffix(role)[1])
            for role, given in inputs.items()
            if role.startswith("subject-")
        }
        words = list(subjects.values())
        if config["against"]:
            words += ["--against", subjects[config["against"]]]
        left_out = {"against"}
    left_out |= SECTIONS[stage].unread_with(config)  # older artifacts hold them still
    for name in SECTIONS[stage].model_fields:
        default = SECTIONS[stage].default_of(name, config)
        value = config.get(name, default)
        same = list(value) == list(default) if isinstance(value, list) else value == default
        if not same and name not in left_out:
            words += _flag(name, value)
    return f"{_variable(artifact)}=$(dcclctl {' '.join([stage, *words, '--quiet'])})"


def _flag(name: str, value: object) -> list[str]:
    words = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{words}" if value else f"--no-{words}"]
    if isinstance(value, dict):
        value = ",".join(f"{key}={column}" for key, column in value.items())
    elif isinstance(value, list):
        value = ",".join(str(part) for part in value)
    elif str(value).startswith("@sha256:"):
        return [f"--{words}", "@FILE"]
    return [f"--{words}", shlex.quote(plain(value))]
