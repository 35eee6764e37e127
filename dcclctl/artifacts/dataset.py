"""A dataset: clean tables of one log, and the same as tensors."""

from functools import cached_property
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from dcclctl.artifacts.handle import Handle
from dcclctl.store.store import Artifact
from dcclctl.tables import EVENTS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import polars as pl

    from dcclctl.events.log import EventLog

#: datasets that are in use, so that handles on one dataset share its tensors
_open: WeakValueDictionary[tuple[str, str], "Dataset"] = WeakValueDictionary()


class Dataset(Handle):
    """Clean tables of one log, and the same as tensors."""

    @classmethod
    def of(cls, artifact: Artifact) -> "Dataset":
        """The dataset in an artifact; while it is in use, always the same tensors."""
        made = Dataset(artifact)
        found = _open.setdefault((str(artifact.path), artifact.id), made)
        if found.artifact.reused == artifact.reused and found.artifact.home is artifact.home:
            return found
        # the same tensors, in another store object (which may be planning) or with another answer to `reused`
        made.__dict__ |= found.__dict__ | {"artifact": artifact}
        return made

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

    @cached_property
    def users(self) -> "pl.DataFrame":
        """A USERS table, see tables.py."""
        return self.artifact.read_table("users.parquet")

    @cached_property
    def items(self) -> "pl.DataFrame":
        """An ITEMS table, see tables.py."""
        return self.artifact.read_table("items.parquet")

    @cached_property
    def times(self) -> "npt.NDArray[np.float64]":
        """(N,) time of every event of `log`: seconds since 1970, or a number of its order in a log without times."""
        import numpy as np

        times = self.artifact.read_table("events.parquet")["time_us"].to_numpy().astype(np.float64)
        return times if self.facts["time_kind"] == "ordinal" else times / 1e6

    @cached_property
    def log(self) -> "EventLog":
        """Everything that models and devices need, as tensors."""
        self.store.on_progress("open", 0, 0, self.ref)
        return self.log_of(self.artifact.read_table("events.parquet"))

    def log_of(self, events: "pl.DataFrame", new_users: int = 0) -> "EventLog":
        """The same with other events of its items.

        Args:
            events: an EVENTS table, sorted by (user_index, time_us).
            new_users: users that the dataset does not have, without a profile; their numbers follow its own.
        """
        import numpy as np
        import polars as pl
        import torch

        from dcclctl.events.log import EventColumns, EventLog

        vocabulary = self.artifact.read_table("vocabulary.parquet")
        n_categories = vocabulary.filter(pl.col("kind") == "category").height
        categories = self.items.select("item_index", "category_indices").explode("category_indices").drop_nulls()
        rows = categories["item_index"].to_numpy().astype(np.int64)
        slots = np.arange(len(rows)) - np.searchsorted(rows, rows)  # which of its item's categories each one is
        padded = np.full((self.items.height, int(slots.max(initial=0)) + 1), n_categories, dtype=np.int64)
        padded[rows, slots] = categories["category_indices"].to_numpy()
        columns = [name for name in self.users.columns if name.startswith("profile_")]
        profile = self.users.select(columns).to_numpy().astype(np.int64)
        if not columns:
            profile = np.zeros((self.users.height, 1), dtype=np.int64)
        profile = np.pad(profile, ((0, new_users), (0, 0)))
        sizes = tuple(self.facts["profiles"][name.removeprefix("profile_")] for name in columns)
        return EventLog.build(
            EventColumns(*(events[name].to_numpy() for name in EVENTS.columns)),
            item_categories=torch.from_numpy(padded),
            n_categories=n_categories,
            profile=torch.from_numpy(profile),
            profile_sizes=sizes or (1,),
            repeats=self.repeats == "keep",
            one_timeline=self.facts["split"] == "global",
        )
