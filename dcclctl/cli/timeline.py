"""Where a command's time goes: its phases, one line that sums them up, and a trace that a viewer opens."""

import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

from dcclctl.compute import peak_memory

#: names of the time before the first phase, and of the time between phases
START, OTHER = "start", "other"
#: a smaller share of the time is not named
_SMALLEST_SHARE = 0.01
#: The stack is looked at every 10 ms; after 100 s less often, every 10,000th part of the time that has passed.
_LOOK_EVERY, _LOOKS = 0.01, 10_000
#: only functions of the package are in a trace
_PACKAGE: Final = str(Path(__file__).resolve().parent.parent)


def duration(seconds: float) -> str:
    """A time for people: 40 s, 3 min, 2 h 5 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


@dataclass
class Span:
    """A phase under way; `first` of `total` was done when it began at `started`. A total of 0 is not known."""

    what: str
    done: float
    total: float
    note: str
    first: float
    started: float

    def text(self, now: float) -> str:
        """Fraction, note and time left, e.g. '42 %, loss 0.3512  1,200 events/s, 3 min left'."""
        passed = now - self.started
        if not self.total:
            parts = [self.note, f"{duration(passed)} so far"]
        else:
            parts = [f"{self.done / self.total:.0%}".replace("%", " %"), self.note]
            if self.first < self.done < self.total:
                left = passed * (self.total - self.done) / (self.done - self.first)
                parts.append(f"{duration(left)} left")
        return ", ".join(part for part in parts if part)


class Timeline:
    """The phases of a command, from the calls of `on_progress`.

    A phase may interrupt another one: where it is done, the other goes on. One of unknown size ends where the next begins.

    Args:
        clock: seconds, ascending.

    Attributes:
        under_way: phases, the innermost last. seconds: name → seconds that no inner phase took.
        ended: (phase, when it ended), in the order of their ends. counted: until when the seconds are counted.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.under_way: list[Span] = []
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.ended: list[tuple[Span, float]] = []
        self.started = self.counted = clock()

    def at(self, what: str, done: float, total: float, note: str) -> Span:
        """How far a phase is; it begins with its first call and ends where all is done."""
        now = self._count()
        place = next((at for at, each in enumerate(self.under_way) if each.what == what), len(self.under_way))
        if place < len(self.under_way) and done >= self.under_way[place].done:
            self._end(place + 1, now)
            phase = self.under_way[place]
        else:
            if place == len(self.under_way) > 0 and not self.under_way[-1].total:
                place -= 1  # a phase of unknown size ends here
            self._end(place, now)
            phase = Span(what, done, total, note, done, now)
            self.under_way.append(phase)
        phase.done, phase.total, phase.note = done, total, note
        if total and done >= total:
            self._end(len(self.under_way) - 1, now)
        return phase

    def current(self) -> Span:
        """What is done now."""
        return self.under_way[-1] if self.under_way else Span(OTHER, 0, 0, "", 0, self.counted)

    def _count(self) -> float:
        """Give the time since the last call to the innermost phase."""
        now = self.clock()
        name = self.under_way[-1].what if self.under_way else OTHER if self.seconds or self.ended else START
        self.seconds[name] += now - self.counted
        self.counted = now
        return now

    def _end(self, place: int, now: float) -> None:
        self.ended += [(phase, now) for phase in reversed(self.under_way[place:])]
        del self.under_way[place:]

    def passed(self) -> float:
        """Seconds since it began."""
        return self.clock() - self.started

    def summary(self) -> str:
        """'time: 12.4 s: train 71 %, validate 14 %, start 9 %, other 6 %', until now."""
        now = self._count()
        passed = max(now - self.started, 1e-9)
        shares = {name: seconds / passed for name, seconds in self.seconds.items() if name != OTHER}
        named = {name: share for name, share in shares.items() if share >= _SMALLEST_SHARE}
        rest = 1 - sum(named.values())
        if rest >= _SMALLEST_SHARE:
            named[OTHER] = rest
        parts = [f"{name} {share:.0%}".replace("%", " %") for name, share in sorted(named.items(), key=lambda x: -x[1])]
        return f"time: {f'{passed:.1f} s' if passed < 90 else duration(passed)}: {', '.join(parts)}"

    def trace(self) -> list[dict[str, Any]]:
        """Its phases as events of the trace format, with what was done and how fast."""
        phases = self.ended + [(phase, self.clock()) for phase in self.under_way]
        return [
            _event(phase.what, "phases", phase.started - self.started, end - self.started, _facts(phase, end))
            for phase, end in sorted(phases, key=lambda each: (each[0].started, -each[1]))
        ]


def _facts(phase: Span, end: float) -> dict[str, Any]:
    rate = (phase.done - phase.first) / max(end - phase.started, 1e-9)
    known = {"done": phase.done, "of": phase.total, "per second": round(rate, 1)} if phase.total else {}
    return known | ({"note": phase.note} if phase.note else {})


def _event(name: str, thread: str, start: float, end: float, facts: dict[str, Any]) -> dict[str, Any]:
    place = {"ph": "X", "pid": 1, "tid": ("phases", "functions").index(thread) + 1}
    return {"name": name, **place, "ts": round(start * 1e6), "dur": round((end - start) * 1e6), "args": facts}


class StackSampler:
    """Looks again and again which functions of the package the calling thread is in, and what the process uses.

    A look takes some microseconds. Unlike torch's profiler, which records every operation, it says how long a function took
    and not what torch did inside, and the trace stays small.

    Args:
        timeline: gives the clock, and the phases of the trace.
    """

    def __init__(self, timeline: Timeline) -> None:
        self._timeline, self._thread_id = timeline, threading.get_ident()
        self._open: list[tuple[str, float]] = []
        self._events: list[dict[str, Any]] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def write(self, path: Path) -> None:
        """Stop, and write the trace.

        Source: "Trace Event Format", the JSON that Chromium's tracing and Perfetto read.
        """
        self._stopped.set()
        self._thread.join()
        self._keep([], self._timeline.passed())
        names = [
            {"name": "thread_name", "ph": "M", "pid": 1, "tid": number, "args": {"name": name}}
            for number, name in enumerate(("phases", "functions"), 1)
        ]
        events = names + self._timeline.trace() + self._events
        path.write_text(json.dumps({"displayTimeUnit": "ms", "traceEvents": events}) + "\n", encoding="utf-8")

    def _watch(self) -> None:
        passed, cpu = 0.0, time.process_time()
        while not self._stopped.wait(max(_LOOK_EVERY, passed / _LOOKS)):
            before, passed = passed, self._timeline.passed()
            before_cpu, cpu = cpu, time.process_time()
            self._keep(_functions(sys._current_frames().get(self._thread_id)), passed)
            if int(passed * 10) != int(before * 10):  # ten figures a second are enough for a curve
                self._count("cores in use", (cpu - before_cpu) / max(passed - before, 1e-9), passed)
                self._count("peak memory, MiB", peak_memory() / 2**20, passed)

    def _keep(self, functions: list[str], now: float) -> None:
        """End the functions that are no longer running, and begin those that are new."""
        same = 0
        while same < min(len(functions), len(self._open)) and functions[same] == self._open[same][0]:
            same += 1
        for name, start in reversed(self._open[same:]):
            self._events.append(_event(name, "functions", start, now, {}))
        self._open[same:] = [(name, now) for name in functions[same:]]

    def _count(self, name: str, value: float, now: float) -> None:
        self._events.append(
            {"name": name, "ph": "C", "pid": 1, "ts": round(now * 1e6), "args": {name: round(value, 2)}}
        )


def _functions(frame: FrameType | None) -> list[str]:
    """The functions of the package on a stack, the outermost first."""
    found = []
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(_PACKAGE):
            module = code.co_filename[len(_PACKAGE) + 1 :].removesuffix(".py").replace("/", ".")
            found.append(f"{module}.{code.co_qualname}")
        frame = frame.f_back
    return found[::-1]


@contextmanager
def profiled(timeline: Timeline, path: Path | None) -> Iterator[None]:
    """Write the trace of the body, also where the body fails; without a path do nothing."""
    if path is None:
        yield
        return
    sampler = StackSampler(timeline)
    try:
        yield
    finally:
        sampler.write(path)
