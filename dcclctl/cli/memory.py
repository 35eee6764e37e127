"""`dcclctl memory`: the memory of every device."""

from typing import Annotated

import typer

from dcclctl.cli.options import Call, command

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@command(app, "memory")
def memory(
    call: Call,
    dataset: Annotated[
        str | None, typer.Option("--dataset", metavar="REF", help="Whose events to keep. [default: the newest dataset]")
    ] = None,
) -> None:
    """Make every device's memory: its user's newest events.

    A device keeps the items of its user's newest M events (4 bytes each); a further event overwrites the oldest. For the
    newest T events it also keeps the features that the item had just before the event. The memory never leaves the device.
    The cloud sends the devices statistics of all users' events: popularity, each item's nearest items, the items that
    usually precede it, and its factor, a vector that matrix factorisation learns. dcclctl patch --method memory learns its
    patch from the memories and these statistics.

    \b
    Examples:
      dcclctl memory
      dcclctl memory --size 100 --counted-through device
    """
    from dcclctl.artifacts import Dataset
    from dcclctl.stages.memory import remember

    log = Dataset(call.store.resolve(dataset or "dataset@latest", "dataset"))
    with call.run() as options:
        made = remember(log, call.settings, options)
    facts = made.facts
    call.reporter.line(
        f"{facts['users']:,} devices with {facts['events']:,} events, to the end of {made.counted_through} ({log.ref}); "
        f"the memories of {facts['full']:,} are full"
    )
    call.reporter.line(
        f"{facts['bytes_per_user_mean']:,.0f} bytes on a device on average, {facts['bytes_per_user_largest']:,} at most; "
        f"the cloud sends {facts['bytes_per_candidate']:,} bytes of statistics with each candidate"
    )
    call.finish(
        made,
        users=facts["users"],
        bytes_per_user=facts["bytes_per_user_largest"],
        bytes_per_candidate=facts["bytes_per_candidate"],
    )
