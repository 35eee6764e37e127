"""How a model serves each user: by the cloud model itself, by the user's own patch, or by the encoder's patch U(0, u)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from dcclctl.algorithm.encoder import Encoder
from dcclctl.algorithm.scoring import Backbone, DinBackbone, HeadFunction, patched_head
from dcclctl.config import EvaluateConfig
from dcclctl.errors import UsageError
from dcclctl.stages.handles import CloudModel, PatchSet
from dcclctl.store.store import Artifact

ENCODER_SUFFIX = "+encoder"


@dataclass(frozen=True)
class Subject:
    """One model to score.

    Attributes:
        artifact: a cloud model or patches. cloud: the cloud model underneath.
        everyone_by_encoder: serve every user with U(0, u) (written cloud@3+encoder).
    """

    artifact: Artifact
    cloud: CloudModel
    patches: PatchSet | None = None
    everyone_by_encoder: bool = False

    @property
    def name(self) -> str:
        """A reference that is the same in every store: kind and the start of the id."""
        return f"{self.artifact.kind}@{self.artifact.id[:8]}" + (ENCODER_SUFFIX if self.everyone_by_encoder else "")


def encoder_of(subject: Subject) -> Encoder:
    """The encoder U of the subject's cloud model.

    Raises:
        UsageError: it has none yet.
    """
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


def serve(subject: Subject, config: EvaluateConfig, backbone: Backbone) -> tuple[HeadFunction, npt.NDArray[np.str_]]:
    """How a subject serves each user of the log.

    Args:
        subject: what to serve with. config: `unpatched` is used. backbone: of the subject's cloud model.

    Returns:
        The head, and for every user 'patch', 'encoder' or 'cloud'.

    Raises:
        UsageError: the encoder is asked for and there is none.
    """
    log = subject.cloud.dataset.log
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
        codes, patched = subject.patches.codes()
    if subject.everyone_by_encoder or config.unpatched == "encoder":
        encoder = encoder_of(subject)
        with torch.no_grad():
            unpatched = ~patched
            codes = torch.where(unpatched[:, None], encoder(torch.zeros_like(codes), log.profile), codes)
        by[unpatched.numpy()] = "encoder"
    by[patched.numpy()] = "patch"
    if subject.patches is not None:
        return FAMILIES[subject.patches.family](subject.patches, backbone, codes), by
    assert basis is not None and isinstance(backbone, DinBackbone)  # a model with an encoder has been distilled
    return patched_head(backbone.model, basis, codes, log), by
