"""The scoring graph: one user's events and some candidates → logits, by the cloud model with the user's patch.

The same computations as models/din.py, models/sequence.py, devices/hidden_patch.py, devices/state_patch.py and
devices/memory/features.py do in torch for many users, for one user in ONNX.

Shapes: M events that the device holds, newest first; C candidates, D embedding, L history length, T baskets, K numbers in
θ̂, R features in the profile of recent events, W its window, F features, N neighbours, G categories, S categories of an
item, A attention units, H1 and H2 hidden units.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from torch import Tensor

from dcclctl.devices.basis import SharedBasis
from dcclctl.devices.bundle.graph import Array, Graph, Precision, Value
from dcclctl.devices.bundle.table import BASIS_FILE, Table, TableValues
from dcclctl.devices.memory.features import DECAY, FADES, HALF, NO_LIFT, PRIOR_EVENTS, STEPS, Statistics
from dcclctl.devices.memory.patch import MemoryPatch
from dcclctl.models.din import Din
from dcclctl.models.sequence import Attention, Sasrec

#: added before the variance's root is taken, as in torch
_EPSILON = 1e-5
#: adds nothing to a sum of float32, and is above 0
_TINY = 1e-30


class Inputs:
    """What a device gives to the graph; an input that no part of the graph reads is not made.

    ring: (M,) numbers of the items of the newest events, newest first; M ≥ 1, and `held` says how many of them exist.
    baskets: (M,) 0 for events at the newest time, 1 for the time before, …. candidates: (C,). profile: codes of the user.
    theta: (K,) θ̂, zeros without a patch. kept: (W, R) features of the newest events in bytes, `kept_count` of them exist.
    counted: whether the statistics count events of the user. patched: whether the user has a memory patch.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.ring = graph.input("ring", np.int64, "M")
        self.held = graph.input("held", np.int64)
        self.candidates = graph.input("candidates", np.int64, "C")

    def baskets(self) -> Value:
        return self.graph.input("baskets", np.int64, "M")

    def profile(self, size: int) -> Value:
        return self.graph.input("profile", np.int64, size)

    def theta(self, size: int) -> Value:
        return self.graph.input("theta", np.float32, size)

    def held_of(self, events: Value) -> Value:
        """(M',) whether the device holds each of the newest events; the others are padding."""
        return self.graph.range(events.length()) < self.held

    def exists(self, events: Value) -> Value:
        """(M',) 1 for each of the newest events that the device holds, 0 for padding."""
        return self.held_of(events).cast(np.float32)


class DinGraph:
    """DIN in a graph; `activations` are (C, H1), the first hidden layer's outputs."""

    def __init__(self, inputs: Inputs, items: TableValues, model: Din) -> None:
        self.inputs, self.items, self.model, self.graph = inputs, items, model, inputs.graph
        self.activations = self._first_layer()

    def weight(self, tensor: Tensor) -> Value:
        return self.graph.constant(array(tensor))

    def _first_layer(self) -> Value:
        model, weight, inputs = self.model, self.weight, self.inputs
        size = model.embedding_size
        query = self.items.rows("embedding", inputs.candidates)  # (C, D)
        newest = inputs.ring.first(model.sizes.history)
        keys = self.items.rows("embedding", newest)  # (L, D)
        units = model.sizes.attention_size
        # the attention's first layer, Wq·q + Wk·k + Wp·(q∗k) + b, is one matrix for each key
        folded = weight(model.attention_query.weight) + weight(model.attention_product.weight) * keys.unsqueeze(1)
        offset = keys @ weight(model.attention_key.weight.T) + weight(model.attention_key.bias)  # (L, A)
        hidden = (query @ folded.reshape(-1, size).t).reshape(0, -1, units) + offset  # (C, L, A)
        hidden = prelu(hidden, model.attention_slope)
        weights = (hidden @ weight(model.attention_out.weight.T)).reshape(0, -1) + weight(model.attention_out.bias)
        interest = (weights * inputs.exists(newest)) @ keys
        first = array(model.hidden_1.weight.T)  # (3D + V, H1)
        codes = inputs.profile(len(model.profile_tables))
        constant = self.graph.constant
        profile = self.graph.concat(
            *(
                weight(table).rows(self.graph.op("Gather", codes, constant(f)))
                for f, table in enumerate(model.profile_tables)
            )
        )
        # the profile's part is the same for all candidates
        shared = profile.unsqueeze(0) @ constant(first[3 * size :]) + weight(model.hidden_1.bias)
        z = self.graph.concat(query, interest, query * interest) @ constant(first[: 3 * size]) + shared
        return prelu(z, model.slope_1)

    def logits(self, basis: "Basis | None") -> Value:
        """(C,) the cloud model's logits, or with a basis those of the patch ϑ₀ + Θ·θ̂."""
        model, weight, z1 = self.model, self.weight, self.activations
        pieces = {} if basis is None else basis.weights(self.inputs.theta(basis.size))
        if pieces:
            z1 = z1 + _tanh(z1 @ pieces["down_1"].t) @ pieces["up_1"].t
        z2 = z1 @ weight(model.hidden_2.weight.T) + weight(model.hidden_2.bias)
        z2 = prelu(z2, model.slope_2)
        out, bias = weight(model.out.weight[0]), weight(model.out.bias)
        if pieces:
            z2 = z2 + _tanh(z2 @ pieces["down_2"].t) @ pieces["up_2"].t
            out, bias = out + pieces["out"], bias + pieces["bias"]
        return out @ z2.t + bias


class SasrecGraph:
    """SASRec in a graph; `activations` are the state (D,)."""

    def __init__(self, inputs: Inputs, items: TableValues, model: Sasrec) -> None:
        self.inputs, self.items, self.model, self.graph = inputs, items, model, inputs.graph
        self.activations = self._state()

    def weight(self, tensor: Tensor) -> Value:
        return self.graph.constant(array(tensor))

    def _steps(self) -> Value:
        """(T, D) mean embeddings of the newest L baskets, oldest first."""
        graph, ring, limit = self.graph, self.inputs.ring, self.model.sizes.history
        baskets = self.inputs.baskets()
        used = self.inputs.held_of(ring) & (baskets < graph.constant(limit))  # (M,)
        # the number of baskets: one more than the largest number in use
        numbered = used.cast(np.float32) * (baskets + graph.constant(1)).cast(np.float32)
        count = numbered.max(0).cast(np.int64)
        # a row for each basket, oldest first, and one for events that are not used
        place = graph.where(used, graph.constant(limit - 1) - baskets, graph.constant(limit))
        members = graph.scatter(limit + 1, place, used.cast(np.float32), "add")
        sums = graph.row_sums(limit + 1, place, self.items.rows("embedding", ring), self.model.embedding_size)
        filled = graph.range(count) + (graph.constant(limit) - count)
        return sums.rows(filled) / members.rows(filled).unsqueeze(1) * math.sqrt(self.model.embedding_size)

    def _state(self) -> Value:
        model, graph, weight = self.model, self.graph, self.weight
        size = model.embedding_size
        x = graph.concat(weight(model.start * math.sqrt(size)).unsqueeze(0), self._steps(), axis=0)  # (T + 1, D)
        place = graph.range(x.length())
        start = graph.op("Equal", place, graph.constant(0))
        of = place  # whose state is computed; of the last layer only the last one is read
        blocks = list(cast(Iterable[Attention], model.blocks))
        for block in blocks:
            normed = self._normed(x, block.scale_1, block.shift_1)
            key = normed @ weight(block.key.weight.T)
            value = normed @ weight(block.value.weight.T) + weight(block.value.bias)
            if block is blocks[-1]:
                x, normed, of = (each.last().unsqueeze(0) for each in (x, normed, place))
            age = graph.op("Max", of.unsqueeze(1) - place, graph.constant(0))  # query, key
            ages = weight(block.ages).rows(graph.where(start, graph.constant(len(block.ages) - 1), age))
            weights = normed @ weight(block.query.weight.T) @ key.t / math.sqrt(size) + ages
            later = graph.op("Greater", place, of.unsqueeze(1))
            x = x + graph.op("Softmax", graph.where(later, -math.inf, weights), axis=-1) @ value
            normed = self._normed(x, block.scale_2, block.shift_2)
            inner = graph.op("Relu", normed @ weight(block.inner.weight.T) + weight(block.inner.bias))
            x = x + inner @ weight(block.outer.weight.T) + weight(block.outer.bias)
        return self._normed(x.last(), model.scale, model.shift)

    def _normed(self, x: Value, scale: Tensor, shift: Tensor) -> Value:
        return self.graph.op("LayerNormalization", x, self.weight(scale), self.weight(shift), epsilon=_EPSILON)

    def logits(self, basis: "Basis | None") -> Value:
        """(C,) the cloud model's logits, or with a basis those of the patch ϑ₀ + Θ·θ̂."""
        state = self.activations
        if basis is not None:
            pieces = basis.weights(self.inputs.theta(basis.size))
            state = state + pieces["up"] @ _tanh(pieces["down"] @ state) + pieces["offset"]
        candidates = self.inputs.candidates
        return state @ self.items.rows("embedding", candidates).t + self.items.rows("bias", candidates)


class Basis:
    """The basis of all users' patches in a graph; scoring and learning graph read the same file.

    Args:
        table: see `table`. parts: name and shape of every piece of ϑ, in order, see basis.Layout.

    Attributes:
        theta: Θ (P, K). size: K.
    """

    def __init__(self, graph: Graph, table: Table, parts: Mapping[str, tuple[int, ...]]) -> None:
        self.graph, self.parts, self.size = graph, parts, table.columns["theta"].shape[1]
        values = TableValues(graph, table)
        self.theta, self.origin = values.rows("theta"), values.rows("origin")

    @staticmethod
    def table(basis: SharedBasis[Any], precision: Precision) -> Table:
        """The file of Θ and ϑ₀, a row for each weight of a patch."""
        return Table.of({"theta": array(basis.theta), "origin": array(basis.origin)}, precision, BASIS_FILE)

    def weights(self, theta: Value) -> dict[str, Value]:
        """The named pieces of ϑ = ϑ₀ + Θ·θ̂, from θ̂ (K,)."""
        graph = self.graph
        weights = self.theta @ theta + self.origin
        pieces, at = {}, 0
        for name, shape in self.parts.items():
            end = at + math.prod(shape)
            piece = graph.op("Slice", weights, graph.constant(np.array([at])), graph.constant(np.array([end])))
            pieces[name], at = piece.reshape(*shape), end
        return pieces


@dataclass(frozen=True)
class DeviceMemory:
    """What a memory patch needs on a device.

    Attributes:
        statistics: of all items; only what items share is read. typical: (W + 1, R) typical profiles, see features.py.
        size: M, newest events whose items count. smallest: events that a user must have to be served by the patch.
        shift: added to the cloud model's logits before the patch, see patch.prior_shift.
    """

    patch: MemoryPatch
    statistics: Statistics
    typical: Array
    size: int
    smallest: int
    shift: float


class MemoryGraph:
    """The memory patch in a graph."""

    def __init__(self, inputs: Inputs, items: TableValues, memory: DeviceMemory) -> None:
        self.inputs, self.items, self.memory, self.graph = inputs, items, memory, inputs.graph
        newest = inputs.ring.first(memory.size)
        self.mask = inputs.exists(newest)
        self.newest = newest
        age = self.graph.range(newest.length()).cast(np.float32)
        self.age = age
        self.freshness = self.mask / (age / HALF + 1.0)
        self.count = self.mask.sum(0)  # n
        self.features = self._features()

    def logits(self, cloud: Value) -> Value:
        """(C,) logits with the patch where the user has one and enough events, else the cloud model's."""
        memory, graph, inputs = self.memory, self.graph, self.inputs
        patch = memory.patch
        shifted = cloud + memory.shift
        inner = array(patch.inner.T)  # rows: features, profile, logit
        end = len(inner) - 1
        own = end - memory.typical.shape[1]
        offered = graph.concat(self.features, shifted.unsqueeze(1)) @ graph.constant(
            np.delete(inner, slice(own, end), 0)
        )
        hidden = offered + graph.constant(array(patch.inner_bias))
        if memory.typical.shape[1]:  # the same for all candidates
            hidden = hidden + self._profile() @ graph.constant(inner[own:end])
        phi = graph.concat(_tanh(hidden), self.features)
        remembered = shifted + graph.constant(array(patch.outer)) @ phi.t - memory.shift
        enough = graph.op("GreaterOrEqual", inputs.held, graph.constant(memory.smallest))
        return graph.where(enough & graph.input("patched", np.bool_), remembered, cloud)

    def _profile(self) -> Value:
        """(R,) the profile of recent events."""
        graph, window, size = self.graph, self.memory.typical.shape[0] - 1, self.memory.typical.shape[1]
        kept = graph.input("kept", np.int8, window, size)
        count, counted = graph.input("kept_count", np.int64), graph.input("counted", np.bool_)
        own = kept.cast(np.float32).sum(0) / float(STEPS) / (count.cast(np.float32) + float(PRIOR_EVENTS))
        return graph.where(counted, own, graph.constant(self.memory.typical).rows(count))

    def _features(self) -> Value:
        """(C, F) as memory/features.py defines them."""
        graph, candidates, statistics = self.graph, self.inputs.candidates, self.memory.statistics
        # one more: a related item that is not shipped, which no ring holds
        n_items = len(next(iter(self.items.table.columns.values()))) + 1
        rows, n = self.items.rows, self.count
        count = graph.scatter(n_items, self.newest, self.mask, "add")
        recency = graph.scatter(n_items, self.newest, self.freshness, "max")
        own = count.rows(candidates)
        share = rows("share", candidates)
        columns = [
            own * 0.0 + _log1p(n) / 5.0,
            _log1p(own),
            graph.op("Log", (own + 1.0) / (n * share + 1.0)),
            recency.rows(candidates),
            *self._category_columns(),
        ]
        similarity, near = rows("similarity", candidates), rows("neighbours", candidates)  # (C, N)
        # above 0 for all items that are held, however long ago
        decayed = graph.op("Max", graph.op("Pow", DECAY, self.age), _TINY)
        lately = graph.scatter(n_items, self.newest, self.mask * decayed, "max")
        weight = lately.rows(near)
        known = similarity * graph.op("Greater", weight, 0.0).cast(np.float32)
        recent = (similarity * weight).sum(1)
        columns += [_log1p(known.sum(1) * 10.0), known.max(1) * 5.0, _log1p(recent * 20.0)]
        if statistics.predecessors.shape[1]:
            score = rows("transition_score", candidates) * lately.rows(rows("predecessors", candidates))
            columns += [_log1p(score.sum(1) * 20.0), score.max(1) * 10.0]
        if statistics.factors.shape[1]:
            columns += self._factor_columns()
        found = graph.concat(*(column.unsqueeze(1) for column in columns))
        scale = graph.constant(array(statistics.scale))
        return (found - rows("mean", candidates) * scale) / scale

    def _factor_columns(self) -> list[Value]:
        """Four columns (C,): dot products of the candidate's factor with the user's, and their logarithms."""
        graph, rows = self.graph, self.items.rows
        of_candidates, of_held = rows("factors", self.inputs.candidates), rows("factors", self.newest)
        damping = graph.constant(array(self.memory.statistics.damping))
        columns = []
        for fade in FADES:
            weights = self.mask * graph.op("Pow", fade, self.age)
            own = weights @ of_held / (damping * weights.sum(0) + 1.0)
            score = own @ of_candidates.t
            columns += [score, _log1p(graph.op("Max", score, 0.0) * 50.0)]
        return columns

    def _category_columns(self) -> list[Value]:
        """Six columns (C,): count, lift and recency of the candidate's categories, mean and largest of each."""
        graph, shares = self.graph, array(self.memory.statistics.category_share)
        padding = len(shares) - 1
        slots = self.items.table.columns["categories"].shape[1]
        theirs = self.items.rows("categories", self.newest).reshape(-1)  # (M·S,)
        each = graph.constant(np.ones((1, slots), dtype=np.float32))
        count = graph.scatter(padding + 1, theirs, (self.mask.unsqueeze(1) * each).reshape(-1), "add")
        recency = graph.scatter(padding + 1, theirs, (self.freshness.unsqueeze(1) * each).reshape(-1), "max")
        mine = self.items.rows("categories", self.inputs.candidates)  # (C, S)
        real = (mine < graph.constant(padding)).cast(np.float32)
        number = graph.op("Max", real.sum(1), 1.0)
        exists = graph.op("Greater", real, 0.0)
        own, fresh = count.rows(mine), recency.rows(mine) * real
        counted = _log1p(own) * real
        lift = graph.op("Log", (own + 1.0) / (self.count * graph.constant(shares).rows(mine) + 1.0))
        largest = graph.where(exists, lift, NO_LIFT).max(1)
        return [
            counted.sum(1) / number,
            counted.max(1),
            (lift * real).sum(1) / number,
            graph.where(graph.op("Greater", real.sum(1), 0.0), largest, 0.0),
            fresh.sum(1) / number,
            fresh.max(1),
        ]


def array(tensor: Tensor) -> Array:
    """A tensor's numbers, in float32 if they are floats."""
    found: Array = tensor.detach().cpu().numpy()
    return np.ascontiguousarray(found.astype(np.float32) if found.dtype.kind == "f" else found)


def prelu(x: Value, slope: Tensor) -> Value:
    """PReLU; for slopes up to 1 it is the larger of x and slope · x, which ONNX Runtime computes several times faster."""
    graph, factor = x.graph, x.graph.constant(array(slope))
    return graph.op("Max", x, x * factor) if array(slope).max() <= 1 else graph.op("PRelu", x, factor)


def _tanh(x: Value) -> Value:
    return x.graph.op("Tanh", x)


def _log1p(x: Value) -> Value:
    return x.graph.op("Log", x + 1.0)
