"""`dcclctl patch`: one small patch per user, learned on the user's own log."""

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
)
from dcclctl.config import MemoryConfig, PatchConfig, resolve

app = typer.Typer(add_completion=False, rich_markup_mode=None)


def _option(name: str, *flags: str, metavar: str | None = None) -> Any:
    return setting(PatchConfig, name, *flags, metavar=metavar)


@app.command()
def patch(
    users: Annotated[str | None, _option("users", metavar="tail|head|all|new|@FILE|ID,…")] = None,
    cloud: Annotated[
        str | None, typer.Option("--cloud", metavar="REF", help="Model to patch. [default: the newest cloud]")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory", metavar="REF", help="Method memory: what devices remember. [default: the newest of the dataset]"
        ),
    ] = None,
    on: Annotated[str | None, _option("on", metavar="PERIOD")] = None,
    method: Annotated[str | None, _option("method", metavar="NAME")] = None,
    guard: Annotated[
        bool | None,
        typer.Option("--guard/--no-guard", help=PatchConfig.model_fields["guard"].description, show_default=False),
    ] = None,
    held_back: Annotated[float | None, _option("held_back", metavar="FRACTION")] = None,
    patch_size: Annotated[int | None, _option("patch_size", metavar="K")] = None,
    bottleneck: Annotated[int | None, _option("bottleneck", metavar="N")] = None,
    steps: Annotated[int | None, _option("steps", metavar="N")] = None,
    learning_rate: Annotated[float | None, _option("learning_rate", metavar="RATE")] = None,
    prior: Annotated[float | None, _option("prior", metavar="λ")] = None,
    prior_mean: Annotated[str | None, _option("prior_mean", metavar="learned|zero")] = None,
    newton_steps: Annotated[int | None, _option("newton_steps", metavar="N")] = None,
    generator_size: Annotated[int | None, _option("generator_size", metavar="N")] = None,
    generator_history: Annotated[int | None, _option("generator_history", metavar="N")] = None,
    similar_users: Annotated[int | None, _option("similar_users", metavar="N")] = None,
    similar_events: Annotated[int | None, _option("similar_events", metavar="N")] = None,
    similar_weight: Annotated[float | None, _option("similar_weight", metavar="SHARE")] = None,
    negatives: Annotated[int | None, _option("negatives", metavar="N")] = None,
    basis_epochs: Annotated[int | None, _option("basis_epochs", metavar="N")] = None,
    basis_learning_rate: Annotated[float | None, _option("basis_learning_rate", metavar="RATE")] = None,
    personal: Annotated[str | None, _option("personal", metavar="none|encoder|device")] = None,
    memory_hidden: Annotated[int | None, _option("memory_hidden", metavar="N")] = None,
    memory_epochs: Annotated[int | None, _option("memory_epochs", metavar="N")] = None,
    memory_learning_rate: Annotated[float | None, _option("memory_learning_rate", metavar="RATE")] = None,
    memory_weight_decay: Annotated[float | None, _option("memory_weight_decay", metavar="RATE")] = None,
    memory_short: Annotated[float | None, _option("memory_short", metavar="SHARE")] = None,
    memory_order: Annotated[str | None, _option("memory_order", metavar="auto|always|never")] = None,
    memory_popularity: Annotated[
        bool | None, _option("memory_popularity", "--memory-popularity/--no-memory-popularity")
    ] = None,
    memory_floor: Annotated[float | None, _option("memory_floor", metavar="SHARE")] = None,
    shard_users: Annotated[int | None, _option("shard_users", metavar="N")] = None,
    batch_rows: Annotated[int | None, _option("batch_rows", metavar="N")] = None,
    device: Annotated[str | None, _option("device", metavar="auto|cpu|cuda|mps")] = None,
    threads: Annotated[int | None, _option("threads", metavar="N")] = None,
    seed: Annotated[int | None, _option("seed", metavar="N")] = None,
    store: StoreOption = DEFAULT_STORE,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    force: ForceOption = False,
) -> None:
    """Learn one small patch per user, on the user's own log.

    The cloud model stays frozen. By default a patch is conditioned on what the user's device remembers (dcclctl memory; made
    on the way if there is none). --method metapatch is the paper's patch: each device learns K numbers θ̂; if the cloud
    model has no basis Θ yet, Θ is learned first, from everybody's events of the period.

    \b
    Examples:
      dcclctl patch --users tail
      dcclctl patch --cloud cloud@2 --method metapatch --users @users.txt --guard
    """
    settings = resolve(
        PatchConfig,
        config,
        users=users,
        on=on,
        method=method,
        guard=guard,
        held_back=held_back,
        patch_size=patch_size,
        bottleneck=bottleneck,
        steps=steps,
        learning_rate=learning_rate,
        prior=prior,
        prior_mean=prior_mean,
        newton_steps=newton_steps,
        generator_size=generator_size,
        generator_history=generator_history,
        similar_users=similar_users,
        similar_events=similar_events,
        similar_weight=similar_weight,
        negatives=negatives,
        basis_epochs=basis_epochs,
        basis_learning_rate=basis_learning_rate,
        personal=personal,
        memory_hidden=memory_hidden,
        memory_epochs=memory_epochs,
        memory_learning_rate=memory_learning_rate,
        memory_weight_decay=memory_weight_decay,
        memory_short=memory_short,
        memory_order=memory_order,
        memory_popularity=memory_popularity,
        memory_floor=memory_floor,
        shard_users=shard_users,
        batch_rows=batch_rows,
        device=device,
        threads=threads,
        seed=seed,
    )
    from dcclctl.stages.compute import settle
    from dcclctl.stages.handles import CloudModel, Memory, open_memory
    from dcclctl.stages.memory import remember
    from dcclctl.stages.patch import patch as run
    from dcclctl.store.store import Store

    reporter = Reporter(as_json, quiet)
    place = Store(store, remark=reporter.remark)
    model = CloudModel.load(place.resolve(cloud or "cloud@latest", "cloud"), place)
    remembered = open_memory(memory, model.dataset, settings.method, place)
    if remembered is None and settings.method == "memory":
        settings = settle(settings)  # whoever asks for a device that is not there gets no memory either
        filled, _ = remember(model.dataset, resolve(MemoryConfig, config), place)
        remembered = Memory(filled, model.dataset)
        reporter.line(
            f"{filled.ref}: what {filled.facts['users']:,} devices remember up to {filled.facts['until']}; there was none of "
            f"{model.dataset.artifact.ref} yet (dcclctl memory makes one of another size)"
        )
    with reporter.progress() as progress:
        made, reused = run(model, settings, place, progress, force, remembered)
    facts = made.facts
    speed = made.run.get("users_per_second")
    reporter.line(
        f"{facts['users']:,} users patched on {facts['events']:,} events of {facts['on']} ({model.artifact.ref})"
        + (f", {speed:,.0f} users/s" if speed and not reused else "")
        + f", {facts['bytes_per_user']} bytes per user"
    )
    if facts["users_without_events"]:
        served = "are served by what they remember" if remembered else "get no patch"
        reporter.line(f"{facts['users_without_events']:,} of the chosen users have no event there and {served}")
    if facts["users_judged"]:
        reporter.line(
            f"own held-back loss improved for {facts['improved_share']:.1%} of the {facts['users_judged']:,} users "
            "that have events to hold back"
        )
    tried = facts.get("order_losses", {})
    if tried:
        reporter.line(
            f"the order of events {'counts' if facts['order'] else 'is left out'}: held-back log loss {tried['with']:.4f} with it, "
            f"{tried['without']:.4f} without"
        )
    if facts.get("smallest_memory", 1) > 1:
        reporter.line(f"who remembers fewer than {facts['smallest_memory']:,} events is served by the cloud model")
    if settings.guard:
        reporter.line(f"the guard kept {facts['kept']:,} patches and switched {facts['users'] - facts['kept']:,} off")
    reporter.finish(
        made.ref,
        made.id,
        reused,
        cloud=model.artifact.ref,
        users=facts["users"],
        users_without_events=facts["users_without_events"],
        users_per_second=speed,
        bytes_per_user=facts["bytes_per_user"],
        improved_share=facts["improved_share"],
        kept=facts["kept"],
    )
