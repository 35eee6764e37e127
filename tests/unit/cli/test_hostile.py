"""Ids and names from a log are data: nothing in them acts on a terminal or on the markup of a table."""

import json
from pathlib import Path

import pytest
from world import TRAIN, dcclctl, done, sets

from dcclctl.cli.console import LOOK_EVERY, Progress, Reporter, plain, print_error
from dcclctl.errors import UsageError
from dcclctl.store.store import Store

BASIS = sets("patch.metapatch", basis_epochs=1)
HOSTILE = {
    "ansi": "\x1b[31mred\x1b[0m",
    "csi": "\x9b31mred",
    "markup": "[bold red]x[/bold red]",
    "broken": "[/red]",
    "link": "[link=http://evil]x[/link]",
    "formula": "=cmd|calc",
    "path": "../../etc/passwd",
    "html": "<script>alert(1)</script>",
    "turned": "abc\u202egpj.exe",
    "emoji": ":skull:",
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of a log in which users, items, names and categories are all hostile."""
    folder = tmp_path_factory.mktemp("hostile")
    words = list(HOSTILE.values())
    rows = [
        {
            "user_id": words[user],
            "item_id": f"{words[item % 10]}{item}",
            "timestamp": 1_600_000_000 + 3600 * (user + 10 * item),
        }
        for user in range(10)
        for item in range(30)
    ]
    (folder / "log.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    items = [
        {"item_id": f"{words[at % 10]}{at}", "name": f"{words[at % 10]}!", "category": words[at % 7]}
        for at in range(30)
    ]
    (folder / "items.jsonl").write_text("\n".join(json.dumps(row) for row in items))
    done("ingest", folder / "log.jsonl", "--items", folder / "items.jsonl", store=folder / "store")
    done("train", *TRAIN, "--epochs=1", store=folder / "store")
    done("patch", "--method=metapatch", "--threads=1", *BASIS, store=folder / "store")
    return folder / "store"


def inert(text: str) -> None:
    acting = [ch for ch in text if not (ch.isprintable() or ch in "\n ")]
    assert acting == []


@pytest.mark.parametrize("user", HOSTILE.values(), ids=HOSTILE.keys())
def test_score_shows_them_as_they_are(hostile: Path, user: str) -> None:
    shown = dcclctl("score", "patches", "--user", user, "--top=30", store=hostile)
    assert shown.exit_code == 0
    inert(shown.output)
    assert f"user {plain(user)}: " in shown.stdout
    for markup in ("[bold red]x[/bold red]", "[/red]", "[link=http://evil]x[/link]", ":skull:", "=cmd|calc"):
        assert markup in shown.stdout
    raw = dcclctl("score", "patches", "--user", user, "--json", store=hostile).stdout
    inert(raw)
    assert json.loads(raw)["users"][0]["user"] == user


def test_recommend_shows_them_as_they_are(hostile: Path, tmp_path: Path) -> None:
    shown = dcclctl("recommend", "patches", "--exclude=none", "-o", tmp_path / "top.csv", store=hostile)
    assert shown.exit_code == 0
    inert(shown.output)
    assert any(plain(user) in shown.stdout for user in HOSTILE.values())


@pytest.mark.parametrize("word", HOSTILE.values(), ids=HOSTILE.keys())
def test_errors_show_them_as_they_are(hostile: Path, word: str) -> None:
    for command in (["score", "patches", "--user", f"{word}?"], ["patch", "--users", f"{word}?"], ["evaluate", word]):
        result = dcclctl(*command, store=hostile)
        assert result.exit_code == 2
        inert(result.stderr)
    result = dcclctl("train", "--continue", word, store=hostile)
    inert(result.stderr)


def test_reports_show_them_as_they_are(hostile: Path) -> None:
    for command in (["evaluate", "--threads=1"], ["artifacts", "list"], ["artifacts", "show", "dataset"]):
        result = dcclctl(*command, store=hostile)
        assert result.exit_code == 0
        inert(result.output)


def test_ids_come_through_unchanged(hostile: Path) -> None:
    assert set(Store(hostile).resolve("dataset").read_table("users.parquet")["user_id"]) == set(HOSTILE.values())


def test_plain() -> None:
    assert plain("a b é 漢 [x]") == "a b é 漢 [x]"
    assert plain("\x1b[1m\n\t\u202e\x00") == "\\x1b[1m\\n\\t\\u202e\\x00"
    assert plain(3) == "3"


def test_error_is_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(UsageError("bad \x1b[1m thing", "do this\nor that"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: bad \\x1b[1m thing\n  do this\n  or that\n"


def test_quiet_and_json_print_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    for as_json, quiet in ((True, False), (False, True), (True, True)):
        reporter = Reporter(as_json, quiet)
        reporter.line("a line")
        reporter.table("a table")
    assert capsys.readouterr().out == ""
    reporter.finish("cloud@1", "f" * 64, False, figure=1.5)
    assert json.loads(capsys.readouterr().out) == {"ref": "cloud@1", "id": "f" * 64, "reused": False, "figure": 1.5}
    with pytest.raises(ValueError, match="JSON"):
        Reporter(True, False).finish("cloud@1", "f" * 64, False, figure=float("nan"))
    Reporter(False, True).remark("a remark")
    assert capsys.readouterr().err == ""
    Reporter(True, False).remark("a remark\x07")
    assert capsys.readouterr().err == "a remark\\x07\n"


def test_progress_is_drawn_on_a_terminal_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Reporter(False, False).progress() as silent:
        silent("train", 1, 2, "a note")
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes stderr for a terminal
    with Progress(live=True) as live:
        live.timeline.started -= LOOK_EVERY
        live("train", 1, 2, "a note")
        live("train", 2, 2, "[bold]a note[/bold]")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "train" in captured.err and "[bold]a note[/bold]" in captured.err


def test_an_error_quotes_no_whole_header(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(UsageError("the header: " + "u" * 70_000, "Name it: " + "u" * 70_000))
    what, remedy = capsys.readouterr().err.splitlines()
    assert (len(what) < 2100, what.endswith("… (70,012 characters)")) == (True, True)
    assert len(remedy) < 2100
