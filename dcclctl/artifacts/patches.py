"""Patches: θ̂ of the users that were patched, bound to one cloud model, one basis and one id map."""

from functools import cached_property
from typing import TYPE_CHECKING, Any

from dcclctl.artifacts.cloud import BASIS_FILE, CloudModel
from dcclctl.artifacts.handle import Handle, check_same
from dcclctl.artifacts.memory import Memory
from dcclctl.config import recorded_settings
from dcclctl.store.store import Artifact

if TYPE_CHECKING:
    import polars as pl
    from jaxtyping import Float
    from torch import Tensor


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
        """A PATCHED_USERS table, see tables.py."""
        return self.artifact.read_table("users.parquet")

    def codes(self, n_users: int | None = None) -> "tuple[Float[Tensor, 'U K'], Tensor]":
        """θ̂ of every user (zero without a patch), and a mask (U,) of the users whose patch is kept.

        Args:
            n_users: U, of a log with more users than the dataset; None: of the dataset.
        """
        import numpy as np
        import torch

        n_users = n_users or self.cloud.dataset.users.height
        codes = torch.zeros(n_users, int(self.facts["patch_size"]))
        if codes.shape[1]:
            for (shard,), rows in self.users.group_by("shard", maintain_order=True):
                theta = self.artifact.read_tensors(shard_name(int(str(shard))))["theta"]
                own, place = (
                    torch.from_numpy(rows[name].to_numpy().astype(np.int64)) for name in ("user_index", "row")
                )
                codes[own] = theta[place]
        patched = torch.zeros(n_users, dtype=torch.bool)
        kept = self.users.filter("kept")["user_index"].to_numpy().astype(np.int64)
        patched[torch.from_numpy(kept)] = True
        return codes, patched


def shard_name(shard: int) -> str:
    """The file that holds θ̂ of one shard of users."""
    return f"theta-{shard:05d}.safetensors"
