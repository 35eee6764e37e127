"""Factor models: matrix factorisation (BPR), factorisation machine, and NeuMF.

Each has a part that depends on the event (`context`), a part that depends on the candidate (`item_side`) and `combine`,
so that the item sides of the whole catalogue are computed once. Users' vectors start at zero: what is known of a user
without training events is the profile and the history, which the factorisation machine alone reads.
"""

from typing import TYPE_CHECKING, Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dcclctl.config import Positive, Rate, size, tuned
from dcclctl.events.log import EventLog
from dcclctl.events.sampling import Ints
from dcclctl.models.kernels import dots
from dcclctl.models.scoring import Backbone
from dcclctl.models.settings import PatientSettings
from dcclctl.models.trainable import Dropout, Forward, HistoryPass, Trainable, keep_all
from dcclctl.models.trained import TrainedKind

if TYPE_CHECKING:
    from dcclctl.artifacts.cloud import CloudModel


class FactorSettings(PatientSettings):
    item_size: Positive = size(32, "Numbers in a factor.", search="16,32,64,128")


class BprSettings(FactorSettings):
    item_size: Positive = size(64, "Numbers in a factor.", search="16,32,64,128")
    learning_rate: Rate = tuned(0.005, "Adam's step size.", search="5e-4..5e-2")
    weight_decay: Annotated[float, Field(ge=0.0)] = tuned(
        1e-4, "L2 penalty on the embeddings in a batch.", search="1e-6..1e-2"
    )


class FmSettings(FactorSettings):
    history: Positive = size(20, "L: how many of the user's last events the model sees.")


class NeumfSettings(FactorSettings):
    hidden_sizes: tuple[Positive, Positive] = size((64, 32), "Units of the two hidden layers.")


#: standard deviation of initial weights
_START = 0.05


class FactorModel(Trainable):
    """Common part of the three: a table of users and one of items, and logits from their sides.

    Shapes: B batch, C candidates, S numbers of one side.
    """

    #: L, the longest history that the model reads
    limit = 0

    def __init__(self, n_users: int, user_width: int, n_items: int, item_width: int) -> None:
        super().__init__()
        self.user_table = nn.Parameter(torch.zeros(n_users, user_width))
        self.item_table = nn.Parameter(torch.zeros(n_items, item_width))

    def user_rows(self, log: EventLog, events: Ints) -> Float[Tensor, "B W"]:
        """Rows of the user table for the events' users."""
        return F.embedding(torch.from_numpy(log.user[events]).to(self.user_table.device), self.user_table)

    def context(self, log: EventLog, events: Ints) -> Float[Tensor, "B S"]:
        """The events' side, which does not depend on the candidate."""
        raise NotImplementedError

    def item_side(self, items: Int[Tensor, "..."]) -> Float[Tensor, "... S"]:
        """The items' side, which does not depend on the event."""
        raise NotImplementedError

    def combine(self, context: Float[Tensor, "B S"], items: Float[Tensor, "... S"]) -> Float[Tensor, "B C"]:
        """Logits: the sum of both sides' biases, which stand first, and the dot product of the other numbers.

        Args:
            items: (B, C, S), or (I, S) for one list of candidates for all events.
        """
        return context[:, :1] + items[..., 0] + _dot(context[:, 1:], items[..., 1:])

    def combining_cost(self, n_candidates: int) -> int:
        """Numbers that `combine` holds at once for one event."""
        return n_candidates * self.item_table.shape[1]

    def forward(self, log: EventLog, events: Ints, candidates: Int[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        return self.combine(self.context(log, events), self.item_side(candidates.to(self.item_table.device)))

    def training_pass(self, log: EventLog, events: Ints) -> HistoryPass:
        return FactorPass(self, log, events)

    @property
    def penalised_tables(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(name for name, _ in self.named_parameters() if "table" in name and name != "item_table")


class FactorPass(HistoryPass):
    """Events one by one, without dropout, as in the sources."""

    def __init__(self, model: FactorModel, log: EventLog, events: Ints) -> None:
        super().__init__(log, events, model.limit)
        self.model = model

    def forward(self, positions: Ints, candidates: Int[Tensor, "B C"], drop: Dropout = keep_all) -> Forward:
        logits = self.model(self.log, self.events[positions], candidates)
        return Forward(logits, torch.unique(candidates).to(self.model.item_table.device))


def _dot(context: Float[Tensor, "B D"], items: Float[Tensor, "... D"]) -> Float[Tensor, "B C"]:
    if items.dim() == 2:
        return context @ items.mT
    return dots(context, items)


class Bpr(FactorModel):
    """Matrix factorisation: x_ui = b_i + ⟨p_u, q_i⟩, learned from pairs.

    Source: Rendle et al., "BPR: Bayesian personalized ranking from implicit feedback", UAI 2009 (arXiv 1205.2618).
    Differs: Adam on batches, with several negatives for a positive, instead of stochastic gradient descent.
    """

    pairwise = True

    def __init__(self, n_users: int, n_items: int, size: int, generator: torch.Generator) -> None:
        super().__init__(n_users, size, n_items, 1 + size)
        nn.init.normal_(self.item_table[:, 1:], std=_START, generator=generator)

    def context(self, log: EventLog, events: Ints) -> Float[Tensor, "B S"]:
        return F.pad(self.user_rows(log, events), (1, 0))

    def item_side(self, items: Int[Tensor, "..."]) -> Float[Tensor, "... S"]:
        return F.embedding(items, self.item_table)


class FactorisationMachine(FactorModel):
    """Second-order FM over user, profile, last L items (each 1/n), candidate and its categories (each 1/m).

    y = w₀ + Σ w_f x_f + Σ_{f<g} ⟨v_f, v_g⟩ x_f x_g; a row of a table is w_f followed by v_f. The sum over pairs is
    ½(‖Σ v_f x_f‖² − Σ ‖v_f x_f‖²) within each side, plus the dot product of the two sides' sums.

    Source: Rendle, "Factorization machines", ICDM 2010, eq. 1 and lemma 3.1; features as in its figure 1.
    Differs: sampled cross-entropy, as for DIN, instead of squared errors.

    Args:
        size: of a factor. limit: L.
    """

    item_categories: Tensor
    category_counts: Tensor

    def __init__(self, log: EventLog, size: int, limit: int, generator: torch.Generator) -> None:
        super().__init__(log.n_users, 1 + size, log.n_items, 1 + size)
        self.limit = limit
        self.constant = nn.Parameter(torch.zeros(1))
        self.history_table = nn.Parameter(torch.zeros(log.n_items, 1 + size))
        if log.n_categories:  # the last row is the padding category: it is zero and gets no gradient
            self.category_table = nn.Parameter(torch.zeros(log.n_categories + 1, 1 + size))
        self.profile_tables = nn.ParameterList(nn.Parameter(torch.zeros(n, 1 + size)) for n in log.profile_sizes)
        for name, table in self.named_parameters():
            if table.dim() == 2 and name != "user_table":
                nn.init.normal_(table[:, 1:], std=_START, generator=generator)
        if log.n_categories:
            with torch.no_grad():
                self.category_table[-1].zero_()
        self.register_buffer("item_categories", log.item_categories, persistent=False)
        known = (log.item_categories < log.n_categories).sum(1).clamp(min=1).float()
        self.register_buffer("category_counts", known, persistent=False)

    def context(self, log: EventLog, events: Ints) -> Float[Tensor, "B S"]:
        device = self.item_table.device
        profile = log.profile[torch.from_numpy(log.user[events])].to(device)
        parts = [F.embedding(profile[:, f], table) for f, table in enumerate(self.profile_tables)]
        history, mask = log.histories(events, self.limit)
        share = (mask / mask.sum(1, keepdim=True).clamp(min=1)).to(device)
        past = F.embedding(history.to(device), self.history_table) * share.unsqueeze(-1)
        side = _pairs(torch.cat([torch.stack([self.user_rows(log, events), *parts], dim=1), past], dim=1))
        return torch.cat([side[:, :1] + self.constant, side[:, 1:]], dim=1)

    def item_side(self, items: Int[Tensor, "..."]) -> Float[Tensor, "... S"]:
        own = F.embedding(items, self.item_table).unsqueeze(-2)
        if not hasattr(self, "category_table"):
            return own.squeeze(-2)
        padding = len(self.category_table) - 1
        rows = F.embedding(self.item_categories[items], self.category_table, padding_idx=padding)
        return _pairs(torch.cat([own, rows / self.category_counts[items][..., None, None]], dim=-2))


def _pairs(features: Float[Tensor, "... F S"]) -> Float[Tensor, "... S"]:
    """Rows w_f x_f, v_f x_f of one side → Σ w_f x_f + Σ_{f<g} ⟨v_f x_f, v_g x_g⟩, then Σ v_f x_f."""
    total, factors = features.sum(-2), features[..., 1:]
    within = (total[..., 1:].square().sum(-1) - factors.square().sum((-2, -1))) / 2
    return torch.cat([(total[..., 0] + within).unsqueeze(-1), total[..., 1:]], dim=-1)


class NeuMF(FactorModel):
    """Neural matrix factorisation: GMF p_u ∘ q_i, and an MLP of two hidden layers on other vectors of user and item.

    The MLP's first layer is a sum of a user's part and an item's part.

    Source: He et al., "Neural collaborative filtering", WWW 2017 (arXiv 1708.05031), eq. 12.
    Differs: the two parts are trained together from the start; two hidden layers.
    """

    def __init__(
        self, n_users: int, n_items: int, size: int, hidden_sizes: tuple[int, int], generator: torch.Generator
    ) -> None:
        super().__init__(n_users, 2 * size, n_items, 2 * size)
        first, second = hidden_sizes
        self.size = size
        self.hidden_user = nn.Linear(size, first)
        self.hidden_item = nn.Linear(size, first, bias=False)
        self.hidden_2 = nn.Linear(first, second)
        self.out = nn.Linear(size + second, 1)
        nn.init.normal_(self.item_table, std=_START, generator=generator)
        for layer in (self.hidden_user, self.hidden_item, self.hidden_2, self.out):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def context(self, log: EventLog, events: Ints) -> Float[Tensor, "B S"]:
        rows = self.user_rows(log, events)
        # the output's weights for p_u ∘ q_i are applied to the user's side
        product = rows[:, : self.size] * self.out.weight[0, : self.size]
        return torch.cat([product, self.hidden_user(rows[:, self.size :])], dim=1)

    def item_side(self, items: Int[Tensor, "..."]) -> Float[Tensor, "... S"]:
        rows = F.embedding(items, self.item_table)
        return torch.cat([rows[..., : self.size], self.hidden_item(rows[..., self.size :])], dim=-1)

    def combine(self, context: Float[Tensor, "B S"], items: Float[Tensor, "... S"]) -> Float[Tensor, "B C"]:
        n = self.size
        hidden = F.relu(self.hidden_2(F.relu(context[:, None, n:] + items[..., n:])))
        product = _dot(context[:, :n], items[..., :n])
        return product + hidden @ self.out.weight[0, n:] + self.out.bias

    def combining_cost(self, n_candidates: int) -> int:
        return n_candidates * (self.hidden_2.in_features + self.hidden_2.out_features)


class FactorBackbone(Backbone):
    """A trained factor model: activations are the logits (B, C)."""

    def __init__(self, model: FactorModel, log: EventLog) -> None:
        self.model, self.log = model, log
        # a user who came after the training has a zero vector, as a user without training events
        added = log.n_users - len(model.user_table)
        model.user_table = nn.Parameter(F.pad(model.user_table.detach(), (0, 0, 0, added)))
        items = torch.arange(log.n_items, device=model.item_table.device)
        with torch.no_grad():
            self.sides = torch.cat([model.item_side(block) for block in torch.split(items, 65536)])

    def lengths(self, events: Ints) -> Ints:
        return self.log.history_lengths(events, self.model.limit)

    def activation_cost(self, n_candidates: int, length: int) -> int:
        return self.model.combining_cost(n_candidates) + length * self.model.user_table.shape[1]

    def activations(self, events: Ints, candidates: Int[Tensor, "B C"] | None) -> Float[Tensor, "B C"]:
        items = self.sides if candidates is None else self.sides[candidates.to(self.sides.device)]
        return self.model.combine(self.model.context(self.log, events), items)


class FactorKind(TrainedKind[FactorSettings]):
    """Common part of the three kinds."""

    def open(self, cloud: "CloudModel", device: torch.device, log: EventLog) -> FactorBackbone:
        return FactorBackbone(self.module(cloud, device), log)


class BprKind(FactorKind):
    Settings = BprSettings

    def new(self, log: EventLog, settings: FactorSettings, generator: torch.Generator) -> Bpr:
        return Bpr(log.n_users, log.n_items, settings.item_size, generator)


class FmKind(FactorKind):
    Settings = FmSettings

    def new(self, log: EventLog, settings: FmSettings, generator: torch.Generator) -> FactorisationMachine:  # type: ignore[override]
        return FactorisationMachine(log, settings.item_size, settings.history, generator)


class NeumfKind(FactorKind):
    Settings = NeumfSettings

    def new(self, log: EventLog, settings: NeumfSettings, generator: torch.Generator) -> NeuMF:  # type: ignore[override]
        return NeuMF(log.n_users, log.n_items, settings.item_size, settings.hidden_sizes, generator)
