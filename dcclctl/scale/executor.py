"""Shards of users are worked on in this process, in local processes, or on a Ray cluster; the files are the same.

A shard's files depend on the task and the shard's number alone, so it does not matter who makes them, and a shard that is
made twice is the same to the last bit. What is finished stays: a stopped command continues with the shards that are missing.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from dcclctl.errors import UsageError
from dcclctl.scale.task import ShardTask
from dcclctl.store.store import Store
from dcclctl.store.work import Work

#: processes on one machine, at most: more is a slip of the finger
_MOST = 1024
_REMEDY = "Use local, local:N for N processes, ray for a cluster on this machine, or ray://HOST:PORT."


@dataclass(frozen=True)
class Executor:
    """Who works on shards.

    Attributes:
        kind: local or ray. processes: of local; 0: in this process. address: of a Ray cluster; '': the one of this machine.
    """

    kind: Literal["local", "ray"] = "local"
    processes: int = 0
    address: str = ""

    @classmethod
    def parse(cls, text: str) -> "Executor":
        """Read `local`, `local:N`, `ray` or `ray://HOST:PORT`.

        Raises:
            UsageError: the text has another form, or Ray is not installed.
        """
        if text == "local":
            return cls()
        if found := re.fullmatch(r"local:(\d{1,9})", text):
            if not 1 <= int(found[1]) <= _MOST:
                raise UsageError(f"--executor {text}: 1 to {_MOST:,} processes are possible", _REMEDY)
            return cls(processes=int(found[1]))
        if text != "ray" and not re.fullmatch(r"ray://[^\s/:]+:\d{1,5}", text):
            raise UsageError(f"--executor {text!r} is no executor", _REMEDY)
        from importlib.util import find_spec

        if find_spec("ray") is None:
            raise UsageError("--executor ray needs the package ray", "Install it: pip install 'dcclctl[ray]'")
        return cls("ray", address=text if text != "ray" else "")


def for_each_shard(
    store: Store,
    work: Work,
    task: ShardTask,
    shards: Sequence[int],
    executor: Executor,
    on_done: Callable[[float], None],
    amounts: Callable[[int], float] = lambda shard: 0.0,
) -> int:
    """Make the files of every shard that are not there yet.

    Args:
        store, work: the work gets the files. shards: numbers. on_done: called with an amount of work that is done.
        amounts: shard → the amount of work that is told for a shard whose files are there already.

    Returns:
        The number of shards that were worked on, not found.

    Raises:
        DcclError: that of a shard's work; or a shard has ended several processes.
    """
    missing = []
    for shard in shards:
        if all([work.finished(name.format(shard)) for name in task.files]):
            on_done(amounts(shard))
        else:
            missing.append(shard)
    if not missing:
        return 0
    if executor.kind == "ray":
        from dcclctl.scale.cluster import on_ray

        on_ray(task, missing, executor.address, on_done)
    elif executor.processes:
        from dcclctl.scale.processes import on_processes

        on_processes(task, missing, executor.processes, on_done)
    else:
        on_shard = task.open(store, work)
        for shard in missing:
            on_shard(shard, on_done)
    return len(missing)
