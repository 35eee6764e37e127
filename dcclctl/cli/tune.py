"""`dcclctl tune`: the best settings of train, patch or distill, found on valid."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcclctl.cli.options import Call, command
from dcclctl.config import TuneConfig
from dcclctl.errors import UsageError, nearest

if TYPE_CHECKING:
    from dcclctl.artifacts.tuning import Tuning

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@command(app, "tune")
def tune(
    call: Call,
    section: Annotated[
        str, typer.Argument(metavar="COMMAND", help="The command whose settings are tried: train, patch or distill.")
    ],
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME,…", help="With train: the models, each with all trials.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", metavar="NAME,…", help="With patch and distill: the methods, each with all trials."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", metavar="REF", help="With train. [default: the newest dataset]")
    ] = None,
    cloud: Annotated[
        str | None,
        typer.Option("--cloud", metavar="REF", help="With patch: what to patch. [default: the newest cloud]"),
    ] = None,
    patches: Annotated[
        str | None, typer.Option("--patches", metavar="REF", help="With distill: the teachers. [default: the newest]")
    ] = None,
    space: Annotated[
        list[str] | None,
        typer.Option(
            "--space",
            metavar="KEY=VALUES",
            help="Values to try: train.din.learning_rate=1e-4..1e-2 or train.din.item_size=16,32; may be repeated. A setting "
            "that is given with --set is not searched.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE.toml", help="Write the best settings, for --config.")
    ] = None,
) -> None:
    """Find the best settings of train, patch or distill on valid.

    Every model or method has the same number of trials: the first with the settings as they are, the others chosen by Optuna
    (TPE). A trial is the artifact that the command itself makes, scored by evaluate --on valid; the test period is never
    looked at. Trials are reused: the same command again costs nothing, and one that was stopped continues. Which values
    are tried stand beside each setting (dcclctl settings train --model NAME); --space changes them.

    Optuna is an extra package: pip install 'dcclctl[tune]'

    \b
    Examples:
      dcclctl tune train --model din,sasrec,item-knn --trials 20 -o best.toml && dcclctl train --config best.toml
      dcclctl tune patch --method metapatch --cloud cloud@fresh --metric tail.ndcg@10
      dcclctl tune train --space train.din.learning_rate=1e-4..1e-2 --set train.din.epochs=5
    """
    from dcclctl.report.tuning import best_table, picture, trials_table
    from dcclctl.stages.tune import TUNED, Search
    from dcclctl.stages.tune import tune as run

    if section not in TUNED:
        raise UsageError(f"there is nothing to tune in {section!r}", nearest(section, list(TUNED)))
    wanted = {"model": model, "method": method, "dataset": dataset, "cloud": cloud, "patches": patches}
    variants = _variants(section, wanted)
    if output is not None and not output.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {output.parent} for {output.name}", "Make it first, or choose another.")
    own, given = _split(call.settings)
    search = Search(section, variants, given, space or [])
    with call.run() as options:
        made = run(_of(call, section, wanted[TUNED[section]]), search, own, options)
    choice, best = made.config["choice"], made.facts["best"]
    refs = {name: call.store.resolve(best[name]["artifact"]).ref for name in best}
    call.reporter.table(trials_table(made.trials, made.metric, choice))
    call.reporter.table(picture(made.trials, made.metric, choice))
    call.reporter.table(best_table(made.trials, made.metric, choice, refs))
    call.reporter.line(
        f"best {choice} on valid, one seed: {made.best} ({refs[made.best]}). Chosen among {made.trials.height:,} trials, its "
        "value is a little too good: compare models on test, with other seeds too"
    )
    if output is not None:
        output.write_text(made.toml(), encoding="utf-8")
        call.reporter.line(f"{output}: use it with dcclctl {section} --config {output}")
    call.finish(made, metric=made.metric, best=_json(made, refs), trials=made.trials.to_dicts())


def _variants(section: str, wanted: dict[str, str | None]) -> list[str]:
    """The models or methods to try; refuses options of another command."""
    from dcclctl.stages.settings import COMMANDS
    from dcclctl.stages.tune import TUNED

    choice = COMMANDS[section].choice
    for name, value in wanted.items():
        if value is not None and name not in (choice, TUNED[section]):
            raise UsageError(f"--{name}: tune {section} has no --{name}", f"It has --{choice} and --{TUNED[section]}.")
    variants = [name.strip() for name in (wanted[choice] or "").split(",") if name.strip()]
    if len(set(variants)) != len(variants):
        raise UsageError(f"--{choice} {wanted[choice]}: one is named twice", "Name each once.")
    return variants


def _of(call: Call, section: str, reference: str | None) -> Any:
    """What the command is tuned on."""
    from dcclctl.artifacts import CloudModel, Dataset, PatchSet
    from dcclctl.stages.tune import TUNED

    kind = TUNED[section]
    artifact = call.store.resolve(reference or f"{kind}@latest", kind)
    return {"dataset": Dataset, "cloud": CloudModel, "patches": PatchSet}[kind](artifact)


def _split(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of tune itself, and those of the command."""
    own = {key: value for key, value in settings.items() if key.removeprefix("tune.") in TuneConfig.model_fields}
    return own, {key: value for key, value in settings.items() if key not in own}


def _json(made: "Tuning", refs: dict[str, str]) -> list[dict[str, Any]]:
    best = made.facts["best"]
    return [
        {"name": name, "value": each["value"], "ref": refs[name], "config": each["config"]}
        for name, each in best.items()
    ]
