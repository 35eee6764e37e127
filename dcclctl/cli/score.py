"""`dcclctl score`: some users' recommendations, with and without the patch."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcclctl.cli.console import Reporter, plain
from dcclctl.cli.options import SCORES, Call, command

if TYPE_CHECKING:
    from dcclctl.evaluation.lists import Explanation

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@command(app, "score", shared=SCORES)
def score(
    call: Call,
    reference: Annotated[
        str,
        typer.Argument(
            metavar="REF",
            help="Patches (patches: the newest), a cloud model, a bundle, cloud@N+encoder, or patches@N+mean.",
        ),
    ],
    user: Annotated[
        list[str], typer.Option("--user", metavar="ID", help="The user's id in your log; may be repeated.")
    ],
    log: Annotated[
        list[str] | None,
        typer.Option("--log", metavar="FILE", help="New events, as for dcclctl recommend; the moment is then the end."),
    ] = None,
) -> None:
    """Show users' recommendations with and without the patch.

    Ranks the items for each user as of the start of the test period, or with --as-of end after the user's last event; dcclctl
    recommend makes the same lists for many users. ✓ marks items that the user then interacted with; ▲ and ▼ show by how
    many ranks the patch moved an item up or down.

    \b
    Examples:
      dcclctl score patches@1 --user 196
      dcclctl score patches --user 196 --user 22 --top 20 --json
    """
    with call.working():
        from dcclctl.artifacts.names import identity, label
        from dcclctl.devices.serving import Subject
        from dcclctl.stages.score import score as run

        subject = Subject.of(reference, call.store)
        found = run(subject, user, call.settings, call.config, [Path(path) for path in log or []])
    called = label(subject.artifact, subject.suffix)
    for each in found:
        _show(call.reporter, each, {"cloud": label(subject.cloud.artifact)}, called)
    users = [
        {
            "user": each.user_id,
            "group": each.group,
            "events": each.events,
            "served_by": each.served_by,
            "history": each.history.to_dicts(),
            "test_items": each.test_items,
            "rankings": {name: table.to_dicts() for name, table in each.rankings.items()},
        }
        for each in found
    ]
    # one user's figures stand at the top as well, where scripts for one user look for them
    call.finish(
        subject.artifact,
        model=identity(subject.artifact, subject.suffix),
        users=users,
        **(users[0] if len(users) == 1 else {}),
    )


def _title(item: dict[str, Any]) -> str:
    return plain(item["item_id"] if item["name"] is None else f"{item['name']} ({item['item_id']})")


def _show(reporter: Reporter, found: "Explanation", labels: dict[str, str], called: str) -> None:
    from rich.table import Table
    from rich.text import Text

    reporter.line(f"user {found.user_id}: {found.group}, {found.events:,} events until then")
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
