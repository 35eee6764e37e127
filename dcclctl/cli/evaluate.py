"""`dcclctl evaluate`: models side by side, by user activity."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcclctl.cli.console import Reporter
from dcclctl.cli.options import (
    DEFAULT_STORE,
    ConfigOption,
    ForceOption,
    JsonOption,
    LogOption,
    QuietOption,
    StoreOption,
    setting,
    split_commas,
)
from dcclctl.config import EvaluateConfig, resolve
from dcclctl.errors import GateError, UsageError

if TYPE_CHECKING:
    import polars as pl

    from dcclctl.stages.gate import Rule
    from dcclctl.stages.serve import Subject
    from dcclctl.store.store import Artifact, Store
    from dcclctl.tracking import Tracker

#: users named among those worse off; the artifact and --json hold more
WORST_SHOWN = 5

app = typer.Typer(add_completion=False, rich_markup_mode=None)


def _option(name: str, *flags: str, metavar: str | None = None) -> Any:
    return setting(EvaluateConfig, name, *flags, metavar=metavar)


@app.command()
def evaluate(
    references: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[REF]...",
            help="Cloud models, patches, cloud@N+encoder (everybody served by U), or the placebos patches@N+mean "
            "(everybody gets the mean patch) and patches@N+shuffled (each user gets another one's). "
            "[default: the newest patches and the cloud model under them, and the newest cloud]",
        ),
    ] = None,
    on: Annotated[str | None, _option("on", metavar="PERIOD")] = None,
    k: Annotated[str | None, _option("k", "--k", "-k", metavar="5,10,20")] = None,
    candidates: Annotated[str | None, _option("candidates", metavar="all|N|auto")] = None,
    auc_negatives: Annotated[int | None, _option("auc_negatives", metavar="N")] = None,
    unpatched: Annotated[str | None, _option("unpatched", metavar="encoder|cloud")] = None,
    first_events: Annotated[str | None, _option("first_events", metavar="0,1,3,5,10")] = None,
    targets_after: Annotated[str | None, _option("targets_after", metavar="N|next")] = None,
    targets: Annotated[str | None, _option("targets", metavar="all|repeat|explore")] = None,
    batch_events: Annotated[int | None, _option("batch_events", metavar="N")] = None,
    against: Annotated[str | None, _option("against", metavar="REF")] = None,
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
    device: Annotated[str | None, _option("device", metavar="auto|cpu|cuda|mps")] = None,
    threads: Annotated[int | None, _option("threads", metavar="N")] = None,
    seed: Annotated[int | None, _option("seed", metavar="N")] = None,
    store: StoreOption = DEFAULT_STORE,
    config: ConfigOption = None,
    log: LogOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    force: ForceOption = False,
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
      dcclctl evaluate cloud@1 patches@1 patches@2 --against cloud@1     # patches@2: with patch --guard
      dcclctl evaluate cloud@2 cloud@2+encoder --against cloud@2 --first-events 0,1,3,5,10
      dcclctl evaluate cloud@2 patches@2 --against cloud@2 --first-events 0,1,3 --targets-after next
      dcclctl evaluate cloud@1 cloud@2 patches@1 --targets explore
      dcclctl evaluate cloud --against cloud@release --max-drop tail.ndcg@10=1% --junit gate.xml
    """
    settings = resolve(
        EvaluateConfig,
        config,
        on=on,
        k=split_commas(k),
        candidates=candidates,
        auc_negatives=auc_negatives,
        unpatched=unpatched,
        first_events=split_commas(first_events),
        targets_after=targets_after,
        targets=targets,
        batch_events=batch_events,
        against=against,
        device=device,
        threads=threads,
        seed=seed,
    )
    if targets_after is not None and not settings.first_events:
        raise UsageError(
            f"--targets-after {targets_after} is read with --first-events only",
            "Add --first-events 0,1,3, or leave it out.",
        )
    if settings.first_events and (gate or max_drop or junit or markdown):
        raise UsageError(
            "--first-events makes an evaluation for each K, and a gate judges one",
            "Leave out --gate, --max-drop, --junit and --markdown.",
        )
    from dcclctl.report.terminal import activity_sparklines, group_table
    from dcclctl.stages.cold import targets_in_words
    from dcclctl.stages.evaluate import default_references, display_names, open_subjects
    from dcclctl.stages.evaluate import evaluate as run
    from dcclctl.stages.track import record_of
    from dcclctl.store.store import Store
    from dcclctl.tracking import open_trackers

    trackers = open_trackers(log)
    reporter = Reporter(as_json, quiet)
    place = Store(store, remark=reporter.remark)
    rules = _rules(gate, max_drop, settings, place)
    _check_outputs(settings, rules, junit, markdown)
    subjects = open_subjects(references or default_references(place), place, settings.against)
    if settings.first_events:
        _first_events(subjects, settings, place, trackers, reporter, force)
        return
    with reporter.progress() as progress:
        made, reused = run(subjects, settings, place, progress, force)
    for track in trackers:
        reporter.remark(track(record_of(made, place)))
    facts, names = made.facts, dict(display_names(made, place))
    aggregate = made.read_table("aggregate.parquet")
    ranked = "all items" if facts["candidates"] == "all" else f"{facts['candidates']:,} sampled items"
    reporter.line(
        f"{facts['on']} of {subjects[0].cloud.dataset.artifact.ref}: {facts['events']:,} events of {facts['users']:,} users"
        f"{targets_in_words(made.config)}, each ranked among {ranked}"
    )
    reporter.table(group_table(aggregate, names))
    reporter.table(activity_sparklines(aggregate, names))
    for name, ref in names.items():
        about = facts["subjects"][name]
        served = ", ".join(f"{count:,} by {by}" for by, count in sorted(about["served_by"].items()))
        beyond = "" if about["coverage"] is None else f"; shows {about['coverage']:.0%} of the catalogue"
        reporter.line(f"{ref}: users served {served}; calibration error {about['ece']:.4f}{beyond}")
    if facts["users_without_auc"]:
        reporter.line(f"{facts['users_without_auc']:,} users have events of one label only and no AUC")
    if facts["split"] != "global":
        reporter.line(f"split {facts['split']}: users' periods overlap in time, so trends leak between users")
    rows = aggregate.with_columns(aggregate["subject"].replace(names)).to_dicts()
    compared, failed = _compare(made, names, rules, reporter, junit, markdown) if settings.against else ({}, 0)
    reporter.finish(
        made.ref,
        made.id,
        reused,
        on=facts["on"],
        candidates=facts["candidates"],
        users=facts["users"],
        events=facts["events"],
        subjects=list(names.values()),
        metrics=[row for row in rows if not row["group"].startswith("activity-")],
        **compared,
    )
    if failed:
        raise GateError(
            f"the gate failed: {failed} of {len(compared['gate'])} drops against {compared['against']} are larger than "
            f"allowed, and real",
            f"The figures are in {made.ref}; what else changed: dcclctl artifacts diff A B.",
        )


def _first_events(
    subjects: "list[Subject]",
    settings: EvaluateConfig,
    place: "Store",
    trackers: "list[Tracker]",
    reporter: Reporter,
    force: bool,
) -> None:
    """One evaluation for each K, and all of them in one table."""
    from dcclctl.algorithm.eventlog import Block
    from dcclctl.report.comparison import first_events_table
    from dcclctl.stages.cold import by_first_events, one_each, scored_events, targets_in_words
    from dcclctl.stages.compare import main_metrics
    from dcclctl.stages.evaluate import display_names, evaluate, subject_name
    from dcclctl.stages.track import record_of

    dataset = subjects[0].cloud.dataset
    for each in one_each(settings):
        scored_events(
            dataset, dataset.log.events_in(Block.parse(each.on)), each
        )  # says so before any work if a K has none
    with reporter.progress() as progress:
        runs = [evaluate(subjects, each, place, progress, force) for each in one_each(settings)]
    made = [artifact for artifact, _ in runs]
    for track in trackers:
        for artifact in made:
            reporter.remark(track(record_of(artifact, place)))
    facts, names = made[0].facts, dict(display_names(made[0], place))
    table = by_first_events(made)
    ranked = "all items" if facts["candidates"] == "all" else f"{facts['candidates']:,} sampled items"
    after = made[0].config["targets_after"]
    scored = (
        "what comes right after each new user's first K events (each K has users and events of its own)"
        if after == "next"
        else f"{facts['events']:,} events of {facts['users']:,} new users after their first {after}"
    )
    scored += targets_in_words(made[0].config)
    reporter.line(f"{facts['on']} of {subjects[0].cloud.dataset.artifact.ref}: {scored}, each ranked among {ranked}")
    against = subject_name(settings.against, place) if settings.against else ""
    shown = main_metrics(table["metric"].unique(maintain_order=True).to_list())
    reporter.table(first_events_table(table, names, against, shown))
    if not reporter.as_json:
        for artifact, reused in runs:
            reporter.finish(artifact.ref, artifact.id, reused)
        return
    last, reused = runs[-1]
    reporter.finish(
        last.ref,
        last.id,
        reused,
        evaluations=[
            {
                **{name: each.facts[name] for name in ("first_events", "users", "events")},
                "ref": each.ref,
                "id": each.id,
                "reused": was_there,
            }
            for each, was_there in runs
        ],
        on=facts["on"],
        candidates=facts["candidates"],
        **({} if after == "next" else {"users": facts["users"], "events": facts["events"]}),
        against=names.get(against, ""),
        subjects=list(names.values()),
        metrics=_rows(table, names),
    )


def _rules(gate: Path | None, max_drop: list[str] | None, settings: EvaluateConfig, place: "Store") -> "list[Rule]":
    """The rules of the file, then those of the flags; their models by the names that the tables use."""
    if gate is None and not max_drop:
        return []
    from dataclasses import replace

    from dcclctl.stages.evaluate import subject_name
    from dcclctl.stages.gate import check_metrics, parse_max_drop, read_gate

    rules = (read_gate(gate) if gate else []) + [parse_max_drop(text) for text in max_drop or []]
    check_metrics(rules, settings.k)
    return [replace(rule, subject=subject_name(rule.subject, place)) if rule.subject else rule for rule in rules]


def _check_outputs(settings: EvaluateConfig, rules: "list[Rule]", junit: Path | None, markdown: Path | None) -> None:
    if (rules or junit or markdown) and not settings.against:
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


def _compare(
    made: "Artifact",
    names: dict[str, str],
    rules: "list[Rule]",
    reporter: Reporter,
    junit: Path | None,
    markdown: Path | None,
) -> tuple[dict[str, Any], int]:
    """Show the comparison, the harm and the gate, and write the files that were asked for.

    Returns:
        What --json says of them, and how many rules failed.
    """
    from dcclctl.report import ci
    from dcclctl.report.comparison import comparison_table, gate_table, harm_table, points, tail_minus_head_line
    from dcclctl.stages.cold import targets_in_words
    from dcclctl.stages.compare import (
        compare_evaluation,
        harm_metric,
        main_metrics,
        tail_minus_head_of_evaluation,
    )
    from dcclctl.stages.gate import judge
    from dcclctl.tables import MAIN_GROUPS

    against = made.config["against"]
    comparison, harm, worst = (made.read_table(f"{name}.parquet") for name in ("comparison", "harm", "worst_users"))
    measured = comparison["metric"].unique(maintain_order=True).to_list()
    shown, harmed_by = main_metrics(measured), harm_metric(measured)
    if against in comparison["subject"]:
        reporter.line(f"{names[against]} is the baseline itself: it is compared with itself")
    reporter.table(comparison_table(comparison, names, against, shown))
    who = tail_minus_head_of_evaluation(made, against)
    for (subject,), rows in who.group_by("subject", maintain_order=True):
        said = tail_minus_head_line(rows.to_dicts(), names[str(subject)], shown)
        if said:
            reporter.line(said)
    reporter.table(harm_table(harm, comparison, names, against, harmed_by))
    for (subject,), lost in worst.filter(metric=harmed_by).group_by("subject", maintain_order=True):
        users = [f"{row['user_id']} ({row['group']}, {points(row['difference'])})" for row in lost.to_dicts()]
        reporter.line(f"{names[str(subject)]}, worst off: {', '.join(users[:WORST_SHOWN])}")
    others = {rule.group for rule in rules} - set(MAIN_GROUPS)
    full = compare_evaluation(made, against, (*MAIN_GROUPS, *sorted(others))) if others else comparison
    verdicts = judge(full, rules)
    if rules:
        reporter.table(gate_table(verdicts, names, against))
        if any("/" in metric for metric in verdicts["metric"]):
            reporter.line("the gate judges sampled metrics: all models were ranked among the same sampled items")
    if junit:
        junit.write_text(ci.junit(verdicts, names, against), encoding="utf-8")
    if markdown:
        heading = f"{made.ref}: {made.facts['on']}, {made.facts['events']:,} events of {made.facts['users']:,} users"
        heading += targets_in_words(made.config)
        text = ci.markdown(comparison, harm, worst, verdicts, names, against, shown, harmed_by, heading)
        markdown.write_text(text, encoding="utf-8")
    facts = {
        "against": names[against],
        "comparison": _rows(comparison, names),
        "tail_minus_head": _rows(who, names),
        "harm": _rows(harm, names),
        "worst_users": _rows(worst.drop("user_index"), names),
        "gate": _rows(verdicts, names),
    }
    return facts, verdicts["verdict"].to_list().count("fail")


def _rows(table: "pl.DataFrame", names: dict[str, str]) -> list[dict[str, Any]]:
    """A table for --json, with references instead of the names that are the same in every store."""
    return table.with_columns(table["subject"].replace(names)).to_dicts()
