"""`dcclctl audit`: proof that nothing trained has seen what it is judged on."""

from typing import Annotated

import typer

from dcclctl.cli.console import Reporter
from dcclctl.cli.options import DEFAULT_STORE, JsonOption, QuietOption, StoreOption

app = typer.Typer(add_completion=False, rich_markup_mode=None)
_LABELS = {"proven": "proven", "remark": "remark", "leak": "LEAK  "}


@app.command()
def audit(
    reference: Annotated[
        str | None,
        typer.Argument(
            metavar="[REF]", help="Any artifact; of a dataset, all that was made from it. [default: newest]"
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Prove that nothing trained has seen what it is judged on.

    Walks the lineage and looks at the events themselves: every byte is what was committed; every period is over before
    the next begins; what each model and its ancestors learned from is over before what they are scored on; histories
    hold strictly earlier events only; all of it comes from one dataset. A leak is named, with exit code 3.

    \b
    Examples:
      dcclctl audit
      dcclctl audit evaluation@3
      dcclctl audit dataset@1
    """
    from dcclctl.audit.finding import as_rows, leaks
    from dcclctl.stages.audit import audit as run
    from dcclctl.stages.audit import default_artifact
    from dcclctl.store.store import Store

    reporter = Reporter(as_json, quiet)
    place = Store(store, remark=reporter.remark)
    artifact = place.resolve(reference) if reference else default_artifact(place)
    findings = run(artifact)
    for finding in findings:
        reporter.line(f"{_LABELS[finding.kind]}  {finding.artifact}: {finding.text}")
    found = leaks(findings)
    reporter.finish(artifact.ref, artifact.id, False, passed=found is None, **as_rows(findings))
    if found is not None:
        raise found
