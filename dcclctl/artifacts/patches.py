"""Patches: θ̂ of the users that were patched, bound to one cloud model, one basis and one id map."""

from functools import cached_property
from typing import TYPE_CHECKING, Any

from dcclctl.artifacts.cloud import BASIS_FILE, CloudModel
from dcclctl.artifacts.handle import Handle, check_same
from dcclctl.artifacts.memory import Memory
from dcclctl.config import recorded_settings
from dcclctl.errors import ArtifactError
from dcclctl.store.store import Artifact
from dcclctl.tables import PATCHED_USERS

if TYPE_CHECKING:
    import polars as pl
    from jaxtyping import Float
    from torch import Tensor

THETA_FILE = "theta-{:05d}.safetensors"
USERS_FILE = "users.parquet"
#: columns of USERS_FILE: whose θ̂ a row is, and where in the shard
_PLACES = ("user_index", "row")
#: K that is believed where no θ̂ says how many numbers it has
_LARGEST_UNUSED = 1 << 16


class PatchSet(Handle):
    """Patches on one cloud model.

    Raises:
        ArtifactError: patches, cloud model, memory, basis or id map do not belong together.
    """

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact)
        self.cloud = CloudModel(artifact.input("cloud"))
        self.memory = Memory(artifact.input("memory")) if "memory" in artifact.inputs else None
        below = self.cloud.artifact
        check_same("the id map", artifact, artifact.facts["id_map"], below, self.cloud.dataset.id_map)
        if self.memory is not None:
            check_same("the dataset", self.memory.artifact, self.memory.dataset.id, below, self.cloud.dataset.id)
        if self.cloud.basis_id and not self.own_basis:
            check_same("the basis Θ", artifact, artifact.file_id(BASIS_FILE), below, self.cloud.basis_id)

    @property
    def method(self) -> str:
        """The device method that made them, e.g. 'metapatch'."""
        return str(self.config["method"])

    @property
    def settings(self) -> dict[str, Any]:
        """The method's own settings."""
        return recorded_settings(self.config, "method")

    @property
    def own_basis(self) -> bool:
        """Do the patches hold their own shared basis, whatever basis the cloud model has?"""
        return bool(self.facts["own_basis"])

    @cached_property
    def users(self) -> "pl.DataFrame":
        """A PATCHED_USERS table, see tables.py, with each user once and every user known to the dataset."""
        table, n_users = self.artifact.read_table(USERS_FILE), self.cloud.dataset.users.height
        wrong = ""
        try:
            PATCHED_USERS.check(USERS_FILE, table)
        except ValueError as error:
            raise self._wrong(str(error)) from error
        twice = table.height - table["user_index"].n_unique()
        unknown = table.filter(~table["user_index"].is_between(0, n_users - 1)).height
        if twice:
            wrong = f"lists {twice:,} users more than once"
        elif unknown:
            wrong = f"lists {unknown:,} users whose number the dataset does not have"
        elif (table["shard"] < 0).any() or (table["row"] < 0).any():
            wrong = "has negative numbers of shards or rows"
        if wrong:
            raise self._wrong(f"{USERS_FILE} {wrong}")
        return table

    def codes(self, n_users: int | None = None, within: range | None = None) -> "tuple[Float[Tensor, 'U K'], Tensor]":
        """θ̂ of every user (zero without a patch), and a mask (U,) of the users whose patch is kept.

        Args:
            n_users: U, of a log with more users than the dataset; None: of the dataset.
            within: users whose θ̂ is wanted, the others' may be zero: only the shards with these users are read.

        Raises:
            ArtifactError: θ̂ is missing, or has another shape or type than is declared.
        """
        import numpy as np
        import polars as pl
        import torch

        n_users, users = n_users or self.cloud.dataset.users.height, self.users
        if within is not None:
            users = users.filter(pl.col("user_index").is_between(within.start, within.stop - 1))
        shards = []
        # all are read and compared with the declared size before anything is allocated by it
        if self._patch_size:
            for (shard,), rows in users.group_by("shard", maintain_order=True):
                theta = self._theta(int(str(shard)), int(rows["row"].max()))  # type: ignore[arg-type]
                shards.append((theta, *(torch.from_numpy(rows[at].to_numpy().astype(np.int64)) for at in _PLACES)))
        # without patches nothing but the declared size says how large a row is
        width = self._patch_size if shards else min(self._patch_size, _LARGEST_UNUSED)
        codes = torch.from_numpy(
            np.zeros((n_users, width), dtype=np.float32)
        )  # numpy's zeros take no memory before they are set
        for theta, own, place in shards:
            codes[own] = theta[place]
        patched = torch.zeros(n_users, dtype=torch.bool)
        kept = self.users.filter("kept")["user_index"].to_numpy().astype(np.int64)
        patched[torch.from_numpy(kept)] = True
        return codes, patched

    @property
    def _patch_size(self) -> int:
        size = self.facts["patch_size"]
        if type(size) is not int or size < 0:
            raise self._wrong(f"its facts declare θ̂ of {size!r:.40} numbers")
        return size

    def _theta(self, shard: int, last_row: int) -> "Float[Tensor, 'S K']":
        """θ̂ of one shard of users, checked."""
        import torch

        name, size = shard_name(shard), self._patch_size
        theta = self.artifact.read_tensors(name).get("theta")
        if theta is None or theta.dtype != torch.float32 or theta.dim() != 2:
            raise self._wrong(f"{name} does not hold a matrix θ̂ of 32-bit floats")
        if theta.shape[1] != size:
            raise self._wrong(f"{name} has θ̂ of {theta.shape[1]:,} numbers, and {size:,} are declared")
        if last_row >= len(theta):
            raise self._wrong(f"{name} has {len(theta):,} rows, and {USERS_FILE} names row {last_row:,}")
        return theta

    def _wrong(self, problem: str) -> ArtifactError:
        return ArtifactError(
            f"{self.ref} cannot be used: {problem} (in {self.artifact.place})",
            f"dcclctl did not write it so; make it again: {self.artifact.command} --force",
        )


def shard_name(shard: int) -> str:
    """The file that holds θ̂ of one shard of users."""
    return THETA_FILE.format(shard)
