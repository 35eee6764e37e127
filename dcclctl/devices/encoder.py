"""The encoder U: from a trained θ̂ and a user's profile to the vector that replaces θ̂ when the cloud serves the user.

Source: Yao et al. 2021, section 3.2: U(θ̂, u) = W₁·tanh(W₂·θ̂ + W₃·u). A user without a patch is served with U(0, u).
Differs: W₁ starts at zero, so that training starts from the cloud model; u is one-hot, so W₃·u sums rows of a table,
and a missing value adds nothing. So for a user without θ̂ and profile, U is zero, which is the cloud model: a constant
patch learned from other users made such users worse.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Encoder(nn.Module):
    """U(θ̂, u).

    Args:
        code_size: K. hidden_size: hidden units. profile_sizes: number of codes of each profile column (0 = missing).
        generator: of the initial weights.
    """

    offsets: Tensor

    def __init__(
        self, code_size: int, hidden_size: int, profile_sizes: tuple[int, ...], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.profile_sizes = profile_sizes
        self.out = nn.Parameter(torch.zeros(code_size, hidden_size))  # W₁
        self.code = nn.Parameter(torch.empty(hidden_size, code_size))  # W₂
        self.profile = nn.Parameter(torch.empty(sum(profile_sizes), hidden_size))  # W₃, transposed
        nn.init.xavier_uniform_(self.code, generator=generator)
        nn.init.normal_(self.profile, std=len(profile_sizes) ** -0.5, generator=generator)
        offsets = [sum(profile_sizes[:column]) for column in range(len(profile_sizes))]
        self.register_buffer("offsets", torch.tensor(offsets), persistent=False)

    def forward(self, codes: Float[Tensor, "B K"], profile: Int[Tensor, "B F"]) -> Float[Tensor, "B K"]:
        """The code that replaces θ̂ in ϑ₀ + Θ·θ̂."""
        is_known = (profile > 0).unsqueeze(-1)
        known = (self.profile[profile + self.offsets] * is_known).sum(1)
        return torch.tanh(codes @ self.code.T + known) @ self.out.T
