"""`memory`: dataset → the memory of every device, and the statistics that the cloud sends with it."""

import numpy as np
import numpy.typing as npt
import polars as pl
from jaxtyping import Float
from torch import Tensor

from dcclctl.artifacts import Dataset, Memory
from dcclctl.artifacts.memory import STATISTICS_FILE, TYPICAL_FILE
from dcclctl.compute import Phase
from dcclctl.config import MemoryConfig
from dcclctl.devices.memory.features import FeatureTables, Memories, Statistics, some_users, typical_profiles
from dcclctl.devices.memory.ring import RingContents
from dcclctl.devices.memory.statistics import Counted, StatisticsSettings, count_statistics
from dcclctl.errors import DataError, UsageError
from dcclctl.events.groups import UserGroups
from dcclctl.events.log import VALID, Block, EventLog
from dcclctl.events.sampling import Ints
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
    block = Block.parse(config.counted_through)
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
        if not dataset.no_events.n_items:
            raise _nothing_counted(dataset, config)
        how, groups = StatisticsSettings.of(config.recorded()), dataset.groups

        def counted(log: EventLog) -> npt.NDArray[np.bool_]:
            return log.up_to(block)

        statistics = count_statistics(groups, counted, how, config.seed, run.on_progress)
        work.write_tensors(STATISTICS_FILE, statistics.tensors())
        kept = statistics.profile_features if config.profile_window else ()
        rings, users_of = [], []
        phase = Phase(run.on_progress, "fill memories", groups.count, "groups of users")
        for number in range(groups.count):
            log = groups.open(number)
            rows = np.flatnonzero(counted(log) & (log.label > 0))
            rings.append(RingContents.of(log.user[rows], log.item[rows], config.size, config.profile_window, len(kept)))
            users_of.append(rings[-1].users)
            phase.add(1)
        if not sum(map(len, users_of)):
            raise _nothing_counted(dataset, config)
        work.write_tensors(TYPICAL_FILE, {"typical": _typical(groups, counted, statistics, config, users_of)})
        table = pl.concat(
            pl.DataFrame(
                {
                    "user_index": ring.users.astype(np.int32),
                    "seen": ring.seen,
                    "bytes": ring.bytes.astype(np.int32),
                    "items": lists(ring.items.astype(np.int32), ring.start),
                }
            )
            for ring in rings
        ).sort("user_index")
        ids = dataset.users.select("user_index", "user_id")
        table = table.join(ids, on="user_index", how="left", maintain_order="left")
        work.write_table("memory.parquet", table.select("user_index", "user_id", "seen", "bytes", "items"))
        facts = {
            "id_map": dataset.id_map,
            "users": table.height,
            "events": int(table["seen"].sum()),
            "full": int((table["seen"] >= config.size).sum()),
            "bytes_per_user_mean": float(table["bytes"].to_numpy().mean()),
            "bytes_per_user_largest": int(table["bytes"].to_numpy().max()),
            "bytes_per_candidate": statistics.bytes_per_candidate,
            "features": list(statistics.features),
            "profile_features": list(kept),
        }
        return named(Memory(work.commit(facts)), run)


def _nothing_counted(dataset: Dataset, config: MemoryConfig) -> DataError:
    return DataError(
        f"{dataset.ref} has no positive events up to {config.counted_through}",
        "Ingest with other --periods, or with another --label.",
    )


def _typical(
    groups: UserGroups, counted: Counted, statistics: Statistics, config: MemoryConfig, users_of: list[Ints]
) -> Float[Tensor, "T1 R"]:
    """Typical profiles of all groups' users; users_of: group → its users with a counted event."""
    chosen = some_users(np.sort(np.concatenate(users_of)))
    tables, sums = None, []
    for number in range(groups.count):
        log = groups.open(number)
        tables = tables or FeatureTables(statistics, log.item_categories)
        memories = Memories(log, statistics, config.size, config.profile_window, counted(log), tables)
        sums.append(memories.profile_sums(chosen))
    return typical_profiles(sums)
