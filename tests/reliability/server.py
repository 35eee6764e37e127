"""Runs commands in forked processes, each under a plan of faults; started by `bench.py` with the library preloaded.

It imports all that commands import, once, and then forks for every command: a command takes the time of its work.
"""

import atexit
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn


class Plan(ctypes.Structure):
    """`struct plan` of faults.c."""

    _fields_ = [
        *((name, ctypes.c_long) for name in ("count", "at", "budget")),
        *((name, ctypes.c_int) for name in ("classes", "action", "value", "trace", "said", "hit")),
        ("counts", ctypes.c_long * 10),
        ("root", ctypes.c_char * 4096),
    ]


def shared_plan() -> Plan:
    """The plan that this process shares with those that it forks."""
    found = ctypes.CDLL(None).faults_plan
    found.restype = ctypes.POINTER(Plan)
    plan: Plan = found().contents
    return plan


def import_all() -> None:
    """Import what any command imports."""
    for name in ("numpy", "scipy.stats", "polars", "pyarrow.parquet", "torch", "safetensors.torch", "filelock"):
        importlib.import_module(name)
    import dcclctl
    from dcclctl.errors import UsageError

    for module in pkgutil.walk_packages(dcclctl.__path__, "dcclctl."):
        if not module.name.endswith("__main__"):
            with suppress(UsageError):  # it needs a package that is not installed
                importlib.import_module(module.name)
    importlib.import_module("dcclctl.__main__")


def import_too(names: list[str]) -> None:
    """Import what a command imported in its process, so that the next ones have it; onnxruntime would start threads."""
    for name in names:
        if name not in sys.modules and not name.startswith(("onnx", "__")):
            with suppress(Exception):
                importlib.import_module(name)


def arm(plan: Plan, job: dict[str, Any]) -> None:
    """Set the plan for the next process."""
    wanted = {"count": 0, "at": 0, "budget": 0, "classes": 0, "action": 0, "value": 0, "said": 0, "hit": 0} | job.get(
        "plan", {}
    )
    for name, value in wanted.items():
        setattr(plan, name, value)
    plan.counts = (ctypes.c_long * 10)()
    plan.root = os.fsencode(job["root"])
    plan.trace = os.open(job["trace"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644) if "trace" in job else -1


def command(job: dict[str, Any], words: list[str], out: str, err: str) -> NoReturn:
    """In the forked process: run one command to its end."""
    from dcclctl import __main__ as program
    from reliability.plants import PLANTS

    for path, number in ((os.devnull, 0), (out, 1), (err, 2)):
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(job["folder"])
    os.environ.update(job.get("environment", {}))
    for which, limit in job.get("limits", {}).items():
        import resource

        resource.setrlimit(getattr(resource, which), (limit, limit))
    if "plant" in job:
        for patch in PLANTS[job["plant"]].patches():
            patch.start()
    if "wait_until" in job:
        time.sleep(max(0.0, job["wait_until"] - time.time()))
    sys.argv = ["dcclctl", *words]
    code = 1
    try:
        program.main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    if "modules" in job:
        Path(job["modules"]).write_text("\n".join(list(sys.modules)))
    # Not further: libraries in C++ would wait for threads of theirs that a fork does not have.
    os._exit(code)


def run(plan: Plan, job: dict[str, Any], parent: list[int]) -> dict[str, Any]:
    """Run one command, or several at once, and wait for their ends."""
    arm(plan, job)
    started, names = {}, []
    for at, words in enumerate(job["commands"]):
        names.append((f"{job['output']}.{at}.out", f"{job['output']}.{at}.err"))
        process = os.fork()
        if process == 0:
            for descriptor in parent:
                os.close(descriptor)
            command(job, words, *names[-1])
        started[process] = at
    if plan.trace >= 0:
        os.close(plan.trace)
    codes: dict[int, int | str] = {}
    end = time.monotonic() + job["seconds"]
    while len(codes) < len(started):
        process, status = os.waitpid(-1, os.WNOHANG)
        if process:
            codes[started[process]] = os.waitstatus_to_exitcode(status)
            continue
        if time.monotonic() > end:
            for process in [each for each, at in started.items() if at not in codes]:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
                codes[started[process]] = "hangs"
            break
        time.sleep(0.002)
    texts = [[Path(name).read_bytes().decode("utf-8", "replace") for name in pair] for pair in names]
    if "modules" in job:
        import_too(Path(job["modules"]).read_text().split("\n"))
    ends = [{"code": codes[at], "out": out, "err": err} for at, (out, err) in enumerate(texts)]
    return {"ends": ends, "count": plan.count, "hit": plan.hit, "counts": list(plan.counts)}


def main() -> None:
    """Take jobs, one a line, and answer each with a line."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    import_all()
    gc.collect()
    gc.freeze()  # a collection in a forked process would copy everything that was imported
    plan = shared_plan()
    lines = connection.makefile("rw", encoding="utf-8")
    for line in iter(lines.readline, ""):
        answer = run(plan, json.loads(line), [connection.fileno()])
        lines.write(json.dumps(answer) + "\n")
        lines.flush()


if __name__ == "__main__":
    main()
