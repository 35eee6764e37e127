"""Deep Interest Network: the cloud model f.

Source: Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018 (arXiv 1706.06978).
Differs: no user-id embedding (a device-cloud model must serve users it never saw); the element-wise product of
candidate and interest joins the hidden layers' input (it is what ranks items when there is no rich context).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class DinSizes:
    """What fixes the shape of every weight."""

    n_items: int
    n_categories: int
    profile_sizes: tuple[int, ...]
    item_size: int = 32
    category_size: int = 16
    profile_size: int = 8
    attention_size: int = 32
    hidden_sizes: tuple[int, int] = (64, 32)

    @property
    def embedding_size(self) -> int:
        """D: an item's embedding, with its categories' where the log has categories."""
        return self.item_size + (self.category_size if self.n_categories else 0)

    @property
    def input_size(self) -> int:
        return 3 * self.embedding_size + self.profile_size * len(self.profile_sizes)


class Din(nn.Module):
    """f: (user, history, candidate) → logit.

    Glossary of shapes: B batch, L history length, C candidates, D embedding, A attention units, H1 and H2 hidden units.
    """

    item_categories: Tensor
    category_counts: Tensor

    def __init__(self, sizes: DinSizes, item_categories: Int[Tensor, "I M"], generator: torch.Generator) -> None:
        super().__init__()
        self.sizes = sizes
        d, a = sizes.embedding_size, sizes.attention_size
        h1, h2 = sizes.hidden_sizes
        self.item_table = nn.Parameter(torch.empty(sizes.n_items, sizes.item_size))
        if sizes.n_categories:  # the last row is the padding category: zero, and skipped by every gradient
            self.category_table = nn.Parameter(torch.empty(sizes.n_categories + 1, sizes.category_size))
        self.profile_tables = nn.ParameterList(
            nn.Parameter(torch.empty(n, sizes.profile_size)) for n in sizes.profile_sizes
        )
        # attention on [q, k, q−k, q∗k], folded into three maps: Wq·q + Wk·k + Wp·(q∗k) + b
        self.attention_query = nn.Linear(d, a, bias=False)
        self.attention_key = nn.Linear(d, a)
        self.attention_product = nn.Linear(d, a, bias=False)
        self.attention_slope = nn.Parameter(torch.full((a,), 0.25))
        self.attention_out = nn.Linear(a, 1)
        self.hidden_1 = nn.Linear(sizes.input_size, h1)
        self.slope_1 = nn.Parameter(torch.full((h1,), 0.25))
        self.hidden_2 = nn.Linear(h1, h2)
        self.slope_2 = nn.Parameter(torch.full((h2,), 0.25))
        self.out = nn.Linear(h2, 1)
        self.register_buffer("item_categories", item_categories, persistent=False)
        self.register_buffer(
            "category_counts", (item_categories < sizes.n_categories).sum(1).clamp(min=1).float(), persistent=False
        )
        self._initialise(generator)

    def _initialise(self, generator: torch.Generator) -> None:
        for name, weight in self.named_parameters():
            if "table" in name:
                nn.init.normal_(weight, std=0.05, generator=generator)
            elif weight.dim() == 2:
                nn.init.xavier_uniform_(weight, generator=generator)
            elif "slope" not in name:
                nn.init.zeros_(weight)
        if self.sizes.n_categories:
            with torch.no_grad():
                self.category_table[-1].zero_()

    def embed(
        self, items: Int[Tensor, "..."], item_rows: Float[Tensor, "... E"] | None = None
    ) -> Float[Tensor, "... D"]:
        """An item's embedding followed by the mean of its categories' embeddings.

        Args:
            items: item indices.
            item_rows: their rows of the item table, where the caller holds them as tensors of their own (training does,
                so that the gradient has as many rows as the batch has items, not as the catalogue has).
        """
        rows = self.item_table[items] if item_rows is None else item_rows
        if not self.sizes.n_categories:
            return rows
        categories = F.embedding(self.item_categories[items], self.category_table, padding_idx=self.sizes.n_categories)
        return torch.cat([rows, categories.sum(-2) / self.category_counts[items].unsqueeze(-1)], dim=-1)

    def embed_profile(self, profile: Int[Tensor, "B F"]) -> Float[Tensor, "B V"]:
        return torch.cat([table[profile[:, f]] for f, table in enumerate(self.profile_tables)], dim=-1)

    def interest(
        self, query: Float[Tensor, "B C D"], keys: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B C D"]:
        """The history, weighted by how much each past event matters for each candidate (not normalised, as in the paper).

        The keys' share of the first attention layer is computed once and serves all C candidates.
        """
        units = self.attention_product(query.unsqueeze(2) * keys.unsqueeze(1))  # (B, C, L, A)
        units = units + self.attention_query(query).unsqueeze(2) + self.attention_key(keys).unsqueeze(1)
        return self._pool(units, keys, mask)

    def interest_of_many(
        self, query: Float[Tensor, "B C D"], keys: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B C D"]:
        """As `interest`, for many candidates and without gradients.

        Wq + Wp·diag(k) is folded per key, so that no (C, L, D) tensor exists; and PReLU(x) = s·x + (1 − s)·relu(x), whose
        linear part needs no attention units, so that the units are touched twice only.
        """
        b, length, d = keys.shape
        folded = self.attention_query.weight + self.attention_product.weight * keys.unsqueeze(2)  # (B, L, A, D)
        offset = self.attention_key(keys)  # (B, L, A)
        out = self.attention_out.weight[0]
        linear = out * self.attention_slope
        units = torch.baddbmm(offset.reshape(b, 1, -1), query, folded.reshape(b, -1, d).mT).relu_()
        weights = units.view(b, query.shape[1], length, -1) @ (out - linear)
        direct = (offset @ linear).unsqueeze(1) + self.attention_out.bias  # (B, 1, L)
        weights += torch.baddbmm(direct, query, torch.einsum("blad,a->bdl", folded, linear))
        return torch.bmm(weights * mask.unsqueeze(1), keys)

    def _pool(
        self, units: Float[Tensor, "B C L A"], keys: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B C D"]:
        weights = self.attention_out(prelu(units, self.attention_slope)).squeeze(-1)
        return torch.bmm(weights * mask.unsqueeze(1), keys)

    def first_layer(
        self,
        query: Float[Tensor, "B C D"],
        interest: Float[Tensor, "B C D"],
        profile: Float[Tensor, "B V"],
    ) -> Float[Tensor, "B C H1"]:
        """Output of the first hidden layer, before dropout: the deepest activations that no patch touches."""
        shared = profile.unsqueeze(1).expand(-1, query.shape[1], -1)
        z = self.hidden_1(torch.cat([query, interest, query * interest, shared], dim=-1))
        return prelu(z, self.slope_1)

    def second_layer(self, z1: Float[Tensor, "... H1"]) -> Float[Tensor, "... H2"]:
        return prelu(self.hidden_2(z1), self.slope_2)

    def logits(self, z2: Float[Tensor, "... H2"]) -> Float[Tensor, "..."]:
        logits: Tensor = self.out(z2).squeeze(-1)
        return logits


def prelu(x: Float[Tensor, "... H"], slope: Float[Tensor, "H"]) -> Float[Tensor, "... H"]:
    """PReLU over the last dimension (torch's own wants the channels second, so all other dimensions become one)."""
    return F.prelu(x.reshape(-1, x.shape[-1]), slope).view(x.shape)
