"""`dcclctl memory`: what every device remembers."""

from typing import Annotated

import typer

from dcclctl.cli.options import Call, command

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@command(app, "memory")
def memory(
    call: Call,
    dataset: Annotated[
        str | None, typer.Option("--dataset", metavar="REF", help="Log to remember. [default: the newest dataset]")
    ] = None,
) -> None:
    """Keep what every device remembers of its user's log.

    A device keeps its user's newest M items (4 bytes each); a further event overwrites the oldest. Of the newest T events
    it also keeps the features that the item had before the event. The memory never leaves the device. The cloud ships
    statistics of all users' events beside it: popularity, each item's nearest items, and items that usually precede it.
    dcclctl patch --method memory learns a patch from both.

    \b
    Examples:
      dcclctl memory
      dcclctl memory --size 100 --counted-through device
    """
    from dcclctl.artifacts import Dataset
    from dcclctl.stages.memory import remember

    log = Dataset.of(call.store.resolve(dataset or "dataset@latest", "dataset"))
    with call.run() as options:
        made = remember(log, call.settings, options)
    facts = made.facts
    call.reporter.line(
        f"{facts['users']:,} devices remember {facts['events']:,} events up to {made.counted_through} ({log.ref}); "
        f"{facts['full']:,} are full"
    )
    call.reporter.line(
        f"{facts['bytes_per_user_mean']:,.0f} bytes on a device, {facts['bytes_per_user_largest']:,} at most; "
        f"statistics of {facts['bytes_per_candidate']:,} bytes come with each candidate"
    )
    call.finish(
        made,
        users=facts["users"],
        bytes_per_user=facts["bytes_per_user_largest"],
        bytes_per_candidate=facts["bytes_per_candidate"],
    )
