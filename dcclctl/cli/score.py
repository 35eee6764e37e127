"""`dcclctl score`: explain one user."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcclctl.cli.console import Reporter, plain
from dcclctl.cli.options import DEFAULT_STORE, ConfigOption, JsonOption, QuietOption, StoreOption, setting
from dcclctl.config import EvaluateConfig, resolve

if TYPE_CHECKING:
    from dcclctl.stages.score import Explanation

app = typer.Typer(add_completion=False, rich_markup_mode=None)


def _option(name: str, *flags: str, metavar: str | None = None) -> Any:
    return setting(EvaluateConfig, name, *flags, metavar=metavar)


@app.command()
def score(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="REF",
            help="Patches, a cloud model, cloud@N+encoder, or patches@N+mean. 'patches' is the newest.",
        ),
    ],
    user: Annotated[str, typer.Option("--user", metavar="ID", help="The user's id in your log.")],
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="Items to show.")] = 10,
    unpatched: Annotated[str | None, _option("unpatched", metavar="encoder|cloud")] = None,
    device: Annotated[str | None, _option("device", metavar="auto|cpu|cuda|mps")] = None,
    threads: Annotated[int | None, _option("threads", metavar="N")] = None,
    store: StoreOption = DEFAULT_STORE,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Explain one user: cloud and patched ranking side by side.

    Ranks what could be shown at the start of the test period. ✓ marks what the user then really took; ▲ and ▼ say how
    far the patch moved an item.

    \b
    Examples:
      dcclctl score patches@1 --user 196
      dcclctl score patches --user 196 --top 20 --json
    """
    settings = resolve(EvaluateConfig, config, unpatched=unpatched, device=device, threads=threads)
    from dcclctl.stages.evaluate import open_subjects
    from dcclctl.stages.score import score_user
    from dcclctl.store.store import Store

    reporter = Reporter(as_json, quiet)
    subject = open_subjects([reference], Store(store, remark=reporter.remark))[0]
    found = score_user(subject, user, top, settings)
    _show(reporter, found)
    reporter.finish(
        subject.artifact.ref,
        subject.artifact.id,
        False,
        user=found.user_id,
        group=found.group,
        events=found.events,
        served_by=found.served_by,
        history=found.history.to_dicts(),
        test_items=found.test_items,
        rankings={name: table.to_dicts() for name, table in found.rankings.items()},
    )


def _title(item: dict[str, Any]) -> str:
    return plain(item["item_id"] if item["name"] is None else f"{item['name']} ({item['item_id']})")


def _show(reporter: Reporter, found: "Explanation") -> None:
    from rich.table import Table
    from rich.text import Text

    reporter.line(f"user {found.user_id}: {found.group}, {found.events:,} events before the test period")
    recent = " · ".join(_title(item) for item in found.history.head(5).to_dicts())
    reporter.line(f"last: {recent or '(nothing)'}")
    taken = set(found.test_items)
    table = Table(title=None)
    table.add_column("rank", justify="right")
    for name in found.rankings:
        heading = "cloud model" if name == "cloud" else f"served by {found.served_by[name]}"
        table.add_column(heading, overflow="fold")
    for place in range(found.rankings["cloud"].height):
        cells = []
        for name, ranking in found.rankings.items():
            item = ranking.row(place, named=True)
            moved = item["cloud_rank"] - item["rank"]
            arrow = "" if name == "cloud" or moved == 0 else f"  {'▲' if moved > 0 else '▼'}{abs(moved)}"
            cells.append(Text(_title(item) + arrow + ("  ✓" if item["item_id"] in taken else "")))
        table.add_row(str(place + 1), *cells)
    reporter.table(table)
