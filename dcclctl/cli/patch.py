"""`dcclctl patch`: one small patch per user, learned on the user's own log."""

from typing import TYPE_CHECKING, Annotated

import typer

from dcclctl.cli.options import Call, command

if TYPE_CHECKING:
    from dcclctl.artifacts import PatchSet

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@command(app, "patch")
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
            help="What devices remember. [default: the newest of the dataset; made if there is none]",
        ),
    ] = None,
) -> None:
    """Learn one small patch per user, on the user's own log.

    The cloud model stays frozen. By default a patch is conditioned on what the user's device remembers (method memory).
    --method metapatch is the paper's patch: each device learns K numbers θ̂; if the cloud model has no basis Θ yet, Θ is
    learned first, from all users' events of the period. --method fine-tune changes the last layers of each user's model.
    Each method has settings of its own: dcclctl settings patch --method NAME lists them.

    \b
    Examples:
      dcclctl patch --users tail
      dcclctl patch --cloud cloud@2 --method metapatch --users @users.txt --guard
    """
    from dcclctl.artifacts import CloudModel, Memory
    from dcclctl.stages.patch import newest_memory
    from dcclctl.stages.patch import patch as run

    model = CloudModel(call.store.resolve(cloud or "cloud@latest", "cloud"))
    remembered = Memory(call.store.resolve(memory, "memory")) if memory else None
    before = newest_memory(model.dataset)
    with call.run() as options:
        made = run(model, call.settings, options, remembered)
    if made.memory is not None and before is None:
        facts = made.memory.facts
        call.reporter.line(
            f"{made.memory.ref} was made on the way: memories of {facts['users']:,} devices up to "
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


def _show(call: Call, made: "PatchSet") -> None:
    facts, line = made.facts, call.reporter.line
    speed = made.artifact.run.get("users_per_second")
    line(
        f"{facts['users']:,} users patched by {made.method} on {facts['events']:,} events of {facts['on']} "
        f"({made.cloud.ref})"
        + (f", {speed:,.0f} users/s" if speed and not made.reused else "")
        + f", {facts['bytes_per_user']} bytes per user"
    )
    if facts["users_without_events"]:
        served = "are served from their memories" if made.memory else "get no patch"
        line(f"{facts['users_without_events']:,} of the chosen users have no event there and {served}")
    if facts["users_tested"]:
        line(
            f"held-back loss improved for {facts['improved_share']:.1%} of the {facts['users_tested']:,} users "
            "who have events to hold back"
        )
    tried = facts.get("order_losses")
    if tried:
        line(
            f"the order of events is {'used' if facts['order'] else 'ignored'}: held-back log loss "
            f"{tried['with']:.4f} with it, {tried['without']:.4f} without"
        )
    if facts.get("smallest_memory", 1) > 1:
        line(f"users whose memory holds fewer than {facts['smallest_memory']:,} events are served by the cloud model")
    if made.config["guard"]:
        line(f"the guard kept {facts['kept']:,} patches and switched {facts['users'] - facts['kept']:,} off")
