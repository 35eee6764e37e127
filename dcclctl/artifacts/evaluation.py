"""An evaluation: models scored side by side on the same users."""

import math
from functools import cached_property
from typing import TYPE_CHECKING

from dcclctl.artifacts.handle import Handle
from dcclctl.artifacts.names import group_reference, label
from dcclctl.errors import UsageError
from dcclctl.store.artifact import Artifact
from dcclctl.store.lineage import SUBJECT_ROLE

#: role of one seed's evaluation as an input of an evaluation over several: seed-0, seed-1, …
SEED_ROLE = "seed-"

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        return {
            name: group_reference(self.trainings(name), suffix)
            if name in self._groups
            else artifact.ref + (suffix and f"+{suffix}")
            for name, (artifact, suffix) in self.scored().items()
        }

    @property
    def labels(self) -> dict[str, str]:
        """The scored models: name in the tables → name and reference for people, see names.label."""
        return {
            name: f"{self.subjects[name].removeprefix(f'{artifact.kind}@')} ({len(self.seeds)} seeds)"
            if name in self._groups
            else label(artifact, suffix)
            for name, (artifact, suffix) in self.scored().items()
        }

    def scored(self) -> dict[str, tuple[Artifact, str]]:
        """Name in the tables → artifact, and the suffix of its reference ('mean' or '')."""
        names = {role: role.partition(":")[2] for role in self.artifact.inputs if role.startswith(SUBJECT_ROLE)}
        return {name: (self.artifact.input(role), name.partition("+")[2]) for role, name in names.items()}

    @cached_property
    def per_user(self) -> "pl.DataFrame":
        """A PER_USER table; over several seeds it holds each user's mean."""
        return self._table("per_user.parquet")

    @property
    def seeds(self) -> list[int]:
        """Seeds of the trainings that were scored, at least two; [] for an evaluation of one seed."""
        return list(self.config.get("seeds", []))

    @property
    def intervals_over(self) -> str:
        """What the intervals cover: 'users, one seed' or '5 seeds and users'."""
        return f"{len(self.seeds)} seeds and users" if self.seeds else "users, one seed"

    @property
    def per_seed(self) -> "pl.DataFrame":
        """A PER_SEED table.

        Raises:
            UsageError: the evaluation is of one seed.
        """
        if not self.seeds:
            raise UsageError(f"{self.ref} is of one seed", "Evaluate several: dcclctl evaluate REF --seeds 0..4")
        return self._table("per_seed.parquet")

    def trainings(self, name: str) -> dict[int, Artifact]:
        """Seed → the artifact that was scored as this subject."""
        at = list(self.scored()).index(name)
        return {seed: list(each.scored().values())[at][0] for seed, each in self._of_seeds()}

    def per_user_by_seed(self) -> "list[tuple[int, pl.DataFrame]]":
        """(seed, PER_USER table with this evaluation's names of the subjects); [] for one seed."""
        names = list(self.scored())
        return [
            (seed, each.per_user.with_columns(each.per_user["subject"].replace(list(each.scored()), names)))
            for seed, each in self._of_seeds()
        ]

    def _of_seeds(self) -> "list[tuple[int, Evaluation]]":
        return [(seed, Evaluation(self.artifact.input(f"{SEED_ROLE}{seed}"))) for seed in self.seeds]

    @cached_property
    def _groups(self) -> set[str]:
        """The subjects that are another artifact under each seed."""
        if not self.seeds:
            return set()
        names = zip(*(each.scored() for _, each in self._of_seeds()), strict=True)
        return {own for own, others in zip(self.scored(), names, strict=True) if len(set(others)) > 1}

    @cached_property
    def aggregate(self) -> "pl.DataFrame":
        """An AGGREGATE table: one row for every group, subject and metric."""
        return self._complete("aggregate.parquet", self._table("aggregate.parquet"), ["group", "subject", "metric"])

    @property
    def reliability(self) -> "pl.DataFrame":
        """A RELIABILITY table."""
        return self._table("reliability.parquet")

    @property
    def comparison(self) -> "pl.DataFrame":
        """A COMPARISON table: every other model against the baseline, paired by user.

        Raises:
            UsageError: the evaluation has no baseline.
        """
        return self._compared("comparison.parquet", ["group", "subject", "metric"])

    @property
    def compared_with_itself(self) -> bool:
        """Whether the baseline is the only model."""
        return list(self.facts["subjects"]) == [self.against]

    @property
    def tail_minus_head(self) -> "pl.DataFrame":
        """A TAIL_MINUS_HEAD table."""
        return self._compared("tail_minus_head.parquet", ["subject", "metric"])

    @property
    def harm(self) -> "pl.DataFrame":
        """A HARM table."""
        return self._compared("harm.parquet", ["group", "subject", "metric"])

    @property
    def worst_users(self) -> "pl.DataFrame":
        """A WORST_USERS table."""
        return self._compared("worst_users.parquet")

    def _compared(self, name: str, keys: "Sequence[str]" = ()) -> "pl.DataFrame":
        if not self.against:
            raise UsageError(f"{self.ref} has no baseline", "Evaluate again with --against REF.")
        return self._complete(name, self._table(name), keys, others=1) if keys else self._table(name)

    def _complete(self, name: str, table: "pl.DataFrame", keys: "Sequence[str]", others: int = 0) -> "pl.DataFrame":
        """A table with one row for every combination of keys; all subjects but `others` are in it."""
        rows = math.prod(table[key].n_unique() for key in keys)
        subjects = len(self.scored()) - others
        if table["subject"].n_unique() < subjects or not rows == table.height == table.select(keys).n_unique():
            *first, last = ("model" if key == "subject" else key for key in keys)
            raise self.artifact.unreadable(name, f"does not have one row for every {', '.join(first)} and {last}")
        return table

    def _table(self, name: str) -> "pl.DataFrame":
        """A table, all of whose subjects were scored."""
        table = self.artifact.read_table(name)
        unknown = sorted(set(table["subject"].unique()) - self.scored().keys()) if "subject" in table.columns else []
        if unknown:
            raise self.artifact.unreadable(name, f"has figures of {unknown[0]!r:.60}, which was not scored")
        return table
