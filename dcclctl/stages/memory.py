"""`memory`: dataset → the memory of every device, and the statistics that the cloud sends with it."""

import numpy as np
import numpy.typing as npt
import polars as pl

from dcclctl.artifacts import Dataset, Memory
from dcclctl.artifacts.memory import STATISTICS_FILE
from dcclctl.compute import Phase
from dcclctl.config import MemoryConfig
from dcclctl.devices.memory.ring import RingContents
from dcclctl.devices.memory.statistics import StatisticsSettings, count_statistics
from dcclctl.errors import DataError, UsageError
from dcclctl.events.log import VALID, Block
from dcclctl.stages.plan import events_of
from dcclctl.stages.run import DEFAULT_RUN, NO_SETTINGS, RunOptions, Settings, named
from dcclctl.stages.settings import resolve


def lists(values: npt.NDArray[np.int32], start: npt.NDArray[np.int64]) -> pl.Series:
    """Slices of the values as a column of lists; slice n is values[start[n] : start[n + 1]]."""
    import pyarrow as pa

    return pl.Series(pl.from_arrow(pa.LargeListArray.from_arrays(pa.array(start), pa.array(values))))


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
        phase = Phase(run.on_progress, "fill memories", len(np.unique(log.user[rows])), "users")
        rings = RingContents.of(log.user[rows], log.item[rows], config.size, config.profile_window, len(kept))
        phase.at(len(rings.users))
        table = pl.DataFrame(
            {
                "user_index": rings.users.astype(np.int32),
                "seen": rings.seen,
                "bytes": rings.bytes.astype(np.int32),
                "items": lists(rings.items.astype(np.int32), rings.start),
            }
        )
        ids = dataset.users.select("user_index", "user_id")
        table = table.join(ids, on="user_index", how="left", maintain_order="left")
        work.write_table("memory.parquet", table.select("user_index", "user_id", "seen", "bytes", "items"))
        facts = {
            "id_map": dataset.id_map,
            "users": len(rings.users),
            "events": int(table["seen"].sum()),
            "full": int((table["seen"] >= config.size).sum()),
            "bytes_per_user_mean": float(table["bytes"].to_numpy().mean()),
            "bytes_per_user_largest": int(table["bytes"].to_numpy().max()),
            "bytes_per_candidate": statistics.bytes_per_candidate,
            "features": list(statistics.features),
            "profile_features": list(kept),
        }
        return named(Memory(work.commit(facts)), run)
