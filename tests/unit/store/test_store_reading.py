"""Finding artifacts, reading them, and noticing damage before anything is parsed."""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from store_worlds import events, flip_bit, make_cloud, make_dataset

from dcclctl.errors import ArtifactError, UsageError
from dcclctl.store import manifest
from dcclctl.store.canonical import canonical
from dcclctl.store.contents import file_sha256
from dcclctl.store.lineage import difference, lineage
from dcclctl.store.store import Artifact, Input, Store
from dcclctl.tables import EVENTS


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def anywhere(place: str) -> Store:
    return Store(place)


def test_nothing_is_created_before_begin(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert store.artifacts() == []
    assert not (tmp_path / "store").exists()


def test_what_was_written_is_read(anywhere: Store) -> None:
    dataset = make_dataset(anywhere)
    cloud = make_cloud(anywhere, dataset)
    assert_frame_equal(dataset.read_table("events.parquet"), events())
    assert dataset.read_json("rejects.json") == {"bad time": 2}
    assert (dataset.ref, dataset.seed, dataset.facts["events"]) == ("dataset@1", 7, 5)
    assert dataset.config == {"split": "global", "rows": 5}
    assert dataset.manifest["tables"]["events.parquet"] == {
        "rows": 5,
        "schema": {name: column.type for name, column in EVENTS.columns.items()},
    }
    assert cloud.inputs == {"dataset": Input("dataset", dataset.id)}
    tensors = cloud.read_tensors("model.safetensors")
    assert torch.equal(tensors["weight"], torch.arange(6.0).reshape(3, 2))
    assert cloud.tensor_metadata("model.safetensors") == {"sizes": [3, 2]}
    assert cloud.run["seconds"] >= 0
    assert json.loads(cloud.disk.read(cloud.path / "metrics.jsonl")) == {"epoch": 0, "loss": 0.7, "seconds": 1.5}


def test_the_artifact_that_commit_returns_is_the_one_that_is_found(store: Store) -> None:
    made = make_dataset(store)
    assert made == store.latest("dataset") == store.find("dataset", made.id)
    assert made.id == hashlib.sha256((made.path / "manifest.json").read_bytes()).hexdigest()


def test_files_are_read_only(store: Store) -> None:
    made = make_cloud(store, make_dataset(store))
    files = [path for path in made.path.rglob("*") if path.is_file()]
    assert len(files) == 5
    assert [path for path in files if path.stat().st_mode & 0o222] == []


def test_manifest_has_only_the_allowed_fields_and_nothing_of_the_machine(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DCCL_TEST_MARKER", "secret-of-the-environment")
    made = make_cloud(store, make_dataset(store))
    text = (made.path / "manifest.json").read_text()
    assert set(json.loads(text)) == manifest.FIELDS
    for private in (str(store.root), str(Path.cwd()), "secret-of-the-environment", sys.executable, sys.argv[0]):
        assert private not in text


def test_a_role_with_a_path_is_refused(store: Store) -> None:
    with (
        pytest.raises(ValueError, match="holds a path"),
        store.begin("ingest", "dataset", {}, 0, {"log:/data/events.csv": Input("raw", "a" * 64)}),
    ):
        pass


MAKE_IN_ANOTHER_PROCESS = """
import sys
import time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from store_worlds import make_cloud, make_dataset
from dcclctl.store.store import Store
from dcclctl.tables import EVENTS
store = Store(Path(sys.argv[1]))
print(make_cloud(store, make_dataset(store)).id)
"""


def test_same_work_has_the_same_id_in_another_process_store_and_folder(store: Store, tmp_path: Path) -> None:
    here = make_cloud(store, make_dataset(store)).id
    (tmp_path / "elsewhere").mkdir()
    environment = {
        "PYTHONPATH": str(Path(manifest.__file__).parents[2]),
        "PYTHONHASHSEED": "5",
        "POLARS_MAX_THREADS": "1",
        "TZ": "Asia/Tokyo",
    }
    command = [sys.executable, "-c", MAKE_IN_ANOTHER_PROCESS, "other-store", str(Path(__file__).parent)]
    done = subprocess.run(
        command,
        cwd=tmp_path / "elsewhere",
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == here, done.stderr


def test_tables_have_the_same_bytes_however_they_are_chunked(store: Store) -> None:
    whole = events(1000)
    chunks = pl.concat([whole[:1], whole[1:700], whole[700:]], rechunk=False)
    hashes = []
    for seed, table in enumerate((whole, chunks)):
        with store.begin("ingest", "dataset", {}, seed, {}) as work:
            work.write_table("events.parquet", table)
            hashes.append(work.commit({}).manifest["files"]["events.parquet"])
    assert hashes[0] == hashes[1]


# -- references


def test_references_find_the_artifact(anywhere: Store) -> None:
    first, second = make_dataset(anywhere, 1), make_dataset(anywhere, 2)
    anywhere.tag(first, "golden")
    for reference in (
        "dataset@1",
        "dataset@000001",
        "dataset@golden",
        f"dataset@{first.id[:12]}",
        f"dataset@{first.id}",
    ):
        assert anywhere.resolve(reference) == first
    for reference in ("dataset", "dataset@latest", "dataset@2"):
        assert anywhere.resolve(reference, "dataset") == second
    assert [made.ref for made in anywhere.artifacts()] == ["dataset@1", "dataset@2"]


def test_an_alias_moves(anywhere: Store) -> None:
    first, second = make_dataset(anywhere, 1), make_dataset(anywhere, 2)
    anywhere.tag(first, "golden")
    anywhere.tag(second, "golden")
    assert (anywhere.aliases(first), anywhere.aliases(second)) == ([], ["golden"])
    assert anywhere.resolve("dataset@golden") == second


def test_an_ambiguous_prefix_lists_what_it_could_be(store: Store) -> None:
    made = [make_dataset(store, rows) for rows in (1, 2)]
    for artifact, id in zip(made, ("abcd1" + "0" * 59, "abcd2" + "0" * 59), strict=True):
        path = artifact.path / "manifest.sha256"
        path.chmod(0o644)
        path.write_text(f"{id}  manifest.json\n")
    with pytest.raises(UsageError) as caught:
        store.resolve("dataset@abcd")
    assert "dataset@1 (abcd1" in caught.value.what
    assert "dataset@2 (abcd2" in caught.value.what


def test_several_versions_with_one_id_are_not_ambiguous(anywhere: Store) -> None:
    first = make_dataset(anywhere)
    again = make_dataset(anywhere, force=True)
    assert (again.number, again.id) == (2, first.id)
    assert anywhere.resolve(f"dataset@{first.id[:7]}") == again


@pytest.mark.parametrize(
    ("reference", "kind", "said"),
    [
        ("dataset@9", None, "Type one of: dataset@1, dataset@golden"),
        ("dataset@goldn", None, "Did you mean dataset@golden?"),
        ("dataset@abcdef", None, "Type one of: dataset@1, dataset@golden"),
        ("dataset@1", "cloud", "run first: dcclctl train"),
        ("cloud@1", "dataset", "Type one of: dataset@1, dataset@golden"),
        ("cloud", None, "Run first: dcclctl train"),
        ("patches@latest", "patches", "Run first: dcclctl patch"),
    ],
)
def test_a_wrong_reference_says_what_to_type(anywhere: Store, reference: str, kind: str | None, said: str) -> None:
    anywhere.tag(make_dataset(anywhere), "golden")
    with pytest.raises(UsageError) as caught:
        anywhere.resolve(reference, kind)
    assert said in caught.value.remedy


def test_an_input_that_is_gone_is_an_error(anywhere: Store) -> None:
    with pytest.raises(ArtifactError, match=r"id ffffffffffff… is not in the store"):
        anywhere.find("cloud", "f" * 64)


# -- damage


def _read_everything(artifact: Artifact) -> None:
    for name in artifact.manifest["files"]:
        artifact.file(name)


@pytest.mark.parametrize("name", ["events.parquet", "rejects.json", "manifest.json", "manifest.sha256"])
def test_one_flipped_bit_anywhere_is_found_before_parsing(store: Store, name: str) -> None:
    path = make_dataset(store).path / name
    whole = path.read_bytes()
    for position in range(0, len(whole), max(1, len(whole) // 40)):
        flip_bit(path, position)
        with pytest.raises(ArtifactError, match=r"dataset@1 is damaged"):
            _read_everything(store.resolve("dataset@1"))
        assert store.verify("dataset", 1)
        path.write_bytes(whole)
    _read_everything(store.resolve("dataset@1"))


def test_the_message_names_file_artifact_and_remedy(store: Store) -> None:
    dataset = make_dataset(store)
    flip_bit(dataset.path / "events.parquet", 100)
    with pytest.raises(ArtifactError) as caught:
        dataset.read_table("events.parquet")
    assert "dataset@1" in caught.value.what
    assert "events.parquet" in caught.value.what
    assert "dcclctl ingest events.csv --seed 7 --force" in caught.value.remedy


@pytest.mark.parametrize("name", ["events.parquet", "manifest.json", "manifest.sha256"])
def test_a_missing_file_is_damage(store: Store, name: str) -> None:
    (make_dataset(store).path / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        _read_everything(store.resolve("dataset@1"))


def test_a_hash_is_remembered_only_for_a_file_whose_time_stamp_has_settled(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for age_seconds, remembered in ((10, True), (0, False)):
        moment = time.time_ns() - age_seconds * 10**9
        hashes = []
        for content in (b"one", b"two"):
            path.write_bytes(content)
            os.utime(path, ns=(moment, moment))
            with path.open("rb") as file:
                hashes.append(file_sha256(file))
        assert (hashes[0] == hashes[1]) is remembered


def test_other_size_and_foreign_files_are_damage(store: Store) -> None:
    dataset = make_dataset(store)
    (dataset.path / "extra.bin").write_bytes(b"x")
    path = dataset.path / "rejects.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    assert dataset.verify() == {"extra.bin": "is not in the manifest", "rejects.json": "has 14 bytes instead of 15"}
    with pytest.raises(ArtifactError, match=r"nothing\.json is not in the manifest"):
        dataset.file("nothing.json")


def test_a_corrupt_latest_never_falls_back(store: Store) -> None:
    make_dataset(store, 1)
    flip_bit(make_dataset(store, 2).path / "manifest.json", 50)
    for find in (lambda: store.latest("dataset"), lambda: store.resolve("dataset")):
        with pytest.raises(ArtifactError, match="dataset@2 is damaged"):
            find()


@pytest.mark.parametrize("version", [manifest.FORMAT - 1, manifest.FORMAT + 1])
def test_another_format_version_is_named(store: Store, version: int) -> None:
    dataset = make_dataset(store)
    _replace_manifest(dataset, {**dataset.manifest, "format": version})
    with pytest.raises(ArtifactError) as caught:
        store.latest("dataset")
    assert f"has format version {version}" in caught.value.what
    assert f"reads version {manifest.FORMAT}" in caught.value.what
    assert f"reads format version {version}" in caught.value.remedy


def test_a_manifest_with_other_fields_or_another_kind_is_refused(store: Store) -> None:
    dataset = make_dataset(store)
    _replace_manifest(dataset, {**dataset.manifest, "argv": ["x"]})
    with pytest.raises(ArtifactError, match="argv"):
        store.latest("dataset")
    _replace_manifest(dataset, {**dataset.manifest, "kind": "cloud"})
    with pytest.raises(ArtifactError, match="of kind cloud"):
        store.latest("dataset")


def _replace_manifest(artifact: Artifact, document: dict[str, object]) -> None:
    data = canonical(document)
    for name, content in (
        ("manifest.json", data),
        ("manifest.sha256", hashlib.sha256(data).hexdigest().encode() + b"  manifest.json\n"),
    ):
        (artifact.path / name).chmod(0o644)
        (artifact.path / name).write_bytes(content)


# -- lineage and difference


def test_lineage_goes_down_to_the_raw_log(anywhere: Store) -> None:
    dataset = make_dataset(anywhere)
    cloud = make_cloud(anywhere, dataset)
    top = lineage(cloud)
    assert (top.ref, [node.ref for node in top.inputs]) == ("cloud@1", ["dataset@1"])
    (raw,) = top.inputs[0].inputs
    assert (raw.role, raw.kind, raw.id) == ("log:events.csv", "raw", "a" * 64)


def test_lineage_marks_what_is_gone(store: Store) -> None:
    dataset = make_dataset(store)
    cloud = make_cloud(store, dataset)
    (dataset.path / "manifest.json").unlink()
    (node,) = lineage(cloud).inputs
    assert node.id == dataset.id
    assert "manifest.json is missing" in node.problem


def test_difference_shows_what_changed_and_nothing_else(anywhere: Store) -> None:
    dataset, other = make_dataset(anywhere, 1), make_dataset(anywhere, 2)
    one, two = make_cloud(anywhere, dataset, 1), make_cloud(anywhere, other, 2)
    assert difference(one, two) == {
        "config": {"epochs": (1, 2)},
        "inputs": {"dataset": (f"dataset {dataset.id}", f"dataset {other.id}")},
        "facts": {"loss": (0.5, 0.25)},
    }
    assert difference(one, one) == {}
    with pytest.raises(UsageError, match="nothing to compare"):
        difference(one, dataset)


def test_difference_of_evaluations_compares_metrics(store: Store) -> None:
    made = []
    for number, tail in enumerate((0.25, 0.5)):
        with store.begin("evaluate", "evaluation", {"k": [5]}, number, {}) as work:
            rows = {"subject": [f"cloud@{number}"] * 2, "group": ["all", "tail"], "metric": ["ndcg@5"] * 2}
            work.write_table("aggregate.parquet", pl.DataFrame({**rows, "value": [0.5, tail], "users": [9, 4]}))
            made.append(work.commit({}))
    assert difference(*made) == {"config": {"seed": (0, 1)}, "metrics": {"tail.ndcg@5": (0.25, 0.5)}}


def test_tensors_come_in_the_order_of_their_names(anywhere: Store) -> None:
    """What is drawn for one tensor after the other is then the same in every process."""
    names = [f"w{number}" for number in range(40)]
    with anywhere.begin("train", "cloud", {}, 0, {}) as work:
        work.write_tensors("model.safetensors", {name: torch.zeros(2) for name in reversed(names)})
        made = work.commit({})
    assert list(made.read_tensors("model.safetensors")) == sorted(names)
