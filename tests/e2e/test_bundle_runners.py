"""A bundle outside of dcclctl: in Python without torch, and in a real browser without a network."""

import importlib.util
import json
import subprocess
import sys
import threading
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Browser
from bundles import KINDS
from world import World, done

from dcclctl.devices.bundle.device import Device, Graphs
from dcclctl.devices.bundle.web_server import web_runtime
from dcclctl.errors import DataError, UsageError

USER = "u7"
#: what the runner needs, and what that needs to be imported
NEEDED = (
    "numpy",
    "numpy.libs",
    "onnxruntime",
    "onnxruntime.libs",
    "flatbuffers",
    "google",
    "packaging",
    "coloredlogs",
    "sympy",
    "mpmath",
)
SCRIPT = """
import json, sys
for name in ("torch", "dcclctl", "polars", "onnx"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} is here")
sys.path.insert(0, sys.argv[1] + "/runner/python")
from device import Device
device = Device(sys.argv[1], json.load(open(sys.argv[1] + "/user.json")))
first = device.recommend(5)
device.observe(first[2][0], 4e9)
device.save(sys.argv[1] + "/state.json")
again = Device.load(sys.argv[1], sys.argv[1] + "/state.json")
print(json.dumps([first, device.recommend(5), again.recommend(5), device.bytes]))
"""


@dataclass(frozen=True)
class Exported:
    """A bundle in a store and in a folder."""

    store: Path
    ref: str
    folder: Path


@pytest.fixture(scope="module")
def exported(world: World, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Memory patches on a DIN, with the file of one user."""
    return _exported(world, tmp_path_factory.mktemp("bundle"), "din-memory")


def _exported(world: World, folder: Path, kind: str, *flags: str) -> Exported:
    store = world.copy(folder / "store")
    for command in KINDS[kind]:
        done(*command, store=store)
    made = done("export", *flags, "-o", folder / "bundle", "--user", USER, store=store)
    return Exported(store, made["ref"], folder / "bundle")


def test_the_runner_needs_neither_torch_nor_dcclctl(exported: Exported, tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", symlinks=True)
    python = tmp_path / "bare" / "bin" / "python"
    packages = next((tmp_path / "bare" / "lib").glob("python*/site-packages"))
    found = importlib.util.find_spec("numpy")
    assert found is not None and found.origin is not None
    ours = Path(found.origin).parents[1]
    for name in NEEDED:
        if (ours / name).exists():
            (packages / name).symlink_to(ours / name)
    run = subprocess.run([python, "-I", "-c", SCRIPT, exported.folder], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    first, after, again, size = json.loads(run.stdout)
    ours_too = Device(exported.folder, json.loads((exported.folder / "user.json").read_text()))
    assert [item for item, _ in first] == [item for item, _ in ours_too.recommend(5)]
    chosen = first[2][0]
    ours_too.observe(chosen, 4e9)
    assert after == again == [list(each) for each in ours_too.recommend(5)]
    assert chosen not in [item for item, _ in after]
    assert 0 < size <= ours_too.graphs.spec["bytes"]["user"]


def test_a_device_sends_theta_with_noise(world: World, tmp_path: Path) -> None:
    made = _exported(world, tmp_path, "din-metapatch")
    user = json.loads((made.folder / "user.json").read_text())
    since, until = user["learn"]["since"], user["learn"]["until"]
    events = [[*event, 1] for event in user["events"] if event[1] < until]
    (tmp_path / "log.csv").write_text("\n".join(",".join(map(str, event)) for event in events))
    (tmp_path / "empty.csv").write_text("\n".join(",".join(map(str, each)) for each in events if each[1] < since))

    def run(log: str, *flags: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, made.folder / "runner/python/device.py", made.folder]
        given = ["--user", made.folder / "user.json", "--log", tmp_path / log, "--learn"]
        return subprocess.run([*command, *given, *flags], capture_output=True, text=True)

    def sent(log: str, *flags: str) -> dict[str, Any]:
        done_ = run(log, "--uplink", str(tmp_path / "uplink.json"), *flags)
        assert done_.returncode == 0, done_.stderr
        found: dict[str, Any] = json.loads((tmp_path / "uplink.json").read_text())
        return found

    plain = sent("log.csv")
    assert plain["events"] == sum(event[1] >= since for event in events) > 0 and "noise" not in plain
    private = [sent("log.csv", "--dp=1"), sent("log.csv", "--dp=1"), sent("empty.csv", "--dp=1")]
    assert len({tuple(each["theta"]) for each in (plain, *private)}) == 4
    # neither the number of events nor that there are none is told
    assert {each["events"] for each in private} == {0} and len({each["noise"] for each in private}) == 1
    clip = json.loads((made.folder / "bundle.json").read_text())["learning"]["clip"]
    assert private[0]["noise"] == pytest.approx(3.7306316348 * 2 * clip)
    assert sent("log.csv", "--dp=1", "--delta=0.01")["noise"] < private[0]["noise"]
    nothing = run("empty.csv", "--uplink", str(tmp_path / "none.json"))
    assert nothing.returncode == 3 and "nothing to learn" in nothing.stderr
    assert run("log.csv", "--dp=1").returncode == 2
    assert run("log.csv", "--uplink", str(tmp_path / "none.json"), "--dp=0").returncode == 3


@pytest.fixture
def address(request: pytest.FixtureRequest, world: World, tmp_path: Path) -> Iterator[tuple[str, Exported]]:
    """The page of a bundle, served."""
    from dcclctl.artifacts import Bundle
    from dcclctl.stages.export import web_page
    from dcclctl.store.store import Store

    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    try:
        web_runtime()
    except (DataError, UsageError) as error:
        pytest.skip(f"no ONNX Runtime for the browser here: {error.what}")
    made = _exported(world, tmp_path, *request.param.split())
    running = web_page(Bundle(Store(made.store).resolve(made.ref)), USER)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_address[1]}/", made
    running.shutdown()
    running.server_close()


READY = "document.body && document.body.dataset.state === 'ready'"
BEST = "document.body.dataset.best"


@pytest.mark.parametrize("address", ["din-memory", "sasrec-memory --precision=int8"], indirect=True)
def test_a_page_ranks_as_the_python_runner_does(address: tuple[str, Exported], tmp_path: Path) -> None:
    place, made = address
    device = Device(Graphs(made.folder), json.loads((made.folder / "user.json").read_text()))

    def best() -> list[int]:
        return [device.graphs.number[item] for item, _ in device.recommend(12)]

    with Browser(tmp_path / "profile") as browser:
        tab = browser.tab(place)
        tab.wait(READY)
        checked = tab.evaluate("dcclctl.graphs.check()")
        assert checked["cases"] >= 4 and checked["largest"] <= 1e-5
        assert [int(number) for number in tab.evaluate(BEST).split()] == best()
        assert "often with" in tab.evaluate("document.querySelector('#list').textContent")
        chosen = best()[3]
        tab.evaluate("document.querySelectorAll('button.item')[3].click()")
        tab.wait(f"{READY} && document.body.dataset.events == {len(device.items) + 1}")
        device.observe_number(chosen, 4e9)
        after = tab.evaluate(BEST)
        assert [int(number) for number in after.split()] == best()
        tab.open(place)  # the events are still there
        tab.wait(f"{READY} && document.body.dataset.events == {len(device.items)}")
        assert tab.evaluate(BEST) == after
        other = browser.tab(place)
        other.wait(f"{READY} && document.body.dataset.events == {len(device.items)}")
        other.evaluate("document.querySelectorAll('button.item')[0].click()")
        tab.wait(f"document.body.dataset.events == {len(device.items) + 1}")  # the first tab hears of it
        tab.wait(f"{READY} && {BEST} === {json.dumps(other.evaluate(BEST))}")
        assert {each.removeprefix(place).partition("?")[0] for each in browser.requested() if each.startswith(place)}
        assert all(each.startswith((place, "data:", "about:")) for each in browser.requested())
        assert browser.problems() == []


@pytest.mark.parametrize("address", ["din-metapatch", "sasrec-metapatch"], indirect=True)
def test_a_page_learns(address: tuple[str, Exported], tmp_path: Path) -> None:
    place, _ = address
    with Browser(tmp_path / "profile") as browser:
        tab = browser.tab(place)
        tab.wait(READY)
        assert tab.evaluate("dcclctl.graphs.check()")["largest"] <= 1e-5
        before = tab.evaluate("[...dcclctl.device.theta]")
        tab.evaluate("document.querySelectorAll('button.item')[0].click()")
        tab.wait(f"{READY} && dcclctl.device.moments.step > 0")
        after = tab.evaluate("[...dcclctl.device.theta]")
        assert after != before and all(abs(value) < 100 for value in after)
        tab.open(place)
        tab.wait(READY)
        assert tab.evaluate("[...dcclctl.device.theta]") == pytest.approx(after)
        assert browser.problems() == []


def test_the_server_gives_its_own_files_to_this_computer_only(exported: Exported) -> None:
    from http.client import HTTPConnection

    from dcclctl.devices.bundle.web_server import page_files, server

    page = {"runner/web/index.html": b"<p>", "bundle.json": b"{}"}
    running = server(page_files(page, {}))
    threading.Thread(target=running.serve_forever, daemon=True).start()
    port = running.server_address[1]

    def asked(path: str, host: str) -> tuple[int, str | None]:
        connection = HTTPConnection("127.0.0.1", port)
        connection.request("GET", path, headers={"Host": host})
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Security-Policy")

    status, policy = asked("/", f"127.0.0.1:{port}")
    assert status == 200 and policy is not None and "default-src 'none'" in policy
    assert asked("/bundle.json", f"localhost:{port}")[0] == 200
    assert asked("/../../etc/passwd", f"127.0.0.1:{port}")[0] == 404
    assert asked("/", f"evil.example:{port}")[0] == 404
    running.shutdown()
    running.server_close()
