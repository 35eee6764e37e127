"""CONTRIBUTING.md keeps its word: a cloud model, a device method, a metric and a log format are one file and one row.

Its code blocks are put beside the package's own files, as they stand there, and run.
"""

import importlib
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from world import dcclctl, done, write_log

from dcclctl.artifacts import Evaluation
from dcclctl.store.store import Store

TEXT = (Path(__file__).resolve().parents[2] / "CONTRIBUTING.md").read_text()
FILE = re.compile(r"```python\n# file: dcclctl/(?P<room>\w+)/(?P<name>\w+)\.py\n(?P<code>.*?)```", re.DOTALL)
ROW = re.compile(
    r"```python\n# row: (?P<table>[A-Z]+) in dcclctl/(?P<room>\w+)/(?P<module>\w+)\.py[^\n]*\n(?P<code>.*?)```",
    re.DOTALL,
)


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The package with the four files and the four rows; room → name of its row."""
    files, rows = list(FILE.finditer(TEXT)), list(ROW.finditer(TEXT))
    rooms = {"models", "devices", "metrics", "logs"}
    assert {found["room"] for found in files} == {found["room"] for found in rows} == rooms
    for found in files:
        folder = tmp_path / "added" / found["room"]
        folder.mkdir(parents=True)
        (folder / f"{found['name']}.py").write_text(found["code"])
        package = importlib.import_module(f"dcclctl.{found['room']}")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    names, before = {}, []
    for found in rows:
        module = importlib.import_module(f"dcclctl.{found['room']}.{found['module']}")
        table: dict[str, Any] = getattr(module, found["table"])
        imports = [line for line in found["code"].splitlines() if line.startswith("from ")]
        space = dict(vars(module))
        exec("\n".join(imports), space)
        row = eval("{" + found["code"].removeprefix("\n".join(imports)) + "}", space)
        (names[found["room"]],) = row
        assert not row.keys() & table.keys()
        before.append((table, dict(table)))
        table.clear()  # in place: other modules hold the same table
        table.update(row | before[-1][1])
    yield names
    for table, rows_before in before:
        table.clear()
        table.update(rows_before)
    for found in files:
        sys.modules.pop(f"dcclctl.{found['room']}.{found['name']}", None)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with a small log, in which users come back to what they had."""
    done("ingest", write_log(tmp_path / "log"), "--repeats=keep", store=tmp_path / "store")
    return tmp_path / "store"


def per_user(store: Path) -> pl.DataFrame:
    return Evaluation(Store(store).resolve("evaluation")).per_user


def test_a_cloud_model_and_a_device_method(added: dict[str, str], store: Path) -> None:
    done("train", f"--model={added['models']}", "--threads=1", store=store)
    done("evaluate", "cloud", "--k=3", "--threads=1", store=store)
    assert per_user(store)["auc"].drop_nulls().unique().to_list() == [0.5]

    done("patch", f"--method={added['devices']}", "--set=patch.nudge.by=3", "--on=valid", store=store)
    found = done("evaluate", "cloud", "patches", "patches+shuffled", "--against=cloud", "--k=3", store=store)
    assert found["subjects"] == ["cloud@1", "patches@1", "patches@1+shuffled"]
    assert set(per_user(store)["served_by"]) == {"cloud", "patch"}
    gauc = {
        row["subject"]: row["value"] for row in found["metrics"] if (row["group"], row["metric"]) == ("all", "gauc")
    }
    assert gauc["patches@1"] > gauc["cloud@1"]
    assert gauc["patches@1"] > gauc["patches@1+shuffled"]
    assert "patch.nudge.by = 2.0" in dcclctl("settings", "patch", "--method=nudge").stdout
    # a setting of another method is refused, and the error names who reads it
    refused = dcclctl("patch", "--method=nudge", "--steps=3", store=store)
    assert refused.exit_code == 2 and "metapatch" in refused.stderr


def test_a_metric(added: dict[str, str], store: Path) -> None:
    done("train", "--model=popularity", store=store)
    done("train", "--model=popularity", "--on=cloud,device", store=store)
    rule = f"--max-drop=all.{added['metrics']}=50%"
    found = done("evaluate", "cloud@1", "cloud@2", "--against=cloud@1", rule, "--k=1", "--candidates=all", store=store)
    assert [row["metric"] for row in found["gate"]] == ["rbp"]
    assert {row["metric"] for row in found["comparison"]} >= {"rbp", "gauc"}
    table = per_user(store).filter(pl.col("events") == 1, pl.col("mrr").is_not_null())
    assert table.height  # of a user with one event the rank is 1 / mrr
    assert np.allclose(table["rbp"], 0.2 * 0.8 ** (1 / table["mrr"] - 1))


def test_a_log_format(added: dict[str, str], tmp_path: Path) -> None:
    plays = [
        f"user_{user:06d}\t2009-05-{1 + at:02d}T{user:02d}:08:57Z\tf1b1cf71\tDeep Dish\t{(user + at) % 7}\tTrack"
        for user in range(1, 9)
        for at in range(20)
    ]
    (tmp_path / "plays.tsv").write_text("\n".join(plays) + "\n")
    found = done("ingest", tmp_path / "plays.tsv", store=tmp_path / "store")
    assert found["sources"][0]["format"] == added["logs"]
    assert (found["users"], found["items"], found["rows"]["kept"]) == (8, 7, 160)
    # other logs are recognised as before
    again = done("ingest", write_log(tmp_path / "log"), store=tmp_path / "store")
    assert again["sources"][0]["format"] == "csv"


def test_commands_of_the_examples_use_the_rows(added: dict[str, str]) -> None:
    assert f"train --model {added['models']}" in TEXT
    assert f"patch --method {added['devices']}\n" in TEXT
    assert f"`--set patch.{added['devices']}.by=3`" in TEXT


def test_the_house_is_that_of_the_contract() -> None:
    contracts = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["tool"][
        "importlinter"
    ]
    layers = next(each["layers"] for each in contracts["contracts"] if each["type"] == "layers")
    floors = re.findall(r"^\| (\d+) \| ([^|]+) \|", TEXT, flags=re.MULTILINE)
    assert [int(floor) for floor, _ in floors] == list(range(len(layers), 0, -1))
    rooms = [set(re.findall(r"`(\w+)`", names)) for _, names in floors]
    assert rooms == [set(re.findall(r"dcclctl\.(\w+)", layer)) for layer in layers]
