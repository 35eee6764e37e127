"""`dcclctl serve`: a bundle in the browser, on this computer only."""

from pathlib import Path
from typing import Annotated

import typer

from dcclctl.cli.options import LOOKS, Call, command

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@command(app, "serve", shared=LOOKS)
def serve(
    call: Call,
    reference: Annotated[
        str, typer.Argument(metavar="REF", help="The bundle. [default: the newest bundle]", show_default=False)
    ] = "bundle@latest",
    user: Annotated[
        str,
        typer.Option("--user", metavar="ID", help="Start with this user's events. [default: a user without events]"),
    ] = "",
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65535, help="0 takes any that is free.")
    ] = 8765,
    runtime: Annotated[
        Path | None,
        typer.Option("--runtime", metavar="FILE", help="The npm package onnxruntime-web, where npm cannot fetch it."),
    ] = None,
) -> None:
    """Open a bundle as a web page on this computer.

    The page ranks, remembers and learns in the browser.

    The page is reached from this computer only and asks nothing of any other. The user's choices stay in the browser.
    The browser's ONNX Runtime is fetched once by npm, checked by its hash, and kept in the user's cache.

    \b
    Example:
      dcclctl serve bundle@1 --user 196
    """
    from dcclctl.artifacts import Bundle
    from dcclctl.stages.export import web_page

    bundle = Bundle(call.store.resolve(reference, "bundle"))
    running = web_page(bundle, user, port, runtime)
    address = f"http://127.0.0.1:{running.server_address[1]}/"
    call.reporter.finish(bundle.ref, bundle.id, False, url=address) if call.reporter.as_json else print(
        address, flush=True
    )
    call.reporter.remark("Ctrl-C ends it")
    try:
        running.serve_forever()
    except KeyboardInterrupt:
        call.reporter.remark("ended")
    finally:
        running.server_close()
