"""The five commands, one after another, as a person or a script types them."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from world import DISTILL, EVALUATE, PATCH, TRAIN, World, dcclctl, done, five_stages, write_log

#: command, arguments, what it is a version of
STAGES = [
    ("train", TRAIN, "cloud@1"),
    ("patch", ("--users=tail", *PATCH), "patches@1"),
    ("distill", DISTILL, "cloud@2"),
    ("evaluate", EVALUATE, "evaluation@1"),
]


def arguments_of(world: World, store: Path, command: str, flags: tuple[str, ...]) -> list[object]:
    """The same work as in the world: train there is on dataset@1, patch on cloud@1."""
    log = world.log
    if command == "ingest":
        return ["ingest", log, "--users", log.with_name("users.csv"), "--items", log.with_name("items.csv")]
    extra = {"patch": ["--cloud", "cloud@1"]}.get(command, [])
    return [command, *flags, *extra]


ALL = [("ingest", (), "dataset@1"), *STAGES]


def test_without_any_reference(world: World) -> None:
    found = done("artifacts", "list", store=world.root)["artifacts"]
    assert [row["ref"] for row in found] == ["dataset@1", "cloud@1", "cloud@2", "patches@1", "evaluation@1"]
    assert all(not row["problem"] for row in found)
    assert {row["id"] for row in found} == set(world.ids.values())
    assert dcclctl("artifacts", "verify", store=world.root).exit_code == 0


def test_default_evaluation_compares_the_cloud_under_the_patches_the_patches_and_the_newest_cloud(world: World) -> None:
    given = world.artifact("evaluation@1").inputs
    subjects = [given[role].id for role in given if role.startswith("subject")]
    assert subjects == [world.ids["train"], world.ids["patch"], world.ids["distill"]]


def test_same_ids_in_another_store_folder_and_working_directory(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "some where"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert five_stages(Path("lög"), Path("a/b/store")) == world.ids
    for manifest in elsewhere.rglob("manifest.json"):
        text = manifest.read_text()
        assert str(tmp_path) not in text and "some where" not in text and os.uname().nodename not in text


@pytest.mark.parametrize(("command", "flags", "ref"), STAGES)
def test_another_seed_is_another_artifact(shop: Path, command: str, flags: tuple[str, ...], ref: str) -> None:
    extra = ["--cloud=cloud@1"] if command == "patch" else []
    made = done(command, *flags, *extra, "--seed=7", store=shop)
    before = World(shop, shop, {}).artifact(ref)
    assert not made["reused"]
    assert made["id"] != before.id
    now = World(shop, shop, {}).artifact(made["ref"])
    assert now.seed == 7
    # not the seed's name alone: what was drawn is another
    assert now.manifest["files"] != before.manifest["files"]


@pytest.mark.parametrize(("command", "flags", "ref"), ALL)
def test_json_is_one_object_and_reuse_is_said(world: World, command: str, flags: tuple[str, ...], ref: str) -> None:
    result = dcclctl(*arguments_of(world, world.root, command, flags), "--json", store=world.root)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("\n") == 1
    found = json.loads(result.stdout)
    assert (found["ref"], found["id"], found["reused"]) == (ref, world.ids_of(ref), True)


@pytest.mark.parametrize(("command", "flags", "ref"), ALL)
def test_quiet_prints_the_bare_reference(world: World, command: str, flags: tuple[str, ...], ref: str) -> None:
    result = dcclctl(*arguments_of(world, world.root, command, flags), "--quiet", store=world.root)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{ref}\n", "")


@pytest.mark.parametrize(("command", "flags", "ref"), ALL)
def test_last_line_for_people_names_reference_and_reuse(
    world: World, command: str, flags: tuple[str, ...], ref: str
) -> None:
    result = dcclctl(*arguments_of(world, world.root, command, flags), store=world.root)
    assert result.stdout.splitlines()[-1] == f"{ref}  {world.ids_of(ref)[:12]}  (reused)"


@pytest.mark.parametrize(("command", "flags", "ref"), ALL)
def test_force_makes_a_new_version_with_the_same_id(
    world: World, shop: Path, command: str, flags: tuple[str, ...], ref: str
) -> None:
    made = done(*arguments_of(world, shop, command, flags), "--force", store=shop)
    kind = ref.partition("@")[0]
    newest = max(number for number in world.store.numbers(kind))
    assert made == made | {"ref": f"{kind}@{newest + 1}", "id": world.ids_of(ref), "reused": False}


def test_a_real_process_keeps_stdout_for_results(world: World, tmp_path: Path) -> None:
    environment = os.environ | {"DCCL_STORE": str(world.root)}
    command = [sys.executable, "-m", "dcclctl", "evaluate", *EVALUATE]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=tmp_path)
    assert ran.returncode == 0
    assert ran.stdout.endswith(f"evaluation@1  {world.ids['evaluate'][:12]}  (reused)\n")
    assert "cloud@2" in ran.stdout and "\x1b" not in ran.stdout
    # nothing is drawn where stderr is no terminal; what lasts half a minute is said in a line
    assert re.fullmatch(r"(start: \d+ s so far\n)*time: .* %\n", ran.stderr)
    assert list(tmp_path.iterdir()) == []


def test_a_real_process_writes_errors_to_stderr(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dcclctl", "train", "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.splitlines() == [
        "error: there is no dataset in the store .dccl yet",
        "  Run first: dcclctl ingest LOG   (or name another store with --store DIR)",
    ]
    assert list(tmp_path.iterdir()) == []  # looking leaves no store behind


def test_output_that_cannot_show_every_letter(world: World) -> None:
    """A terminal of another encoding gets escapes, not a traceback."""
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "dcclctl", "score", "patches", "--user=u1", "--store", str(world.root)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert ran.returncode == 0 and re.fullmatch(r"(time: .* %\n)?", ran.stderr)  # the line of a slow start


def test_a_damaged_model_is_an_error_and_never_the_older_one(shop: Path) -> None:
    model = World(shop, shop, {}).artifact("cloud@2").path / "model.safetensors"
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.unlink()
    model.write_bytes(bytes(data))
    result = dcclctl("patch", *PATCH, store=shop)
    assert result.exit_code == 3
    assert "cloud@2 is damaged" in result.stderr


def test_the_log_may_be_gone_after_ingest(tmp_path: Path) -> None:
    store = tmp_path / "store"
    log = write_log(tmp_path / "log")
    done("ingest", log, store=store)
    shutil.rmtree(tmp_path / "log")
    assert done("train", *TRAIN, "--epochs=1", store=store)["ref"] == "cloud@1"
