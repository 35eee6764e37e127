"""Commands under faults: the client of `server.py`, and what every part of the campaign looks at."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
#: classes of operations of faults.c
CLASSES = {
    name: 1 << at
    for at, name in enumerate(("create", "write", "sync", "rename", "remove", "folder", "mode", "lock", "open", "read"))
}
#: those that change something
CHANGES = sum(CLASSES[name] for name in ("create", "write", "sync", "rename", "remove", "folder", "mode", "lock"))
ACTIONS = {name: at for at, name in enumerate(("nothing", "kill", "tear", "signal", "fail", "fail_on", "full"))}
#: a command of the campaign that takes longer hangs; each needs about a second
SECONDS = 240.0


def why_not() -> str:
    """Why the campaign cannot run here; '' if it can."""
    if not sys.platform.startswith("linux"):
        return "faults are injected with LD_PRELOAD, which needs Linux"
    if shutil.which("cc") is None:
        return "faults are injected with a library in C, which needs a compiler (cc)"
    return ""


@dataclass(frozen=True)
class End:
    """How a command ended.

    Attributes:
        code: exit code, -9 after SIGKILL, or 'hangs'. out, err: what it printed. count: operations that it did.
        hit: class of the operation at which the fault came; '' if it did not come.
        counts: class → operations of it, also of classes that were not asked for.
    """

    code: int | str
    out: str
    err: str
    count: int
    hit: str = ""
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def problem(self) -> str:
        """What no command may do, whatever happens to it: '' or a sentence."""
        if self.code == "hangs":
            return "hangs"
        if "Traceback (most recent call last)" in self.err or self.code == 1:
            return f"ends with a traceback or exit 1: {self.err.strip()[-400:]}"
        if isinstance(self.code, int) and self.code < 0 and -self.code != signal.SIGKILL:
            return f"dies of signal {-self.code}"
        if self.code not in (0, -9, 130, 143) and not self.err.strip():
            return f"exit {self.code} without a word"
        return ""

    @property
    def made(self) -> dict[str, Any]:
        """The object that --json printed last; {} if it printed none."""
        lines = self.out.splitlines()
        try:
            found = json.loads(lines[-1]) if lines else {}
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


@dataclass
class Bench:
    """Runs commands in forked processes, with faults. A context manager.

    Attributes:
        folder: a folder of its own, for stores and output.
    """

    folder: Path
    _process: "subprocess.Popen[bytes] | None" = None
    _lines: Any = None
    _jobs: int = 0

    def __enter__(self) -> "Bench":
        library = Path(tempfile.gettempdir()) / f"dcclctl-faults-{os.getuid()}-{os.getpid()}.so"
        if not library.exists():
            build = ["cc", "-O1", "-Wall", "-shared", "-fPIC", "-o", str(library), str(HERE / "faults.c"), "-ldl"]
            subprocess.run([*build, "-lpthread"], check=True, capture_output=True)
        here, there = socket.socketpair()
        settings = {
            "LD_PRELOAD": str(library),
            "PYTHONPATH": os.pathsep.join([str(HERE.parent.parent), str(HERE.parent)]),
            **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "reliability.server", str(there.fileno())],
            pass_fds=[there.fileno()],
            # measuring coverage there would only take time
            env={name: value for name, value in os.environ.items() if not name.startswith("COV")} | settings,
        )
        there.close()
        self._lines = here.makefile("rw", encoding="utf-8")
        here.close()
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        assert self._process is not None
        self._process.wait(30)
        (Path(tempfile.gettempdir()) / f"dcclctl-faults-{os.getuid()}-{os.getpid()}.so").unlink(missing_ok=True)

    def at_once(self, store: Path, commands: Sequence[Sequence[str]], **job: Any) -> list[End]:
        """Run commands at the same time on a store, in the folder above it, below which faults happen.

        Args:
            job: plan, plant, trace, environment, limits, seconds, see server.py.
        """
        self._jobs += 1
        output = self.folder / f"output-{self._jobs}"
        asked = {
            "commands": [[*words, "--store", str(store)] for words in commands],
            "root": str(store.parent.resolve()),
            "folder": str(store.parent),
            "output": str(output),
            "seconds": SECONDS,
            **job,
        }
        self._lines.write(json.dumps(asked) + "\n")
        self._lines.flush()
        answer = json.loads(self._lines.readline())
        for left in self.folder.glob(f"{output.name}.*"):
            left.unlink()
        hit = next((name for name, bit in CLASSES.items() if bit == answer["hit"]), "")
        counts = dict(zip(CLASSES, answer["counts"], strict=True))
        return [End(**end, count=answer["count"], hit=hit, counts=counts) for end in answer["ends"]]

    def run(self, store: Path, words: Sequence[str], **job: Any) -> End:
        """Run one command."""
        return self.at_once(store, [words], **job)[0]


def plan(action: str, at: int = 0, value: int = 0, classes: int = CHANGES, **more: int) -> dict[str, int]:
    """A plan of faults: at the `at`-th operation of the classes."""
    return {"action": ACTIONS[action], "at": at, "value": value, "classes": classes, **more}
