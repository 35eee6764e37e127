"""`dcclctl evaluate`: models side by side, by user activity."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcclctl.cli.options import Call, command
from dcclctl.errors import GateError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    import polars as pl

    from dcclctl.artifacts import Evaluation
    from dcclctl.artifacts.handle import Handle
    from dcclctl.devices.serving import Subject
    from dcclctl.evaluation.gate import Rule

#: users named among those worse off; the artifact and --json hold more
WORST_SHOWN = 5

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@command(app, "evaluate")
def evaluate(
    call: Call,
    references: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[REF]...",
            help="Cloud models, patches, cloud@N+encoder (everybody served by U), or the placebos patches@N+mean "
            "(everybody gets the mean patch) and patches@N+shuffled (each user gets another one's). "
            "[default: the newest patches and the cloud model under them, and the newest cloud]",
        ),
    ] = None,
    gate: Annotated[
        Path | None,
        typer.Option("--gate", metavar="FILE.toml", help="Rules: how much may drop. Exit 4 on a real drop."),
    ] = None,
    max_drop: Annotated[
        list[str] | None,
        typer.Option(
            "--max-drop",
            metavar="GROUP.METRIC=DROP",
            help="One rule, e.g. tail.ndcg@10=1% of the baseline's, or all.gauc=0.002. May be given several times.",
        ),
    ] = None,
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE.xml", help="Write the gate's rules as JUnit XML.")
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option("--markdown", metavar="FILE.md", help="Write a summary for a pull request or a CI step."),
    ] = None,
) -> None:
    """Score models side by side, by user activity.

    Every figure is a mean over users of the user's own mean; the table per user is kept in the artifact
    (per_user.parquet), with the aggregates by head, tail, new, all and the 20 activity groups (aggregate.parquet).

    With --against every other model is compared with that baseline, paired by user: difference, 95 % interval, verdict,
    and who is worse off. With --gate or --max-drop the command fails (exit code 4) if a metric dropped by more than is
    allowed and the interval says that the drop is real; what cannot be told is called inconclusive and does not fail.

    \b
    Examples:
      dcclctl evaluate
      dcclctl evaluate cloud@1 patches@1 cloud@2 --k 10,50 --candidates all
      dcclctl evaluate cloud@2 patches@2 --unpatched encoder --on valid
      dcclctl evaluate cloud@1 patches@1 patches@2 --against cloud@1     # patches@2: made with a guard
      dcclctl evaluate cloud@2 cloud@2+encoder --against cloud@2 --first-events 0,1,3,5,10
      dcclctl evaluate cloud@2 patches@2 --against cloud@2 --first-events 0,1,3 --targets-after next
      dcclctl evaluate cloud@1 cloud@2 patches@1 --targets explore
      dcclctl evaluate cloud --against cloud@release --max-drop tail.ndcg@10=1% --junit gate.xml
    """
    from dcclctl.cli.tracking import track
    from dcclctl.config import EvaluateConfig
    from dcclctl.evaluation.gate import gate_rules
    from dcclctl.stages.evaluate import default_references, evaluate_first_events, open_subjects
    from dcclctl.stages.evaluate import evaluate as run
    from dcclctl.stages.settings import resolve

    config = resolve(EvaluateConfig, call.settings, call.config)
    rules = gate_rules(gate, max_drop or [], config.k, call.store)
    _check_outputs(config, rules, junit, markdown)
    subjects = open_subjects(references or default_references(call.store), call.store, config.against)
    with track(call) as send:
        if config.first_events:
            with call.run() as options:
                made = evaluate_first_events(subjects, call.settings, options)
            _show_first_events(call, subjects, made, send)
            return
        with call.run() as options:
            evaluation = run(subjects, call.settings, options)
        send(evaluation)
    _show(call, evaluation, subjects)
    compared, failed = _compare(call, evaluation, rules, junit, markdown) if evaluation.against else ({}, 0)
    facts, aggregate, refs = evaluation.facts, evaluation.aggregate, evaluation.subjects
    rows = aggregate.with_columns(aggregate["subject"].replace(refs)).to_dicts()
    call.finish(
        evaluation,
        on=facts["on"],
        candidates=facts["candidates"],
        users=facts["users"],
        events=facts["events"],
        events_without_candidates=facts["events_without_candidates"],
        events_with_few_candidates=facts["events_with_few_candidates"],
        subjects=list(refs.values()),
        names={refs[name]: label for name, label in evaluation.labels.items()},
        metrics=[row for row in rows if not row["group"].startswith("activity-")],
        **compared,
    )
    if failed:
        raise GateError(
            f"the gate failed: {failed} of {len(compared['gate'])} drops against {compared['against']} are larger than "
            f"allowed, and real",
            f"The figures are in {evaluation.ref}; what else changed: dcclctl artifacts diff A B.",
        )


def _check_outputs(config: Any, rules: "list[Rule]", junit: Path | None, markdown: Path | None) -> None:
    """Refuse files and rules that have nothing to be made of, before the work starts."""
    if config.first_events and (rules or junit or markdown):
        raise UsageError(
            "--first-events makes an evaluation for each K, and a gate judges one",
            "Leave out --gate, --max-drop, --junit and --markdown.",
        )
    if (rules or junit or markdown) and not config.against:
        raise UsageError(
            "a gate compares with a baseline, and none is named", "Add --against REF, e.g. --against cloud@release"
        )
    if junit and not rules:
        raise UsageError(
            "--junit writes the rules of a gate, and there is none",
            "Add --gate FILE.toml or --max-drop tail.ndcg@10=1%",
        )
    for path in (junit, markdown):
        if path is not None and not path.absolute().parent.is_dir():
            raise UsageError(f"there is no folder {path.parent} for {path.name}", "Make it first, or choose another.")


def _ranked(facts: Any) -> str:
    return "all items" if facts["candidates"] == "all" else f"{facts['candidates']:,} sampled items"


def _show(call: Call, evaluation: "Evaluation", subjects: "list[Subject]") -> None:
    """The table by group, the picture by activity, and what else there is to say."""
    from dcclctl.evaluation.targets import targets_in_words
    from dcclctl.report.terminal import activity_sparklines, group_table, plain_sentence

    facts, labels, line = evaluation.facts, evaluation.labels, call.reporter.line
    line(
        f"{facts['on']} of {subjects[0].cloud.dataset.ref}: {facts['events']:,} events of {facts['users']:,} users"
        f"{targets_in_words(evaluation.config)}, each ranked among {_ranked(facts)}"
    )
    sentence = plain_sentence(evaluation.aggregate, labels, evaluation.against)
    if sentence:
        line(sentence)
    call.reporter.table(group_table(evaluation.aggregate, labels))
    call.reporter.table(activity_sparklines(evaluation.aggregate, labels))
    for name, label in labels.items():
        about = facts["subjects"][name]
        served = ", ".join(f"{count:,} by {by}" for by, count in sorted(about["served_by"].items()))
        beyond = "" if about["coverage"] is None else f"; shows {about['coverage']:.0%} of the catalogue"
        line(f"{label}: users served {served}; calibration error {about['ece']:.4f}{beyond}")
    if facts["events_without_candidates"]:
        line(f"{facts['events_without_candidates']:,} events have no other candidate, so they have no rank and no AUC")
    few = facts["events_with_few_candidates"] - facts["events_without_candidates"]
    if few:
        line(f"{few:,} events are ranked among fewer items than the largest cut-off {max(evaluation.config['k'])}")
    if facts["users_without_auc"]:
        line(f"{facts['users_without_auc']:,} users have rows of one label only and no AUC")
    if facts["split"] != "global":
        line(f"split {facts['split']}: users' periods overlap in time, so trends leak between users")


def _show_first_events(
    call: Call, subjects: "list[Subject]", made: "list[Evaluation]", send: "Callable[[Handle], None]"
) -> None:
    """One evaluation for each K, all of them in one table."""
    from dcclctl.evaluation.comparison import main_metrics
    from dcclctl.evaluation.targets import by_first_events, targets_in_words
    from dcclctl.report.comparison import first_events_table

    for each in made:
        send(each)
    facts, labels, refs = made[0].facts, made[0].labels, made[0].subjects
    table = by_first_events(made)
    after = made[0].config["targets_after"]
    scored = (
        "what comes right after each new user's first K events (each K has users and events of its own)"
        if after == "next"
        else f"{facts['events']:,} events of {facts['users']:,} new users after their first {after}"
    )
    scored += targets_in_words(made[0].config)
    call.reporter.line(
        f"{facts['on']} of {subjects[0].cloud.dataset.ref}: {scored}, each ranked among {_ranked(facts)}"
    )
    shown = main_metrics(table["metric"].unique(maintain_order=True).to_list())
    call.reporter.table(first_events_table(table, labels, made[0].against, shown))
    if not call.reporter.as_json:
        for each in made:
            call.finish(each)
        return
    evaluations = [
        {
            **{name: each.facts[name] for name in ("first_events", "users", "events")},
            "ref": each.ref,
            "id": each.id,
            "reused": each.reused,
        }
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


def _compare(
    call: Call, evaluation: "Evaluation", rules: "list[Rule]", junit: Path | None, markdown: Path | None
) -> tuple[dict[str, Any], int]:
    """Show the comparison, the harm and the gate, and write the files that were asked for.

    Returns:
        What --json says of them, and how many rules failed.
    """
    from dcclctl.evaluation.comparison import harm_metric, main_metrics
    from dcclctl.evaluation.gate import verdicts_of
    from dcclctl.evaluation.targets import targets_in_words
    from dcclctl.report import ci
    from dcclctl.report.comparison import comparison_table, gate_table, harm_table, points, tail_minus_head_line

    against, labels, refs = evaluation.against, evaluation.labels, evaluation.subjects
    comparison, harm, worst = evaluation.comparison, evaluation.harm, evaluation.worst_users
    measured = comparison["metric"].unique(maintain_order=True).to_list()
    shown, harmed_by = main_metrics(measured), harm_metric(measured)
    reporter = call.reporter
    if against in comparison["subject"]:
        reporter.line(f"{labels[against]} is the baseline itself: it is compared with itself")
    reporter.table(comparison_table(comparison, labels, against, shown))
    for (subject,), rows in evaluation.tail_minus_head.group_by("subject", maintain_order=True):
        said = tail_minus_head_line(rows.to_dicts(), labels[str(subject)], shown)
        if said:
            reporter.line(said)
    reporter.table(harm_table(harm, comparison, labels, against, harmed_by))
    for (subject,), lost in worst.filter(metric=harmed_by).group_by("subject", maintain_order=True):
        users = [f"{row['user_id']} ({row['group']}, {points(row['difference'])})" for row in lost.to_dicts()]
        reporter.line(f"{labels[str(subject)]}, worst off: {', '.join(users[:WORST_SHOWN])}")
    verdicts = verdicts_of(evaluation, rules)
    if rules:
        reporter.table(gate_table(verdicts, labels, against))
        if any("/" in metric for metric in verdicts["metric"]):
            reporter.line("the gate judges sampled metrics: all models were ranked among the same sampled items")
    if junit:
        junit.write_text(ci.junit(verdicts, labels, against), encoding="utf-8")
    if markdown:
        facts = evaluation.facts
        heading = f"{evaluation.ref}: {facts['on']}, {facts['events']:,} events of {facts['users']:,} users"
        heading += targets_in_words(evaluation.config)
        text = ci.markdown(comparison, harm, worst, verdicts, labels, against, shown, harmed_by, heading)
        markdown.write_text(text, encoding="utf-8")
    said_of_it = {
        "against": refs[against],
        "comparison": _rows(comparison, refs),
        "tail_minus_head": _rows(evaluation.tail_minus_head, refs),
        "harm": _rows(harm, refs),
        "worst_users": _rows(worst.drop("user_index"), refs),
        "gate": _rows(verdicts, refs),
    }
    return said_of_it, verdicts["verdict"].to_list().count("fail")


def _rows(table: "pl.DataFrame", refs: dict[str, str]) -> list[dict[str, Any]]:
    """A table for --json, with references instead of the names that are the same in every store."""
    return table.with_columns(table["subject"].replace(refs)).to_dicts()
