"""`dcclctl collect`: what devices sent back."""

from pathlib import Path
from typing import Annotated

import typer

from dcclctl.cli.options import Call, command

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@command(app, "collect")
def collect(
    call: Call,
    reference: Annotated[str, typer.Argument(metavar="REF", help="The bundle that the devices have.")],
    uplinks: Annotated[
        list[Path], typer.Argument(metavar="UPLINK", help="What they sent: JSON files, or folders of them.")
    ],
) -> None:
    """Make patches of what devices learned and sent back.

    Devices are not trusted. An uplink is rejected, and counted, if it is not of this bundle, if its device is unknown or sent
    two, or if it is no θ̂ of the right length with finite numbers. A θ̂ far away is clipped.

    \b
    Example:
      dcclctl collect bundle@1 uplinks/
    """
    from dcclctl.artifacts import Bundle
    from dcclctl.stages.collect import collect as run
    from dcclctl.stages.collect import in_words

    bundle = Bundle(call.store.resolve(reference, "bundle"))
    with call.run() as options:
        made = run(bundle, uplinks, call.settings, options)
    facts = made.facts
    rejected = in_words(facts["rejected"])
    call.reporter.line(
        f"{facts['users']:,} patches from devices, {facts['clipped']:,} of them clipped to a distance of {facts['bound']:.3g}"
    )
    if facts["with_noise"]:
        call.reporter.line(f"{facts['with_noise']:,} of them came with noise (differential privacy)")
    if rejected:
        call.reporter.line(f"rejected: {rejected}")
    call.finish(made, users=facts["users"], clipped=facts["clipped"], rejected=facts["rejected"], bound=facts["bound"])
