"""Files of the parameters that all users' patches share: ϑ₀ and Θ, the prior's mean μ, and the encoder U."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dcclctl.artifacts.cloud import BASIS_FILE, ENCODER_FILE, CloudModel
from dcclctl.devices.basis import Layout, SharedBasis
from dcclctl.devices.encoder import Encoder
from dcclctl.devices.hidden_patch import PatchShape
from dcclctl.devices.state_patch import StateShape
from dcclctl.store.artifact import Artifact
from dcclctl.store.work import Work

#: the mean μ of the prior of θ̂, which only learning needs
PRIOR_FILE = "prior.safetensors"


def write_basis(work: Work, basis: SharedBasis[Any]) -> None:
    work.write_tensors(BASIS_FILE, {"origin": basis.origin, "theta": basis.theta}, vars(basis.shape))


def read_basis(source: Artifact | Work) -> SharedBasis[Any]:
    """ϑ₀ and Θ from a committed artifact, or from the work of a run."""
    sizes = source.tensor_metadata(BASIS_FILE)
    shape: Layout[Any]
    if "hidden_sizes" in sizes:
        first, second = sizes["hidden_sizes"]
        shape = PatchShape((first, second), sizes["bottleneck"])
    else:
        shape = StateShape(**sizes)
    tensors = source.read_tensors(BASIS_FILE)
    origin, theta = tensors["origin"], tensors["theta"]
    if tuple(origin.shape) != (shape.size,) or theta.dim() != 2 or len(theta) != shape.size:
        shapes = f"{tuple(origin.shape)} and {tuple(theta.shape)}"
        raise source.unreadable(BASIS_FILE, f"has ϑ₀ and Θ of the shapes {shapes}, not of {shape.size:,} weights")
    if {origin.dtype, theta.dtype} != {torch.float32}:
        raise source.unreadable(BASIS_FILE, f"holds {origin.dtype} and {theta.dtype}, not 32-bit floats")
    return SharedBasis(shape, origin, theta)


def basis_of(cloud: CloudModel) -> SharedBasis[Any] | None:
    """The basis of a cloud model; None if it has none yet."""
    return read_basis(cloud.artifact) if cloud.basis_id else None


def read_prior_mean(source: Artifact | Work) -> Float[Tensor, "K"]:
    """μ, from committed patches or from the work of a run."""
    size = source.read_tensors(BASIS_FILE)["theta"].shape[-1]
    return source.read_weights(PRIOR_FILE, {"mean": torch.empty(size)})["mean"]


def write_encoder(work: Work, encoder: Encoder) -> None:
    work.write_tensors(ENCODER_FILE, {name: weight.cpu() for name, weight in encoder.state_dict().items()})


def encoder_of(cloud: CloudModel) -> Encoder | None:
    """The encoder U of a cloud model; None if it has none."""
    if not cloud.has_encoder:
        return None
    tensors = cloud.artifact.read_tensors(ENCODER_FILE)
    size, hidden = tensors["out"].shape
    encoder = Encoder(size, hidden, cloud.dataset.no_events.profile_sizes, torch.Generator().manual_seed(0))
    encoder.load_state_dict(cloud.artifact.read_weights(ENCODER_FILE, encoder.state_dict()))
    return encoder
