"""How a model serves each user: by the cloud model itself, by the user's own patch, or by the encoder's patch U(0, u).

Placebos need no training: patches@3+mean serves everyone with the mean θ̂ of the patched users (does it matter that a
patch is personal?), patches@3+shuffled serves every patched user with another one's θ̂ (does it matter whose it is?).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from dcclctl.algorithm.devicemethods import item_head, layer_head
from dcclctl.algorithm.encoder import Encoder
from dcclctl.algorithm.eventlog import EventLog
from dcclctl.algorithm.memory import Memories
from dcclctl.algorithm.memorypatch import category_shares, prior_shift
from dcclctl.algorithm.sampling import Ints, permutation
from dcclctl.algorithm.scoring import Backbone, DinBackbone, HeadFunction, patched_head
from dcclctl.algorithm.sequence import SequenceBackbone
from dcclctl.algorithm.statepatch import state_head
from dcclctl.config import EvaluateConfig
from dcclctl.errors import UsageError
from dcclctl.stages.handles import MAP_FILE, CloudModel, PatchSet, read_state_basis
from dcclctl.store.store import Artifact

ENCODER_SUFFIX, MEAN_SUFFIX, SHUFFLED_SUFFIX = "+encoder", "+mean", "+shuffled"
#: kind of artifact → what may stand after its reference
SUFFIXES = {"cloud": (ENCODER_SUFFIX,), "patches": (MEAN_SUFFIX, SHUFFLED_SUFFIX)}


@dataclass(frozen=True)
class Subject:
    """One model to score.

    Attributes:
        artifact: a cloud model or patches. cloud: the cloud model underneath.
        suffix: "" or one of SUFFIXES, as written after the reference.
    """

    artifact: Artifact
    cloud: CloudModel
    patches: PatchSet | None = None
    suffix: str = ""

    @property
    def everyone_by_encoder(self) -> bool:
        """Is every user served with U(0, u)?"""
        return self.suffix == ENCODER_SUFFIX

    @property
    def name(self) -> str:
        """A reference that is the same in every store: kind and the start of the id."""
        return f"{self.artifact.kind}@{self.artifact.id[:8]}{self.suffix}"


def split_suffix(reference: str) -> tuple[str, str]:
    """A reference without its suffix, and the suffix ("" if there is none): patches@3+mean → patches@3, +mean."""
    suffix = next((s for group in SUFFIXES.values() for s in group if reference.endswith(s)), "")
    return reference.removesuffix(suffix), suffix


def encoder_of(subject: Subject) -> Encoder:
    """The encoder U of the subject's cloud model.

    Raises:
        UsageError: it has none yet, or its codes mean nothing to the subject's patches.
    """
    if subject.patches is not None and subject.patches.own_basis:
        raise UsageError(
            f"{subject.artifact.ref} has a basis of its own, so the encoder U of its cloud model cannot serve with it",
            "Use --unpatched cloud, or patches made with --method metapatch.",
        )
    encoder = subject.cloud.encoder()
    if encoder is None:
        raise UsageError(
            f"{subject.cloud.artifact.ref} has no encoder U yet, so nobody can be served with U(0, u)",
            "Distill first: dcclctl distill. Or use --unpatched cloud.",
        )
    return encoder


#: family of patches → (patches, what they are put on, codes (U, K)) → head. A zero code must give the cloud model's logits.
FAMILIES: dict[str, Callable[[PatchSet, Backbone, Float[Tensor, "U K"]], HeadFunction]] = {}


def family(name: str) -> Callable[..., object]:
    """Decorator: how patches whose facts say `family: name` are served."""

    def register(head: Callable[[PatchSet, Backbone, Tensor], HeadFunction]) -> object:
        FAMILIES[name] = head
        return head

    return register


@family("metapatch")
def _metapatch(patches: PatchSet, backbone: Backbone, codes: Float[Tensor, "U K"]) -> HeadFunction:
    assert isinstance(backbone, DinBackbone)  # metapatch patches are learned on nothing else
    return patched_head(backbone.model, patches.basis(), codes, backbone.log)


@family("state")
def _state(patches: PatchSet, backbone: Backbone, codes: Float[Tensor, "U K"]) -> HeadFunction:
    assert isinstance(backbone, SequenceBackbone)  # state patches are learned on nothing else
    return state_head(backbone, read_state_basis(patches.artifact), codes)


def _serve_from_memory(subject: Subject, backbone: Backbone, seed: int) -> tuple[HeadFunction, npt.NDArray[np.str_]]:
    """The memory-conditioned patch: it needs no θ̂, and the memory goes on with every event of the log.

    Placebos: +shuffled lends every user the memory of another one, as it was at the end of the period before; +mean
    gives everyone the mean θ̂.
    """
    patches = subject.patches
    assert patches is not None and patches.memory is not None
    memory, log = patches.memory, backbone.log
    patch = patches.memory_patch()
    codes, patched = patches.codes()
    if subject.suffix == MEAN_SUFFIX and patched.any():
        codes = mean_code(codes, patched)
    lender = _lenders(log, seed) if subject.suffix == SHUFFLED_SUFFIX else None
    size = memory.size
    memories = Memories(log, memory.statistics, size, memory.track, log.up_to(memory.until))
    smallest = int(patches.artifact.facts["smallest_memory"])
    shift = prior_shift(subject.cloud.negatives, int(patches.artifact.config["negatives"]))
    everybody = memory.statistics.popularity

    def head(events: Ints, candidates: Tensor | None, below: Tensor) -> Tensor:
        # on the processor, where the memories are; an accelerator only computes what the cloud model does
        cloud = backbone.head(events, candidates, below)
        logits = cloud.cpu()
        users = torch.from_numpy(log.user[events])
        source = events if lender is None else lender(events)
        found = memories.features(source, candidates)
        known = category_shares(log, source, size) if patch.code_size else torch.zeros(len(events), 0)
        own = patch.encode(codes[users], log.profile[users], known)
        remembers = torch.from_numpy(log.history_lengths(source, smallest) >= smallest) & patched[users]
        popular = everybody.expand(len(events), -1) if candidates is None else everybody[candidates]
        remembered = patch(found, logits + shift, popular, own) - shift
        return torch.where(remembers.unsqueeze(1), remembered, logits).to(cloud.device)

    by = np.full(log.n_users, "cloud", dtype="<U7")
    by[patched.numpy()] = "memory"
    return head, by


def _lenders(log: EventLog, seed: int) -> Callable[[Ints], Ints]:
    """Rows whose history is lent: of the next user in a seeded ring, the last event of an earlier period (or the first)."""
    users = np.unique(log.user)
    ring = users[permutation(seed, "evaluate/shuffled-memories", users)]
    other = np.zeros(log.n_users, dtype=np.int64)
    other[ring] = np.roll(ring, -1)
    keys = log.user * 4 + log.period  # ascending where periods are in order of each user's time
    first = np.searchsorted(log.user, np.arange(log.n_users))

    def lend(events: Ints) -> Ints:
        whose = other[log.user[events]]
        last = np.searchsorted(keys, whose * 4 + log.period[events]) - 1
        rows: Ints = np.maximum(last, first[whose])
        return rows

    return lend


@family("item-space")
def _item_space(patches: PatchSet, backbone: Backbone, codes: Float[Tensor, "U K"]) -> HeadFunction:
    assert isinstance(backbone, DinBackbone)
    map = patches.artifact.read_tensors(MAP_FILE)["map"]
    return item_head(backbone.model, backbone.embeddings, codes @ map.T, backbone.log)


@family("fine-tune")
def _fine_tune(patches: PatchSet, backbone: Backbone, codes: Float[Tensor, "U K"]) -> HeadFunction:
    assert isinstance(backbone, DinBackbone)
    return layer_head(backbone.model, codes, backbone.log)


def _own_codes(subject: Subject, seed: int) -> tuple[Float[Tensor, "U K"], Tensor]:
    """θ̂ of every user and who has one, after what the subject's suffix does to them.

    Raises:
        UsageError: a placebo of patches that are too few for it.
    """
    assert subject.patches is not None
    codes, patched = subject.patches.codes()
    if subject.suffix and int(patched.sum()) < (2 if subject.suffix == SHUFFLED_SUFFIX else 1):
        raise UsageError(
            f"{subject.artifact.ref} keeps {int(patched.sum())} patches, too few for {subject.suffix}",
            "Patch more users, or without --guard.",
        )
    if subject.suffix == MEAN_SUFFIX:
        return mean_code(codes, patched), torch.ones_like(patched)
    return (shuffled_codes(codes, patched, seed) if subject.suffix == SHUFFLED_SUFFIX else codes), patched


def mean_code(codes: Float[Tensor, "U K"], patched: Tensor) -> Float[Tensor, "U K"]:
    """The mean θ̂ of the patched users, for every user."""
    return codes[patched].mean(0).expand_as(codes)


def shuffled_codes(codes: Float[Tensor, "U K"], patched: Tensor, seed: int) -> Float[Tensor, "U K"]:
    """Every patched user gets the θ̂ of another: the users stand in a ring in a seeded order, each takes the next one's."""
    users = np.flatnonzero(patched.numpy())
    ring = torch.from_numpy(users[permutation(seed, "evaluate/shuffled-patches", users)])
    shuffled = codes.clone()
    shuffled[ring] = codes[ring.roll(-1)]
    return shuffled


def serve(subject: Subject, config: EvaluateConfig, backbone: Backbone) -> tuple[HeadFunction, npt.NDArray[np.str_]]:
    """How a subject serves each user of the log.

    Args:
        subject: what to serve with. config: `unpatched` is used. backbone: of the subject's cloud model.

    Returns:
        The head, and for every user 'patch', 'memory', 'encoder' or 'cloud'.

    Raises:
        UsageError: the encoder is asked for and there is none; too few patches for a placebo.
    """
    log = subject.cloud.dataset.log
    if subject.patches is not None and subject.patches.family == "memory":
        return _serve_from_memory(subject, backbone, config.seed)
    by = np.full(log.n_users, "cloud", dtype="<U7")
    if subject.patches is None and not subject.everyone_by_encoder:
        return backbone.head, by
    if subject.patches is None:
        basis = subject.cloud.basis()
        codes, patched = (
            torch.zeros(log.n_users, basis.size if basis else 0),
            torch.zeros(log.n_users, dtype=torch.bool),
        )
    else:
        codes, patched = _own_codes(subject, config.seed)
    if subject.everyone_by_encoder or config.unpatched == "encoder":
        encoder = encoder_of(subject)
        with torch.no_grad():
            unpatched = ~patched
            codes = torch.where(unpatched[:, None], encoder(torch.zeros_like(codes), log.profile), codes)
        by[(unpatched & log.profile.any(1)).numpy()] = "encoder"  # U(0, nothing known) is the cloud model
    by[patched.numpy()] = "patch"
    if subject.patches is not None:
        return FAMILIES[subject.patches.family](subject.patches, backbone, codes), by
    assert basis is not None and isinstance(backbone, DinBackbone)  # a model with an encoder has been distilled
    return patched_head(backbone.model, basis, codes, log), by
