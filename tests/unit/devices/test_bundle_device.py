"""What a device remembers, and what it keeps of it on its disk."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from dcclctl.devices.bundle.device import BundleError, Device, Graphs, noise_of, session, user_bytes, with_noise
from dcclctl.devices.bundle.graph import Graph

SIZES = {"ring": 6, "history": 4, "profile": 1, "theta": 3, "smallest": 0, "kept": 0, "kept_features": 0}


class Plain(Graphs):
    """Graphs of 300 items that are never run."""

    def __init__(self) -> None:
        self.spec = {"id": "x", "sizes": SIZES}
        self.item_ids = [f"i{at}" for at in range(300)]
        self.number = {item: at for at, item in enumerate(self.item_ids)}
        self.reads = {"ring", "held", "baskets"}


def seen(device: Device, before: float | None = None) -> tuple[list[int], list[int]]:
    """Items as the graph reads them, newest first, and their baskets."""
    given = device.inputs(np.array([0]), before)
    held = int(given["held"])
    return given["ring"].tolist()[:held], given["baskets"].tolist()[:held]


def test_an_event_of_the_same_time_is_no_history() -> None:
    device = Device(Plain())
    for item, time in ((1, 10.0), (2, 20.0), (3, 20.0), (4, 30.0), (5, 30.0)):
        device.observe(f"i{item}", time)
    assert seen(device) == ([5, 4, 3, 2, 1], [0, 0, 1, 1, 2])
    assert seen(device, before=31.0) == ([5, 4, 3, 2, 1], [0, 0, 1, 1, 2])
    assert seen(device, before=30.0) == ([3, 2, 1], [0, 0, 1])
    device.observe("i6", 5.0)  # older than the newest: it counts as of its time
    assert device.newest_time == 30.0
    assert seen(device, before=30.0) == ([3, 2, 1], [0, 0, 1])
    device.observe("i7", 40.0)
    assert seen(device) == ([7, 6, 5, 4, 3, 2], [0, 1, 1, 1, 2, 2])  # the ring has six places
    assert seen(device, before=40.0) == ([6, 5, 4, 3, 2], [0, 0, 0, 1, 1])


def test_a_basket_that_fills_the_ring_leaves_no_history() -> None:
    device = Device(Plain())
    for item in range(9):
        device.observe(f"i{item}", 7.0)
    assert seen(device, before=7.0) == ([], [])
    assert seen(Device(Plain()), before=7.0) == ([], [])


def test_a_state_comes_back_and_takes_few_bytes(tmp_path: Path) -> None:
    device = Device(Plain())
    for at in range(20):
        device.observe(f"i{at * 13}", float(at // 2))
    device.observe("nothing", 50.0)
    device.theta[:] = [0.1, -2.5, 1e-9]
    device.save(tmp_path / "state.json")
    again = Device.load(device.graphs, tmp_path / "state.json")
    assert json.dumps(again.state()) == json.dumps(device.state())
    assert seen(again) == seen(device) and again.unknown == 1
    np.testing.assert_array_equal(again.theta, device.theta)
    # six numbers below 65,536, six bits, three numbers of θ̂ and two moments of each, three counters
    assert device.bytes == 6 * 2 + 1 + 3 * 12 + 24 == user_bytes(SIZES, 300, 20)
    assert user_bytes(SIZES, 1 << 17, 20) == user_bytes(SIZES, 300, 20) + 6 * 2
    empty = Device(Plain())
    empty.save(tmp_path / "empty.json")
    assert Device.load(empty.graphs, tmp_path / "empty.json").state() == empty.state()


@pytest.mark.parametrize(
    "damage",
    [
        {"seen": -1},
        {"seen": 3},
        {"later": ""},
        {"items": "//8="},
        {"items": "€"},
        {"theta": "AAAA"},
        {"newest_time": []},
    ],
)
def test_a_damaged_state_is_refused(damage: dict[str, object], tmp_path: Path) -> None:
    device = Device(Plain())
    for at in range(5):
        device.observe(f"i{at}", at)
    (tmp_path / "state.json").write_text(json.dumps(device.state() | damage))
    with pytest.raises(BundleError, match="cut or damaged"):
        Device.load(device.graphs, tmp_path / "state.json")


@pytest.mark.parametrize(
    ("epsilon", "wanted"),
    # dp-accounting 0.6 gives these ε for these noises at δ = 1e-5, from the distribution of the privacy loss
    [(0.5, 7.0318266755), (1, 3.7306316348), (2, 1.9938124456), (8, 0.6002290722), (50, 0.1497606076)],
)
def test_noise_is_the_least_that_is_private(epsilon: float, wanted: float) -> None:
    noise = noise_of(epsilon, 1e-5, 1.0)
    assert noise == pytest.approx(wanted, rel=1e-9)
    assert noise_of(epsilon, 1e-5, 3.0) == pytest.approx(3 * noise)
    # δ is the area by which one density exceeds e^ε times the other
    x = np.linspace(-30 * noise, 30 * noise, 1_000_001)
    density, other = (np.exp(-0.5 * ((x - at) / noise) ** 2) / (noise * np.sqrt(2 * np.pi)) for at in (0.0, 1.0))
    assert np.maximum(density - np.exp(epsilon) * other, 0).sum() * (x[1] - x[0]) == pytest.approx(1e-5, rel=1e-3)


@pytest.mark.parametrize(
    ("epsilon", "delta"), [(0, 1e-5), (-1, 1e-5), (101, 1e-5), (float("nan"), 1e-5), (1, 0), (1, 1)]
)
def test_noise_of_an_epsilon_that_means_nothing(epsilon: float, delta: float) -> None:
    with pytest.raises(BundleError, match="between 0 and"):
        noise_of(epsilon, delta, 1.0)


def test_what_is_sent_is_within_the_clip_before_noise() -> None:
    mean = np.array([1.0, -1.0, 0.5])
    far, near = mean + np.array([3.0, 0.0, 4.0]), mean + np.array([0.1, 0.0, 0.0])
    for theta, wanted in ((far, mean + np.array([0.6, 0.0, 0.8])), (near, near), (mean, mean)):
        sent, noise = with_noise(theta, mean, 1.0, 2.0, 1e-5, lambda middle, _: middle)
        np.testing.assert_allclose(sent, wanted)
        assert noise == noise_of(2.0, 1e-5, 2.0)
    draw = random.Random(0)
    drawn = np.array([with_noise(far, mean, 1.0, 2.0, 1e-5, draw.gauss)[0] for _ in range(4000)])
    np.testing.assert_allclose(drawn.mean(0), mean + np.array([0.6, 0.0, 0.8]), atol=4 * noise / np.sqrt(4000))
    np.testing.assert_allclose(drawn.std(0), noise, rtol=0.05)


def test_a_runtime_that_lacks_an_operator_says_which_has_it(tmp_path: Path) -> None:
    graph = Graph("unknown")
    graph.output("found", graph.op("NoSuchOperator", graph.input("x", np.float32, 3)), np.float32, 3)
    (tmp_path / "score.onnx").write_bytes(graph.bytes())
    with pytest.raises(BundleError, match=r"score\.onnx: this onnxruntime .*NoSuchOperator.*opset 18.*pip install"):
        session(tmp_path / "score.onnx")
