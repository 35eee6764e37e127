"""Bundles: the exported graphs give the logits of the torch models, and learn what central learning does."""

from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import KINDS
from safetensors.numpy import load_file
from world import World, done

from dcclctl.config import ExportConfig
from dcclctl.devices.bundle.build import Parts, build, users_with_short_rings, write_folder
from dcclctl.devices.bundle.device import Device, Graphs
from dcclctl.devices.bundle.device import draw_negatives as device_draws
from dcclctl.devices.bundle.golden import golden_cases
from dcclctl.devices.bundle.serving import ReplayedDevices
from dcclctl.devices.serving import Subject, serve
from dcclctl.events.log import TEST, Block, EventColumns, EventLog
from dcclctl.events.sampler import Sampler
from dcclctl.events.sampling import NO_ITEM, PairSet, draw_negatives, stream
from dcclctl.models.kind import open_backbone
from dcclctl.store.store import Store


@pytest.fixture(scope="module")
def subjects(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    store = world.copy(tmp_path_factory.mktemp("bundles") / "store")
    found = {}
    for name, commands in KINDS.items():
        for command in commands:
            made = done(*command, store=store)
        found[name] = Subject.of(made["ref"], Store(store))
    return found


def exported(subject: Subject, folder: Path, **settings: str) -> ReplayedDevices:
    """The subject's bundle in a folder, and its devices at every event of the log."""
    config = ExportConfig(**settings)  # type: ignore[arg-type]
    parts = Parts.of(subject.cloud, subject.patches, config.items)
    write_folder(folder, build(parts, config))
    return ReplayedDevices(Graphs(folder), subject.cloud.dataset.log, parts.number, parts.users)


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_gives_the_logits_of_torch(kind: str, subjects: dict[str, Subject], tmp_path: Path) -> None:
    subject = subjects[kind]
    devices = exported(subject, tmp_path)
    log = subject.cloud.dataset.log
    backbone = open_backbone(subject.cloud, torch.device("cpu"))
    events = np.concatenate(
        [log.events_in(TEST), np.flatnonzero(log.history_lengths(np.arange(len(log.user)), 9) == 0)[:5]]
    )
    candidates = torch.arange(log.n_items).expand(len(events), -1)
    with torch.no_grad():
        wanted = serve(subject, backbone).head(events, candidates, backbone.activations(events, candidates))
    found = devices.served().head(events, candidates, torch.empty(0))
    np.testing.assert_allclose(found.numpy(), wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", ["din-metapatch", "sasrec-metapatch"])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_shared_weights_take_fewer_bytes_and_change_little(
    kind: str, precision: str, subjects: dict[str, Subject], tmp_path: Path
) -> None:
    full, small = (exported(subjects[kind], tmp_path / each, precision=each) for each in ("fp32", precision))
    stored = [devices.graphs.spec["files"]["basis.safetensors"]["bytes"] for devices in (full, small)]
    assert stored[1] < stored[0] * (0.7 if precision == "fp16" else 0.6)
    log = full.log
    events = log.events_in(TEST)
    wanted, found = (each.served().head(events, None, torch.empty(0)).numpy() for each in (full, small))
    # so small that most pairs of items keep their order
    assert 0 < np.abs(found - wanted).max() < 0.1 * wanted.std()


def test_users_whose_baskets_do_not_fit_into_a_ring_are_counted() -> None:
    # the newest two baskets have 3 + 1, 2, and 1 + 1 events
    baskets = {0: [1, 3, 1], 1: [2], 2: [1, 1, 1, 1, 1]}
    sizes = [(user, size) for user, each in baskets.items() for size in each]
    user = np.repeat([user for user, _ in sizes], [size for _, size in sizes])
    time = np.repeat(np.arange(len(sizes)), [size for _, size in sizes])
    label = np.ones_like(user)
    log = EventLog.build(
        EventColumns(user, np.zeros_like(user), time, label, label),
        torch.zeros(1, 1, dtype=torch.long),
        1,
        torch.zeros(3, 1).long(),
        (1,),
    )
    assert [users_with_short_rings(log, ring, 2) for ring in (4, 3, 2, 1)] == [0, 1, 1, 3]


@pytest.mark.parametrize("kind", ["din-metapatch", "sasrec-metapatch"])
def test_a_device_learns_what_central_learning_does(kind: str, subjects: dict[str, Subject], tmp_path: Path) -> None:
    subject = subjects[kind]
    devices, patches, log = exported(subject, tmp_path), subject.patches, subject.cloud.dataset.log
    assert patches is not None
    graphs, block = devices.graphs, Block.parse(patches.config["on"])
    sampler = Sampler(log, [block], int(patches.config["negatives"]), int(patches.artifact.seed), "patch/negatives")
    codes, patched = patches.codes()
    users = np.flatnonzero(patched.numpy())[::7]
    assert len(users) > 4
    for user in users:
        events = np.intersect1d(log.events_in(block), log.events_of(int(user)))
        samples = sampler.draw(events)
        rows = [
            devices.at(int(event)).rows_of(
                *(part[at].numpy() for part in (samples.candidates, samples.labels, samples.weights))
            )
            for at, event in enumerate(events)
        ]
        device = Device(graphs)
        found = device.learn(rows, graphs.spec["learning"]["steps"])
        np.testing.assert_allclose(found, codes[user].numpy(), rtol=1e-5, atol=1e-5)
        assert np.abs(found - graphs.spec["learning"]["start"]).max() > 1e-3


@pytest.mark.parametrize("kind", ["din-metapatch", "din-memory", "sasrec-memory"])
def test_golden_vectors_are_what_the_graphs_give(kind: str, subjects: dict[str, Subject], tmp_path: Path) -> None:
    graphs = exported(subjects[kind], tmp_path).graphs
    cases = golden_cases(load_file(tmp_path / "golden.safetensors"))
    assert {"empty", "one", "full", "unknown-profile"} <= cases.keys()
    for name, (given, wanted) in cases.items():
        session = graphs.learn if name == "learn" else graphs.score
        assert session is not None
        found = session.run(list(wanted), given)
        for value, expected in zip(found, wanted.values(), strict=True):
            np.testing.assert_allclose(value, expected, atol=1e-5, rtol=1e-5)
    assert ("learn" in cases) == (graphs.learn is not None)
    assert cases["empty"][0]["held"] == 0 and cases["full"][0]["held"] > 3


@pytest.mark.parametrize("kind", ["din-metapatch", "sasrec-metapatch"])
def test_a_device_with_its_own_log_learns_what_central_learning_does(
    kind: str, subjects: dict[str, Subject], tmp_path: Path
) -> None:
    """The device replays its log and draws the negatives itself."""
    subject = subjects[kind]
    graphs, patches, dataset = exported(subject, tmp_path).graphs, subject.patches, subject.cloud.dataset
    assert patches is not None
    log, block = dataset.log, Block.parse(patches.config["on"])
    codes, patched = patches.codes()
    ids, times = dataset.items["item_id"], dataset.times(range(log.n_users)) / 1e6
    for user in np.flatnonzero(patched.numpy())[::5]:
        rows = log.events_of(int(user))
        events = [(ids[int(log.item[row])], float(times[row]), int(log.label[row])) for row in rows]
        learning = np.intersect1d(log.events_in(block), rows)
        since, until = times[learning[0]], np.nextafter(times[learning[-1]], np.inf)
        device = Device(graphs, {"profile": log.profile[int(user)].tolist()[: graphs.spec["sizes"]["profile"]]})
        found = device.learn_log(events, {"since": since, "until": until, "row": int(rows[0])})
        np.testing.assert_allclose(found, codes[int(user)].numpy(), rtol=5e-5, atol=5e-5)
        assert device.learned_from == len(learning)


@pytest.mark.parametrize("count", [3, 12])
def test_a_device_draws_the_negatives_of_the_cloud(count: int) -> None:
    """Also where nearly everything is excluded, so that what is left is listed."""
    catalogue, excluded = np.arange(3, 17), {3, 4, 5, 9, 11, 12, 13, 16}
    pairs = PairSet(np.zeros(len(excluded), dtype=np.int64), np.array(sorted(excluded)), 20)
    keys = np.arange(40, 60)
    wanted = draw_negatives(7, "x", keys, np.zeros(len(keys), dtype=np.int64), count, catalogue, pairs)
    streams = {"stream": stream(7, "x"), "stream_left": stream(7, "x/left")}
    for key, row in zip(keys, wanted, strict=True):
        found = device_draws(streams, catalogue, int(key), excluded, count)
        assert [NO_ITEM if item is None else item for item in found] == row.tolist()
