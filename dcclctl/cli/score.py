"""`dcclctl score`: one user's recommendations, with and without the patch."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcclctl.cli.console import Reporter, plain
from dcclctl.cli.options import SCORES, Call, command
from dcclctl.config import ScoreSettings

if TYPE_CHECKING:
    from dcclctl.evaluation.lists import Explanation

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@command(app, "score", ScoreSettings, SCORES)
def score(
    call: Call,
    reference: Annotated[
        str,
        typer.Argument(
            metavar="REF", help="Patches (patches: the newest), a cloud model, cloud@N+encoder, or patches@N+mean."
        ),
    ],
    user: Annotated[str, typer.Option("--user", metavar="ID", help="The user's id in your log.")],
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="Items to show.")] = 10,
) -> None:
    """Show one user's recommendations with and without the patch.

    Ranks the items for the user as of the start of the test period. ✓ marks items that the user then interacted with; ▲
    and ▼ show by how many ranks the patch moved an item up or down.

    \b
    Examples:
      dcclctl score patches@1 --user 196
      dcclctl score patches --user 196 --top 20 --json
    """
    from dcclctl.artifacts.names import identity, label
    from dcclctl.devices.serving import Subject
    from dcclctl.stages.score import score as run

    subject = Subject.of(reference, call.store)
    found = run(subject, user, top, call.settings, call.config)
    called = label(subject.artifact, subject.suffix)
    _show(call.reporter, found, {"cloud": label(subject.cloud.artifact)}, called)
    call.finish(
        subject.artifact,
        model=identity(subject.artifact, subject.suffix),
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


def _show(reporter: Reporter, found: "Explanation", labels: dict[str, str], called: str) -> None:
    from rich.table import Table
    from rich.text import Text

    reporter.line(f"user {found.user_id}: {found.group}, {found.events:,} events before the test period")
    recent = " · ".join(_title(item) for item in found.history.head(5).to_dicts())
    reporter.line(f"last: {recent or '(nothing)'}")
    taken = set(found.test_items)
    table = Table()
    table.add_column("rank", justify="right")
    for name in found.rankings:
        heading = plain(labels.get(name) or f"{called}, served by {found.served_by[name]}")
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
