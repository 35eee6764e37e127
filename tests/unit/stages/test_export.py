"""`export`: what is written, what is refused, and a bundle as a subject of other commands."""

import importlib
import importlib.util
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from bundles import KINDS
from safetensors.numpy import load_file
from world import World, dcclctl, done

import dcclctl as api
from dcclctl.artifacts import Bundle, PatchSet
from dcclctl.devices import bundle as room
from dcclctl.devices.bundle.device import BundleError, Device, Graphs
from dcclctl.errors import UsageError
from dcclctl.store.store import Store


@pytest.fixture(scope="module")
def shipped(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with memory patches on a DIN, patches@2, and their bundle, bundle@1."""
    store = world.copy(tmp_path_factory.mktemp("shipped") / "store")
    for command in KINDS["din-memory"]:
        done(*command, store=store)
    done("export", store=store)
    return store


def test_a_bundle_is_evaluated_like_its_patches(shipped: Path) -> None:
    made = done("evaluate", "patches@2", "bundle@1", "--against=patches@2", "--threads=1", store=shipped)
    assert made["subjects"] == ["patches@2", "bundle@1"]
    rows = [row for row in made["comparison"] if row["difference"] is not None]
    assert len(rows) > 5 and max(abs(row["difference"]) for row in rows) < 5e-5
    gate = dcclctl(
        "evaluate", "bundle@1", "--against=patches@2", "--max-drop=all.ndcg@10=1%", "--threads=1", store=shipped
    )
    assert gate.exit_code == 0
    assert dcclctl("audit", made["ref"], store=shipped).exit_code == 0


def test_score_of_a_bundle_is_that_of_its_patches(shipped: Path) -> None:
    lists = [done("score", ref, "--user=u3", store=shipped)["rankings"]["patched"] for ref in ("patches@2", "bundle@1")]
    assert [row["item_id"] for row in lists[0]] == [row["item_id"] for row in lists[1]]
    np.testing.assert_allclose(*([row["score"] for row in rows] for rows in lists), atol=1e-5)


def test_lists_of_a_bundle_are_those_of_its_patches(shipped: Path, tmp_path: Path) -> None:
    """Also of users and events that came after the export."""
    log = tmp_path / "new.csv"
    rows = ["user_id,item_id,timestamp,rating"]
    rows += [f"{user},i{item},{4_000_000_000 + item},5" for user, item in (("u1", 1), ("u1", 2), ("brand-new", 3))]
    log.write_text("\n".join(rows))
    for flags in (("--as-of=test",), (f"--log={log}", "--users=u1,u2,brand-new")):
        tables = []
        for reference in ("patches@2", "bundle@1"):
            output = tmp_path / f"{reference}.parquet"
            done("recommend", reference, *flags, "--top=7", "-o", output, "--threads=1", store=shipped)
            tables.append(pl.read_parquet(output))
        assert tables[0].height >= 21
        assert tables[0].drop("score").equals(tables[1].drop("score"))
        np.testing.assert_allclose(tables[0]["score"], tables[1]["score"], atol=1e-5)


def test_a_bundle_from_python(shipped: Path, tmp_path: Path) -> None:
    store = Store(shipped)
    patches = PatchSet(store.resolve("patches@2"))
    bundle = api.export(patches, to=tmp_path / "bundle", user="u3")
    assert bundle.ref == "bundle@1" and (tmp_path / "bundle" / "user.json").is_file()
    lists = [api.recommend(model, users="u3", threads=1).lists for model in (bundle, patches)]
    assert lists[0].drop("score").equals(lists[1].drop("score"))


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    with pytest.raises(UsageError, match="onnxruntime"):
        importlib.reload(room)


def test_names_of_a_bundle(shipped: Path) -> None:
    shown = dcclctl("artifacts", "list", "--kind=bundle", store=shipped).stdout
    assert "bundle of memory on din: 80 items in fp32" in " ".join(shown.split())
    lineage = dcclctl("artifacts", "lineage", "bundle@1", store=shipped).stdout
    assert "patches@2" in lineage and "memory@1" in lineage


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_fewer_bytes_change_the_logits_little(shipped: Path, precision: str, tmp_path: Path) -> None:
    full = Bundle(Store(shipped).resolve("bundle@1"))
    small = Bundle(Store(shipped).resolve(done("export", f"--precision={precision}", store=shipped)["ref"]))
    assert small.spec["bytes"]["item"] < full.spec["bytes"]["item"] * (0.7 if precision == "fp16" else 0.5)
    user = {"patched": True, "counted": True, "events": [[f"i{at}", at] for at in range(5, 25)]}
    numbers = np.arange(80)
    logits = [Device(Graphs(bundle.artifact.path), user).logits(numbers) for bundle in (full, small)]
    assert 0 < np.abs(logits[0] - logits[1]).max() < (0.01 if precision == "fp16" else 0.03) * np.abs(logits[0]).max()


def test_fewer_related_items_are_shipped(shipped: Path) -> None:
    ref = done("export", "--neighbours=3", store=shipped)["ref"]
    bundle, full = (Bundle(Store(shipped).resolve(each)) for each in (ref, "bundle@1"))
    tables = [load_file(each.artifact.path / "items.safetensors") for each in (bundle, full)]
    for name in ("neighbours", "similarity", "predecessors", "transition_score"):
        assert tables[0][name].shape == (80, 3)
        np.testing.assert_array_equal(tables[0][name], tables[1][name][:, :3])
    assert done("evaluate", ref, "--threads=1", store=shipped)["subjects"] == [ref]


def test_items_that_are_not_shipped_are_never_shown(shipped: Path, tmp_path: Path) -> None:
    (tmp_path / "wanted.txt").write_text("i7\ni3\ni12\n")
    made = done("export", f"--items=@{tmp_path / 'wanted.txt'}", store=shipped)
    device = Device(Graphs(Bundle(Store(shipped).resolve(made["ref"])).artifact.path))
    assert sorted(item for item, _ in device.recommend(10)) == ["i12", "i3", "i7"]
    device.observe("i40", 5.0)
    device.observe("i3", 6.0)
    assert device.unknown == 1 and device.items == [device.graphs.number["i3"]]
    top = done("export", "--items=top:5", store=shipped)
    assert Bundle(Store(shipped).resolve(top["ref"])).spec["items"] == {"shipped": 5, "of": 80}
    lists = done("recommend", made["ref"], "--top=10", "-o", tmp_path / "lists.csv", "--threads=1", store=shipped)
    assert lists["candidates"] == 3
    assert set(pl.read_csv(tmp_path / "lists.csv")["item_id"]) <= {"i12", "i3", "i7"}
    evaluated = done("evaluate", made["ref"], "--threads=1", store=shipped)
    assert evaluated["subjects"] == [made["ref"]]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--items=top:0",), "not understood"),
        (("--items=some",), "not understood"),
        (("--items=@none.txt",), "cannot read"),
        (("--user=u1",), "with -o only"),
        (("-o", "here", "--user=nobody"), "no user"),
        (("dataset@1",), "cannot be exported"),
    ],
)
def test_what_cannot_be_exported(
    shipped: Path, flags: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = dcclctl("export", *flags, store=shipped)
    assert result.exit_code == 2 and said in result.stderr
    assert [*tmp_path.iterdir()] == []


def test_a_model_without_a_graph_is_named(shipped: Path) -> None:
    made = done("train", "--model=popularity", store=shipped)
    result = dcclctl("export", made["ref"], store=shipped)
    assert result.exit_code == 2 and "popularity" in result.stderr and "--model din" in result.stderr


def test_a_zip_file_is_the_folder(shipped: Path, tmp_path: Path) -> None:
    for name in ("a", "a.zip", "b.zip"):
        done("export", "patches@2", "-o", tmp_path / name, store=shipped)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        for name in archive.namelist():
            assert archive.read(name) == (tmp_path / "a" / name).read_bytes()
    assert dcclctl("export", "patches@2", "-o", tmp_path / "a", store=shipped).exit_code == 2


def test_a_budget_is_measured_and_held(shipped: Path, tmp_path: Path) -> None:
    made = done("export", "patches@2", "--measure", "-o", tmp_path / "measured", store=shipped)
    measured = made["measured"]
    assert measured["download_bytes"] == made["bytes"]["shared"] + made["bytes"]["items"]
    assert 0 < measured["ram_own_bytes"] < measured["ram_bytes"]
    assert measured["microjoules"] == pytest.approx(
        (4.6 * measured["macs"] + 162.5 * measured["moved_bytes"]) / 1e6, abs=0.1
    )
    assert measured["milliseconds"]["300"]["p95"] >= measured["milliseconds"]["20"]["p50"] > 0
    assert json.loads((tmp_path / "measured" / "bundle.json").read_bytes())["measured"] == measured
    Graphs(tmp_path / "measured")
    # the patches' gain at four ages is that of four evaluations
    ages = {(row["blocks_old"], row["metric"]): row for row in measured["staleness"]}
    assert ages.keys() == {(age, metric) for age in (0, 1, 2, 4) for metric in ("gauc", "ndcg@10")}
    flags = ("--against=cloud@1", "--k=10", "--on=test:3/5", "--threads=1")
    rows = done("evaluate", "patches@2", *flags, store=shipped)["comparison"]
    for metric in ("gauc", "ndcg@10"):
        wanted = next(row for row in rows if (row["group"], row["metric"]) == ("all", metric))
        assert ages[2, metric]["gain"] == pytest.approx(wanted["difference"])
        assert ages[2, metric]["users"] == wanted["users"] and ages[2, metric]["change"] is not None
    done("evaluate", "patches@2", "--against=cloud@1", "--threads=1", store=shipped)
    report = ("report", "-o", tmp_path / "report.html")
    done(*report, "--bundle", tmp_path / "measured", store=shipped)
    page = (tmp_path / "report.html").read_text()
    assert "On a device" in page and f"{100 * ages[2, 'gauc']['gain']:+.2f}" in page
    assert "On a device" not in (done(*report, store=shipped) and (tmp_path / "report.html").read_text())
    done("export", "patches@2", "-o", tmp_path / "plain", store=shipped)
    for folder, said in (("plain", "was not measured"), ("nothing", "holds no bundle")):
        refused = dcclctl("report", "--bundle", tmp_path / folder, store=shipped)
        assert refused.exit_code == 2 and said in refused.stderr


def test_a_budget_is_held(shipped: Path) -> None:
    assert dcclctl("export", "patches@2", "--max-bytes=100", store=shipped).exit_code == 4
    assert dcclctl("export", "patches@2", "--max-ms=0.0001", store=shipped).exit_code == 4
    assert dcclctl("export", "patches@2", "--max-bytes=100000000", "--max-ms=10000", store=shipped).exit_code == 0


@pytest.mark.parametrize("name", ["score.onnx", "items.safetensors", "catalogue.json"])
def test_a_cut_or_changed_bundle_is_refused(shipped: Path, name: str, tmp_path: Path) -> None:
    done("export", "patches@2", "-o", tmp_path / "cut", store=shipped)
    path = tmp_path / "cut" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} is cut or changed"):
        Graphs(tmp_path / "cut")
    path.unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        Graphs(tmp_path / "cut")


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("nothing", "holds no bundle"),
        ("[]", "version None"),
        ('{"spec": 99}', "version 99"),
        ('{"spec": 2, "files": {"../x": {"bytes": 1, "sha256": ""}}}', "missing"),
        ('{"spec": 2, "files": {"/etc/passwd": {"bytes": 1, "sha256": ""}}}', "missing"),
    ],
)
def test_a_document_that_is_no_bundle(document: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text(document)
    with pytest.raises(BundleError, match=said):
        Graphs(tmp_path)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("sizes", "ring"), None, "sizes.ring is no integer"),
        (("sizes", "ring"), 0, "sizes.ring is less than 1"),
        (("sizes", "ring"), True, "sizes.ring is no integer"),
        (("precision",), "int4", "precision is 'int4'"),
        (("graphs", "score.onnx", "inputs", 0, "shape"), [[]], "shape"),
        (("id",), "../x", "id is not like"),
        (("learning",), {"states": True}, "learning: steps is missing"),
        (("run",), "rm", "run is unknown"),
    ],
)
def test_a_damaged_document_is_refused_like_the_schema_does(
    shipped: Path, place: tuple[str | int, ...], value: Any, said: str, tmp_path: Path
) -> None:
    validators = pytest.importorskip("jsonschema")
    done("export", "patches@2", "-o", tmp_path / "bundle", store=shipped)
    path = tmp_path / "bundle" / "bundle.json"
    document = json.loads(path.read_bytes())
    schema = validators.Draft202012Validator(json.loads((tmp_path / "bundle" / "bundle.schema.json").read_bytes()))
    assert schema.is_valid(document)
    inside = document
    for name in place[:-1]:
        inside = inside[name]
    inside[place[-1]] = value
    assert not schema.is_valid(document)
    path.write_text(json.dumps(document))
    with pytest.raises(BundleError, match=said):
        Graphs(tmp_path / "bundle")


def test_a_state_of_another_bundle_is_refused(shipped: Path, tmp_path: Path) -> None:
    first = Graphs(Bundle(Store(shipped).resolve("bundle@1")).artifact.path)
    other = Bundle(Store(shipped).resolve(done("export", "--items=top:30", store=shipped)["ref"]))
    device = Device(first, {"events": [["i1", 1], ["i2", 2]]})
    device.save(tmp_path / "state.json")
    assert Device.load(first, tmp_path / "state.json").items == device.items
    with pytest.raises(BundleError, match="another bundle"):
        Device.load(Graphs(other.artifact.path), tmp_path / "state.json")
    with pytest.raises(BundleError, match="another bundle"):
        Device(first, {"theta": [1.0, 2.0]})
    with pytest.raises(BundleError, match="another bundle"):
        Device(first, {"bundle": other.spec["id"]})
    state = json.loads((tmp_path / "state.json").read_text())
    for damaged in ("", "[]", {**state, "items": [10**6, 1]}, {**state, "kept": [1]}, {**state, "moments": None}):
        (tmp_path / "damaged.json").write_text(damaged if isinstance(damaged, str) else json.dumps(damaged))
        with pytest.raises(BundleError, match="cut or damaged"):
            Device.load(first, tmp_path / "damaged.json")
