"""`memory`: dataset → the memory of every device, and the statistics that the cloud sends with it."""

import numpy as np
import polars as pl

from dcclctl.artifacts import Dataset, Memory
from dcclctl.artifacts.memory import STATISTICS_FILE
from dcclctl.compute import Phase
from dcclctl.config import MemoryConfig
from dcclctl.devices.memory.ring import Ring
from dcclctl.devices.memory.statistics import StatisticsSettings, count_statistics
from dcclctl.errors import DataError, UsageError
from dcclctl.events.log import VALID, Block
from dcclctl.stages.plan import events_of
from dcclctl.stages.run import DEFAULT_RUN, NO_SETTINGS, RunOptions, Settings, named
from dcclctl.stages.settings import resolve


def remember(dataset: Dataset, settings: Settings = NO_SETTINGS, run: RunOptions = DEFAULT_RUN) -> Memory:
    """Fill every device's ring with its user's newest events, and count the statistics of all users' events.

    Args:
        dataset: the log. settings: see MemoryConfig. run: how to run.

    Raises:
        UsageError: statistics that would count valid or test events. DataError: no positive event up to then.
    """
    config = resolve(MemoryConfig, settings, run.config)
    block, log = Block.parse(config.counted_through), dataset.log
    if block.period >= VALID:
        raise UsageError(
            "--counted-through: a memory's statistics end with cloud or device",
            "Models are chosen on valid and scored on test.",
        )
    inputs = {"dataset": dataset.artifact.as_input()}
    amount = events_of(dataset, [Block(period) for period in range(block.period + 1)])
    with dataset.store.begin("memory", "memory", config.recorded(), config.seed, inputs, run.force, amount) as work:
        if work.reused is not None:
            return named(Memory(work.reused), run)
        before = log.up_to(block)
        rows = np.flatnonzero(before & (log.label > 0))
        if not len(rows):
            raise DataError(
                f"{dataset.ref} has no positive events up to {config.counted_through}", "Ingest with other --periods."
            )
        how = StatisticsSettings.of(config.recorded())
        statistics = count_statistics(log, before, how, config.seed, run.on_progress)
        work.write_tensors(STATISTICS_FILE, statistics.tensors())
        kept = statistics.profile_features if config.profile_window else ()
        users, starts = np.unique(log.user[rows], return_index=True)
        rings, phase = [], Phase(run.on_progress, "fill memories", len(users), "users")
        for number, items in enumerate(np.split(log.item[rows], starts[1:]), start=1):
            rings.append(Ring(config.size, items.tolist(), config.profile_window, len(kept)))
            if number % 256 == 0 or number == len(users):
                phase.at(number)
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
            "users": len(users),
            "events": int(table["seen"].sum()),
            "full": int((table["seen"] >= config.size).sum()),
            "bytes_per_user_mean": float(table["bytes"].to_numpy().mean()),
            "bytes_per_user_largest": int(table["bytes"].to_numpy().max()),
            "bytes_per_candidate": statistics.bytes_per_candidate,
            "features": list(statistics.features),
            "profile_features": list(kept),
        }
        return named(Memory(work.commit(facts)), run)
