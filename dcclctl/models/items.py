"""Item embeddings with the categories' embeddings beside them, as DIN and the sequence models have them."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from dcclctl.models.trainable import Trainable


class EmbeddedItems(Trainable):
    """A model whose items have a row of `item_table` and, where the log has categories, the mean of their categories' rows."""

    item_categories: Tensor
    category_counts: Tensor

    def add_items(
        self, item_categories: Int[Tensor, "I M"], n_categories: int, item_size: int, category_size: int
    ) -> None:
        """Register the tables; they are the model's first parameters.

        Args:
            item_categories: (I, M) codes, padded with n_categories.
        """
        self.n_categories = n_categories
        self.item_table = nn.Parameter(torch.empty(len(item_categories), item_size))
        if n_categories:  # the last row is the padding category: zero, and skipped by every gradient
            self.category_table = nn.Parameter(torch.empty(n_categories + 1, category_size))
        counts = (item_categories < n_categories).sum(1).clamp(min=1).float()
        self.register_buffer("item_categories", item_categories, persistent=False)
        self.register_buffer("category_counts", counts, persistent=False)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the initial weights: small embeddings, Xavier matrices, no biases; scales are 1, slopes stay."""
        for name, weight in self.named_parameters():
            if "table" in name or name == "start":
                nn.init.normal_(weight, std=0.05, generator=generator)
            elif weight.dim() == 2:
                nn.init.xavier_uniform_(weight, generator=generator)
            elif "scale" in name:
                nn.init.ones_(weight)
            elif "slope" not in name:
                nn.init.zeros_(weight)
        if self.n_categories:
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
        if not self.n_categories:
            return rows
        categories = F.embedding(self.item_categories[items], self.category_table, padding_idx=self.n_categories)
        return torch.cat([rows, categories.sum(-2) / self.category_counts[items].unsqueeze(-1)], dim=-1)

    @torch.no_grad()
    def catalogue(self) -> Float[Tensor, "I D"]:
        """Embeddings of all items, in blocks."""
        items = torch.arange(len(self.item_table), device=self.item_table.device)
        return torch.cat([self.embed(block) for block in torch.split(items, 65536)])
