"""`memory`: dataset → what every device remembers at a moment, and the statistics that the cloud ships beside it."""

import numpy as np
import polars as pl

from dcclctl.algorithm.eventlog import Block
from dcclctl.algorithm.memory import Counting, Ring, count_statistics
from dcclctl.config import MemoryConfig
from dcclctl.errors import DataError, UsageError
from dcclctl.stages.handles import Dataset
from dcclctl.store.store import Artifact, Store


def remember(dataset: Dataset, config: MemoryConfig, store: Store, force: bool = False) -> tuple[Artifact, bool]:
    """Fill every device's ring with its user's newest events, and count what the cloud knows of everybody.

    Args:
        dataset: the log. config: settings. store: where the memory goes.
        force: compute even if the same memory exists.

    Returns:
        The memory artifact, and whether it existed already.

    Raises:
        UsageError: a memory that would know the test period. DataError: nobody has an event by then.
    """
    block, log = Block.parse(config.until), dataset.log
    if block.period > 1:
        raise UsageError(
            "--until: a memory's statistics end with cloud or device", "valid and test are what is judged."
        )
    inputs = {"dataset": dataset.artifact.as_input()}
    with store.begin("memory", "memory", config.recorded(), config.seed, inputs, force) as work:
        if work.reused is not None:
            return work.reused, True
        before = log.up_to(block)
        rows = np.flatnonzero(before & (log.label > 0))
        if not len(rows):
            raise DataError(
                f"{dataset.artifact.ref} has no positive events up to {config.until}", "Ingest with other --periods."
            )
        statistics = count_statistics(log, before, Counting.of(config.recorded()), config.seed)
        work.write_tensors("statistics.safetensors", statistics.tensors())
        tracked = statistics.tracked if config.track else ()
        users, starts = np.unique(log.user[rows], return_index=True)
        rings = [
            Ring(config.size, items.tolist(), config.track, len(tracked))
            for items in np.split(log.item[rows], starts[1:])
        ]
        table = pl.DataFrame(
            {
                "user_index": users.astype(np.int32),
                "seen": np.array([ring.seen for ring in rings], dtype=np.int64),
                "bytes": np.array([ring.bytes for ring in rings], dtype=np.int32),
                "items": pl.Series([ring.newest_first().tolist() for ring in rings], dtype=pl.List(pl.Int32)),
            }
        )
        ids = dataset.users.select("user_index", "user_id")
        table = table.join(ids, on="user_index", how="left", maintain_order="left")
        work.write_table("memory.parquet", table.select("user_index", "user_id", "seen", "bytes", "items"))
        facts = {
            "id_map": dataset.id_map,
            "until": config.until,
            "users": len(users),
            "events": int(table["seen"].sum()),
            "full": int((table["seen"] >= config.size).sum()),
            "bytes_per_user_mean": float(table["bytes"].to_numpy().mean()),
            "bytes_per_user_largest": int(table["bytes"].to_numpy().max()),
            "bytes_per_candidate": statistics.bytes_per_candidate,
            "features": list(statistics.features),
            "tracked": list(tracked),
        }
        return work.commit(facts), False
