"""`--log`: what a stage made, sent on to TensorBoard or MLflow."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dcclctl.cli.options import Call

if TYPE_CHECKING:
    from dcclctl.artifacts.handle import Handle


@contextmanager
def track(call: Call) -> "Iterator[Callable[[Handle], None]]":
    """A function that sends an artifact to all trackers; a missing package is known before the work starts."""
    from dcclctl.tracking import open_trackers

    trackers = open_trackers(call.log)

    def send(made: "Handle") -> None:
        if trackers:
            from dcclctl.stages.track import record_of

            record = record_of(made.artifact)
            for tracker in trackers:
                call.reporter.remark(tracker(record))

    yield send
