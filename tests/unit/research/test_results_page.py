"""Tables find their place on the pages, and what was not measured again stays."""

import itertools
import json
from pathlib import Path

import results_page
from study import DISTILLED, ON_FURTHER, ON_SCRATCH, STRONG, STRONG_SCRATCH

PAGE = "# Title\n\n<!-- table {name} -->\n\n{body}\n<!-- end -->\n\nEnd.\n"


def record(model: str, group: str, metric: str, points: float, **more: object) -> dict[str, object]:
    found = {"model": model, "group": group, "metric": metric, "seeds": 3, "difference": points / 100}
    return found | {"low": (points - 1) / 100, "high": (points + 1) / 100} | more


def test_a_page_without_tables_stays_as_it_is(tmp_path: Path) -> None:
    text = "# A page\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
    assert results_page.fill(text, tmp_path) == text


def test_a_table_comes_from_the_file_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "ml-100k.memory.md").write_text("| new |\n|---|\n| 1 |\n")
    page = PAGE.format(name="ml-100k.memory", body="| old |\n|---|\n| 0 |\n")
    filled = results_page.fill(page, tmp_path)
    assert filled == page.replace("| old |", "| new |").replace("| 0 |", "| 1 |")
    assert results_page.fill(filled, tmp_path) == filled


def test_a_table_that_was_not_made_stays(tmp_path: Path) -> None:
    for name in ("ml-100k.memory", "gains", "nobody-makes-this"):
        page = PAGE.format(name=name, body="| old |\n|---|\n| 0 |\n")
        assert results_page.fill(page, tmp_path) == page


def test_tables_over_logs_keep_the_rows_of_logs_without_new_figures(tmp_path: Path) -> None:
    clouds = [record(DISTILLED, "all", "gauc", 2), record(DISTILLED, "tail", "gauc", 3, seeds=1)]
    (tmp_path / "grocery.clouds.json").write_text(json.dumps(clouds))
    kept = "| Amazon Beauty | b | b | b | b |\n| Amazon Grocery (2 seeds) | g | g | g | g |\n"
    page = PAGE.format(name="taught", body=f"| log | a | b | c | d |\n|---|---|---|---|---|\n{kept}")
    rows = [line for line in results_page.fill(page, tmp_path).splitlines() if line.startswith("| Amazon")]
    # in the order of LOGS, whatever the order was
    assert rows == [
        "| Amazon Grocery (1 seed) | **+2.00** [+1.00, +3.00] | **+3.00** [+2.00, +4.00] |  |  |",
        "| Amazon Beauty | b | b | b | b |",
    ]


def test_the_front_page_says_what_is_left_over_the_strong_model(tmp_path: Path) -> None:
    found = [
        record("memory patch", group, metric, 2, value=0.12)
        for group in ("all", "tail")
        for metric in ("gauc", "hr@10")
    ]
    for log in ("ml-100k", "grocery"):
        (tmp_path / f"{log}.strong.further.json").write_text(json.dumps(found))
    title, rows = results_page.front(tmp_path)
    gain = "**+2.00** [+1.00, +3.00]"
    assert rows == [
        ["MovieLens-100k (3 seeds)", "per user: leaks", gain, "10.00", gain, "+20 %", gain, gain],
        ["Amazon Grocery (3 seeds)", "one timeline", gain, "10.00", gain, "+20 %", gain, gain],
    ]
    assert len(title) == len(rows[0])


def test_over_the_better_control_either_patch_has_a_table_that_says_which_cloud_ranks_valid_better(
    tmp_path: Path,
) -> None:
    for log, (scratch, further) in {"ml-100k": ([0.11, 0.12], [0.1, 0.12]), "grocery": ([0.03], [0.04])}.items():
        found = []
        for model, points in ((ON_SCRATCH, 1), (ON_FURTHER, 2)):
            for group, metric in itertools.product(("all", "tail"), ("gauc", "hr@10")):
                more = {"control": STRONG_SCRATCH, "control_value": 0.1}
                found.append(record(model, group, metric, points, **more))
        (tmp_path / f"{log}.strong.best.json").write_text(json.dumps(found))
        ndcg = {STRONG_SCRATCH: scratch, STRONG: further}
        (tmp_path / f"{log}.strong.clouds.json").write_text(json.dumps(ndcg))
    title, rows = results_page.front_best(tmp_path)
    low, high = "+1.00 [+0.00, +2.00]", "**+2.00** [+1.00, +3.00]"

    def shown(gain: str, relative: str) -> list[str]:
        return [gain, "10.00, from scratch", gain, relative, gain, gain, relative]

    assert rows == [
        ["MovieLens-100k (3 seeds)", "per user: leaks", "from scratch", *shown(high, "+20 %")],
        ["Amazon Grocery (3 seeds)", "one timeline", "trained further", *shown(high, "+20 %")],
    ]
    assert len(title) == len(rows[0])
    _, rows_of_scratch = results_page.SUMMARIES["front-best-scratch"](tmp_path)
    assert [row[3:] for row in rows_of_scratch] == [shown(low, "+10 %")] * 2
    assert [row[:3] for row in rows_of_scratch] == [row[:3] for row in rows]
    title, rows = results_page.front_best_short(tmp_path)
    assert rows[1] == ["Amazon Grocery (3 seeds)", high, high, "+20 %"] and len(title) == 4


def test_lasting_harm_over_logs(tmp_path: Path) -> None:
    share = {"estimate": 0.12, "low": 0.08, "high": 0.164}
    models = [(model, group) for model in ("memory patch", DISTILLED) for group in ("all", "tail")]
    found = [{"model": model, "group": group} | share for model, group in models]
    (tmp_path / "ml-100k.harm.json").write_text(json.dumps(found))
    title, rows = results_page.lasting(tmp_path)
    assert rows == [["MovieLens-100k", *["12.0 [8.0, 16.4]"] * 4]]
    assert len(title) == 5


def test_newcomers_and_habit_take_one_row_a_log(tmp_path: Path) -> None:
    for k in (1, 5):
        found = [record("memory patch", "new", metric, k) for metric in ("gauc", "hr@10")]
        (tmp_path / f"ml-100k.newcomers-next.{k}.json").write_text(json.dumps(found))
    title, (row,) = results_page.newcomers(tmp_path)
    assert [name.partition(":")[0] for name in title[1:]] == [f"K = {k}" for k in (1, 5) for _ in range(2)]
    assert [cell.split()[0].strip("*") for cell in row[1:]] == [f"+{k}.00" for k in (1, 5) for _ in range(2)]
    for part, points in (("counted", 2), ("counted-repeat", -2), ("counted-explore", 5)):
        found = [
            record(results_page.ON_DIN, group, metric, points)
            for group in ("all", "tail")
            for metric in ("gauc", "hr@10")
        ]
        (tmp_path / f"sample-repeats.{part}.habit.json").write_text(json.dumps(found))
    _, (row,) = results_page.habit(tmp_path)
    assert [cell.split()[0].strip("*") for cell in row[1:]] == ["+2.00"] * 3 + ["-2.00", "+5.00"]


def test_every_table_of_the_pages_has_a_maker() -> None:
    """Its name is a table over logs, or LOG.PART of a log and a chapter that science.py or real_logs.py know."""
    import science

    parts = {*science.CHAPTERS, "loop", "counted-repeat", "counted-explore", *sum(science.PROTOCOLS.values(), ())}
    parts |= {"counted", "strong", "strong_metapatch", "strong_placebo", "strong_taught", "gate", "pin"}
    logs = {*science.LOGS, "sample", "sample-repeats"}
    named = 0
    for page in results_page.PAGES:
        if page.parent.name == "results" and page.name == "README.md":  # it explains how tables are marked
            continue
        for found in results_page.TABLE.finditer(page.read_text()):
            log, _, part = found["name"].partition(".")
            named += 1
            if found["name"] not in results_page.SUMMARIES:
                assert log in logs and part.partition(".")[0] in parts, f"{page.name}: {found['name']}"
                assert part.partition(".")[2] in {"", "best", *science.REFERENCES}, f"{page.name}: {found['name']}"
            assert found["body"].strip(), f"{page.name}: {found['name']} is empty"
    assert named > 30
