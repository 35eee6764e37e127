"""`dcclctl patch`: one small patch per user, learned from the user's own events."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcclctl.cli.options import SHARDS, Call, command

if TYPE_CHECKING:
    from dcclctl.artifacts import PatchSet

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@command(app, "patch", shared=SHARDS, seeded={"cloud": True, "memory": False, "learn_with": False})
def patch(
    call: Call,
    cloud: Annotated[
        str | None, typer.Option("--cloud", metavar="REF", help="Model to patch. [default: the newest cloud]")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            metavar="REF",
            help="Memory for --method memory. [default: the newest of the dataset; made if there is none]",
        ),
    ] = None,
    learn_with: Annotated[
        str | None,
        typer.Option(
            "--learn-with",
            metavar="REF",
            help="For --method memory: a cloud model that was not trained on the period, to learn the patch with. "
            "[default: of those that --cloud was continued from, the newest such one]",
        ),
    ] = None,
) -> None:
    """Learn one small patch per user, from the user's own events.

    The cloud model stays frozen. --method memory (the default) learns one patch for all users, which reads the memory of the
    user's device. --method metapatch is the patch of the DCCL paper: each device learns K numbers θ̂; if the cloud model has
    no basis Θ yet, Θ is learned first, from all users' events of the period. --method fine-tune trains the last layers of
    each user's model. Each method has settings of its own: dcclctl settings patch --method NAME lists them.

    \b
    Examples:
      dcclctl patch --users tail
      dcclctl patch --cloud cloud@2 --method metapatch --users @users.txt --guard
      dcclctl patch --cloud cloud@base --seeds 0..4 --name mine
      dcclctl patch --cloud cloud@retrained --learn-with cloud@before
    """
    from dcclctl.artifacts import CloudModel, Memory
    from dcclctl.stages.patch import newest_memory
    from dcclctl.stages.patch import patch as run

    model = CloudModel(call.store.resolve(cloud or "cloud@latest", "cloud"))
    remembered = Memory(call.store.resolve(memory, "memory")) if memory else None
    other = CloudModel(call.store.resolve(learn_with, "cloud")) if learn_with else None
    before = newest_memory(model.dataset)
    with call.run() as options:
        made = run(model, call.settings, options, remembered, other)
    if made.memory is not None and before is None:
        facts = made.memory.facts
        call.reporter.line(
            f"{made.memory.ref} was made first: memories of {facts['users']:,} devices to the end of "
            f"{made.memory.counted_through} (dcclctl memory makes one with other settings)"
        )
    _show(call, made)
    facts = made.facts
    call.finish(
        made,
        cloud=model.ref,
        users=facts["users"],
        users_without_events=facts["users_without_events"],
        users_per_second=made.artifact.run.get("users_per_second"),
        bytes_per_user=facts["bytes_per_user"],
        improved_share=facts["improved_share"],
        kept=facts["kept"],
    )


def _without_events(facts: Mapping[str, Any]) -> str:
    """How the chosen users without an event in the period are served."""
    idle, on = facts["users_without_events"], facts["on"]
    said = f"{idle:,} of the chosen users have no event in {on}"
    if "smallest_memory" not in facts:
        return f"{said} and get no patch"
    if "users_from_older" not in facts:  # an older version made the patches
        return said
    older, smallest = facts["users_from_older"], facts["smallest_memory"]
    wanted = "an event" if smallest == 1 else f"{smallest:,} events"
    served = [
        f"{older:,} are patched from older events" if older else "",
        f"the cloud model serves {idle - older:,} until they have {wanted}" if idle > older else "",
    ]
    return f"{said}: {'; '.join(filter(None, served))}"


def _show(call: Call, made: "PatchSet") -> None:
    facts, line = made.facts, call.reporter.line
    speed = made.artifact.run.get("users_per_second")
    line(
        f"{facts['users']:,} users patched by {made.method} on {facts['events']:,} events of {facts['on']} "
        f"({made.cloud.ref})"
        + (f", {speed:,.0f} users/s" if speed and not made.reused else "")
        + f", {'at most ' if made.memory else ''}{facts['bytes_per_user']:,} bytes per user"
    )
    if facts["users_without_events"]:
        line(_without_events(facts))
    if facts["users_tested"]:
        line(
            f"the patch lowers the loss on held-back events for {facts['improved_share']:.1%} of the "
            f"{facts['users_tested']:,} users who have such events"
        )
    tried = facts.get("order_losses")
    if tried:
        line(
            f"the patch {'uses' if facts['order'] else 'ignores'} the order of events: log loss on held-back events "
            f"{tried['with']:.4f} with it, {tried['without']:.4f} without"
        )
    if facts.get("smallest_memory", 1) > 1:
        line(f"users whose memory holds fewer than {facts['smallest_memory']:,} events are served by the cloud model")
    if made.config["guard"]:
        line(f"the guard kept {facts['kept']:,} patches and switched {facts['users'] - facts['kept']:,} off")
