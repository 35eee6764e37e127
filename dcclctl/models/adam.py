"""Adam: on dense weights, and lazily on the rows of an item table.

`torch.optim.Adam` imports torch's compiler when the first one is made, two seconds of every command that learns. Its functional form does not.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim.adam import adam

from dcclctl.models.trainable import Trainable


class Adam:
    """Adam on weights that all get a gradient; with `decay`, AdamW.

    Source: Kingma & Ba 2015; Loshchilov & Hutter 2019 for the decay, which is decoupled from the gradient.
    """

    def __init__(
        self,
        weights: Iterable[Tensor],
        rate: float,
        decay: float = 0.0,
        means: tuple[list[Tensor], list[Tensor]] | None = None,
        steps: int = 0,
    ) -> None:
        """Start, or go on after a number of steps.

        Args:
            weights: changed in place by `step`. rate: step size. decay: share of the rate by which weights shrink.
            means: running means of the gradients and of their squares, one of each per weight; changed in place.
        """
        self.weights, self.rate, self.decay = list(weights), rate, decay
        self._means = means or (
            [torch.zeros_like(w) for w in self.weights],
            [torch.zeros_like(w) for w in self.weights],
        )
        self._steps = [torch.tensor(float(steps), device=weight.device) for weight in self.weights]

    def zero_grad(self) -> None:
        for weight in self.weights:
            weight.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update all weights from their gradients."""
        adam(
            self.weights,
            [gradient_of(weight) for weight in self.weights],
            *self._means,
            [],
            self._steps,
            fused=True,
            decoupled_weight_decay=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self.rate,
            weight_decay=self.decay,
            eps=1e-8,
            maximize=False,
        )


class LazyAdam:
    """Adam on a model's dense weights, and lazily on the rows of the item table that a batch uses.

    Source: Kingma & Ba 2015; the lazy form is that of torch.optim.SparseAdam.
    Differs: rows outside a batch keep their running means, so that a step's cost does not grow with the catalogue.
    """

    def __init__(
        self, model: Trainable, rate: float, weight_decay: float, state: dict[str, Tensor] | None = None, steps: int = 0
    ) -> None:
        self.model, self.rate, self.weight_decay, self.steps = model, rate, weight_decay, steps
        self.weights = dict(model.named_parameters())
        given = state or new_adam_state(self.weights)  # those of a stopped run are on the CPU
        self.state = {name: mean.to(self.weights[name[:-2]].device) for name, mean in given.items()}
        self.dense = [name for name in self.weights if name != "item_table"]
        means = [self.state[f"{name}.m"] for name in self.dense], [self.state[f"{name}.v"] for name in self.dense]
        self._adam = Adam([self.weights[name] for name in self.dense], rate, means=means, steps=steps)

    def zero_grad(self) -> None:
        for weight in self.weights.values():
            weight.grad = None

    @torch.no_grad()
    def step(self, items: Int[Tensor, "R"], own: Float[Tensor, "R E"]) -> None:
        """Update all dense weights from their gradients, and the given rows of the item table.

        Args:
            items: rows of the item table. own: their gradient.
        """
        self.steps += 1
        for name in self.model.penalised_tables:  # L2 penalty on the rows that the batch uses
            gradient = gradient_of(self.weights[name])
            used = (gradient != 0).any(1, keepdim=True)
            gradient.add_(self.weights[name] * used, alpha=self.weight_decay)
        self._adam.step()
        state, table = self.state, self.weights["item_table"]
        first, second = state["item_table.m"], state["item_table.v"]
        gradient = own + self.weight_decay * table[items]
        m = first[items].mul_(0.9).add_(gradient, alpha=0.1)
        v = second[items].mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        first[items], second[items] = m, v
        scale = self.rate / (1 - 0.9**self.steps)
        table[items] -= scale * m / (v.sqrt() / math.sqrt(1 - 0.999**self.steps) + 1e-8)


def new_adam_state(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adam's running means before the first step."""
    return {f"{name}.{mean}": torch.zeros_like(weight) for name, weight in weights.items() for mean in "mv"}


def gradient_of(weight: Tensor) -> Tensor:
    """The weight's gradient; a weight without one is a bug, because the loss depends on every weight."""
    if weight.grad is None:
        raise RuntimeError("a weight got no gradient")
    return weight.grad
