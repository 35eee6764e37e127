"""A manifest is input: whatever stands in a version's folder is one damaged artifact, never a hang or a traceback."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from store_worlds import make_cloud, make_dataset
from typer.testing import CliRunner

from dcclctl.cli.main import app
from dcclctl.errors import ArtifactError
from dcclctl.stages.remake import command_again
from dcclctl.store.canonical import canonical
from dcclctl.store.store import Artifact, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def replace(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def rehash(artifact: Artifact, data: bytes) -> None:
    """Another manifest with its right hash."""
    replace(artifact.path / "manifest.json", data)
    replace(artifact.path / "manifest.sha256", f"{hashlib.sha256(data).hexdigest()}  manifest.json\n".encode())


def changed(artifact: Artifact, **fields: Any) -> bytes:
    return canonical({**artifact.manifest, **fields})


def _file(name: str, artifact: Artifact) -> bytes:
    return changed(artifact, files={name: {"bytes": 3, "sha256": "a" * 64}}, tables={})


deep = b'{"format":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
MANIFESTS: dict[str, Callable[[Artifact], bytes]] = {
    "a number": lambda artifact: b"5",
    "null": lambda artifact: b"null",
    "a list": lambda artifact: b"[]",
    "no JSON": lambda artifact: b"{",
    "no UTF-8": lambda artifact: b'{"\xff": 1}',
    "deep": lambda artifact: deep,
    "deep facts": lambda artifact: canonical(artifact.manifest).replace(
        b'"facts":{', b'"facts":{"a":' + b'{"a":' * 60 + b"1" + b"}" * 60 + b","
    ),
    "NaN": lambda artifact: canonical(artifact.manifest).replace(b'"seed":7', b'"seed":NaN'),
    "a figure that overflows": lambda artifact: canonical(artifact.manifest).replace(
        b'"facts":{', b'"facts":{"a":1e999,'
    ),
    "seed of text": lambda artifact: changed(artifact, seed="7"),
    "inputs of a list": lambda artifact: changed(artifact, inputs=[]),
    "input of no kind": lambda artifact: changed(artifact, inputs={"x": {"kind": "x", "id": "a" * 64}}),
    "short id": lambda artifact: changed(artifact, inputs={"x": {"kind": "raw", "id": "a"}}),
    "negative size": lambda artifact: changed(
        artifact, files={"rejects.json": {"bytes": -1, "sha256": "a" * 64}}, tables={}
    ),
    "format of a list": lambda artifact: changed(artifact, format=[2]),
    "above": lambda artifact: _file("../../../../secret", artifact),
    "absolute": lambda artifact: _file("/etc/hostname", artifact),
    "zero byte": lambda artifact: _file("a\0b", artifact),
    "a device": lambda artifact: _file("/dev/zero", artifact),
    "itself": lambda artifact: _file("manifest.json", artifact),
    "facts of text": lambda artifact: changed(artifact, facts="none"),
}


@pytest.mark.parametrize("what", MANIFESTS)
def test_a_manifest_that_dcclctl_did_not_write_is_one_damaged_artifact(store: Store, what: str) -> None:
    whole = make_dataset(store, 1)
    bad = make_dataset(store, 2)
    rehash(bad, MANIFESTS[what](bad))
    with pytest.raises(ArtifactError, match="dataset@2"):
        store.resolve("dataset@2")
    assert list(store.verify("dataset", 2)) == ["manifest.json"]
    assert store.resolve("dataset@1") == whole
    run_list(store, "dataset@2")


def run_list(store: Store, damaged: str) -> None:
    """`artifacts list` names the damaged one in one line, and exits 0."""
    result = CliRunner().invoke(app, ["artifacts", "list", "--store", str(store.root)])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines if "DAMAGED" in line] == [damaged]
    listed = json.loads(CliRunner().invoke(app, ["artifacts", "list", "--json", "--store", str(store.root)]).stdout)
    assert [row["ref"] for row in listed["artifacts"] if row["problem"]] == [damaged]


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


SPECIALS: dict[str, Callable[[Path], None]] = {
    "a FIFO": make_fifo,
    "a link to the same bytes": lambda path: path.symlink_to(path.with_name("elsewhere")),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("what", SPECIALS)
@pytest.mark.parametrize("name", ["manifest.json", "manifest.sha256", "rejects.json"])
def test_only_regular_files_are_read(store: Store, tmp_path: Path, name: str, what: str) -> None:
    path = make_dataset(store, 1).path / name
    path.rename(path.with_name("elsewhere"))
    SPECIALS[what](path)
    found = store.verify("dataset", 1)
    assert (name if name == "rejects.json" else "manifest.json") in found
    with pytest.raises(ArtifactError, match="dataset@1 is damaged"):
        store.resolve("dataset@1").read_json("rejects.json")


def test_a_link_in_place_of_a_version_or_a_folder_is_damage(store: Store, tmp_path: Path) -> None:
    made = make_dataset(store, 1)
    made.path.rename(tmp_path / "outside")
    made.path.symlink_to(tmp_path / "outside")
    with pytest.raises(ArtifactError, match="dataset@1 is damaged"):
        store.resolve("dataset@1")
    run_list(store, "dataset@1")


def test_a_linked_folder_inside_an_artifact_is_damage(store: Store, tmp_path: Path) -> None:
    with store.begin("patch", "patches", {}, 0, {}) as work:
        work.write_json("inner/x.json", 1)
        made = work.commit({})
    (made.path / "inner").rename(tmp_path / "inner")
    (made.path / "inner").symlink_to(tmp_path / "inner")
    assert set(made.verify()) == {"inner/x.json", "inner"}
    with pytest.raises(ArtifactError, match="patches@1 is damaged"):
        made.read_json("inner/x.json")


@pytest.mark.parametrize("run", [b"5", b"[]", b'{"finished": 7, "seconds": "x"}', deep, b"\xff"])
def test_run_json_is_not_trusted(store: Store, run: bytes) -> None:
    made = make_dataset(store, 1)
    replace(made.path / "run.json", run)
    assert store.resolve("dataset@1").run == {}
    result = CliRunner().invoke(app, ["artifacts", "list", "--store", str(store.root)])
    assert (result.exit_code, "DAMAGED" in result.stdout) == (0, False)
    assert CliRunner().invoke(app, ["artifacts", "show", "dataset", "--store", str(store.root)]).exit_code == 0


@pytest.mark.parametrize("name", ["00000²", "0000０1", "000000", "7", "00001 ", ".000009"])
def test_only_six_ascii_digits_are_a_version(store: Store, name: str) -> None:
    made = make_dataset(store, 1)
    (made.path.parent / name).mkdir()
    assert store.numbers("dataset") == [1]
    assert make_dataset(store, 2).number == 2


def test_names_of_references_are_input_too(store: Store) -> None:
    made = make_dataset(store, 1)
    refs = store.root / "dataset" / "refs"
    store.tag(made, "good")
    os.mkfifo(refs / "waits")
    (refs / "\x1b[31m").write_text(made.id)
    (refs / "..odd").write_text(made.id)
    result = CliRunner().invoke(app, ["artifacts", "list", "--store", str(store.root)])
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    with pytest.raises(ArtifactError, match="waits"):
        store.resolve("dataset@waits")


def test_facts_that_are_missing_are_an_error_with_the_name(store: Store) -> None:
    bad = make_dataset(store, 1)
    rehash(bad, changed(bad, facts={"users": 60}))
    run_list(store, "dataset@1")
    with pytest.raises(ArtifactError, match=r"dataset@1 is damaged: 'id_map' is missing in the facts"):
        store.resolve("dataset@1").facts["id_map"]


def test_content_with_right_hashes_that_no_parser_takes_is_an_error_with_the_name(store: Store) -> None:
    with store.begin("patch", "patches", {}, 0, {}) as work:
        for name in ("users.parquet", "theta.safetensors", "facts.json"):
            with work.new_file(name.replace("parquet", "bin")) as path:
                path.write_bytes(b"\xff" * 64)
        made = work.commit({})
    for read, name in (
        (made.read_table, "users.bin"),
        (made.read_tensors, "theta.safetensors"),
        (made.tensor_metadata, "theta.safetensors"),
        (made.read_json, "facts.json"),
    ):
        with pytest.raises(ArtifactError, match=rf"patches@1 is damaged: {name} cannot be parsed"):
            read(name)


def test_the_path_of_a_store_is_no_pattern(tmp_path: Path) -> None:
    """Polars takes 's[1]' for a pattern that 's1' fits."""
    plain, bracket = Store(tmp_path / "s1"), Store(tmp_path / "s[1]")
    made = {store: make_dataset(store, rows) for store, rows in ((plain, 2), (bracket, 3))}
    for store, rows in ((plain, 2), (bracket, 3)):
        assert made[store].read_table("events.parquet").height == rows
        assert made[store].manifest["tables"]["events.parquet"]["rows"] == rows
        assert make_cloud(store, made[store]).verify() == {}


def test_the_bytes_that_are_parsed_are_those_that_were_hashed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that another program replaces after the check does not matter."""
    made = make_dataset(store, 4)
    path = made.path / "events.parquet"
    other = make_dataset(store, 2).read("events.parquet")
    checked = Artifact.read

    def read(self: Artifact, name: str) -> bytes:
        data = checked(self, name)
        replace(path, other)
        return data

    monkeypatch.setattr(Artifact, "read", read)
    assert made.read_table("events.parquet").height == 4


def test_the_remedy_names_the_command_that_made_it(store: Store) -> None:
    cloud = make_cloud(store, make_dataset(store))
    with store.begin("patch", "patches", {}, 0, {"cloud": cloud.as_input()}) as work:
        patches = work.commit({})
    inputs = {"cloud": cloud.as_input(), "patches": patches.as_input()}
    with store.begin("distill", "cloud", {"method": "momodistill"}, 0, inputs) as work:
        work.write_json("model.json", {"model": "din"})
        distilled = work.commit({})
    replace(distilled.path / "model.json", b"x")
    with pytest.raises(ArtifactError) as caught:
        distilled.read_json("model.json")
    assert f"dcclctl distill --patches patches@{patches.id[:12]} --force" in caught.value.remedy


def test_the_command_of_an_unknown_stage_is_said_all_the_same(store: Store) -> None:
    manifest = make_cloud(store, make_dataset(store)).manifest | {"stage": "tvain", "config": {"": "din"}}
    assert command_again(manifest, store) == "dcclctl tvain"
