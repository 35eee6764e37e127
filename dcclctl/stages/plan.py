"""What a command would reuse and make, and about how long that takes, from earlier runs in the same store."""

from collections.abc import Sequence
from dataclasses import dataclass

from dcclctl.artifacts import Dataset
from dcclctl.config import PERIODS
from dcclctl.errors import ArtifactError
from dcclctl.events.log import Block
from dcclctl.store.store import Step, Store

#: seconds per unit of work where the store has no run of the kind, measured once on one core of a server; see `amount`
_SECONDS = {"ingest": 2e-7, "train": 8e-5, "memory": 5e-5, "patch": 7e-5, "distill": 7e-4, "evaluate": 1e-6}
_SECONDS |= {"recommend": 4e-6, "export": 1e-5, "collect": 2e-5, "tune": 8e-4}  # a trial: ten passes of training
#: peak memory (runs on logs of 100,000 events took 0.2 to 1.1 GiB, most of it torch's), and the time of the smallest run
_BYTES, _LEAST_SECONDS = 2**30, 1.0


@dataclass(frozen=True)
class Estimate:
    """A guess at a run's cost.

    Attributes:
        seconds, memory_bytes: of the run; memory at its peak. runs: earlier runs that it is drawn from; 0: none, so that
            general figures are used.
    """

    seconds: float
    memory_bytes: int
    runs: int


def events_of(dataset: Dataset, blocks: Sequence[Block]) -> int:
    """About how many events some blocks hold, without reading the log."""
    periods = {each["name"]: each["events"] for each in dataset.facts["periods"]}
    return sum(periods[PERIODS[block.period]] // block.parts for block in blocks)


def estimate(step: Step, store: Store) -> Estimate:
    """Time and memory of a step that is to be made.

    They come from the runs of the same stage and model or method, if possible on the same device and threads: the time
    grows with the amount of work, and memory is the most that one of them took. A run that continued another one is
    left out.
    """
    runs, alike = [], []
    for number in store.numbers(step.kind):
        try:
            earlier = store.load(step.kind, number)
            run = earlier.run
        except (ArtifactError, OSError, ValueError):  # a damaged artifact says nothing about time
            continue
        if earlier.manifest["stage"] != step.stage or not run.get("amount") or run.get("resumed"):
            continue
        if all(earlier.config.get(key) == step.config.get(key) for key in ("model", "method")):
            runs.append(run)
            if all(earlier.config.get(key) == step.config.get(key) for key in ("device", "threads")):
                alike.append(run)
    runs = alike or runs
    if not runs:
        return Estimate(_LEAST_SECONDS + _SECONDS[step.stage] * step.amount, _BYTES, 0)
    rate = sum(run["seconds"] for run in runs) / sum(run["amount"] for run in runs)
    return Estimate(rate * step.amount, max(run["peak_memory_bytes"] for run in runs), len(runs))
