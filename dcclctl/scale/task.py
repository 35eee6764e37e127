"""A stage's work on shards of users, in a form that another process can be told: names, ids and settings, no objects."""

import importlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from dcclctl.config import ComputeSection
from dcclctl.store.store import Store
from dcclctl.store.work import Work

#: works on the shard with this number, writes its files into the work, and says now and then how much it has done
OnShard = Callable[[int, Callable[[float], None]], None]


@dataclass(frozen=True)
class ShardTask:
    """What is done for every shard.

    Attributes:
        function: 'module:name' of a function (store, work, arguments) → OnShard. It opens what all shards need; a process
            calls it once.
        arguments: for the function, a document for JSON: references by full id, settings.
        files: names of all files that a shard writes, with {} for its number, e.g. 'theta-{:05d}.safetensors'. A shard is done when
            all are whole: after a power failure a later file may be there without an earlier one.
        compute: device and threads of torch, see compute.ComputeSection; None: the work needs no torch.
        store: address of the store. kind, key: of the work in it.
    """

    function: str
    arguments: dict[str, Any]
    files: tuple[str, ...]
    compute: dict[str, Any] | None
    store: str
    kind: str
    key: str

    @classmethod
    def of(
        cls,
        store: Store,
        work: Work,
        function: str,
        arguments: dict[str, Any],
        files: tuple[str, ...],
        compute: ComputeSection | None = None,
    ) -> "ShardTask":
        """The task of a work in a store; for the rest see the attributes."""
        settings = None if compute is None else {"device": compute.device, "threads": compute.threads}
        return cls(function, arguments, files, settings, store.address, work.kind, work.key)

    def open(self, store: Store, work: Work) -> OnShard:
        """What works on the shards, in this process."""
        module, _, name = self.function.partition(":")
        found: OnShard = getattr(importlib.import_module(module), name)(store, work, self.arguments)
        return found

    def join(self) -> OnShard:
        """The same in another process than the one that makes the artifact, with torch set up as there."""
        if self.compute is not None:
            from dcclctl.compute import settle

            settle(ComputeSection(**self.compute))
        # the process that makes the artifact keeps others from deleting what is used
        store = Store(self.store, leases=False)
        return self.open(store, store.join(self.kind, self.key))

    def text(self) -> str:
        """The task as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> "ShardTask":
        """The task of such a line."""
        given = json.loads(text)
        return cls(**given | {"files": tuple(given["files"])})
