"""A dataset: clean tables of one log, and the same as tensors."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload
from weakref import WeakValueDictionary

from dcclctl.artifacts.handle import Handle
from dcclctl.store.store import Artifact
from dcclctl.tables import EVENTS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import polars as pl
    from torch import Tensor

    from dcclctl.events.groups import UserGroups
    from dcclctl.events.log import Block, EventLog

#: users whose events are in memory at a time, about, where not all are needed at once
_GROUP_USERS = 65_536
ValueT = TypeVar("ValueT")


class _Loaded(dict[str, Any]):
    """What has been read of one dataset, by the name of the attribute."""


#: of the datasets that are in use, by path and id
_loaded: WeakValueDictionary[tuple[str, str], _Loaded] = WeakValueDictionary()


class _Shared(Generic[ValueT]):
    """An attribute that is computed when it is first read, and is then the same in all handles on one dataset."""

    def __init__(self, compute: Callable[["Dataset"], ValueT]) -> None:
        self.compute, self.__doc__ = compute, compute.__doc__

    def __set_name__(self, owner: type["Dataset"], name: str) -> None:
        self.name = name

    @overload
    def __get__(self, dataset: None, owner: type["Dataset"]) -> "_Shared[ValueT]": ...
    @overload
    def __get__(self, dataset: "Dataset", owner: type["Dataset"]) -> ValueT: ...
    def __get__(self, dataset: "Dataset | None", owner: type["Dataset"]) -> "ValueT | _Shared[ValueT]":
        if dataset is None:
            return self
        if self.name not in dataset.loaded:
            dataset.loaded[self.name] = self.compute(dataset)
        found: ValueT = dataset.loaded[self.name]
        return found


class Dataset(Handle):
    """Clean tables of one log, and the same as tensors."""

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact)
        # other handles may be of another store object (which may be planning), or have another answer to `reused`
        self.loaded = _loaded.setdefault((str(artifact.path), artifact.id), _Loaded())

    @property
    def id_map(self) -> str:
        """SHA-256 of the user and item ids in index order: which user and item each index means."""
        return str(self.facts["id_map"])

    @property
    def repeats(self) -> str:
        """'keep' or 'first': may a user have several events of one item?"""
        return str(self.facts["repeats"])

    @property
    def observed_labels(self) -> bool:
        """Does the log say which events are negative?"""
        return str(self.facts["labels"]) != "implicit"

    @_Shared
    def users(self) -> "pl.DataFrame":
        """A USERS table, see tables.py."""
        return self._numbered("users.parquet", "user_index", int(self.facts["users"]))

    @_Shared
    def items(self) -> "pl.DataFrame":
        """An ITEMS table, see tables.py."""
        return self._numbered("items.parquet", "item_index", int(self.facts["items"]))

    def _numbered(self, name: str, index: str, rows: int) -> "pl.DataFrame":
        """A table whose rows are numbered from 0."""
        import numpy as np

        table = self.artifact.read_table(name)
        if table.height != rows or not np.array_equal(table[index].to_numpy(), np.arange(rows)):
            raise self.artifact.unreadable(name, f"does not have the rows 0 to {rows - 1:,}, as its facts say")
        return table

    def times(self, users: range) -> "npt.NDArray[np.int64]":
        """(N,) time of every event of `log_part(users)`: µs since 1970, or a number of its order in a log without times."""
        import numpy as np

        size, found = int(self.config["shard_users"]), []
        for number in range(users.start // size, max(users.start, users.stop - 1) // size + 1):
            table = self.events_of(number)
            owners = table["user_index"].to_numpy()
            first, last = np.searchsorted(owners, [users.start, users.stop])
            found.append(table["time_us"].to_numpy()[first:last].astype(np.int64))
        return np.concatenate(found)

    @_Shared
    def log(self) -> "EventLog":
        """Everything that models and devices need, as tensors."""
        self.store.on_progress("open", 0, 0, self.ref)
        return self.log_of(self.events)

    @property
    def events(self) -> "pl.DataFrame":
        """An EVENTS table of all users, see tables.py."""
        import polars as pl

        return pl.concat([self.artifact.read_table(name) for name in self._event_files])

    @property
    def _event_files(self) -> list[str]:
        """One for each `shard_users` users, in the order of users."""
        found = sorted(name for name in self.artifact.manifest["tables"] if name.startswith("events"))
        if len(found) != max(1, len(self.parts)):
            raise self.artifact.unreadable("events.parquet", f"is one of {len(found)} files, not of {len(self.parts)}")
        return found

    def events_of(self, part: int) -> "pl.DataFrame":
        """An EVENTS table of the users of one of the `parts`."""
        return self.artifact.read_table(self._event_files[part])

    @property
    def parts(self) -> list[range]:
        """Users, part by part: those whose events are in one file."""
        size, users = int(self.config["shard_users"]), int(self.facts["users"])
        return [range(first, min(first + size, users)) for first in range(0, users, size)]

    @property
    def groups(self) -> "UserGroups":
        """The events in groups of parts, with about 65,536 users in each."""
        from dcclctl.events.groups import UserGroups

        parts, each = self.parts, self._parts_of_group
        if len(parts) <= each:
            return UserGroups.of(self.log)
        # every count-th part, so that users who came early or late are in all groups
        count = -(-len(parts) // each)
        return UserGroups(count, lambda number: self._log_of_files(range(number, len(parts), count), self._every_user))

    @property
    def _parts_of_group(self) -> int:
        return max(1, _GROUP_USERS // int(self.config["shard_users"]))

    @property
    def _every_user(self) -> range:
        return range(int(self.facts["users"]))

    @_Shared
    def no_events(self) -> "EventLog":
        """What is known of users and items, without any events."""
        import polars as pl

        return self.log_of(pl.DataFrame(schema=EVENTS.schema()))

    def log_part(self, users: range) -> "EventLog":
        """The events of some consecutive users, of which only the files with these users are read."""
        size = int(self.config["shard_users"])
        if len(self._event_files) == 1 and users == self._every_user:
            return self.log
        return self._log_of_files(range(users.start // size, max(users.start, users.stop - 1) // size + 1), users)

    def log_with(self, users: "npt.NDArray[np.int64]") -> "EventLog":
        """The events of some users, at least one; in a log of one file those of all: only the files with them are read."""
        import numpy as np

        if len(self._event_files) == 1:
            return self.log
        files = np.unique(users // int(self.config["shard_users"])).tolist()
        return self._log_of_files(files, range(int(users.min()), int(users.max()) + 1), users)

    @property
    def newest_us(self) -> int:
        """Time of the newest event, as in EVENTS."""
        times = (self.artifact.read_table(name)["time_us"].max() for name in self._event_files)
        return max((int(time) for time in times if time is not None), default=0)  # type: ignore[arg-type]

    def _log_of_files(
        self, files: Sequence[int], users: range, only: "npt.NDArray[np.int64] | None" = None
    ) -> "EventLog":
        """The events in some of the files, of the users among them that are wanted.

        Args:
            users: from the first to the last of them. only: the users; None: all between these.
        """
        import numpy as np
        import polars as pl

        from dcclctl.events.periods import ItemPeriods

        names = self._event_files
        rows = np.array([self.artifact.manifest["tables"][name]["rows"] for name in names])
        firsts = np.cumsum(rows) - rows
        tables, places = [], []
        for number in files:  # one after another, so that what is not wanted leaves the memory at once
            table = self.artifact.read_table(names[number])
            owners = table["user_index"].to_numpy()
            wanted = np.isin(owners, only) if only is not None else (owners >= users.start) & (owners < users.stop)
            tables.append(table.filter(wanted))
            places.append(firsts[number] + np.flatnonzero(wanted))
        counted = self.artifact.read_table("item_periods.parquet")
        columns = ("item_index", "period", "first_share", "positives")
        return replace(
            self.log_of(pl.concat(tables)),
            place=np.concatenate(places),
            users=users,
            item_periods=ItemPeriods(*(counted[name].to_numpy() for name in columns)),
        )

    def count_events(self, *blocks: "Block", positive: bool = False) -> "npt.NDArray[np.int64]":
        """(U,) events of each user in some blocks that do not overlap; or only the positive ones."""
        import numpy as np
        import polars as pl

        n_users = int(self.facts["users"])
        counts = np.zeros(n_users, dtype=np.int64)
        for name in self._event_files:
            table = self.artifact.read_table(name)
            period, share = pl.col("period"), pl.col("share")
            inside = [(period == block.period) & (share >= block.start) & (share < block.end) for block in blocks]
            wanted = pl.any_horizontal(inside) & ((pl.col("label") > 0) if positive else True)
            counts += np.bincount(table.filter(wanted)["user_index"].to_numpy(), minlength=n_users)
        return counts

    def sample(self, counts: "npt.NDArray[np.int64]", events: int, seed: int, purpose: str) -> "EventLog":
        """All users' events; in a log of several groups those of some parts, at least a group and at least `events`.

        Args:
            counts: (U,) see `count_events`. seed, purpose: of the draw.
        """
        import numpy as np

        from dcclctl.events.sampling import permutation

        parts, least = self.parts, self._parts_of_group
        if len(parts) <= least:
            return self.log
        order = permutation(seed, purpose, np.arange(len(parts)))
        each = np.array([counts[users.start : users.stop].sum() for users in parts])[order]
        chosen = sorted(order[: max(least, int(np.searchsorted(np.cumsum(each), events)) + 1)].tolist())
        return self._log_of_files(chosen, range(parts[chosen[0]].start, parts[chosen[-1]].stop))

    @property
    def item_categories(self) -> "Tensor":
        """(I, S) category codes, as in EventLog."""
        return self._sides[0]

    @_Shared
    def _sides(self) -> "tuple[Tensor, int, Tensor, tuple[int, ...]]":
        """What an EventLog knows of items and users: item_categories, n_categories, profile, profile_sizes."""
        import numpy as np
        import polars as pl
        import torch

        vocabulary = self.artifact.read_table("vocabulary.parquet")
        n_categories = vocabulary.filter(pl.col("kind") == "category").height
        categories = self.items.select("item_index", "category_indices").explode("category_indices").drop_nulls()
        rows = categories["item_index"].to_numpy().astype(np.int64)
        slots = np.arange(len(rows)) - np.searchsorted(rows, rows)  # which of its item's categories each one is
        padded = np.full((self.items.height, int(slots.max(initial=0)) + 1), n_categories, dtype=np.int64)
        codes = categories["category_indices"].to_numpy()
        if codes.min(initial=0) < 0 or codes.max(initial=-1) >= n_categories:
            raise self.artifact.unreadable("items.parquet", "has categories that the vocabulary does not have")
        padded[rows, slots] = codes
        columns = [name for name in self.users.columns if name.startswith("profile_")]
        profile = self.users.select(columns).to_numpy().astype(np.int64)
        if not columns:
            profile = np.zeros((self.users.height, 1), dtype=np.int64)
        sizes = tuple(self.facts["profiles"][name.removeprefix("profile_")] for name in columns)
        return torch.from_numpy(padded), n_categories, torch.from_numpy(profile), sizes or (1,)

    def log_of(self, events: "pl.DataFrame", new_users: int = 0) -> "EventLog":
        """The same with other events of its items.

        Args:
            events: an EVENTS table, sorted by (user_index, time_us); without `share` it is computed from these events.
            new_users: users that the dataset does not have, without a profile; their numbers follow its own.
        """
        import torch

        from dcclctl.events.log import EventColumns, EventLog

        item_categories, n_categories, profile, sizes = self._sides
        if new_users:
            profile = torch.cat([profile, profile.new_zeros(new_users, profile.shape[1])])
        return EventLog.build(
            EventColumns(*(events[name].to_numpy() for name in EVENTS.columns if name in events.columns)),
            item_categories=item_categories,
            n_categories=n_categories,
            profile=profile,
            profile_sizes=sizes,
            repeats=self.repeats == "keep",
            one_timeline=self.facts["split"] == "global",
        )
