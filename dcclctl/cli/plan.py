"""`--plan`: what a command would reuse and make."""

from typing import TYPE_CHECKING

from dcclctl.cli.console import Reporter, print_json, size, table_of
from dcclctl.cli.timeline import duration

if TYPE_CHECKING:
    from dcclctl.store.store import Step, Store


def show_plan(reporter: Reporter, store: "Store", steps: "list[Step]") -> None:
    """Print every artifact that is needed, and the estimated cost of those that are not there."""
    from dcclctl.stages.plan import estimate

    found = [(step, None if step.found else estimate(step, store)) for step in steps]
    if reporter.as_json:
        rows = [
            {
                "stage": step.stage,
                "kind": step.kind,
                "ref": step.found.ref if step.found else None,
                "reused": step.found is not None,
                "estimated_seconds": guess and round(guess.seconds, 1),
                "estimated_memory_bytes": guess and guess.memory_bytes,
                "estimated_from_runs": guess and guess.runs,
            }
            for step, guess in found
        ]
        print_json({"plan": rows})
        return
    for step, guess in found:
        if guess is None and step.found is not None and reporter.quiet:
            print(step.found.ref)
    cells = []
    for step, guess in found:
        if guess is None:
            cells.append((step.stage, f"reuse {step.found.ref if step.found else ''}", "", "", ""))
            continue
        source = f"{guess.runs} earlier run{'s' * (guess.runs > 1)}" if guess.runs else "general figures"
        cells.append(
            (step.stage, f"make {step.kind}", f"≈ {duration(guess.seconds)}", f"≈ {size(guess.memory_bytes)}", source)
        )
    reporter.table(
        table_of(("stage", "would", "time", "memory", "estimated from"), cells, "Plan: nothing has been done")
    )
