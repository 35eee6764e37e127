"""Shards on a Ray cluster, all of whose machines see the store under the same path. Needs the extra `dcclctl[ray]`.

Ray starts a lost shard again, on another machine if need be.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from dcclctl.errors import UsageError
from dcclctl.scale.processes import error_document, error_of
from dcclctl.scale.task import OnShard, ShardTask

#: how often a shard is started again after its process or machine was lost
_RETRIES = 3
#: the last task of this process, opened: (its text, what works on its shards)
_opened: list[tuple[str, OnShard]] = []


def work_on(text: str, shard: int) -> tuple[float, dict[str, str] | None]:
    """Work on one shard in a process of the cluster.

    Returns:
        The amount of work done, and the error of the work or None.
    """
    done = 0.0

    def on_done(amount: float) -> None:
        nonlocal done
        done += amount

    try:
        if not _opened or _opened[0][0] != text:
            _opened[:] = [(text, ShardTask.parse(text).join())]
        _opened[0][1](shard, on_done)
    except Exception as error:
        return done, error_document(error)
    return done, None


def on_ray(task: ShardTask, shards: Sequence[int], address: str, on_done: Callable[[float], None]) -> None:
    """Work on shards in the processes of a Ray cluster; see `for_each_shard`."""
    import ray

    started_here = not ray.is_initialized()
    if started_here:
        try:
            ray.init(address=address or None, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UsageError(
                f"--executor {address or 'ray'}: no cluster answers ({error})", "Start one: ray start --head"
            ) from error
    threads = float((task.compute or {}).get("threads") or 1)
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    most = max((node["Resources"].get("CPU", 0.0) for node in nodes if node["Alive"]), default=1.0)
    remote: Any = ray.remote(max_retries=_RETRIES, num_cpus=min(threads, most))(work_on)
    running = [remote.remote(task.text(), shard) for shard in shards]
    try:
        while running:
            (ready,), running = ray.wait(running)
            done, failed = ray.get(ready)
            if failed is not None:
                raise error_of(failed)
            on_done(done)
    finally:
        for each in running:
            ray.cancel(each, force=True)
        if started_here:
            ray.shutdown()
