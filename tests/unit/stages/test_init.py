"""`dcclctl init`: what it guesses of a log, what it writes, and that ingest takes it as it stands."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from world import dcclctl

from dcclctl.errors import DataError, UsageError
from dcclctl.evaluation.gate import read_gate
from dcclctl.stages.init import init
from dcclctl.store.store import Store

T = 1_600_000_000


def rows(header: str, row: str, count: int = 40) -> str:
    return header + "".join(row.format(n=n, u=n % 4, t=T + n, r=n % 5 + 1, b=n % 2, d=n % 28 + 1) for n in range(count))


LOGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ratings": (
        "log.csv",
        rows("uid,sku,ts,rating\n", "u{u},{n},{t},{r}\n"),
        {"time_unit": "s", "split": "global", "label": "rating>=4", "repeats": "first"},
    ),
    "milliseconds": (
        "log.csv",
        rows("User ID;Item-Id;Time Stamp\n", "u{u};{u};{t}000\n"),
        {"map": {"user": "User ID", "item": "Item-Id", "time": "Time Stamp"}, "time_unit": "ms", "repeats": "keep"},
    ),
    "clicks": ("log.csv", rows("user,item,time,click\n", "{u},{n},{t},{b}\n"), {"label": "click>=1"}),
    "counts": ("log.csv", rows("user,item,time,score\n", "{u},{n},{t},{r}0\n"), {"label": "score>=35"}),
    "days": (
        "transactions_train.csv",
        rows("t_dat,customer_id,article_id\n", "2020-03-{d:02},c{u},{n}\n"),
        {"time_unit": "iso", "timezone": "UTC", "split": "global"},
    ),
    "one day": ("log.csv", rows("user,item,date\n", "{u},{n},2020-03-01\n"), {"split": "per-user"}),
    "no time": (
        "log.csv",
        rows("user,item\n", "{u},{n}\n"),
        {"map": {"user": "user", "item": "item"}, "split": "per-user"},
    ),
    "order": ("log.csv", rows("user,item,ordinal\n", "{u},{n},{n}\n"), {"time_unit": "ordinal", "split": "per-user"}),
    "impressions": (
        "behaviors.tsv",
        rows("", "{n}\tU{u}\t{t}\tN1\tN{n}-1 N9{n}-0\n"),
        {"format": "mind", "map": {"user": "user_id", "time": "time", "impressions": "shown"}, "repeats": "first"},
    ),
    "sessions": (
        "log.jsonl",
        "".join(
            json.dumps({"session": n, "events": [{"aid": n, "ts": (T + n) * 1000, "type": "clicks"}]}) + "\n"
            for n in range(40)
        ),
        {"format": "otto", "behaviours": []},
    ),
    'quotes " in names': ("log.csv", rows('user,item,time,"a ""b"" c"\n', "{u},{n},{t},{b}\n"), {"split": "global"}),
}


@pytest.mark.parametrize("name", LOGS)
def test_ingest_takes_what_init_writes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, text, expected = LOGS[name]
    (tmp_path / file).write_text(text)
    monkeypatch.chdir(tmp_path)
    assert dcclctl("init", file).exit_code == 0
    guessed = tomllib.loads(Path("dccl.toml").read_text())["ingest"]
    assert {key: guessed.get(key) for key in expected} == expected
    made = dcclctl("ingest", file, store=tmp_path / "s")
    assert (made.exit_code, made.stderr.splitlines()[0]) == (0, "settings from dccl.toml")
    assert Store(tmp_path / "s").resolve("dataset").facts["split"] == guessed["split"]


def test_a_log_without_a_header_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("log.tsv").write_text(rows("", "{u}\t{n}\t{t}\n"))
    refused = dcclctl("init", "log.tsv")
    assert (refused.exit_code, "--map user=1,item=2,time=3" in refused.stderr) == (3, True)
    assert dcclctl("init", "log.tsv", "--map=user=1,item=2,time=3").exit_code == 0
    assert dcclctl("ingest", "log.tsv", store=tmp_path / "s").exit_code == 0


def test_every_guess_has_a_reason(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(LOGS["ratings"][1])
    settings, *_ = init(tmp_path / "log.csv", tmp_path)
    lines, small = (
        part.splitlines() for part in settings.read_text().partition("[ingest]\n")[2].split("\n[train.din]\n")
    )
    assert small[1] == "batch_size = 64"
    assert all(why.startswith("# ") and " = " in setting for why, setting in zip(lines[::2], lines[1::2], strict=True))
    assert "# 'rating' runs from 1 to 5; 40% of the events are positive then; without it all are" in lines


def test_the_gate_and_the_workflow(tmp_path: Path) -> None:
    log = tmp_path / "log 'a'.csv"
    log.write_text(LOGS["ratings"][1])
    _, gate, workflow = init(log, tmp_path)
    assert {(rule.group, rule.metric) for rule in read_gate(gate)} >= {("tail", "gauc"), ("tail", "ndcg@10")}
    text = workflow.read_text()
    assert f"LOG: {json.dumps(log.as_posix())}" in text
    # every command of it is one that a user can type: tests/unit/test_documents.py has the checker for the pages
    for line in (
        "ingest",
        "train --seed 1",
        "audit",
        "evaluate cloud@candidate --against cloud@release --gate gate.toml",
    ):
        assert f"dcclctl {line}" in text


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text(LOGS["ratings"][1])
    (tmp_path / "gate.toml").write_text("mine")
    with pytest.raises(UsageError, match=r"gate\.toml: there already"):
        init(log, tmp_path)
    assert not (tmp_path / "dccl.toml").exists()
    assert (tmp_path / "gate.toml").read_text() == "mine"
    init(log, tmp_path, force=True)
    assert (tmp_path / "gate.toml").read_text() != "mine"


def test_another_folder_is_named_in_the_next_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("log.csv").write_text(LOGS["ratings"][1])
    said = dcclctl("init", "log.csv", "--dir=shop").stdout
    assert "dcclctl ingest log.csv --config shop/dccl.toml" in said
    assert dcclctl("ingest", "log.csv", "--config=shop/dccl.toml", store=tmp_path / "s").exit_code == 0
    # the gate that it names compares two models
    assert "dcclctl evaluate cloud@candidate --config shop/dccl.toml --against cloud@release" in said
    assert "dcclctl train --config shop/dccl.toml --seed 1 --name candidate" in said


def test_ids_and_names_cannot_break_the_file(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("user,item,time,event\n" + "".join(f'{n % 3},{n},{T + n},"a\x1b\x7f ""]"\n' for n in range(20)))
    settings, *_ = init(log, tmp_path)
    assert "\x1b" not in settings.read_text()


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("u1,i1,1600000000,5\nu2,i2,1600003600,nan\nu1,i9,1600007200,inf\n", ""),
        ("u1,i1,soon,5\nu2,i2,later,4\n", "none of the first 2 rows has a time"),
    ],
)
def test_odd_labels_and_times(rows: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item,time,rating\n" + rows)
    if says:
        with pytest.raises(DataError, match=says):
            init(tmp_path / "log.csv", tmp_path / "out")
    else:
        assert "label = " not in init(tmp_path / "log.csv", tmp_path / "out")[0].read_text()
