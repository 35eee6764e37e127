"""Models to score or serve: a cloud model, its encoder, patches, or a placebo of patches."""

from dataclasses import dataclass

import numpy as np
import torch

from dcclctl.artifacts import Bundle, CloudModel, PatchSet
from dcclctl.devices.basis_files import basis_of, encoder_of
from dcclctl.devices.learner import serve_codes
from dcclctl.devices.metapatch import head_of
from dcclctl.devices.method import Served, Serving, method_of
from dcclctl.devices.placebos import PLACEBOS
from dcclctl.errors import UsageError
from dcclctl.models.scoring import Backbone
from dcclctl.store.artifact import Artifact
from dcclctl.store.store import Store

ENCODER = "encoder"
#: kind of artifact → suffixes of its references, after a '+'
SUFFIXES: dict[str, tuple[str, ...]] = {"cloud": (ENCODER,), "patches": PLACEBOS, "bundle": ()}


@dataclass(frozen=True)
class Subject:
    """One model to score.

    Attributes:
        cloud: the cloud model, or the one under the patches. patches: None for a cloud model.
        suffix: '' or one of SUFFIXES: all users served by the encoder, or a placebo.
        bundle: what is exported for devices; its own graph then gives the scores.
    """

    cloud: CloudModel
    patches: PatchSet | None = None
    suffix: str = ""
    bundle: Bundle | None = None

    @classmethod
    def of(cls, reference: str, store: Store) -> "Subject":
        """From a reference such as cloud@2, cloud@2+encoder, patches@1 or patches@1+mean.

        Raises:
            UsageError: the artifact or its suffix is of another kind.
        """
        plain, suffix = split_suffix(reference)
        artifact = store.resolve(plain)
        if artifact.kind not in SUFFIXES or suffix not in ("", *SUFFIXES[artifact.kind]):
            raise UsageError(
                f"{reference} cannot serve users",
                "Give cloud models, cloud@N+encoder, patches, patches@N+mean, patches@N+shuffled, or bundles.",
            )
        if artifact.kind == "cloud":
            return cls(CloudModel(artifact), None, suffix)
        if artifact.kind == "bundle":
            bundle = Bundle(artifact)
            return cls(bundle.cloud, bundle.patches, suffix, bundle)
        patches = PatchSet(artifact)
        return cls(patches.cloud, patches, suffix)

    @property
    def artifact(self) -> Artifact:
        return (self.bundle or self.patches or self.cloud).artifact

    @property
    def name(self) -> str:
        """A reference that is the same in every store: kind and the start of the id."""
        return f"{self.artifact.kind}@{self.artifact.id[:8]}" + (f"+{self.suffix}" if self.suffix else "")

    @property
    def ref(self) -> str:
        """Its reference in this store."""
        return self.artifact.ref + (f"+{self.suffix}" if self.suffix else "")


def split_suffix(reference: str) -> tuple[str, str]:
    """A reference without its suffix, and the suffix: patches@3+mean → patches@3, mean."""
    plain, _, suffix = reference.partition("+")
    return plain, suffix


def serve(subject: Subject, backbone: Backbone, unpatched: str = "cloud", seed: int = 0) -> Served:
    """The subject as it serves each user of the log.

    Args:
        backbone: of the subject's cloud model. seed: of a placebo's draws.
        unpatched: 'encoder' serves users without a patch by U(0, u), 'cloud' by the cloud model.

    Raises:
        UsageError: the encoder is wanted and missing; there are too few patches for a placebo.
    """
    log, patches = backbone.log, subject.patches
    if subject.bundle is not None:
        from dcclctl.devices.bundle.serving import serve_bundle  # needs onnxruntime, an extra

        return serve_bundle(subject.bundle, log)
    if patches is None and subject.suffix != ENCODER:
        return Served(backbone.head, np.full(log.n_users, "cloud", dtype="<U7"))
    if patches is None:
        check_encoder(subject)
        basis, encoder = basis_of(subject.cloud), encoder_of(subject.cloud)
        assert basis is not None  # an encoder comes with a basis
        patched = torch.zeros(log.n_users, dtype=torch.bool)
        codes = torch.zeros(log.n_users, basis.size)
        serving = Serving(encoder=encoder)
        return serve_codes(codes, patched, backbone, serving, lambda own: head_of(basis, backbone, own))
    kept = int(patches.facts["kept"])
    if subject.suffix and kept < (2 if subject.suffix == "shuffled" else 1):
        raise UsageError(
            f"{subject.ref}: {patches.ref} keeps {kept} patches, too few", "Patch more users, or without --guard."
        )
    encoder = None
    if unpatched == ENCODER and not method_of(patches.method).uses_memory:
        check_encoder(subject)
        encoder = encoder_of(subject.cloud)
    return method_of(patches.method).open(patches, backbone, Serving(subject.suffix, seed, encoder))


def check_encoder(subject: Subject) -> None:
    """Check that the encoder U of the subject's cloud model can serve users.

    Raises:
        UsageError: there is no encoder yet, or the patches have another basis than the encoder.
    """
    if subject.patches is not None and subject.patches.own_basis:
        raise UsageError(
            f"{subject.patches.ref} has a basis of its own, so the encoder U of its cloud model cannot serve with it",
            "Use --unpatched cloud, or patches made with --method metapatch.",
        )
    if not subject.cloud.has_encoder:
        raise UsageError(
            f"{subject.cloud.ref} has no encoder U yet, so no user can be served with U(0, u)",
            "Distill first: dcclctl distill --method momodistill. Or use --unpatched cloud.",
        )
