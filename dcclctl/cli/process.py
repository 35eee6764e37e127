"""This process: its signals and standard streams. Prepared before anything is imported that takes time."""

import io
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

#: exit codes beside those of errors.py: a shell's own convention for a signal is 128 + its number
INTERRUPTED, BROKEN_PIPE, TERMINATED, UNWRITTEN = 130, 141, 143, 5


class Stopped(KeyboardInterrupt):
    """A signal. Python ends with the signal, whatever its exit code, once a bare KeyboardInterrupt has left an exec(text).

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Output(io.FileIO):
    """A standard stream. Once it cannot be written, it takes the rest in silence, so that the work is not lost.

    Attributes:
        failed: why it cannot be written; None as long as it can. lost: the newest bytes that could not be written.
    """

    failed: OSError | None = None
    lost = b""

    def write(self, data: Any, /) -> int:
        if self.failed is None:
            try:
                return super().write(data)
            except OSError as error:
                self.failed = error
        self.lost = bytes(data)
        return len(self.lost)


def stop_in(error: BaseException | None) -> KeyboardInterrupt | None:
    """The signal that led to an error, e.g. to the RuntimeError that Python makes of all errors in __set_name__."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error


def say_stopped(stopped: KeyboardInterrupt) -> int:
    """Say on stderr what stopped the program, and return the exit code."""
    terminated = isinstance(stopped, Stopped) and stopped.number == signal.SIGTERM
    why = "terminated" if terminated else "interrupted"
    print(f"\n{why}: the same command continues where it stopped", file=sys.stderr)
    return TERMINATED if terminated else INTERRUPTED


def run(program: Callable[[], int]) -> NoReturn:
    """Run a program to its exit code, and end the process as a Unix tool does.

    After Ctrl-C or SIGTERM one line says so. If the reader of stdout goes away (| head) the work is still finished. If
    stdout cannot be written (a full disk), that is said. A stream that the caller has closed is /dev/null.

    Args:
        program: imports what it needs by itself, and returns its exit code.
    """
    try:
        sys.unraisablehook = _not_lost
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:  # not if the caller ignores it
                signal.signal(number, _stop)
        _open_closed_streams()
        output, _ = _take_over("stdout"), _take_over("stderr")
        code = program()
        sys.stdout.flush()
        # Python takes a moment to end: a signal that comes then changes nothing, and after one that said so ends it at once
        _from_now_on(signal.SIG_DFL if code in (INTERRUPTED, TERMINATED) else signal.SIG_IGN)
    except BaseException as error:
        stopped = stop_in(error)
        if stopped is None:
            raise
        _from_now_on(signal.SIG_DFL)
        sys.exit(say_stopped(stopped))
    if code == 0 and output is not None and output.failed is not None:
        code = BROKEN_PIPE
        if not isinstance(output.failed, BrokenPipeError):
            code = UNWRITTEN
            print(f"error: stdout cannot be written: {output.failed.strerror}", file=sys.stderr)
            *_, last = output.lost.decode("utf-8", "replace").splitlines() or [""]
            print(f"  All else is done. The last line would have been: {last}", file=sys.stderr)
    sys.exit(code)


def _from_now_on(handler: signal.Handlers) -> None:
    """What signals do that stopped the program until now."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if callable(signal.getsignal(number)):
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    """Raise what stops the program. Not inside a finalizer, which would print a traceback and go on: a moment later."""
    while frame is not None:
        if frame.f_code is weakref.finalize.__call__.__code__:
            return _later(number)
        frame = frame.f_back
    raise Stopped(number)


def _not_lost(what: Any) -> None:
    """Send the signal again that was raised where nothing can be raised, e.g. in a callback of the garbage collector."""
    if isinstance(what.exc_value, Stopped):
        _later(what.exc_value.number)
    else:
        sys.__unraisablehook__(what)


def _later(number: int) -> None:
    later = threading.Timer(0.02, os.kill, (os.getpid(), number))
    later.daemon = True
    later.start()


def _open_closed_streams() -> None:
    """Give a standard stream that the caller has closed to /dev/null: the next file opened would take its number."""
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115


def _take_over(name: str) -> Output | None:
    """Replace a standard stream by one that outlives its reader, and that escapes what its encoding does not have."""
    stream = getattr(sys, name)
    if not isinstance(stream, io.TextIOWrapper):  # a test's own
        return None
    stream.flush()
    raw = Output(stream.fileno(), "w", closefd=False)
    text = io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        # θ, or an id in another script
        errors="backslashreplace",
        line_buffering=stream.line_buffering or name == "stderr",
    )
    setattr(sys, name, text)
    return raw
