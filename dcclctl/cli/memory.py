"""`dcclctl memory`: what every device remembers."""

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
from dcclctl.config import MemoryConfig, resolve

app = typer.Typer(add_completion=False, rich_markup_mode=None)


def _option(name: str, *flags: str, metavar: str | None = None) -> Any:
    return setting(MemoryConfig, name, *flags, metavar=metavar)


@app.command()
def memory(
    dataset: Annotated[
        str | None, typer.Option("--dataset", metavar="REF", help="Log to remember. [default: the newest dataset]")
    ] = None,
    until: Annotated[str | None, _option("until", metavar="PERIOD")] = None,
    size: Annotated[int | None, _option("size", metavar="M")] = None,
    track: Annotated[int | None, _option("track", metavar="T")] = None,
    neighbours: Annotated[int | None, _option("neighbours", metavar="N")] = None,
    lookback: Annotated[int | None, _option("lookback", metavar="N")] = None,
    shrinkage: Annotated[float | None, _option("shrinkage", metavar="X")] = None,
    seed: Annotated[int | None, _option("seed", metavar="N")] = None,
    store: StoreOption = DEFAULT_STORE,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    force: ForceOption = False,
) -> None:
    """Keep what every device remembers of its user's log.

    A device keeps its user's newest M items (4 bytes each) and takes in every further event by overwriting the oldest; of
    the newest T it also keeps how near each was to what the memory held before it. The memory never leaves the device when
    it serves. What the cloud ships beside it are counts over everybody's log: popularity, each item's nearest items, and
    those usually had before it. dcclctl patch --method memory learns what to make of both.

    \b
    Examples:
      dcclctl memory
      dcclctl memory --size 100 --until device
    """
    settings = resolve(
        MemoryConfig,
        config,
        until=until,
        size=size,
        track=track,
        neighbours=neighbours,
        lookback=lookback,
        shrinkage=shrinkage,
        seed=seed,
    )
    from dcclctl.stages.handles import Dataset
    from dcclctl.stages.memory import remember
    from dcclctl.store.store import Store

    reporter = Reporter(as_json, quiet)
    place = Store(store, remark=reporter.remark)
    log = Dataset(place.resolve(dataset or "dataset@latest", "dataset"))
    with reporter.progress():
        made, reused = remember(log, settings, place, force)
    facts = made.facts
    reporter.line(
        f"{facts['users']:,} devices remember {facts['events']:,} events up to {facts['until']} ({log.artifact.ref}); "
        f"{facts['full']:,} are full"
    )
    reporter.line(
        f"{facts['bytes_per_user_mean']:,.0f} bytes on a device, {facts['bytes_per_user_largest']:,} at most; "
        f"a candidate brings {facts['bytes_per_candidate']:,} bytes of the cloud's counts along"
    )
    reporter.finish(
        made.ref,
        made.id,
        reused,
        users=facts["users"],
        bytes_per_user=facts["bytes_per_user_largest"],
        bytes_per_candidate=facts["bytes_per_candidate"],
    )
