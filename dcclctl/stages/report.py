"""`report`: one or more evaluations with everything that they were made from → the content of a page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from dcclctl.artifacts import Evaluation
from dcclctl.artifacts.bundle import BUNDLE_FILE
from dcclctl.artifacts.names import describe, log_in_words, short_label
from dcclctl.devices.serving import ENCODER, split_suffix
from dcclctl.errors import UsageError
from dcclctl.evaluation.comparison import Comparison, at_chance, harm_metric, main_metrics, with_what_is_worse
from dcclctl.evaluation.targets import targets_in_words
from dcclctl.metrics.metric import lower_is_better
from dcclctl.report.page import BundlePart, EvaluationPart, Fit, Model, Page, Round, Step
from dcclctl.stages.remake import command_words
from dcclctl.store.lineage import ancestors, dotted
from dcclctl.store.store import Artifact
from dcclctl.tables import GROUP_NAMES, MAIN_GROUPS

#: the 20 groups by activity
ACTIVITY = GROUP_NAMES[len(MAIN_GROUPS) :]


def load_page(evaluations: list[Evaluation], bundle: Path | None = None) -> Page:
    """Read the evaluations, their lineage, and how every model in it was made.

    Args:
        evaluations: at least one. bundle: folder of `export --measure -o FOLDER`, whose figures are shown too.

    Raises:
        ArtifactError: something in the lineage is gone or damaged. UsageError: the folder has no such figures.
    """
    made = ancestors(*(evaluation.artifact for evaluation in evaluations))
    clouds = [artifact for artifact in made.values() if artifact.kind == "cloud"]
    return Page(
        evaluations=[_part(evaluation) for evaluation in evaluations],
        fits=[
            Fit(
                short_label(cloud),
                describe(cloud),
                cloud.facts["epochs"],
                cloud.facts["best_epoch"],
                cloud.facts["best_valid_loss"],
                cloud.facts["best_valid_auc"],
                cloud.facts.get("best_valid_ndcg"),
            )
            for cloud in clouds
            if cloud.facts["epochs"]
        ],
        rounds=[
            Round(
                cloud.facts["round"],
                short_label(cloud),
                short_label(cloud.input("patches")),
                cloud.facts["teachers"],
                cloud.facts["trained_on_events"],
                cloud.facts["best_valid_loss"],
            )
            for cloud in sorted(clouds, key=_round)
            if "patches" in cloud.inputs
        ],
        steps=[_step(artifact, made) for artifact in made.values()],
        bundle=None if bundle is None else _bundle(bundle),
    )


def _bundle(folder: Path) -> BundlePart:
    from dcclctl.devices.bundle.spec import BundleSpec

    remedy = "Write one: dcclctl export PATCHES --measure -o FOLDER"
    try:
        spec = BundleSpec.model_validate_json((folder / BUNDLE_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"--bundle {folder} holds no bundle that can be read ({error})", remedy) from error
    if spec.measured is None:
        raise UsageError(f"--bundle {folder} was not measured", remedy)
    patches = f"{spec.method} on {spec.model}" if spec.method else spec.model
    name = f"a bundle of {patches} with {spec.items.shipped:,} items in {spec.precision}"
    return BundlePart(name, spec.measured)


def _round(cloud: Artifact) -> int:
    return int(cloud.facts.get("round", 0))


def _model(name: str, artifact: Artifact, about: dict[str, Any], evaluation: Evaluation) -> Model:
    suffix = split_suffix(name)[1]
    called, ref = short_label(artifact, suffix), artifact.ref + (f"+{suffix}" if suffix else "")
    if evaluation.seeds and evaluation.subjects[name] != ref:  # another training under each seed
        called = ref = evaluation.labels[name]
    patches = artifact.kind == "patches"
    cloud = artifact.input("cloud") if patches else artifact
    role = {
        "": describe(artifact),
        ENCODER: "its encoder patches every user",
        "mean": f"the mean patch for every user on {short_label(cloud)}",
        "shuffled": f"{artifact.config.get('method')} patches of other users on {short_label(cloud)}",
    }[suffix]
    return Model(
        name=name,
        ref=called,
        role=role if artifact.ref in called else f"{ref}: {role}",
        round=_round(cloud),
        patched=patches or suffix == ENCODER,
        served_by=about["served_by"],
        ece=about["ece"],
        coverage=about["coverage"],
        placebo=patches and suffix != "",
    )


def _part(evaluation: Evaluation) -> EvaluationPart:
    """Compared with --against, or with the first model if none was named."""
    facts, dataset = evaluation.facts, evaluation.artifact.input("dataset")
    scored = {name: artifact for name, (artifact, _) in evaluation.scored().items()}
    models = [_model(name, artifact, facts["subjects"][name], evaluation) for name, artifact in scored.items()]
    aggregate = evaluation.aggregate
    measured = aggregate["metric"].unique(maintain_order=True).to_list()
    metric = harm_metric(measured)
    baseline, control, gains = None, False, {}
    compared, harm, worst, who, by_activity = (pl.DataFrame() for _ in range(5))
    if len(models) > 1:
        baseline = next((model for model in models if model.name == evaluation.against), models[0])
        inputs = scored[baseline.name].inputs
        control = scored[baseline.name].kind == "cloud" and "cloud" in inputs and "patches" not in inputs
        comparison = Comparison.of(evaluation, baseline.name)
        by_activity = comparison.of_metric(metric).table(ACTIVITY)
        if evaluation.against:
            compared, harm, worst = evaluation.comparison, evaluation.harm, evaluation.worst_users
            who = evaluation.tail_minus_head
        else:
            compared, harm, worst = comparison.table(), comparison.harm(), comparison.worst_users()
            who = comparison.tail_minus_head()
        worst, who = (table.filter(pl.col("metric") == metric) for table in (worst, who))
        sign = -1.0 if lower_is_better(metric) else 1.0
        for name, differences in comparison.paired:
            gains[name] = (sign * differences[metric].drop_nulls()).to_list()
    return EvaluationPart(
        ref=evaluation.ref,
        id=evaluation.id,
        on=facts["on"] + targets_in_words(evaluation.config) + _first_events(evaluation.config),
        dataset=short_label(dataset),
        log=log_in_words(dataset, facts["on"]),
        head_fraction=dataset.config["head_fraction"],
        split=facts["split"],
        seed=evaluation.artifact.seed,
        seeds=evaluation.seeds,
        events=facts["events"],
        users=facts["users"],
        users_without_auc=facts["users_without_auc"],
        candidates=facts["candidates"],
        negatives=evaluation.config["auc_negatives"] if facts["labels"] == "implicit" else 0,
        models=models,
        baseline=baseline,
        control=control,
        metrics=with_what_is_worse(main_metrics(measured), compared) if baseline else main_metrics(measured),
        metric=metric,
        aggregate=aggregate,
        comparison=compared,
        harm=harm,
        worst=worst,
        tail_minus_head=who,
        reliability=evaluation.reliability,
        by_activity=by_activity,
        at_chance={name: (low, high) for name, low, high in at_chance(evaluation.per_user, evaluation.artifact.seed)},
        gains=gains,
    )


def _first_events(config: Mapping[str, Any]) -> str:
    """What to add to the period's name where only new users were scored (evaluate --first-events)."""
    if not config["first_events"]:
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

    Args:
        artifact: what to make. made: id → artifact of its inputs.
    """

    def variable(given: Mapping[str, str], suffix: str) -> str:
        end = f"+{suffix}" if suffix else ""
        return f'"${{{_variable(made[given["id"]])}}}{end}"'

    words = command_words(artifact.manifest, variable, lambda given: made.get(given["id"]))
    return f"{_variable(artifact)}=$(dcclctl {' '.join([*words, '--quiet'])})"
