"""Typed handles: what a stage gets when it opens an artifact, and how it is written back.

A handle checks that artifacts belong together (same dataset, cloud, basis, id map) where it is made, so that no stage
has to.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from dcclctl.algorithm.basis import SharedBasis
from dcclctl.algorithm.din import Din, DinSizes
from dcclctl.algorithm.encoder import Encoder
from dcclctl.algorithm.eventlog import Block, EventLog
from dcclctl.algorithm.memory import Counting, Statistics
from dcclctl.algorithm.memorypatch import MemoryPatch
from dcclctl.algorithm.metapatch import Basis, PatchShape
from dcclctl.algorithm.scoring import Backbone
from dcclctl.algorithm.statepatch import StateBasis, StateShape
from dcclctl.config import ComputeSection
from dcclctl.errors import ArtifactError, DataError, UsageError
from dcclctl.stages.compute import torch_device
from dcclctl.stages.models import module_of
from dcclctl.store.store import Artifact, Store, Work


def _differ(what: str, left: Artifact, left_value: str, right: Artifact, right_value: str) -> ArtifactError:
    return ArtifactError(
        f"{left.ref} and {right.ref} do not belong together: {what} is {left_value[:12]} in one and {right_value[:12]} in the other",
        f"Use artifacts of one lineage; see: dcclctl artifacts lineage {left.ref}",
    )


class Dataset:
    """Clean tables of one log, and the same as tensors."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact

    @property
    def id_map(self) -> str:
        """SHA-256 of the user and item ids in index order: what dense numbers mean."""
        return str(self.artifact.facts["id_map"])

    @property
    def repeats(self) -> str:
        return str(self.artifact.facts["repeats"])

    @property
    def observed_labels(self) -> bool:
        return str(self.artifact.facts["labels"]) != "implicit"

    @cached_property
    def users(self) -> pl.DataFrame:
        return self.artifact.read_table("users.parquet")

    @cached_property
    def items(self) -> pl.DataFrame:
        return self.artifact.read_table("items.parquet")

    @cached_property
    def log(self) -> EventLog:
        """Everything that the algorithms need, as tensors."""
        events = self.artifact.read_table("events.parquet")
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
        names = [name.removeprefix("profile_") for name in columns]
        sizes = [
            vocabulary.filter((pl.col("kind") == "profile") & (pl.col("column") == name)).height + 1 for name in names
        ]
        return EventLog.build(
            user=events["user_index"].to_numpy(),
            item=events["item_index"].to_numpy(),
            time=events["time_us"].to_numpy(),
            label=events["label"].to_numpy(),
            period=events["period"].to_numpy(),
            item_categories=torch.from_numpy(padded),
            n_categories=n_categories,
            profile=torch.from_numpy(profile),
            profile_sizes=tuple(sizes) or (1,),
            repeats=self.repeats == "keep",
            one_timeline=self.artifact.facts["split"] == "global",
        )


#: what item-space patches share: M
MAP_FILE = "item_map.safetensors"


def write_basis(work: Work, basis: SharedBasis[Any]) -> None:
    work.write_tensors("basis.safetensors", {"origin": basis.origin, "theta": basis.theta}, vars(basis.shape))


def _read_basis(source: "Artifact | Work") -> tuple[dict[str, Tensor], dict[str, Any]]:
    return source.read_tensors("basis.safetensors"), source.tensor_metadata("basis.safetensors")


def read_basis(source: "Artifact | Work") -> Basis:
    """ϑ₀ and Θ from a committed artifact, or from the work of a run that was killed."""
    tensors, sizes = _read_basis(source)
    first, second = sizes["hidden_sizes"]
    return Basis(PatchShape((first, second), sizes["bottleneck"]), **tensors)


def read_state_basis(source: "Artifact | Work") -> StateBasis:
    """ϑ₀ and Θ of patches on a sequence model."""
    tensors, sizes = _read_basis(source)
    return StateBasis(StateShape(**sizes), **tensors)


#: the mean μ of the prior of θ̂, which no served model needs
_PRIOR_FILE = "prior.safetensors"


def write_prior_mean(work: Work, mean: Float[Tensor, "K"]) -> None:
    work.write_tensors(_PRIOR_FILE, {"mean": mean})


def read_prior_mean(source: "Artifact | Work") -> Float[Tensor, "K"]:
    """μ, from committed patches or from the work of a run that was killed."""
    mean: Tensor = source.read_tensors(_PRIOR_FILE)["mean"]
    return mean


class CloudModel:
    """f, and after a distillation the basis Θ and the encoder U."""

    def __init__(self, artifact: Artifact, dataset: Dataset) -> None:
        self.artifact = artifact
        self.dataset = dataset
        given = artifact.inputs["dataset"].id
        if given != dataset.artifact.id:
            raise _differ("the dataset", artifact, given, dataset.artifact, dataset.artifact.id)
        if artifact.facts["id_map"] != dataset.id_map:
            raise _differ("the id map", artifact, artifact.facts["id_map"], dataset.artifact, dataset.id_map)
        self.settings = artifact.read_json("model.json")

    @classmethod
    def load(cls, artifact: Artifact, store: Store) -> "CloudModel":
        return cls(artifact, Dataset(store.find("dataset", artifact.inputs["dataset"].id)))

    @property
    def history(self) -> int:
        """L."""
        return int(self.settings["history"])

    def module(self, config: ComputeSection) -> Din:
        """A fresh copy of f, a DIN, on the stage's device, in evaluation mode.

        Raises:
            UsageError: a model of another kind.
        """
        if self.settings["model"] != "din":
            raise UsageError(
                f"{self.artifact.ref} is a {self.settings['model']} model; this needs a DIN",
                "Train one with: dcclctl train --model din",
            )
        model = new_model(self.settings, self.dataset, torch.Generator().manual_seed(0))
        weights = self.artifact.read_tensors("model.safetensors")
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(weights[name])
        return model.to(torch_device(config))

    @property
    def negatives(self) -> int:
        """Negatives for each positive event that it was trained with: what its logits take for the frequency of clicks."""
        return int(self.artifact.config["negatives"])

    def backbone(self, config: ComputeSection, log: EventLog | None = None) -> Backbone:
        """What scores candidates, below any patch; on the dataset's own log unless another is given."""
        return module_of(self.settings["model"]).backbone(self, config, log or self.dataset.log)

    @property
    def basis_id(self) -> str:
        """SHA-256 of the file that holds Θ; empty if the model has none yet."""
        return basis_id(self.artifact)

    def basis(self) -> Basis | None:
        return read_basis(self.artifact) if self.basis_id else None

    def encoder(self) -> Encoder | None:
        if "encoder.safetensors" not in self.artifact.manifest["files"]:
            return None
        tensors = self.artifact.read_tensors("encoder.safetensors")
        size, hidden = tensors["out"].shape
        encoder = Encoder(size, hidden, self.dataset.log.profile_sizes, torch.Generator().manual_seed(0))
        encoder.load_state_dict(tensors)
        return encoder


def basis_id(artifact: Artifact) -> str:
    """SHA-256 of an artifact's basis file; empty if it has none."""
    listed = artifact.manifest["files"].get("basis.safetensors")
    return str(listed["sha256"]) if listed else ""


def new_model(settings: dict[str, Any], dataset: Dataset, generator: torch.Generator) -> Din:
    """A DIN with the sizes of `model.json`, freshly initialised.

    Raises:
        DataError: the dataset has no item at all.
    """
    log = dataset.log
    if not log.n_items:
        raise DataError(f"{dataset.artifact.ref} has no items", "Ingest a log with events.")
    sizes = {name: settings[name] for name in ("item_size", "category_size", "profile_size", "attention_size")}
    first, second = settings["hidden_sizes"]
    return Din(
        DinSizes(log.n_items, log.n_categories, log.profile_sizes, hidden_sizes=(first, second), **sizes),
        log.item_categories,
        generator,
    )


@dataclass(frozen=True)
class Memory:
    """What the devices remember of one dataset, and the statistics that go with it."""

    artifact: Artifact
    dataset: Dataset

    def __post_init__(self) -> None:
        given = self.artifact.inputs["dataset"].id
        if given != self.dataset.artifact.id:
            raise _differ("the dataset", self.artifact, given, self.dataset.artifact, self.dataset.artifact.id)
        if "track" not in self.config:
            raise ArtifactError(
                f"{self.artifact.ref} was made before memories knew the order of events",
                "Make it again: dcclctl memory, then dcclctl patch.",
            )

    @property
    def config(self) -> dict[str, Any]:
        return self.artifact.config

    @property
    def size(self) -> int:
        """M."""
        return int(self.config["size"])

    @property
    def track(self) -> int:
        """T."""
        return int(self.config["track"])

    @property
    def counting(self) -> Counting:
        """How its statistics were counted, and those are that its patches are learned with."""
        return Counting.of(self.config)

    @property
    def until(self) -> Block:
        """Last block that its statistics have counted."""
        return Block.parse(self.config["until"])

    @cached_property
    def statistics(self) -> Statistics:
        return Statistics(**self.artifact.read_tensors("statistics.safetensors"))


def open_memory(reference: str | None, dataset: Dataset, method: str, store: Store) -> Memory | None:
    """The memory that a method of patching needs: the one named, else the newest of the dataset; None if there is none yet.

    Raises:
        UsageError: a memory is named for a method without one.
    """
    if method != "memory":
        if reference:
            raise UsageError(f"--memory {reference}: --method {method} has none", "Use it with --method memory.")
        return None
    if reference:
        return Memory(store.resolve(reference, "memory"), dataset)
    for number in reversed(store.numbers("memory")):
        artifact = store.load("memory", number)
        if artifact.inputs["dataset"].id == dataset.artifact.id:
            return Memory(artifact, dataset)
    return None


def new_memory_patch(
    memory: Memory, hidden_size: int, popularity: bool, code_size: int, generator: torch.Generator
) -> MemoryPatch:
    """A memory-conditioned patch that gives the cloud model's logits until it is learned."""
    log, facts = memory.dataset.log, memory.artifact.facts
    features, tracked = len(facts["features"]), len(facts["tracked"])
    sizes = (log.profile_sizes, log.n_categories)
    return MemoryPatch(hidden_size, features, tracked, popularity, code_size, *sizes, generator)


@dataclass(frozen=True)
class PatchSet:
    """θ̂ of the users that were patched, bound to one cloud model, one basis and one id map."""

    artifact: Artifact
    cloud: CloudModel
    memory: Memory | None = None

    def __post_init__(self) -> None:
        facts, cloud = self.artifact.facts, self.cloud.artifact
        if self.artifact.inputs["cloud"].id != cloud.id:
            raise _differ("the cloud model", self.artifact, self.artifact.inputs["cloud"].id, cloud, cloud.id)
        if facts["id_map"] != self.cloud.dataset.id_map:
            raise _differ("the id map", self.artifact, facts["id_map"], cloud, self.cloud.dataset.id_map)
        if self.cloud.basis_id and not self.own_basis and self.cloud.basis_id != basis_id(self.artifact):
            raise _differ("the basis Θ", self.artifact, basis_id(self.artifact), cloud, self.cloud.basis_id)

    @classmethod
    def load(cls, artifact: Artifact, store: Store) -> "PatchSet":
        cloud = CloudModel.load(store.find("cloud", artifact.inputs["cloud"].id), store)
        remembered = artifact.inputs.get("memory")
        memory = Memory(store.find("memory", remembered.id), cloud.dataset) if remembered else None
        return cls(artifact, cloud, memory)

    def memory_patch(self) -> MemoryPatch:
        """What the cloud ships of a memory-conditioned patch."""
        facts, config = self.artifact.facts, self.artifact.config
        generator = torch.Generator().manual_seed(0)
        assert self.memory is not None
        popularity = config.get("memory_popularity", False)  # those made before there was such a choice have none
        patch = new_memory_patch(self.memory, config["memory_hidden"], popularity, facts["patch_size"], generator)
        patch.load_state_dict(self.artifact.read_tensors("memory_patch.safetensors"))
        return patch.requires_grad_(False)

    @property
    def family(self) -> str:
        """What kind of function θ̂ is put into (see stages/serve.py)."""
        return str(self.artifact.facts.get("family", "metapatch"))

    @property
    def own_basis(self) -> bool:
        """Do the patches bring what their users share, whatever basis the cloud model has?"""
        return bool(self.artifact.facts.get("own_basis", False))

    def basis(self) -> Basis:
        return read_basis(self.artifact)

    @cached_property
    def users(self) -> pl.DataFrame:
        return self.artifact.read_table("users.parquet")

    def codes(self) -> tuple[Float[Tensor, "U K"], Tensor]:
        """θ̂ of every user of the dataset (zero without a patch), and a mask (U,) of who has one that is kept."""
        n_users = self.cloud.dataset.users.height
        codes = torch.zeros(n_users, int(self.artifact.facts["patch_size"]))
        for (shard,), rows in self.users.group_by("shard", maintain_order=True):
            theta = self.artifact.read_tensors(shard_name(int(str(shard))))["theta"]
            codes[torch.from_numpy(rows["user_index"].to_numpy().astype(np.int64))] = theta[
                torch.from_numpy(rows["row"].to_numpy().astype(np.int64))
            ]
        patched = torch.zeros(n_users, dtype=torch.bool)
        kept = self.users.filter("kept")["user_index"].to_numpy().astype(np.int64)
        patched[torch.from_numpy(kept)] = True
        return codes, patched


def shard_name(shard: int) -> str:
    return f"theta-{shard:05d}.safetensors"
