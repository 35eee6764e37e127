"""An evaluation: models scored side by side on the same users."""

from functools import cached_property
from typing import TYPE_CHECKING

from dcclctl.artifacts.handle import Handle
from dcclctl.artifacts.names import label
from dcclctl.errors import UsageError
from dcclctl.store.artifact import Artifact
from dcclctl.store.lineage import SUBJECT_ROLE

if TYPE_CHECKING:
    import polars as pl


class Evaluation(Handle):
    """Models scored side by side on the same users. All tables are described in tables.py."""

    @property
    def against(self) -> str:
        """The baseline, as the tables name it; '' without one."""
        return str(self.config["against"])

    @property
    def subjects(self) -> dict[str, str]:
        """The scored models: name in the tables → reference in this store, in the order they were given."""
        return {name: artifact.ref + (suffix and f"+{suffix}") for name, (artifact, suffix) in self.scored().items()}

    @property
    def labels(self) -> dict[str, str]:
        """The scored models: name in the tables → name and reference for people, see names.label."""
        return {name: label(artifact, suffix) for name, (artifact, suffix) in self.scored().items()}

    def scored(self) -> dict[str, tuple[Artifact, str]]:
        """Name in the tables → artifact, and the suffix of its reference ('mean' or '')."""
        names = {role: role.partition(":")[2] for role in self.artifact.inputs if role.startswith(SUBJECT_ROLE)}
        return {name: (self.artifact.input(role), name.partition("+")[2]) for role, name in names.items()}

    @cached_property
    def per_user(self) -> "pl.DataFrame":
        """A PER_USER table."""
        return self.artifact.read_table("per_user.parquet")

    @cached_property
    def aggregate(self) -> "pl.DataFrame":
        """An AGGREGATE table."""
        return self.artifact.read_table("aggregate.parquet")

    @property
    def comparison(self) -> "pl.DataFrame":
        """A COMPARISON table: every other model against the baseline, paired by user.

        Raises:
            UsageError: the evaluation has no baseline.
        """
        return self._compared("comparison.parquet")

    @property
    def tail_minus_head(self) -> "pl.DataFrame":
        """A TAIL_MINUS_HEAD table."""
        return self._compared("tail_minus_head.parquet")

    @property
    def harm(self) -> "pl.DataFrame":
        """A HARM table."""
        return self._compared("harm.parquet")

    @property
    def worst_users(self) -> "pl.DataFrame":
        """A WORST_USERS table."""
        return self._compared("worst_users.parquet")

    def _compared(self, name: str) -> "pl.DataFrame":
        if not self.against:
            raise UsageError(f"{self.ref} has no baseline", "Evaluate again with --against REF.")
        return self.artifact.read_table(name)
