"""`dcclctl evaluate`: models side by side, for active and less active users."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcclctl.cli.options import SHARDS, Call, command
from dcclctl.errors import GateError, UsageError

if TYPE_CHECKING:
    import polars as pl

    from dcclctl.artifacts import Evaluation
    from dcclctl.devices.serving import Subject
    from dcclctl.evaluation.gate import GateResult, Rule

#: facts that --json shows beside ref, id and reused
KEY_FACTS = ("on", "candidates", "users", "events", "events_without_candidates", "events_with_few_candidates")
#: users named among those worse off; the artifact and --json hold more
WORST_SHOWN = 5

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@command(app, "evaluate", shared=SHARDS, seeded={})
def evaluate(
    call: Call,
    references: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="REF",
            help="Cloud models, patches, cloud@N+encoder (the encoder U patches every user), or the placebos patches@N+mean "
            "(all users get the mean patch) and patches@N+shuffled (each user gets the patch of another). "
            "[default: the newest patches, the cloud model under them, and the newest cloud model]",
        ),
    ] = None,
    gate: Annotated[
        Path | None,
        typer.Option(
            "--gate", metavar="FILE.toml", help="File of rules that say how much a metric may drop, see docs/ci.md."
        ),
    ] = None,
    max_drop: Annotated[
        list[str] | None,
        typer.Option(
            "--max-drop",
            metavar="GROUP.METRIC=DROP",
            help="One rule: tail.ndcg@10=1% allows 1 % of the baseline's value, all.gauc=0.002 that much; may be repeated.",
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail on an inconclusive rule too: every rule of the gate must pass.")
    ] = False,
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE.xml", help="Write the gate's rules as JUnit XML.")
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option("--markdown", metavar="FILE.md", help="Write a summary for a pull request or a CI step."),
    ] = None,
) -> None:
    """Score models side by side, for active and less active users.

    A metric is averaged over each user's events first, then over users. The artifact keeps the values of every user
    (per_user.parquet) and the means of the groups head (the most active 20 % of the users), tail (the other 80 %), new (no
    event before the test period), all, and of 20 groups by activity (aggregate.parquet).

    With --against every other model is compared with that baseline, user by user: difference, 95 % interval, verdict, and
    which users are worse off. With --gate or --max-drop the command fails with exit code 4 if a metric dropped by more than
    the rule allows and the interval of the drop lies above zero. An inconclusive rule fails under --strict only.

    With --seeds every model is scored once for each seed it was trained with: tables show the mean and its spread, and
    intervals are over seeds and users. Without, they are of one seed, and another seed may turn a verdict.

    \b
    Examples:
      dcclctl evaluate
      dcclctl evaluate cloud@1 patches@1 cloud@2 --k 10,50 --candidates all
      dcclctl evaluate cloud@2 patches@2 --unpatched encoder --on valid
      dcclctl evaluate cloud@1 patches@1 patches@2 --against cloud@1
      dcclctl evaluate cloud@2 cloud@2+encoder --against cloud@2 --first-events 0,1,3,5,10
      dcclctl evaluate cloud@2 patches@2 --against cloud@2 --first-events 0,1,3 --targets-after next
      dcclctl evaluate cloud@1 cloud@2 patches@1 --targets explore
      dcclctl evaluate cloud@candidate --against cloud@release --max-drop tail.ndcg@10=1% --junit gate.xml
      dcclctl evaluate cloud@base patches@mine --seeds 0..4 --against cloud@base
    """
    from dcclctl.artifacts.names import identity
    from dcclctl.config import EvaluateConfig
    from dcclctl.evaluation.gate import NO_VERDICTS, GateResult, gate_rules, verdicts_of
    from dcclctl.stages.evaluate import default_references, evaluate_first_events, open_subjects
    from dcclctl.stages.evaluate import evaluate as run
    from dcclctl.stages.seeds import evaluate_seeds
    from dcclctl.stages.settings import resolve

    config = resolve(EvaluateConfig, call.settings, call.config)
    rules = gate_rules(gate, max_drop or [], config.k, call.store, config.candidates)
    _check_outputs(config, rules, strict, junit, markdown)
    if call.seeds:
        subjects = []
        models = _groups(call, references, config.against)
    else:
        subjects = open_subjects(references or default_references(call.store), call.store, config.against)
    with call.run() as options:
        if call.seeds:
            made = [evaluate_seeds(models[:-1], call.seeds, call.settings, options, models[-1] or None)]
        elif config.first_events:
            made = evaluate_first_events(subjects, call.settings, options)
        else:
            made = [run(subjects, call.settings, options)]
    if config.first_events:
        _show_first_events(call, made)
        return
    (evaluation,) = made
    _show(call, evaluation)
    compared: dict[str, Any] = {}
    itself = evaluation.labels.get(evaluation.against, "") if evaluation.compared_with_itself else ""
    gate_result = GateResult(verdicts_of(evaluation, rules) if rules else NO_VERDICTS, strict, itself)
    if evaluation.against:
        compared = _compare(call, evaluation, gate_result)
        _write(evaluation, gate_result, junit, markdown)
    refs = evaluation.subjects
    call.finish(
        evaluation,
        **{name: evaluation.facts[name] for name in KEY_FACTS},
        subjects=list(refs.values()),
        names={refs[name]: label for name, label in evaluation.labels.items()},
        models=[identity(*scored) for scored in evaluation.scored().values()],
        metrics=[row for row in _rows(evaluation.aggregate, refs) if not row["group"].startswith("activity-")],
        seeds=evaluation.seeds,
        per_seed=_per_seed(evaluation),
        **compared,
    )
    if gate_result.verdict == "fail":
        raise GateError(
            gate_result.headline[0].lower() + gate_result.headline[1:],
            f"All metrics are in {evaluation.ref}. What else changed: dcclctl artifacts diff A B.",
        )


def _groups(call: Call, references: list[str] | None, against: str) -> "list[list[Subject]]":
    """For each model, and last for the baseline ([] without one), what to score under each seed."""
    from dcclctl.devices.serving import Subject
    from dcclctl.stages.seeds import seeded

    if not references:
        raise UsageError("--seeds: name the models", "E.g. dcclctl evaluate cloud@base patches@mine --seeds 0..4")
    groups = [seeded(reference, call.seeds, call.store) for reference in references]
    groups += [seeded(against, call.seeds, call.store)] if against else [[]]
    return [[Subject.of(each, call.store) for each in group] for group in groups]


def _check_outputs(config: Any, rules: "list[Rule]", strict: bool, junit: Path | None, markdown: Path | None) -> None:
    """Refuse rules without a baseline, and files that cannot be written, before the work starts."""
    if config.first_events and (rules or junit or markdown):
        raise UsageError(
            "--first-events makes an evaluation for each K, and a gate reads one evaluation",
            "Leave out --gate, --max-drop, --junit and --markdown.",
        )
    if (rules or junit or markdown) and not config.against:
        what = "a gate" if rules or junit else "--markdown"
        raise UsageError(
            f"{what} compares with a baseline, and none is given", "Add --against REF, e.g. --against cloud@release"
        )
    if (junit or strict) and not rules:
        raise UsageError(
            f"{'--junit writes' if junit else '--strict reads'} the rules of a gate, and there is none",
            "Add --gate FILE.toml or --max-drop tail.ndcg@10=1%",
        )
    for path in (junit, markdown):
        if path is not None and not path.absolute().parent.is_dir():
            raise UsageError(f"there is no folder {path.parent} for {path.name}", "Make it first, or choose another.")


def _scored_in_words(evaluation: "Evaluation", events: str = "") -> str:
    """What was scored: 'test of dataset@1: 1,000 events of 100 users, each ranked among all items'."""
    from dcclctl.artifacts.names import log_in_words
    from dcclctl.evaluation.targets import targets_in_words

    facts = evaluation.facts
    events = events or f"{facts['events']:,} events of {facts['users']:,} users"
    among = "all items" if facts["candidates"] == "all" else f"{facts['candidates']:,} sampled items"
    targets = targets_in_words(evaluation.config)
    dataset = evaluation.artifact.input("dataset")
    data = f"{log_in_words(dataset, facts['on'])} ({dataset.ref})"
    return f"{facts['on']} of {data}: {events}{targets}, each ranked among {among}"


def _show(call: Call, evaluation: "Evaluation") -> None:
    """Print the table by group, the picture by activity, and remarks."""
    from dcclctl.evaluation.comparison import at_chance, main_metrics, users_with_a_rank
    from dcclctl.report.comparison import chance_in_words, groups_in_words
    from dcclctl.report.seeds import seeds_table
    from dcclctl.report.terminal import activity_sparklines, group_table, plain_sentence

    facts, labels, line = evaluation.facts, evaluation.labels, call.reporter.line
    line(_scored_in_words(evaluation))
    comparison = evaluation.comparison if evaluation.against else None
    sentence = plain_sentence(evaluation.aggregate, comparison, labels, evaluation.against)
    if sentence:
        line(sentence)
    line("Means over users" + (f" and {len(evaluation.seeds)} seeds" if evaluation.seeds else ", one seed"))
    call.reporter.table(group_table(evaluation.aggregate, labels))
    if evaluation.seeds:
        measured = evaluation.aggregate["metric"].unique(maintain_order=True).to_list()
        call.reporter.table(seeds_table(evaluation.per_seed, labels, main_metrics(measured)))
    dataset = evaluation.artifact.input("dataset")
    line(groups_in_words(dataset.config["head_fraction"]))
    call.reporter.table(activity_sparklines(evaluation.aggregate, labels))
    for name, label in labels.items():
        about = facts["subjects"][name]
        served = ", ".join(f"{count:,} by {by}" for by, count in sorted(about["served_by"].items()))
        beyond = "" if about["coverage"] is None else f"; shows {about['coverage']:.0%} of the catalogue"
        line(f"{label}: users served: {served}; calibration error {about['ece']:.4f}{beyond}")
    if facts["events_without_candidates"]:
        line(f"{facts['events_without_candidates']:,} events have no other candidate, therefore no rank and no AUC")
    few = facts["events_with_few_candidates"] - facts["events_without_candidates"]
    if few:
        line(f"{few:,} events are ranked among fewer items than the largest k, {max(evaluation.config['k'])}")
    unranked = facts["users"] - users_with_a_rank(evaluation.aggregate)
    if unranked:
        line(f"{unranked:,} users have no positive event that can be ranked, therefore no HR, NDCG and MRR")
    for name, low, high in at_chance(evaluation.per_user, evaluation.artifact.seed):
        line(f"{labels[name]}: {chance_in_words(low, high)}")
    if facts["users_without_auc"]:
        line(f"{facts['users_without_auc']:,} users have events of one label only, therefore no AUC")
    if facts["split"] != "global":
        line(f"split {facts['split']}: users' periods overlap in time, so models can learn trends of the test period")


def _show_first_events(call: Call, made: "list[Evaluation]") -> None:
    """Print one evaluation for each K, all of them in one table."""
    from dcclctl.evaluation.comparison import main_metrics
    from dcclctl.evaluation.targets import by_first_events
    from dcclctl.report.comparison import first_events_table

    facts, labels, refs = made[0].facts, made[0].labels, made[0].subjects
    table = by_first_events(made)
    after = made[0].config["targets_after"]
    scored = (
        "what comes right after each new user's first K events (each K has users and events of its own)"
        if after == "next"
        else f"{facts['events']:,} events of {facts['users']:,} new users after their first {after}"
    )
    call.reporter.line(_scored_in_words(made[0], scored))
    shown = main_metrics(table["metric"].unique(maintain_order=True).to_list())
    call.reporter.table(first_events_table(table, labels, made[0].against, shown))
    if not call.reporter.as_json:
        for each in made:
            call.finish(each)
        return
    for each in made[:-1]:
        call.send(each)
    evaluations = [
        {name: each.facts[name] for name in ("first_events", "users", "events")}
        | {"ref": each.ref, "id": each.id, "reused": each.reused}
        for each in made
    ]
    call.finish(
        made[-1],
        evaluations=evaluations,
        on=facts["on"],
        candidates=facts["candidates"],
        **({} if after == "next" else {"users": facts["users"], "events": facts["events"]}),
        against=refs.get(made[0].against, ""),
        subjects=list(refs.values()),
        metrics=_rows(table, refs),
    )


def _compare(call: Call, evaluation: "Evaluation", gate: "GateResult") -> dict[str, Any]:
    """Print the comparison, harm and gate; returns what --json says."""
    from dcclctl.evaluation.comparison import harm_metric, main_metrics, with_what_is_worse
    from dcclctl.report.comparison import comparison_table, gate_table, harm_table, points, tail_minus_head_line

    against, labels, refs = evaluation.against, evaluation.labels, evaluation.subjects
    comparison, harm, worst = evaluation.comparison, evaluation.harm, evaluation.worst_users
    measured = comparison["metric"].unique(maintain_order=True).to_list()
    shown, harmed_by = main_metrics(measured), harm_metric(measured)
    reporter = call.reporter
    if evaluation.compared_with_itself:
        reporter.line(f"{labels[against]}, the only model, is compared with itself")
    differences = with_what_is_worse(shown, comparison)
    reporter.table(comparison_table(comparison, labels, against, differences, evaluation.intervals_over))
    for (subject,), rows in evaluation.tail_minus_head.group_by("subject", maintain_order=True):
        said = tail_minus_head_line(rows.to_dicts(), labels[str(subject)], shown)
        if said:
            reporter.line(said)
    reporter.table(harm_table(harm, comparison, labels, against, harmed_by))
    for (subject,), lost in worst.filter(metric=harmed_by).group_by("subject", maintain_order=True):
        users = [f"{row['user_id']} ({row['group']}, {points(row['difference'])})" for row in lost.to_dicts()]
        reporter.line(f"{labels[str(subject)]}, worst off: {', '.join(users[:WORST_SHOWN])}")
    if gate.rules.height:
        reporter.table(gate_table(gate.rules, labels, against, evaluation.intervals_over))
        if any("/" in metric for metric in gate.rules["metric"]):
            reporter.line("the gate compares sampled metrics: all models were ranked among the same sampled items")
        reporter.line(gate.headline)
    return {
        "against": refs[against],
        "comparison": _rows(comparison, refs),
        "tail_minus_head": _rows(evaluation.tail_minus_head, refs),
        "harm": _rows(harm, refs),
        "worst_users": _rows(worst.drop("user_index"), refs),
        "gate": _rows(gate.rules, refs),
        "gate_verdict": gate.verdict,
        "gate_headline": gate.headline,
        "strict": gate.strict,
    }


def _write(evaluation: "Evaluation", gate: "GateResult", junit: Path | None, markdown: Path | None) -> None:
    """Write the files for CI."""
    from dcclctl.report import ci

    summary = ci.Summary(
        evaluation.comparison,
        evaluation.harm,
        evaluation.worst_users,
        gate,
        evaluation.labels,
        evaluation.against,
        f"{evaluation.ref}: {_scored_in_words(evaluation)}; intervals over {evaluation.intervals_over}",
    )
    for path, text_of in ((junit, ci.junit), (markdown, ci.markdown)):
        if path:
            path.write_text(text_of(summary), encoding="utf-8")


def _per_seed(evaluation: "Evaluation") -> list[dict[str, Any]]:
    """The rows of the per-seed table for --json, with this store's references of what was scored; [] for one seed."""
    if not evaluation.seeds:
        return []
    refs, table = evaluation.subjects, evaluation.per_seed
    scored = {(name, seed): artifact.ref for name in refs for seed, artifact in evaluation.trainings(name).items()}
    return [
        {**row, "subject": refs[row["subject"]], "artifact": scored[row["subject"], row["seed"]]}
        for row in table.to_dicts()
    ]


def _rows(table: "pl.DataFrame", refs: dict[str, str]) -> list[dict[str, Any]]:
    """The rows of a table for --json, with this store's references as subjects."""
    return table.with_columns(table["subject"].replace(refs)).to_dicts()
