"""`dcclctl ingest` as a person types it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SAMPLE = Path(__file__).resolve().parents[2] / "sample_data"
MAP = "user=household_id,item=product_id,time=time"


def dcclctl(*arguments: object, store: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dcclctl", "ingest", *map(str, arguments), "--store", str(store)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_sample_log(tmp_path: Path) -> None:
    sides = ("--users", SAMPLE / "households.csv.gz", "--items", SAMPLE / "products.csv.gz")
    done = dcclctl(SAMPLE / "purchases.csv.gz", "--map", MAP, *sides, store=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("dataset@1  ")
    for text in ("189,416", "90,814", "54,487", "18,164", "9,081", "9,082", "2017-07-02"):
        assert text in done.stdout
    again = dcclctl(SAMPLE / "purchases.csv.gz", "--map", MAP, *sides, "--json", store=tmp_path)
    document = json.loads(again.stdout)
    assert (document["ref"], document["reused"], document["users"]) == ("dataset@1", True, 697)
    quiet = dcclctl(SAMPLE / "purchases.csv.gz", "--map", MAP, *sides, "--quiet", store=tmp_path)
    assert (quiet.stdout, quiet.stderr) == ("dataset@1\n", "")


def test_dirty_log(tmp_path: Path) -> None:
    refused = dcclctl(SAMPLE / "dirty.csv", "--map", MAP, store=tmp_path)
    assert refused.returncode == 3
    assert "18 of 201 rows rejected" in refused.stderr
    assert "Traceback" not in refused.stderr
    done = dcclctl(SAMPLE / "dirty.csv", "--map", MAP, "--max-reject", "0.2", store=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "rejected 3 × empty-user" in done.stderr
    assert "left out: duplicates" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--map", "user"], 2, "--map: give NAME=COLUMN, several with a comma between them (got 'user')"),
        (["--implicit", "--label", "rating>=4"], 2, "contradict"),
        (["--split", "random"], 2, "--split"),
        (["--periods", "50,50"], 2, "four shares"),
        (["--map", MAP, "--max-reject", "2"], 2, "--max-reject"),
    ],
)
def test_mistakes_say_what_to_type(tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    mapped = arguments if "--map" in arguments else ["--map", MAP, *arguments]
    done = dcclctl(SAMPLE / "purchases.csv.gz", *mapped, store=tmp_path)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_help_has_an_example(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "dcclctl", "ingest", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "dcclctl ingest ml-100k/ --split per-user" in done.stdout
