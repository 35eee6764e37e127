"""The graphs of a bundle computed by torch, operator by operator, so that a program of another runtime can be made of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from dcclctl.devices.bundle.graph import Array


class TorchGraph(nn.Module):
    """An .onnx file of a bundle, computed by torch; for the operators that graph.py writes, not for ONNX in general.

    Args:
        longest: baskets that the cloud model reads, at most.
    """

    def __init__(self, path: Path, longest: int) -> None:
        super().__init__()
        graph = onnx.load(str(path)).graph
        self.nodes, self.longest = list(graph.node), longest
        self.inputs, self.outputs = ([each.name for each in side] for side in (graph.input, graph.output))
        self.numbers = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
        for name, array in self.numbers.items():
            self.register_buffer(name.replace(".", "_"), torch.from_numpy(_stored(array)))

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """The outputs of the graph, in order, from its inputs, in order."""
        values: dict[str, Any] = dict(zip(self.inputs, given, strict=True))
        values |= {name: getattr(self, name.replace(".", "_")) for name in self.numbers}
        for node in self.nodes:
            attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
            numbers = [self.numbers[name].tolist() if name in self.numbers else None for name in node.input]
            step = _Step([values[name] for name in node.input], numbers, attributes, self.longest)
            values[node.output[0]] = _OPERATORS[node.op_type](step)
        return tuple(values[name] for name in self.outputs)


@dataclass(frozen=True)
class _Step:
    """One operator at work.

    Attributes:
        x: its inputs; a length is an int. n: numbers of those that are constants. a: its attributes.
    """

    x: list[Any]
    n: list[Any]
    a: dict[str, Any]
    longest: int


def _stored(array: Array) -> Array:
    """The array in a type that ExecuTorch's operators have: it has no unsigned numbers of two bytes."""
    if array.dtype != np.uint16:
        return np.array(array)
    return array.astype(np.int16 if array.max(initial=0) < 1 << 15 else np.int32)


def _product(s: _Step) -> Tensor:
    """Matrix product; vectors become matrices of one row or one column."""
    left, right = s.x
    wide, tall = left.unsqueeze(0) if left.dim() == 1 else left, right.unsqueeze(1) if right.dim() == 1 else right
    found = torch.matmul(wide, tall)
    found = found.squeeze(-1) if right.dim() == 1 else found
    return found.squeeze(0) if left.dim() == 1 else found


def _range(s: _Step) -> Tensor:
    """0 … count − 1; a count that is computed is one of baskets."""
    count = s.x[1]
    if isinstance(count, Tensor):
        count = count.item()
        torch._check(count >= 0)  # type: ignore[no-untyped-call]
        torch._check(count <= s.longest)  # type: ignore[no-untyped-call]
    return torch.arange(count)


def _scatter(s: _Step) -> Any:
    """What graph.py's `scatter` does. For the largest of values that fall from the newest event to the oldest, the oldest
    is written first: ExecuTorch cannot scatter with a maximum, and writes one value after the other."""
    zeros, index, values = s.x
    if s.a["reduction"] == b"add":
        return zeros.scatter_add(0, index, values)
    return zeros.scatter(0, index.flip(0), values.flip(0))


def _row_sums(s: _Step) -> Any:
    """What graph.py's `row_sums` does."""
    zeros, index, rows = s.x
    return zeros.scatter_add(0, index.expand(rows.shape), rows)


def _reshape(s: _Step) -> Any:
    x = s.x[0]
    return x.reshape([x.shape[at] if size == 0 else size for at, size in enumerate(s.n[1])])


def _gather(s: _Step) -> Any:
    table, index = s.x
    if isinstance(s.n[1], int):
        return table[s.n[1]]
    return table.index_select(0, index.reshape(1)).squeeze(0) if index.dim() == 0 else table[index]


_TYPES = {onnx.TensorProto.FLOAT: torch.float32, onnx.TensorProto.INT64: torch.int64}
_OPERATORS: dict[str, Callable[[_Step], Any]] = {
    "Add": lambda s: s.x[0] + s.x[1],
    "And": lambda s: s.x[0] & s.x[1],
    "Cast": lambda s: s.x[0].to(_TYPES[s.a["to"]]),
    "Concat": lambda s: torch.cat(s.x, s.a["axis"]),
    "ConstantOfShape": lambda s: torch.zeros(s.n[0]),
    "Div": lambda s: s.x[0] / s.x[1],
    "Equal": lambda s: s.x[0] == s.x[1],
    "Exp": lambda s: torch.exp(s.x[0]),
    "Gather": _gather,
    "Greater": lambda s: s.x[0] > s.x[1],
    "GreaterOrEqual": lambda s: s.x[0] >= s.x[1],
    "Identity": lambda s: s.x[0].clone(),
    "LayerNormalization": lambda s: F.layer_norm(s.x[0], s.x[0].shape[-1:], s.x[1], s.x[2], s.a["epsilon"]),
    "Less": lambda s: s.x[0] < s.x[1],
    "Log": lambda s: torch.log(s.x[0]),
    "MatMul": _product,
    "Max": lambda s: torch.maximum(s.x[0], s.x[1]),
    "Mul": lambda s: s.x[0] * s.x[1],
    "PRelu": lambda s: torch.where(s.x[0] >= 0, s.x[0], s.x[0] * s.x[1]),
    "Pow": lambda s: torch.pow(s.x[0], s.x[1]),
    "Range": _range,
    "ReduceMax": lambda s: s.x[0].amax(s.n[1], bool(s.a["keepdims"])),
    "ReduceSum": lambda s: s.x[0].sum(s.n[1], bool(s.a["keepdims"])),
    "Relu": lambda s: torch.relu(s.x[0]),
    "Reshape": _reshape,
    "ScatterElements": _scatter,
    "ScatterND": _row_sums,
    "Shape": lambda s: s.x[0].shape[0],
    "Sigmoid": lambda s: torch.sigmoid(s.x[0]),
    "Slice": lambda s: s.x[0][s.n[1][0] : s.n[2][0]],
    "Softmax": lambda s: torch.softmax(s.x[0], s.a["axis"]),
    "Sqrt": lambda s: torch.sqrt(s.x[0]),
    "Squeeze": lambda s: s.x[0],  # of a length, which is an int here
    "Sub": lambda s: s.x[0] - s.x[1],
    "Tanh": lambda s: torch.tanh(s.x[0]),
    "Transpose": lambda s: s.x[0].t(),
    "Unsqueeze": lambda s: s.x[0].unsqueeze(s.n[1][0]),
    "Where": lambda s: torch.where(s.x[0], s.x[1], s.x[2]),
}
