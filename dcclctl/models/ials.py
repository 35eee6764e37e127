"""iALS: matrix factorisation of all pairs of users and items, by alternating least squares.

Only the items' factors are kept. When an event is scored, its user's factor is solved for from the events before it, so
users without training events are scored like all others.

Shapes: R rows (users or items), N the other side, D size of a factor, L longest row of a block.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from dcclctl.compute import OnProgress, Phase, no_progress
from dcclctl.config import Positive, size, tuned
from dcclctl.events.log import EventLog
from dcclctl.events.sampling import Ints, stream
from dcclctl.models.counts import CountedKind, popularity_of, read_tables
from dcclctl.models.kind import FitTask
from dcclctl.models.neighbours import Floats, HistoryBackbone, HistoryModel
from dcclctl.models.positives import PositiveEvents
from dcclctl.models.scoring import Backbone
from dcclctl.models.settings import ModelSettings

if TYPE_CHECKING:
    from dcclctl.artifacts.cloud import CloudModel

#: numbers of a block of rows
_BLOCK = 1 << 21
#: standard deviation of the initial factors, times the root of their size
_START = 0.1

Weight = Annotated[float, Field(gt=0.0)]


class IalsSettings(ModelSettings):
    item_size: Positive = size(64, "D, numbers in a factor.", search="32,64,128")
    sweeps: Positive = tuned(16, "Times that all users and then all items are solved for.", search="4..32")
    unobserved: Weight = tuned(
        0.1, "α₀, weight of every pair of a user and an item, relative to one event.", search="1e-3..1"
    )
    penalty: Weight = tuned(
        0.003, "λ, L2 penalty on the factors, times the weight of a user's or an item's pairs.", search="1e-4..0.1"
    )


def solve(factors: Float[Tensor, "N D"], rows: Any, settings: IalsSettings) -> Float[Tensor, "R D"]:
    """The factors of one side that are best for given factors of the other side.

    With y_ui the number of events, each row's x minimises Σ_i y_ui (1 − ⟨x, h_i⟩)² + α₀ Σ_i ⟨x, h_i⟩² + λ_u ‖x‖², where
    λ_u = λ (Σ_i y_ui + α₀ N).

    Args:
        factors: h, float64. rows: a scipy.sparse.csr_array (R, N) of y.
    """
    n_rows, n_others, width = rows.shape[0], *factors.shape
    lengths = np.diff(rows.indptr)
    base = settings.unobserved * factors.mT @ factors
    ridge = settings.penalty * (torch.from_numpy(rows.sum(axis=1, dtype=np.float64)) + settings.unobserved * n_others)
    solved = torch.zeros(n_rows, width, dtype=torch.float64)
    order = np.argsort(lengths, kind="stable")  # rows of similar length together
    step = max(1, _BLOCK // width**2)
    for at in range(0, n_rows, step):
        some = order[at : at + step]
        gram = base + ridge[some, None, None] * torch.eye(width, dtype=torch.float64)
        target = torch.zeros(len(some), width, dtype=torch.float64)
        longest = int(lengths[some[-1]])
        chunk = max(1, _BLOCK // (width * len(some)))
        for first in range(0, longest, chunk):
            place = np.arange(first, min(first + chunk, longest))
            mask = place < lengths[some, None]
            cell = np.where(mask, rows.indptr[some, None] + place, 0)
            weights = torch.from_numpy(np.where(mask, rows.data[cell], 0.0))
            own = factors[torch.from_numpy(rows.indices[cell].astype(np.int64))]
            weighted = weights[..., None] * own
            gram += weighted.mT @ own
            target += weighted.sum(1)
        solved[some] = torch.cholesky_solve(target[..., None], torch.linalg.cholesky(gram)).squeeze(-1)
    return solved


def item_factors(
    by_user: Any, settings: IalsSettings, seed: int, on_progress: OnProgress = no_progress
) -> Float[Tensor, "I D"]:
    """The items' factors after all sweeps.

    Source: Hu, Koren & Volinsky, "Collaborative filtering for implicit feedback datasets", ICDM 2008; loss, initial
    values and the penalty by frequency (ν = 1) as in Rendle, Krichene, Zhang & Koren, "Revisiting the performance of iALS
    on item recommendation benchmarks", RecSys 2022 (arXiv 2110.14037), eq. 1 to 4.
    Differs: an item that a user had several times counts as often.

    Args:
        by_user: how often each user has had each item, a scipy.sparse.csr_array (U, I).
    """
    by_item = by_user.T.tocsr()
    generator = torch.Generator().manual_seed(stream(seed, "train/weights/ials"))
    shape = (by_user.shape[1], settings.item_size)
    factors: Tensor = torch.randn(shape, generator=generator, dtype=torch.float64) * (_START / shape[1] ** 0.5)
    phase = Phase(on_progress, "solve for factors", settings.sweeps, "sweeps")
    for sweep in range(settings.sweeps):
        factors = solve(solve(factors, by_user, settings), by_item, settings)
        phase.at(sweep + 1)
    return factors


@dataclass(frozen=True)
class FoldIn(HistoryModel):
    """The items' factors, and how to solve for a user's from a history."""

    #: factors give scores of 0 to 1
    tie: ClassVar[float] = 1e-6
    counts: ClassVar[bool] = True

    factors: Float[Tensor, "I D"]
    settings: IalsSettings

    def width(self, length: int) -> int:
        return self.factors.shape[1] * (length + 2 * self.factors.shape[1])

    def scores(self, bags: Ints, items: Ints, weights: Floats | None, n_bags: int) -> Float[Tensor, "B I"]:
        """⟨x, h_i⟩ with the x that is best for each bag; 0 for an empty one."""
        from scipy import sparse

        start = np.searchsorted(bags, np.arange(n_bags + 1))
        values = np.ones(len(items)) if weights is None else weights
        rows = sparse.csr_array((values, items, start), shape=(n_bags, len(self.factors)))
        return (solve(self.factors, rows, self.settings) @ self.factors.mT).float()


class IalsKind(CountedKind[IalsSettings]):
    Settings = IalsSettings

    def tensors(self, task: FitTask[IalsSettings], counted: PositiveEvents) -> dict[str, Tensor]:
        factors = item_factors(counted.counts(), task.settings, task.seed, task.on_progress)
        return {"factors": factors.float(), **popularity_of(counted)}

    def open(self, cloud: "CloudModel", device: torch.device, log: EventLog) -> Backbone:
        tensors = read_tables(cloud, log, "popularity")
        model = FoldIn(tensors["factors"].double(), self.settings_of(cloud))
        return HistoryBackbone(model, log, tensors["popularity"])
