"""What the command shows, in this process."""

import json
from pathlib import Path

import pytest

from dcclctl.cli.main import app

START = 1_600_000_000


def call(*arguments: object) -> int:
    """Exit code of `dcclctl ingest …`."""
    with pytest.raises(SystemExit) as caught:
        app(["ingest", *map(str, arguments)], prog_name="dcclctl")
    return int(caught.value.code or 0)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.csv"
    rows = "".join(f" u{n % 4},i{n},{START + n},{n % 5 + 1}\n" for n in range(40))
    path.write_text(f"user_id,item_id,timestamp,rating\n{rows}[/red]\x1b[31m,x,{START + 50},5\n,y,{START},5\n")
    return path


def test_tables_for_a_person(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    users = tmp_path / "users.csv"
    users.write_text("user_id,sex\nu0,f\nu1,m\n")
    flags = ("--label", "rating>=4", "--users", users, "--max-reject", "0.1", "--repeats", "keep")
    assert call(log, *flags, "--store", tmp_path / "store") == 0
    shown, remarks = capsys.readouterr()
    assert "rejected: empty-user" in shown
    assert "normalised: 40 × ids with spaces around them trimmed" in shown
    assert "positive where rating>=4: 17 of 41" in shown
    assert "profiles (codes, missing included): sex (3)" in shown
    assert "a model trained on what comes before test (2020-09-13T12:27:17Z) never sees 4 events and 1 users" in shown
    assert shown.splitlines()[-1].startswith("dataset@1  ")
    assert "rejected 1 × empty-user: the user id is empty, NULL or NA" in remarks
    assert "warning: 40 ×" in remarks


def test_leave_one_out_has_no_common_cut(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--implicit", "--max-reject", "0.1", "--split", "leave-one-out", "--store", tmp_path / "store")
    assert call(log, *flags) == 0
    shown, remarks = capsys.readouterr()
    assert "a model trained on what comes before test never sees 4 events" in shown
    assert "note: column 'rating' is not used" in remarks
    assert "note: with a leave-one-out split models can learn trends of the test period" in remarks


def test_json_and_configuration_file(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "dccl.toml"
    config.write_text('[ingest]\nmax_reject = 0.1\nlabel = "label>3"\n[ingest.map]\nlabel = "rating"\n')
    flags = ("--config", config, "--store", tmp_path / "store", "--json")
    assert call(log, *flags) == 0
    observed = json.loads(capsys.readouterr().out)
    assert (observed["labels"], observed["label_expression"]) == ("observed", "rating>3")
    assert call(log, *flags, "--implicit") == 0
    assert json.loads(capsys.readouterr().out)["labels"] == "implicit"


def test_mistakes(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(log, "--map", "user=", "--store", tmp_path) == 2
    assert call(log, "--implicit", "--label", "rating>=4", "--store", tmp_path) == 2
    assert call(log, "--store", tmp_path) == 3
    assert "error: 1 of 42 rows rejected" in capsys.readouterr().err


def test_columns_and_behaviours_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.csv"
    rows = "".join(f"u{n % 4},i{n},{START + n},{('view', '[/red]')[n % 4 == 0]},x\n" for n in range(40))
    log.write_text(f"user_id,item_id,timestamp,event,ab\x1b[31mc\n{rows}")
    users = tmp_path / "users.csv"
    users.write_text("user_id,sex\nu0,f\nx1,m\n")
    assert call(log, "--users", users, "--store", tmp_path / "store") == 0
    shown, remarks = capsys.readouterr()
    assert "Behaviours" in shown
    assert [line.split() for line in shown.splitlines() if line.startswith(("view", "[/red]"))] == [
        *(["view", "30"], ["[/red]", "10"])
    ]
    (unused,) = [line for line in shown.splitlines() if "not used" in line]
    assert unused.startswith("columns of the log that are not used: ab") and "\x1b" not in unused
    assert "note: users.csv: a row for 1 of 4 users\n" in remarks
    assert call(log, "--users", users, "--store", tmp_path / "store", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["behaviours"] == {"view": 30, "[/red]": 10}
    assert found["columns"]["behaviour"] == "event"
    assert len(found["unused_columns"]) == 1
