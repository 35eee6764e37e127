"""Signals and standard streams: what a shell, cron or a pipe does to a command, and how the command ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from world import TRAIN, World, dcclctl

from dcclctl.cli.process import BROKEN_PIPE, INTERRUPTED, TERMINATED, UNWRITTEN

COMMAND = (sys.executable, "-m", "dcclctl")
ROOT = Path(__file__).resolve().parents[3]


def ran(*words: str, redirect: str = "", **given: object) -> "subprocess.CompletedProcess[str]":
    """A command in a shell of its own, with stdout or stderr redirected."""
    script = '"$@" ' + redirect
    whole = ["bash", "-c", script, "bash", *COMMAND, *words]
    return subprocess.run(whole, capture_output=True, text=True, timeout=120, cwd=ROOT, **given)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize(
    "words", [["artifacts", "list"], ["evaluate", "cloud@1", "--k=3,10", "--threads=1"], ["--help"]]
)
def test_a_reader_that_goes_away(shop: Path, words: list[str]) -> None:
    """`| head -1`: no traceback, no 'bug' exit code; 141 is what the shell calls a closed pipe."""
    store = [] if words == ["--help"] else ["--store", str(shop)]
    # `true` reads nothing; the wait makes sure that it is gone before the first byte is written
    found = ran(*words, *store, redirect='> >(exec true) < <(sleep 0.2); echo "code $?" >&2')
    assert found.stderr.splitlines()[-1] in (f"code {BROKEN_PIPE}", "code 0")
    assert "Traceback" not in found.stderr and "error" not in found.stderr
    through = ran(*words, *store, redirect='| head -1; echo "code ${PIPESTATUS[0]}" >&2')
    assert through.stderr.splitlines()[-1] in (f"code {BROKEN_PIPE}", "code 0")
    assert len(through.stdout.splitlines()) == 1


def test_the_work_is_finished_though_nobody_reads(shop: Path, tmp_path: Path) -> None:
    """The summary for a pull request is written after the tables are printed."""
    words = (
        "evaluate",
        "cloud@1",
        "cloud@2",
        "--against=cloud@1",
        "--k=3",
        "--threads=1",
        f"--markdown={tmp_path}/s.md",
    )
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as broken:
        ended = subprocess.run(
            [*COMMAND, *words, f"--store={shop}"],
            stdout=broken,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            timeout=120,
        )
    assert ended.returncode == BROKEN_PIPE
    assert (tmp_path / "s.md").read_text().startswith("#")
    assert "Traceback" not in ended.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_under_stdout(shop: Path) -> None:
    found = ran("train", *TRAIN, f"--store={shop}", redirect="> /dev/full")
    assert found.returncode == UNWRITTEN
    said = found.stderr.splitlines()
    assert said[-2] == "error: stdout cannot be written: No space left on device"
    assert "cloud@1" in said[-1]  # what was made is not lost to a script's log
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize(
    ("closed", "has_stdout"), [(">&-", False), ("2>&-", True), ("<&-", True), ("<&- >&- 2>&-", False)]
)
def test_closed_streams(shop: Path, closed: str, has_stdout: bool) -> None:
    """cron and some service managers: the command works, and no file of the store gets the stream's number."""
    found = ran("train", "--model=popularity", f"--store={shop}", redirect=closed)
    assert (found.returncode, found.stderr.count("Traceback")) == (0, 0)
    assert ("cloud@3" in found.stdout) == has_stdout
    assert dcclctl("artifacts", "verify", store=shop).exit_code == 0


def test_a_stderr_that_cannot_be_written(shop: Path) -> None:
    found = ran("train", *TRAIN, f"--store={shop}", redirect="2> /dev/full")
    assert found.returncode == 0 and "cloud@1" in found.stdout


#: sends itself a signal when a module is imported
WHILE_STARTING = """
import importlib.abc, os, sys
from dcclctl.__main__ import main

number, module = int(sys.argv[1]), sys.argv[2]

class Stop(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == module:
            os.kill(os.getpid(), number)

sys.meta_path.insert(0, Stop())
sys.argv = ["dcclctl", *sys.argv[3:]]
main()
"""


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, INTERRUPTED, "interrupted"), (signal.SIGTERM, TERMINATED, "terminated")],
)
@pytest.mark.parametrize("module", ["typer", "dcclctl.cli.artifacts", "dcclctl.store.snapshot"])
def test_a_signal_while_starting(world: World, number: int, code: int, word: str, module: str) -> None:
    words = (str(int(number)), module, "artifacts", "list", f"--store={world.root}")
    script = [sys.executable, "-c", WHILE_STARTING, *words]
    ended = subprocess.run(script, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert (ended.returncode, ended.stdout) == (code, ""), ended.stderr
    assert ended.stderr.splitlines() == ["", f"{word}: the same command continues where it stopped"]


#: counts what the interpreter does from the program's first line on (imports, files opened, code run), and says how much
#: that was; at one of these moments it sends itself a signal
FROM_THE_FIRST_LINE = """
import os, sys
from dcclctl.__main__ import main

number, moment = int(sys.argv[1]), int(sys.argv[2])
sys.argv = ["dcclctl", *sys.argv[3:]]
count = 0

def hook(event, arguments):
    global count
    count += 1
    if count == moment:
        os.kill(os.getpid(), number)

sys.addaudithook(hook)
try:
    main()
finally:
    print(count)
"""


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, INTERRUPTED, "interrupted"), (signal.SIGTERM, TERMINATED, "terminated")],
)
def test_a_signal_at_any_moment_of_the_start(tmp_path: Path, number: int, code: int, word: str) -> None:
    def started(moment: int) -> "subprocess.CompletedProcess[str]":
        words = [str(int(number)), str(moment), "artifacts", "list", f"--store={tmp_path}/none"]
        command = [sys.executable, "-c", FROM_THE_FIRST_LINE, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)

    moments = int(started(0).stdout.split()[-1])
    early = {f"{word}: nothing was begun", f"{word}: the same command continues where it stopped"}
    said = set()
    for moment in [*range(1, 11), *range(11, moments, moments // 20)]:
        ended = started(moment)
        blank, line = ended.stderr.splitlines()
        assert (ended.returncode, blank) == (code, ""), (moment, ended.stderr)
        said.add(line)
    assert said == early


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED)])
@pytest.mark.parametrize(
    "where",
    [
        "exec('stop()')",  # after which `python -m` would end with SIGINT, whatever the exit code
        "weakref.ref(thing := Thing(), lambda _: stop()); del thing; time.sleep(30)",  # where nothing can be raised
        "type('Class', (), {'name': type('Name', (), {'__set_name__': lambda *_: stop()})()})",  # a RuntimeError
    ],
    ids=["exec", "callback", "set_name"],
)
def test_a_signal_where_python_has_its_own_way(tmp_path: Path, number: int, code: int, where: str) -> None:
    (tmp_path / "program.py").write_text(
        "import os, time, weakref\nfrom dcclctl.cli.process import run\nclass Thing: pass\n"
        f"def stop(): os.kill(os.getpid(), {int(number)})\n"
        f"def program():\n    kept = {where}\n    return 0\nrun(program)\n"
    )
    command = [sys.executable, "-m", "program"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr and ended.stderr.endswith("continues where it stopped\n")


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, INTERRUPTED, "interrupted"), (signal.SIGTERM, TERMINATED, "terminated")],
)
@pytest.mark.parametrize("moment", ["make_context", "invoke", "resolve_command"])
def test_a_signal_before_and_after_a_command(number: int, code: int, word: str, moment: str) -> None:
    script = (
        "import os\nfrom dcclctl.__main__ import main\nfrom dcclctl.cli.main import LazyGroup\n"
        f"def stop(*_, **__):\n    try:\n        os.kill(os.getpid(), {int(number)})\n"
        f"    except BaseException as error:\n        if {moment!r} != 'resolve_command': raise\n"
        "        raise RuntimeError from error\n"  # as in an import
        f"LazyGroup.{moment} = stop\nmain()\n"
    )
    command = [sys.executable, "-c", script, "artifacts", "list"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert ended.returncode == code, ended.stderr
    assert ended.stderr.splitlines() == ["", f"{word}: the same command continues where it stopped"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_python_ends_is_no_traceback(number: int) -> None:
    code = (
        "import atexit, os\nfrom dcclctl.cli.process import run\n"
        f"atexit.register(lambda: os.kill(os.getpid(), {int(number)}))\nrun(lambda: 0)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED)])
def test_a_signal_inside_a_finalizer_comes_a_moment_later(number: int, code: int) -> None:
    script = (
        "import os, time, weakref\nfrom dcclctl.cli.process import run\nclass Store: pass\n"
        f"def end():\n    os.kill(os.getpid(), {int(number)})\n    print('ended', flush=True)\n"
        "def program():\n    store = Store()\n    weakref.finalize(store, end)\n    del store\n    time.sleep(30)\n"
        "run(program)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (ended.returncode, ended.stdout) == (code, "ended\n")
    assert "Traceback" not in ended.stderr and "continues where it stopped" in ended.stderr
