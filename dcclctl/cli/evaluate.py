"""`dcclctl evaluate`: models side by side, by user activity."""

from typing import Annotated, Any

import typer

from dcclctl.cli.console import Reporter
from dcclctl.cli.options import (
    DEFAULT_STORE,
    ConfigOption,
    ForceOption,
    JsonOption,
    QuietOption,
    StoreOption,
    setting,
    split_commas,
)
from dcclctl.config import EvaluateConfig, resolve

app = typer.Typer(add_completion=False, rich_markup_mode=None)


def _option(name: str, *flags: str, metavar: str | None = None) -> Any:
    return setting(EvaluateConfig, name, *flags, metavar=metavar)


@app.command()
def evaluate(
    references: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[REF]...",
            help="Cloud models, patches, or cloud@N+encoder (everybody served by U). "
            "[default: the newest patches and the cloud model under them, and the newest cloud]",
        ),
    ] = None,
    on: Annotated[str | None, _option("on", metavar="PERIOD")] = None,
    k: Annotated[str | None, _option("k", "--k", "-k", metavar="5,10,20")] = None,
    candidates: Annotated[str | None, _option("candidates", metavar="all|N|auto")] = None,
    auc_negatives: Annotated[int | None, _option("auc_negatives", metavar="N")] = None,
    unpatched: Annotated[str | None, _option("unpatched", metavar="encoder|cloud")] = None,
    batch_events: Annotated[int | None, _option("batch_events", metavar="N")] = None,
    device: Annotated[str | None, _option("device", metavar="auto|cpu|cuda|mps")] = None,
    threads: Annotated[int | None, _option("threads", metavar="N")] = None,
    seed: Annotated[int | None, _option("seed", metavar="N")] = None,
    store: StoreOption = DEFAULT_STORE,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    force: ForceOption = False,
) -> None:
    """Score models side by side, by user activity.

    Every figure is a mean over users of the user's own mean; the table per user is kept in the artifact
    (per_user.parquet), with the aggregates by head, tail, new, all and the 20 activity groups (aggregate.parquet).

    \b
    Examples:
      dcclctl evaluate
      dcclctl evaluate cloud@1 patches@1 cloud@2 --k 10,50 --candidates all
      dcclctl evaluate cloud@2 patches@2 --unpatched encoder --on valid
    """
    settings = resolve(
        EvaluateConfig,
        config,
        on=on,
        k=split_commas(k),
        candidates=candidates,
        auc_negatives=auc_negatives,
        unpatched=unpatched,
        batch_events=batch_events,
        device=device,
        threads=threads,
        seed=seed,
    )
    from dcclctl.report.terminal import group_table
    from dcclctl.stages.evaluate import default_references, display_names, open_subjects
    from dcclctl.stages.evaluate import evaluate as run
    from dcclctl.store.store import Store

    reporter = Reporter(as_json, quiet)
    place = Store(store, remark=reporter.remark)
    subjects = open_subjects(references or default_references(place), place)
    with reporter.progress() as progress:
        made, reused = run(subjects, settings, place, progress, force)
    facts, names = made.facts, dict(display_names(made, place))
    aggregate = made.read_table("aggregate.parquet")
    ranked = "all items" if facts["candidates"] == "all" else f"{facts['candidates']:,} sampled items"
    reporter.line(
        f"{facts['on']} of {subjects[0].cloud.dataset.artifact.ref}: {facts['events']:,} events of {facts['users']:,} users, "
        f"each ranked among {ranked}"
    )
    reporter.table(group_table(aggregate, names, facts["candidates"]))
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
    )
