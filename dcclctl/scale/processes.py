"""Local processes that work on shards: each is `python -m dcclctl.scale.worker`, told and asked by lines of JSON.

A process that dies is replaced, and its shard is done again; a shard that ends several processes is an error.
"""

import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from dcclctl.errors import ArtifactError, DcclError
from dcclctl.scale.task import ShardTask

#: processes that one shard may end before the command gives up
_TRIES = 3


class _Worker:
    """One process; it is started by the first shard."""

    def __init__(self, task: ShardTask) -> None:
        self._task = task
        self.process: subprocess.Popen[str] | None = None

    def _started(self) -> "subprocess.Popen[str]":
        if self.process is None or self.process.poll() is not None:
            self.stop()
            command = [sys.executable, "-m", "dcclctl.scale.worker"]
            # a process group of its own: an interrupt from the keyboard is the driver's to handle
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8",
                start_new_session=os.name != "nt",
            )  # fmt: skip
            self._tell(self._task.text())
        return self.process

    def _tell(self, line: str) -> None:
        assert self.process is not None and self.process.stdin is not None
        with suppress(BrokenPipeError):  # that the process has died is seen when its answer is read
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def do(self, shard: int, on_done: Callable[[float], None]) -> bool:
        """Work on a shard; False if the process died over it.

        Raises:
            DcclError: that of the shard's work.
        """
        process, told = self._started(), 0.0
        self._tell(json.dumps(shard))
        assert process.stdout is not None
        for line in process.stdout:
            answer: dict[str, Any] = json.loads(line)
            if "error" in answer:
                raise error_of(answer["error"])
            if "finished" in answer:
                return True
            told += answer["done"]
            on_done(answer["done"])
        process.wait()
        on_done(-told)
        return False

    def stop(self) -> None:
        """End the process; two threads may ask for it at once."""
        process, self.process = self.process, None
        if process is None:
            return
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        process.wait()


def on_processes(task: ShardTask, shards: Sequence[int], count: int, on_done: Callable[[float], None]) -> None:
    """Work on shards in several local processes; see `for_each_shard`."""
    left, lock = deque(shards), threading.Lock()
    workers = [_Worker(task) for _ in range(min(count, len(shards)))]
    failed = threading.Event()

    def told(amount: float) -> None:
        with lock:
            on_done(amount)

    def work(worker: _Worker) -> None:
        try:
            while not failed.is_set():
                with lock:
                    if not left:
                        return
                    shard = left.popleft()
                if not any(worker.do(shard, told) for _ in range(_TRIES)) and not failed.is_set():
                    raise ArtifactError(
                        f"{_TRIES} processes died while they worked on part {shard} of the users",
                        "Memory may be short: use fewer processes (--executor local:N), or the same command without it.",
                    )
        except BaseException:
            failed.set()
            raise

    try:
        with ThreadPoolExecutor(len(workers)) as pool:
            running = [pool.submit(work, worker) for worker in workers]
            try:
                for each in running:
                    each.result()
            finally:
                failed.set()
                for worker in workers:
                    worker.stop()
    finally:
        # a thread may have started a process after its worker was stopped; all threads have ended here
        for worker in workers:
            worker.stop()


def error_document(error: BaseException) -> dict[str, str]:
    """An error of a shard's work as text, for the process that makes the artifact."""
    import traceback

    if isinstance(error, DcclError):
        return {"class": type(error).__name__, "what": error.what, "remedy": error.remedy}
    return {"class": "", "what": "".join(traceback.format_exception(error)), "remedy": ""}


def error_of(document: dict[str, str]) -> Exception:
    """The error that such a document tells of; one that is a bug keeps its traceback as text."""
    known: list[type[DcclError]] = [DcclError, *DcclError.__subclasses__()]
    for each in known:
        if each.__name__ == document["class"]:
            return each(document["what"], document["remedy"])
    return RuntimeError(f"in a worker process:\n{document['what']}")
