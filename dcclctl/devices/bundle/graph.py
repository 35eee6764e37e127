"""Write ONNX graphs by hand: a `Value` is one tensor of a graph, and arithmetic on values adds operators.

The graphs are small, so written by hand they are shorter and clearer than what an exporter makes of a torch module, and
every operator is one that ONNX Runtime has for Python and for the browser.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnx

#: version of the operators; 18 has ScatterElements with a maximum
OPSET = 18
#: version of the file format that belongs to it
_IR_VERSION = 9
#: numbers of a constant from which on it may be stored as float16, of a matrix as bytes; and float16's largest number
_LARGE, _MATRIX, _LARGEST = 64, 1024, 65504.0
Array = npt.NDArray[Any]
Precision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True, eq=False)
class Value:
    """One tensor of a graph."""

    graph: "Graph"
    name: str

    def __add__(self, other: "Value | float") -> "Value":
        return self.graph.op("Add", self, other)

    def __sub__(self, other: "Value | float") -> "Value":
        return self.graph.op("Sub", self, other)

    def __rsub__(self, other: float) -> "Value":
        return self.graph.op("Sub", self.graph.constant(other), self)

    def __mul__(self, other: "Value | float") -> "Value":
        return self.graph.op("Mul", self, other)

    def __truediv__(self, other: "Value | float") -> "Value":
        return self.graph.op("Div", self, other)

    def __matmul__(self, other: "Value") -> "Value":
        return self.graph.op("MatMul", self, other)

    def __lt__(self, other: "Value | float") -> "Value":
        return self.graph.op("Less", self, other)

    def __and__(self, other: "Value") -> "Value":
        return self.graph.op("And", self, other)

    @property
    def t(self) -> "Value":
        """The transposed matrix."""
        return self.graph.op("Transpose", self, perm=[1, 0])

    def reshape(self, *shape: int) -> "Value":
        """The same numbers in another shape; -1 is inferred, 0 keeps a dimension."""
        return self.graph.op("Reshape", self, self.graph.constant(np.array(shape)))

    def rows(self, index: "Value") -> "Value":
        """The rows with the given numbers, of any shape."""
        return self.graph.op("Gather", self, index, axis=0)

    def first(self, count: int) -> "Value":
        """The first `count` rows, or all if there are fewer."""
        constant = self.graph.constant
        return self.graph.op("Slice", self, constant(np.array([0])), constant(np.array([count])))

    def last(self) -> "Value":
        """The last row."""
        return self.graph.op("Gather", self, self.graph.constant(-1), axis=0)

    def cast(self, kind: type) -> "Value":
        """The same numbers in another type of numpy."""
        return self.graph.op("Cast", self, to=_kind(np.dtype(kind)))

    def sum(self, axis: int, keep: bool = False) -> "Value":
        return self._reduce("ReduceSum", axis, keep)

    def max(self, axis: int, keep: bool = False) -> "Value":
        return self._reduce("ReduceMax", axis, keep)

    def _reduce(self, kind: str, axis: int, keep: bool) -> "Value":
        return self.graph.op(kind, self, self.graph.constant(np.array([axis])), keepdims=int(keep))

    def unsqueeze(self, axis: int) -> "Value":
        return self.graph.op("Unsqueeze", self, self.graph.constant(np.array([axis])))

    def length(self) -> "Value":
        """The number of rows, a scalar int64."""
        shape = self.graph.op("Shape", self, start=0, end=1)
        return self.graph.op("Squeeze", shape, self.graph.constant(np.array([0])))


class Graph:
    """A graph in the making.

    Args:
        precision: of large constants as they are stored: float16, or with int8 large matrices as bytes with a factor for
            each row. They are calculated with in float32, which a runtime makes of them once.

    Attributes:
        files: beside the graph, whose bytes it reads in place.
    """

    def __init__(self, name: str, precision: Precision = "fp32") -> None:
        self.name, self.precision = name, precision
        self.files: list[str] = []
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: dict[str, onnx.ValueInfoProto] = {}
        self._outputs: dict[str, onnx.ValueInfoProto] = {}
        self._tensors: list[onnx.TensorProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], Value] = {}

    def input(self, name: str, kind: type, *shape: int | str) -> Value:
        """An input; a dimension that is text may have any length."""
        from onnx import helper

        self._inputs[name] = helper.make_tensor_value_info(name, _kind(np.dtype(kind)), shape)
        return Value(self, name)

    def output(self, name: str, value: Value, kind: type, *shape: int | str) -> None:
        """Call a value an output of the graph."""
        from onnx import helper

        self._nodes.append(helper.make_node("Identity", [value.name], [name]))
        self._outputs[name] = helper.make_tensor_value_info(name, _kind(np.dtype(kind)), shape)

    def constant(self, value: Array | float | int) -> Value:
        """A tensor of the graph; a Python float is float32, an int is int64. Equal constants are stored once."""
        array = np.asarray(value, dtype={int: np.int64, float: np.float32}.get(type(value)))
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self._narrowed(array)
        return self._constants[key]

    def _narrowed(self, array: Array) -> Value:
        """A new constant, stored in the graph's precision if it is a large one."""
        if (
            self.precision == "fp32"
            or array.dtype != np.float32
            or array.size < _LARGE
            or np.abs(array).max() >= _LARGEST
        ):
            return self._stored(array)
        if self.precision == "fp16" or array.ndim != 2 or array.size < _MATRIX:
            return self._stored(array.astype(np.float16)).cast(np.float32)
        scale, steps = in_bytes(array)
        return self._stored(steps).cast(np.float32) * self.constant(scale.astype(np.float32)[:, None])

    def _stored(self, array: Array) -> Value:
        from onnx import numpy_helper

        found = Value(self, f"c{len(self._tensors)}")
        self._tensors.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), found.name))
        return found

    def external(self, name: str, array: Array, location: str, offset: int) -> Value:
        """A tensor whose bytes stand in another file beside the graph.

        Args:
            array: gives type and shape. location: name of the file. offset: of its first byte there.
        """
        from onnx import TensorProto

        if location not in self.files:
            self.files.append(location)
        tensor = TensorProto(name=name, data_type=_kind(array.dtype), dims=array.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", str(offset)), ("length", str(array.nbytes))):
            tensor.external_data.add(key=key, value=value)
        self._tensors.append(tensor)
        return Value(self, name)

    def op(self, kind: str, *values: Value | float, **attributes: Any) -> Value:
        """The result of one operator; numbers among its inputs become constants."""
        from onnx import helper

        found = Value(self, f"v{len(self._nodes)}")
        inputs = [(value if isinstance(value, Value) else self.constant(float(value))).name for value in values]
        self._nodes.append(helper.make_node(kind, inputs, [found.name], **attributes))
        return found

    def concat(self, *values: Value, axis: int = -1) -> Value:
        return self.op("Concat", *values, axis=axis)

    def where(self, condition: Value, yes: Value | float, no: Value | float) -> Value:
        return self.op("Where", condition, yes, no)

    def range(self, count: Value) -> Value:
        """0 … count − 1, int64."""
        return self.op("Range", self.constant(0), count, self.constant(1))

    def scatter(self, size: int, index: Value, values: Value, reduction: str) -> Value:
        """(size,) zeros, to which values are added ('add') or among which the largest stay ('max')."""
        zeros = self.op("ConstantOfShape", self.constant(np.array([size])))
        return self.op("ScatterElements", zeros, index, values, axis=0, reduction=reduction)

    def row_sums(self, count: int, index: Value, rows: Value, size: int) -> Value:
        """(count, size) sums of the rows (M, size) that have the same index (M,)."""
        zeros = self.op("ConstantOfShape", self.constant(np.array([count, size])))
        return self.op("ScatterND", zeros, index.unsqueeze(1), rows, reduction="add")

    def signature(self) -> dict[str, list[dict[str, Any]]]:
        """Names, types and shapes of inputs and outputs, in order."""
        return {"inputs": _described(self._inputs.values()), "outputs": _described(self._outputs.values())}

    def bytes(self) -> bytes:
        """The finished graph as the content of an .onnx file; equal graphs have equal bytes."""
        from onnx import helper

        body = helper.make_graph(
            self._nodes, self.name, list(self._inputs.values()), list(self._outputs.values()), self._tensors
        )
        model = helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="dcclctl")
        model.ir_version = _IR_VERSION
        found: bytes = model.SerializeToString(deterministic=True)
        return found


def in_bytes(rows: Array) -> tuple[Array, Array]:
    """Rows (J, W) as a factor (J,) in float16 and steps (J, W) from −127 to 127."""
    # the factor is rounded first, so that what is stored is what the graph multiplies with
    scale = (np.abs(rows).max(1) / 127).astype(np.float16)
    factor = np.maximum(scale.astype(np.float32), 1e-7)[:, None]
    return scale, np.clip(np.rint(rows / factor), -127, 127).astype(np.int8)


def _described(tensors: "Iterable[onnx.ValueInfoProto]") -> list[dict[str, Any]]:
    from onnx import helper

    return [
        {
            "name": each.name,
            "type": helper.tensor_dtype_to_np_dtype(each.type.tensor_type.elem_type).name,
            "shape": [size.dim_param or size.dim_value for size in each.type.tensor_type.shape.dim],
        }
        for each in tensors
    ]


def _kind(dtype: "np.dtype[Any]") -> int:
    from onnx import helper

    return int(helper.np_dtype_to_tensor_dtype(dtype))
