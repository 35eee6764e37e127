"""Artifacts as one file: the same artifacts in another store, and nothing else from a hostile file."""

import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from store_worlds import flip_bit, make_cloud, make_dataset
from typer.testing import CliRunner

from dcclctl.cli.main import app
from dcclctl.errors import ArtifactError, DataError, UsageError
from dcclctl.store.archive import export_archive, import_archive
from dcclctl.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """dataset@1 and cloud@1, which is named release; and cloud@2."""
    store = Store(tmp_path / "store")
    dataset = make_dataset(store)
    store.tag(make_cloud(store, dataset, 1), "release")
    make_cloud(store, dataset, 2)
    return store


@pytest.fixture
def archive(store: Store, tmp_path: Path) -> Path:
    export_archive(store, ["cloud@release"], tmp_path / "release.tar")
    return tmp_path / "release.tar"


@pytest.fixture
def other(tmp_path: Path) -> Store:
    return Store(tmp_path / "other")


def test_what_was_exported_is_imported_with_what_it_needs(store: Store, archive: Path, other: Store) -> None:
    make_dataset(other, 3)
    done = import_archive(other, archive)
    assert [artifact.ref for artifact in done.new] == ["dataset@2", "cloud@1"]
    cloud = other.resolve("cloud@release")
    assert (cloud.id, cloud.verify()) == (store.resolve("cloud@1").id, {})
    assert cloud.input("dataset").read_table("events.parquet").height == 5
    assert set(cloud.run) == {"imported"}
    again = import_archive(other, archive)
    assert (again.new, [artifact.ref for artifact in again.present]) == ([], ["dataset@2", "cloud@1"])
    assert list((other.root / "cloud" / "work").iterdir()) == []


def test_equal_artifacts_give_equal_bytes(store: Store, archive: Path, other: Store, tmp_path: Path) -> None:
    import_archive(other, archive)
    export_archive(other, ["cloud@1"], tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == archive.read_bytes()
    with tarfile.open(archive) as tar:
        assert {(info.mtime, info.uid, info.uname) for info in tar} == {(0, 0, "")}
        assert {name.rpartition("/")[2] for name in tar.getnames()} & {"run.json", "metrics.jsonl"} == set()


def test_a_damaged_copy_is_mended(store: Store, archive: Path, other: Store) -> None:
    import_archive(other, archive)
    flip_bit(other.folder("cloud", 1) / "model.safetensors", 99)
    assert [artifact.ref for artifact in import_archive(other, archive).new] == ["cloud@2"]
    assert other.resolve("cloud@release").verify() == {}


def test_a_name_that_means_something_else_stays(store: Store, archive: Path, other: Store) -> None:
    mine = make_cloud(other, make_dataset(other), 9)
    other.tag(mine, "release")
    done = import_archive(other, archive)
    assert (done.names, done.names_taken) == ([], ["cloud@release"])
    assert other.resolve("cloud@release") == mine


def test_a_damaged_artifact_is_not_exported(store: Store, tmp_path: Path) -> None:
    flip_bit(store.folder("dataset", 1) / "rejects.json", 3)
    with pytest.raises(ArtifactError, match="dataset@1 is damaged"):
        export_archive(store, ["cloud@1"], tmp_path / "x.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["store"], "nothing half is left"


def test_every_byte_counts(archive: Path, tmp_path: Path) -> None:
    whole = archive.read_bytes()
    for position in range(0, len(whole), 97):
        data = bytearray(whole)
        data[position] ^= 1 << (position % 8)
        (tmp_path / "bad.tar").write_bytes(data)
        root = tmp_path / f"store-{position}"
        try:
            done = import_archive(Store(root), tmp_path / "bad.tar")
        except DataError:
            pass
        else:  # padding, or a part of a header that nothing reads
            assert [artifact.verify() for artifact in done.new] == [{}, {}]
        for artifact in Store(root).artifacts():
            assert artifact.verify() == {}


def test_an_archive_cut_anywhere_is_refused(archive: Path, tmp_path: Path) -> None:
    whole = archive.read_bytes()
    for length in range(0, len(whole), 331):
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        with pytest.raises(DataError):
            import_archive(Store(tmp_path / "cut"), tmp_path / "cut.tar")
    assert list((tmp_path / "cut" / "cloud" / "work").iterdir()) == []


def members(archive: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(archive) as tar:
        return [(info, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]


def packed(found: list[tuple[tarfile.TarInfo, bytes]], path: Path, format: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for info, data in found:
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    "type", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE, tarfile.XHDTYPE]
)
def test_only_plain_files_are_taken(archive: Path, other: Store, tmp_path: Path, type: bytes) -> None:
    for at in range(len(members(archive))):
        found = members(archive)
        found[at][0].type, found[at][0].linkname = type, "/etc/passwd"
        with pytest.raises(DataError):
            import_archive(other, packed(found, tmp_path / "bad.tar"))


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "cloud/x", "dataset/../../x"])
def test_a_name_cannot_lead_out(archive: Path, other: Store, tmp_path: Path, name: str) -> None:
    for at in range(len(members(archive))):
        found = members(archive)
        found[at][0].name = name
        with pytest.raises(DataError):
            import_archive(other, packed(found, tmp_path / "bad.tar"))
    outside = {path.name for path in tmp_path.iterdir()}
    assert outside <= {"store", "other", "release.tar", "bad.tar"}


def test_sizes_that_lie_are_refused_before_anything_is_read(archive: Path, other: Store, tmp_path: Path) -> None:
    data = archive.read_bytes()
    info = tarfile.TarInfo.frombuf(data[:512], "ascii", "strict")
    info.size = 2**40
    (tmp_path / "bad.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + data[512:])
    with pytest.raises(DataError, match="has 1099511627776 bytes"):
        import_archive(other, tmp_path / "bad.tar")


@pytest.mark.parametrize(
    "index",
    [
        b"5",
        b"[" * 100_000,
        b'{"format":1,"artifacts":[{"kind":"../x","id":"' + b"a" * 64 + b'"}],"names":{}}',
        b'{"format":1,"artifacts":[{"kind":"cloud","id":"../../x"}],"names":{}}',
        b'{"format":1,"artifacts":[{"kind":"cloud","id":7}],"names":{}}',
        b'{"format":1,"artifacts":[{"kind":[],"id":"' + b"a" * 64 + b'"}],"names":{}}',
        b'{"format":1,"artifacts":[],"names":{"cloud@x":"' + b"a" * 64 + b'"}}',
        b'{"format":9,"artifacts":[],"names":{}}',
    ],
)
def test_a_hostile_index_is_refused(archive: Path, other: Store, tmp_path: Path, index: bytes) -> None:
    found = members(archive)
    found[0][0].size = len(index)
    with pytest.raises(DataError):
        import_archive(other, packed([(found[0][0], index), *found[1:]], tmp_path / "bad.tar"))


def test_an_artifact_without_what_it_stands_on_is_refused(archive: Path, other: Store, tmp_path: Path) -> None:
    found = [(info, data) for info, data in members(archive) if not info.name.startswith("dataset/")]
    index = json.loads(found[0][1])
    index["artifacts"] = [each for each in index["artifacts"] if each["kind"] == "cloud"]
    data = json.dumps(index).encode()
    found[0][0].size = len(data)
    with pytest.raises(DataError, match="lacks dataset"):
        import_archive(other, packed([(found[0][0], data), *found[1:]], tmp_path / "bad.tar"))
    assert other.artifacts() == []


def test_only_a_regular_file_is_imported(other: Store, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError, match="cannot read"):
            import_archive(other, path)


def test_the_commands(store: Store, other: Store, tmp_path: Path) -> None:
    def run(*words: str) -> str:
        result = CliRunner().invoke(app, ["artifacts", *words])
        assert result.exit_code == 0, result.output
        return result.output

    file = str(tmp_path / "one.tar")
    assert "2 artifacts in " in run("export", "cloud@release", "-o", file, "--store", str(store.root))
    text = run("import", file, "--store", str(other.root))
    assert text.splitlines() == ["new: events.csv (dataset@1)", "new: release (cloud@1)"]
    assert json.loads(run("import", file, "--json", "--store", str(other.root)))["present"] == ["dataset@1", "cloud@1"]
