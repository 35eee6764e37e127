"""A bundle: what the cloud ships to devices, made from patches or from a cloud model."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcclctl.artifacts.cloud import CloudModel
from dcclctl.artifacts.handle import Handle
from dcclctl.artifacts.patches import PatchSet
from dcclctl.store.store import Artifact

if TYPE_CHECKING:
    from torch import Tensor

BUNDLE_FILE, USERS_FILE = "bundle.json", "users.safetensors"


class Bundle(Handle):
    """A bundle, bound to the cloud model that it holds.

    Raises:
        ArtifactError: patches, cloud model or dataset are gone or do not belong together.
    """

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact)
        self.patches = PatchSet(artifact.input("patches")) if "patches" in artifact.inputs else None
        self.cloud = CloudModel(artifact.input("cloud")) if self.patches is None else self.patches.cloud

    @cached_property
    def spec(self) -> dict[str, Any]:
        """bundle.json: sizes, hashes, budget and what a runner must know."""
        return dict(self.artifact.read_json(BUNDLE_FILE))

    def files(self) -> dict[str, Path]:
        """Name → checked path of every file that devices get; not the users' own rows."""
        return {name: self.artifact.file(name) for name in self.artifact.manifest["files"] if name != USERS_FILE}

    def folder(self) -> Path:
        """The folder on this machine that holds these files, checked."""
        self.files()
        return self.artifact.folder

    def users(self) -> "dict[str, Tensor]":
        """(U, …) what each device alone is sent: profile, theta, patched, counted; and (I,) number, see build.Parts.

        Raises:
            ArtifactError: damaged, or with other tensors than the sizes of the bundle and its dataset ask for.
        """
        import torch

        sizes, dataset = self.spec.get("sizes", {}), self.cloud.dataset
        n_users = dataset.users.height
        wanted = {
            "profile": (torch.int64, tuple(dataset.no_events.profile.shape)),
            "theta": (torch.float32, (n_users, sizes.get("theta", 0))),
            "patched": (torch.bool, (n_users,)),
            "counted": (torch.bool, (n_users,)),
            "number": (torch.int64, (dataset.items.height,)),
        }
        found = self.artifact.read_tensors(USERS_FILE)
        for name, (kind, shape) in wanted.items():
            tensor = found.get(name)
            if tensor is None or tensor.dtype != kind or tensor.shape != shape:
                has = "there is none" if tensor is None else f"it is {tensor.dtype} {tuple(tensor.shape)}"
                raise self.artifact.unreadable(USERS_FILE, f"does not fit: {name} must be {kind} {shape}; {has}")
        return found
