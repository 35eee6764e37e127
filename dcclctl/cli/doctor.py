"""`dcclctl doctor`: does everything work here?"""

from dataclasses import asdict

import typer

from dcclctl.cli.console import print_json
from dcclctl.cli.options import LOOKS, Call, command
from dcclctl.errors import ArtifactError

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@command(app, "doctor", shared=LOOKS)
def doctor(call: Call) -> None:
    """Check the installation, this machine and the store.

    Versions, threads and why so many, GPU, free space, whether renaming and locks work on the store's disk, damaged and
    half-finished artifacts, settings in this folder: one line each, with what mends it. Exit code 3 if something is broken.

    \b
    Example:
      dcclctl doctor
      dcclctl doctor --store /mnt/shared/store --json
    """
    from dcclctl.stages.doctor import examine

    checks = examine(call.store)
    width = max(len(check.name) for check in checks)
    for check in checks:
        remedy = f"  → {check.remedy}" if check.remedy else ""
        call.reporter.line(f"{'ok   ' if check.ok else 'FAULT'}  {check.name:{width}}  {check.said}{remedy}")
    broken = [check for check in checks if not check.ok]
    if call.reporter.as_json:
        print_json({"ok": not broken, "checks": [asdict(check) for check in checks]})
    if broken:
        raise ArtifactError(
            f"{len(broken)} of {len(checks)} checks found a fault, first {broken[0].name}: {broken[0].said}",
            "\n".join(dict.fromkeys(check.remedy for check in broken if check.remedy)),
        )
