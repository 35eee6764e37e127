"""The learning graph: one step of Adam on a user's θ̂, with the gradient in closed form.

So a runtime that can only run graphs can learn. The same computations as `device_gradient` in hidden_patch.py and
state_patch.py, and `fit_codes` in basis.py, for one user. The activations come from the scoring graph.

Shapes: N rows (a row is one candidate of one event), E events, C candidates of an event, D state, K numbers in θ̂,
H1 and H2 hidden units, R bottleneck.
"""

import numpy as np

from dcclctl.devices.basis import EPSILON
from dcclctl.devices.bundle.graph import Array, Graph, Value
from dcclctl.devices.bundle.score import Basis, array
from dcclctl.devices.bundle.table import TableValues
from dcclctl.devices.settings import LocalSettings
from dcclctl.models.din import Din

#: Adam's two decay rates
_BETA_1, _BETA_2 = 0.9, 0.999


def din_step(model: Din, basis: Basis, mean: Array, settings: LocalSettings) -> Graph:
    """One step for a patch inside a DIN; the basis is of the graph that becomes the result.

    Inputs: theta, first, second (K,), step (1 for the first), activations (N, H1), labels and weights (N,).
    Outputs: new_theta, new_first, new_second.
    """
    graph = basis.graph
    theta = graph.input("theta", np.float32, basis.size)
    z1 = graph.input("activations", np.float32, "N", model.hidden_2.in_features)
    labels, weights = (graph.input(name, np.float32, "N") for name in ("labels", "weights"))
    patch = basis.weights(theta)
    weight_2, slope = graph.constant(array(model.hidden_2.weight)), graph.constant(array(model.slope_2))
    s1 = graph.op("Tanh", z1 @ patch["down_1"].t)
    a2 = (z1 + s1 @ patch["up_1"].t) @ weight_2.t + graph.constant(array(model.hidden_2.bias))
    z2 = graph.op("PRelu", a2, slope)
    s2 = graph.op("Tanh", z2 @ patch["down_2"].t)
    out = graph.constant(array(model.out.weight[0])) + patch["out"]
    # (R,); ONNX Runtime 1.32 gives wrong numbers for a transposed matrix times a vector, so the vector stands first
    pull = out @ patch["up_2"]
    logits = z2 @ out + s2 @ pull + graph.constant(array(model.out.bias)) + patch["bias"]
    residual = (graph.op("Sigmoid", logits) - labels) * weights  # (N,)
    r = residual.unsqueeze(1)
    sum_s2 = (r * s2).sum(0)
    g_out = (r * z2).sum(0) + patch["up_2"] @ sum_s2
    g_up_2 = out.unsqueeze(1) * sum_s2
    g_d2 = r * pull * (1.0 - s2 * s2)
    g_a2 = (r * out + g_d2 @ patch["down_2"]) * graph.where(graph.op("Greater", a2, 0.0), 1.0, slope)
    up_1 = weight_2 @ patch["up_1"]
    g_up_1 = weight_2.t @ (g_a2.t @ s1)
    g_d1 = (g_a2 @ up_1) * (1.0 - s1 * s1)
    pieces = [g_d1.t @ z1, g_up_1, g_d2.t @ z2, g_up_2, g_out, residual.sum(0, keep=True)]
    _adam(theta, pieces, basis, mean, settings)
    return graph


def state_step(items: TableValues, basis: Basis, mean: Array, settings: LocalSettings) -> Graph:
    """One step for a patch after a sequence encoder; `items` and `basis` are of the graph that becomes the result.

    Inputs: theta, first, second (K,), step, activations (E, D) states, candidates (E, C), labels and weights (E, C).
    Outputs: new_theta, new_first, new_second.
    """
    graph = items.graph
    theta = graph.input("theta", np.float32, basis.size)
    size = basis.parts["offset"][0]
    states = graph.input("activations", np.float32, "N", size)
    candidates = graph.input("candidates", np.int64, "N", "C")
    labels, weights = (graph.input(name, np.float32, "N", "C") for name in ("labels", "weights"))
    patch = basis.weights(theta)
    s = graph.op("Tanh", states @ patch["down"].t)  # (E, R)
    patched = states + s @ patch["up"].t + patch["offset"]
    rows = items.rows("embedding", candidates)  # (E, C, D)
    logits = (rows @ patched.unsqueeze(2)).reshape(0, -1) + items.rows("bias", candidates)
    residual = (graph.op("Sigmoid", logits) - labels) * weights
    g_state = (residual.unsqueeze(1) @ rows).reshape(0, -1)  # (E, D)
    g_down = ((g_state @ patch["up"]) * (1.0 - s * s)).t @ states
    _adam(theta, [g_down, g_state.t @ s, g_state.sum(0)], basis, mean, settings)
    return graph


def _adam(theta: Value, pieces: list[Value], basis: Basis, mean: Array, settings: LocalSettings) -> None:
    """The outputs: θ̂ and Adam's moments after a step on Σ CE + λ‖θ̂ − μ‖²; pieces: gradient of Σ CE, piece by piece."""
    graph, size = theta.graph, basis.size
    slope = graph.concat(*(piece.reshape(-1) for piece in pieces), axis=0) @ basis.theta
    slope = slope + (theta - graph.constant(mean)) * (2 * settings.prior)
    first, second = (graph.input(name, np.float32, size) for name in ("first", "second"))
    step = graph.input("step", np.float32)
    first = first + (slope - first) * (1 - _BETA_1)
    second = second * _BETA_2 + slope * slope * (1 - _BETA_2)
    corrected = first / (1.0 - graph.op("Pow", _BETA_1, step))
    spread = graph.op("Sqrt", second / (1.0 - graph.op("Pow", _BETA_2, step))) + EPSILON
    moved = theta - corrected * settings.learning_rate / spread
    for name, value in (("new_theta", moved), ("new_first", first), ("new_second", second)):
        graph.output(name, value, np.float32, size)
