"""Embeddings of items and their categories, for DIN and the sequence models."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from dcclctl.events.log import EventLog
from dcclctl.models.trainable import Trainable


class EmbeddedItems(Trainable):
    """A model that embeds an item as its row of `item_table` and, if the log has categories, the mean of their rows.

    Attributes:
        embedding_size: D, of both together.
    """

    item_categories: Tensor
    category_counts: Tensor

    def add_items(self, log: EventLog, item_size: int, category_size: int) -> None:
        """Register the tables; they are the model's first parameters."""
        self.n_categories = log.n_categories
        self.embedding_size = item_size + (category_size if log.n_categories else 0)
        self.item_table = nn.Parameter(torch.empty(log.n_items, item_size))
        if log.n_categories:  # the last row is the padding category: it is zero and gets no gradient
            self.category_table = nn.Parameter(torch.empty(log.n_categories + 1, category_size))
        counts = (log.item_categories < log.n_categories).sum(1).clamp(min=1).float()
        self.register_buffer("item_categories", log.item_categories, persistent=False)
        self.register_buffer("category_counts", counts, persistent=False)

    def initialise(self, generator: torch.Generator) -> None:
        """Set the initial weights: small embeddings, Xavier matrices, biases 0, scales 1; slopes stay as they are."""
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
            items: item indices. item_rows: used instead of their rows of the item table. Training passes copies, so
                that the gradient has one row for each item of the batch only.
        """
        rows = self.item_table[items] if item_rows is None else item_rows
        if not self.n_categories:
            return rows
        categories = F.embedding(self.item_categories[items], self.category_table, padding_idx=self.n_categories)
        return torch.cat([rows, categories.sum(-2) / self.category_counts[items].unsqueeze(-1)], dim=-1)

    @torch.no_grad()
    def catalogue(self) -> Float[Tensor, "I D"]:
        """Embeddings of all items, computed in blocks."""
        items = torch.arange(len(self.item_table), device=self.item_table.device)
        return torch.cat([self.embed(block) for block in torch.split(items, 65536)])
