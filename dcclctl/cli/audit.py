"""`dcclctl audit`: a check that no model was trained on the events that it is scored on."""

from typing import Annotated

import typer

from dcclctl.cli.options import LOOKS, Call, command

app = typer.Typer(add_completion=False, rich_markup_mode=None)
_LABELS = {"proven": "proven", "remark": "remark", "leak": "LEAK  "}


@command(app, "audit", shared=LOOKS)
def audit(
    call: Call,
    reference: Annotated[
        str | None,
        typer.Argument(
            metavar="REF",
            help="Any artifact; of a dataset, everything made from it is audited too. [default: the newest evaluation]",
        ),
    ] = None,
) -> None:
    """Check that no model was trained on the events it is scored on.

    Audits the artifact and everything that it was made from, by the events themselves. It passes if every file is what was
    committed; each period ends before the next begins; models learned only from events before those they are scored on;
    histories hold strictly earlier events; and all of it was made from one dataset. Otherwise the audit names the leak and
    exits with code 3.

    \b
    Examples:
      dcclctl audit
      dcclctl audit evaluation@3
      dcclctl audit dataset@1
    """
    with call.working():
        from dcclctl.artifacts.names import identity, label
        from dcclctl.audit.finding import as_rows, leaks
        from dcclctl.stages.audit import audit as run
        from dcclctl.stages.audit import default_artifact

        artifact = call.store.resolve(reference) if reference else default_artifact(call.store)
        findings = run(artifact)
    call.reporter.line(f"{label(artifact)}:")
    for finding in findings:
        call.reporter.line(f"{_LABELS[finding.kind]}  {finding.artifact}: {finding.text}")
    found = leaks(findings)
    call.finish(artifact, passed=found is None, model=identity(artifact), **as_rows(findings))
    if found is not None:
        raise found
