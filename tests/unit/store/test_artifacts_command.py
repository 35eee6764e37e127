"""`dcclctl artifacts …` as a person or a script sees it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from store_worlds import flip_bit, make_cloud, make_dataset
from typer.testing import CliRunner, Result

from dcclctl.cli.main import app
from dcclctl.store.disk import LocalDisk
from dcclctl.store.store import Input, Store

HOSTILE = "log:ev\x1b[31m[red]\u202eents.csv"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """dataset@1 and two cloud models on it; the commands find the store through DCCL_STORE."""
    root = tmp_path / "store"
    monkeypatch.setenv("DCCL_STORE", str(root))
    store = Store(root)
    dataset = make_dataset(store)
    make_cloud(store, dataset, 1)
    make_cloud(store, dataset, 2)
    return store


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["artifacts", *arguments])


def run_json(*arguments: str) -> dict[str, object]:
    result = run(*arguments, "--json")
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


@pytest.mark.parametrize("command", ["list", "show", "lineage", "verify", "diff", "tag"])
def test_help_has_an_example_on_lines_of_its_own(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"  Example:\n    dcclctl artifacts {command}" in result.stdout
    assert "\b" not in result.stdout


def test_list(store: Store) -> None:
    store.tag(store.resolve("cloud@1"), "release")
    lines = run("list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["reference", "dataset@1", "cloud@1", "cloud@2"]
    made = store.resolve("cloud@1").run["finished"][:16].replace("T", " ")
    for part in (made, "release: din trained on cloud; data: events.csv (dataset@1)"):
        assert part in lines[2]
    assert "events.csv: 5 users, 5 items, 5 events" in lines[1]
    assert lines[1].split()[-9:-6] == ["7", "2", "events.csv:"], "seed, and how many artifacts stand on it"
    listed = run_json("list", "--kind", "cloud")["artifacts"]
    assert [(row["ref"], row["aliases"], row["facts"]) for row in listed] == [
        ("cloud@1", ["release"], {"loss": 0.5}),
        ("cloud@2", [], {"loss": 0.25}),
    ]
    shown = {key: listed[0][key] for key in ("label", "name", "kind", "model", "stands_on", "data", "seed", "used_by")}
    data = "events.csv (dataset@1)"
    assert shown == {
        "label": "release (cloud@1)",
        "name": "release",
        "kind": "cloud",
        "model": "din",
        "stands_on": data,
        "data": data,
        "seed": 0,
        "used_by": 0,
    }
    assert (listed[1]["label"], listed[1]["name"]) == ("din (cloud@2)", "")
    assert run("list", "--quiet").stdout.split() == ["dataset@1", "cloud@1", "cloud@2"]


def test_list_on_a_terminal_of_80_columns_keeps_dates_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from dcclctl.cli import artifacts

    monkeypatch.setenv("COLUMNS", "80")
    rows = run_json("list")["artifacts"]
    monkeypatch.setattr(artifacts.sys.stdout, "isatty", lambda: True, raising=False)
    lines = artifacts._listed(rows)
    assert max(map(len, lines)) <= 80
    for row in rows:
        (line,) = [line for line in lines if line.startswith(row["ref"])]
        assert row["made"][:16].replace("T", " ") in line


def test_list_loads_nothing_heavy(store: Store) -> None:
    code = (
        "import sys\n"
        "from dcclctl.__main__ import main\n"
        "sys.argv = ['dcclctl', 'artifacts', 'list']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('\\n'.join(sys.modules), file=sys.stderr)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "cloud@2" in ran.stdout
    assert set(ran.stderr.split()) & {"torch", "polars", "pyarrow", "numpy", "rich.console", "rich.table"} == set()


def test_list_reads_each_manifest_and_each_name_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        store.tag(store.resolve(f"cloud@{number}"), f"name-{number}")
    read: list[str] = []
    plain_read = LocalDisk.read

    def counting(disk: LocalDisk, path: Path, limit: int | None = None) -> bytes:
        read.append(str(path))
        return plain_read(disk, path, limit)

    monkeypatch.setattr(LocalDisk, "read", counting)
    run("list")
    assert len(read) == len(set(read)) == 3 * 3 + 2


def test_list_of_an_empty_store_says_what_to_run(tmp_path: Path) -> None:
    result = run("list", "--store", str(tmp_path / "none"))
    assert (result.exit_code, result.stdout) == (0, "")
    assert "run first: dcclctl ingest LOG" in result.stderr
    assert run_json("list", "--store", str(tmp_path / "none"))["artifacts"] == []


def test_list_goes_on_past_a_damaged_manifest(store: Store) -> None:
    flip_bit(store.folder("cloud", 1) / "manifest.json", 9)
    result = run("list")
    assert result.exit_code == 0
    assert "DAMAGED" in next(line for line in result.stdout.splitlines() if line.startswith("cloud@1"))
    assert "cloud@2" in result.stdout


def test_list_of_a_wrong_kind(store: Store) -> None:
    result = run("list", "--kind", "models")
    assert result.exit_code == 2
    assert "one of dataset, cloud, " in result.stderr


def test_show(store: Store) -> None:
    text = run("show", "cloud").stdout
    dataset, cloud = store.latest("dataset"), store.latest("cloud")
    for part in (
        f"cloud@2\n  id      {cloud.id}\n",
        f"dataset  events.csv (dataset@1, {dataset.id[:12]})",
        "  epochs  2\n",
    ):
        assert part in text
    assert "events.parquet  " in run("show", "dataset@1").stdout
    assert ", 5 rows" in run("show", "dataset@1").stdout
    document = run_json("show", "cloud@2")
    assert (document["ref"], document["id"], document["manifest"]) == ("cloud@2", cloud.id, cloud.manifest)


def test_lineage(store: Store) -> None:
    lines = run("lineage", "cloud@2").stdout.splitlines()
    dataset, cloud = store.latest("dataset"), store.latest("cloud")
    assert lines == [
        f"din (cloud@2, {cloud.id[:12]})",
        f"└─ dataset: events.csv (dataset@1, {dataset.id[:12]})",
        f"   └─ log:events.csv: sha256 {'a' * 64}",
    ]
    document = run_json("lineage", "cloud@2")
    assert document["label"] == lines[0]
    assert document["inputs"][0]["inputs"][0]["id"] == "a" * 64


def test_names_are_shown_where_a_reference_stands(store: Store) -> None:
    dataset, cloud = store.latest("dataset"), store.latest("cloud")
    store.tag(dataset, "clicks")
    store.tag(cloud, "control")
    lines = run("lineage", "cloud@2").stdout.splitlines()
    assert lines[0] == f"control (cloud@2, {cloud.id[:12]})"
    assert lines[1] == f"└─ dataset: clicks (dataset@1, {dataset.id[:12]})"
    assert f"  dataset  clicks (dataset@1, {dataset.id[:12]})" in run("show", "cloud@2").stdout
    assert run("diff", "cloud@1", "cloud@2").stdout.splitlines()[0].split() == [
        "key",
        "din",
        "(cloud@1)",
        "control",
        "(cloud@2)",
    ]


def test_list_names_what_an_artifact_stands_on_also_where_it_is_gone(store: Store) -> None:
    cloud = store.latest("cloud")
    store.tag(cloud, "control")
    with store.begin("patch", "patches", {"method": "memory", "guard": True}, 0, {"cloud": cloud.as_input()}) as work:
        work.commit({})
    assert "memory patches on control, guarded" in run("list").stdout
    (cloud.path / "manifest.json").unlink()
    assert f"memory patches on cloud {cloud.id[:12]}, guarded" in run("list").stdout


def test_lineage_gives_the_inputs_of_an_artifact_once(store: Store) -> None:
    dataset, cloud = store.latest("dataset"), store.latest("cloud")
    inputs = {"cloud": cloud.as_input(), "dataset": dataset.as_input()}
    with store.begin("patch", "patches", {"method": "memory"}, 0, inputs) as work:
        patches = work.commit({})
    assert run("lineage", "patches@1").stdout.splitlines() == [
        f"memory on din (patches@1, {patches.id[:12]})",
        f"├─ cloud: din (cloud@2, {cloud.id[:12]})",
        f"│  └─ dataset: events.csv (dataset@1, {dataset.id[:12]})",
        f"│     └─ log:events.csv: sha256 {'a' * 64}",
        f"└─ dataset: events.csv (dataset@1, {dataset.id[:12]}), as above",
    ]
    over, again = run_json("lineage", "patches@1")["inputs"]
    assert (over["shown"], over["inputs"][0]["shown"], again["shown"], again["inputs"]) == (False, False, True, [])


def test_text_from_outside_cannot_act_on_the_terminal(store: Store) -> None:
    with store.begin("ingest", "dataset", {}, 0, {HOSTILE: Input("raw", "b" * 64)}) as work:
        work.commit({"users": 1, "items": 1, "events": 1, "first \x1b[31m": "[red]\u202e"})
    for command in ("show dataset", "lineage dataset", "diff dataset@1 dataset@2"):
        result = run(*command.split())
        assert result.exit_code == 0
        assert "\x1b" not in result.stdout
        assert "\u202e" not in result.stdout
        assert "[red]" in result.stdout


def test_verify_of_a_whole_store(store: Store) -> None:
    result = run("verify")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "dataset@1  whole",
        "cloud@1  whole",
        "cloud@2  whole",
        "3 of 3 artifacts whole",
    ]
    assert run_json("verify") == {"verified": 3, "damage": []}


@pytest.mark.parametrize("file", ["model.safetensors", "manifest.json"])
def test_verify_names_the_damage_and_exits_3(store: Store, file: str) -> None:
    flip_bit(store.folder("cloud", 1) / file, 20)
    for arguments in (["verify"], ["verify", "--quiet"], ["verify", "cloud@1"]):
        result = run(*arguments)
        assert result.exit_code == 3
        assert "cloud@1" in result.stderr
        assert file in result.stderr
        assert "dcclctl train" in result.stderr
        if arguments[-1] != "cloud@1":
            assert "--force, and then\n    dcclctl artifacts rm cloud@1" in result.stderr
    (damage,) = run_json("verify")["damage"]
    assert (damage["ref"], damage["file"]) == ("cloud@1", file)
    assert run("verify", "cloud@2").exit_code == 0


def test_diff(store: Store) -> None:
    lines = [line.split() for line in run("diff", "cloud@1", "cloud@2").stdout.splitlines()]
    assert lines == [
        ["key", "din", "(cloud@1)", "din", "(cloud@2)"],
        ["config", "epochs", "1", "2"],
        ["facts", "loss", "0.5", "0.25"],
    ]
    assert run_json("diff", "cloud@1", "cloud@2") == {
        "a": "cloud@1",
        "b": "cloud@2",
        "same": False,
        "config": {"epochs": [1, 2]},
        "facts": {"loss": [0.5, 0.25]},
    }
    assert "the same artifact" in run("diff", "cloud@1", "cloud@1").stdout
    assert run("diff", "cloud@1", "dataset@1").exit_code == 2


def test_diff_shows_inputs_as_references(store: Store) -> None:
    other = make_dataset(store, 3)
    make_cloud(store, other, 2)
    gone = store.latest("dataset").path / "manifest.json"
    text = run("diff", "cloud@2", "cloud@3").stdout
    assert f"events.csv (dataset@2, {other.id[:12]})" in text
    gone.unlink()
    assert f"dataset {other.id[:12]}" in run("diff", "cloud@2", "cloud@3").stdout


def test_diff_of_an_input_that_only_one_has(store: Store) -> None:
    for number, inputs in enumerate(({}, {"log:x.csv": Input("raw", "c" * 64)})):
        with store.begin("evaluate", "evaluation", {}, number, inputs) as work:
            work.write_json("x.json", {"a": [1]})
            work.commit({})
    (line,) = [line for line in run("diff", "evaluation@1", "evaluation@2").stdout.splitlines() if "log:" in line]
    assert line.split() == ["inputs", "log:x.csv", "–", "sha256", "c" * 12]


def test_tag(store: Store) -> None:
    result = run("tag", "cloud@1", "release")
    assert result.exit_code == 0
    assert "cloud@release is now cloud@1" in result.stdout
    assert "was" not in run("tag", "cloud@1", "release").stdout
    assert run_json("tag", "cloud@2", "release")["alias"] == "cloud@release"
    assert store.resolve("cloud@release").number == 2
    assert run("tag", "cloud@1", "release").stdout.rstrip().endswith("; it was cloud@2")
    assert store.tag(store.resolve("cloud@2"), "release") == "cloud@1"
    assert store.tag(store.resolve("cloud@2"), "release") == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("tag", "cloud@1", "7"), "cannot be an alias"),
        (("tag", "cloud@1", "cafe"), "reads like the start of an id"),
        (("show", "cloud@9"), "Type one of: cloud@1, cloud@2"),
        (("show", "clouds"), "Type e.g. cloud@latest"),
        (("lineage", "patches"), "Run first: dcclctl patch"),
    ],
)
def test_a_mistake_exits_2_and_says_what_to_type(store: Store, arguments: tuple[str, ...], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr
