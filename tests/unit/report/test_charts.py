"""Charts: every figure is in the drawing, and the drawing says in words what it shows."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from pages import BASELINE, BETTER, HOSTILE, MODELS, OPEN, USERS, page, part

from dcclctl.report import charts


def drawings() -> dict[str, str]:
    evaluation = part()
    return {
        "activity, wide": charts.activity(evaluation, "a", narrow=False),
        "activity, narrow": charts.activity(evaluation, "b", narrow=True),
        "lift, wide": charts.lift(evaluation, "g", narrow=False),
        "lift, narrow": charts.lift(evaluation, "h", narrow=True),
        "gains": charts.gains(evaluation, MODELS[1], "c"),
        "learning": charts.learning(page().fits[0], "d"),
        "rounds": charts.rounds(evaluation, "e"),
        "calibration": charts.calibration(evaluation, "f"),
    }


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    return drawings()


def bars(svg: str) -> list[float]:
    """Heights of the bars, from left to right."""
    return [float(height) for height in re.findall(r'<path [^>]*d="M[\d.]+,[\d.]+h[\d.-]+v([\d.-]+)h-', svg)]


def test_drawings_are_well_formed_and_described(drawn: dict[str, str]) -> None:
    for name, svg in drawn.items():
        root = ET.fromstring(svg)
        assert root.tag == "svg" and root.get("role") == "img", name
        assert len(root.get("aria-label") or "") > 60, name
        assert root.get("viewBox") and root.get("width") is None, name  # shrinks with the page


def test_the_same_figures_give_the_same_bytes(drawn: dict[str, str]) -> None:
    assert drawings() == drawn


def test_colours_are_the_pages_own(drawn: dict[str, str]) -> None:
    """A fixed dark or light colour would vanish on one of the two backgrounds."""
    for name, svg in drawn.items():
        used = set(re.findall(r'(?:fill|stroke)="([^"]*)"', svg))
        assert used <= {
            "none",
            "currentColor",
            "transparent",
            *(f"var(--{n})" for n in ("good", "bad", *(f"s{at}" for at in range(8)))),
        }, name


def test_one_line_per_model_through_all_twenty_groups(drawn: dict[str, str]) -> None:
    for which in ("activity, wide", "activity, narrow"):
        lines = [path for path in re.findall(r'<path [^>]*d="(M[^"]*L[^"]*)"[^>]*stroke="var', drawn[which])]
        assert [path.count("L") for path in lines] == [19, 19, 19]


def test_the_activity_picture_is_told_in_words(drawn: dict[str, str]) -> None:
    table = part().aggregate.filter((pl.col("subject") == BETTER) & (pl.col("metric") == "ndcg@10"))
    values = dict(table.select("group", "value").iter_rows())
    said = f"patches@1 · patches on cloud@1: {values['activity-00']:.4f} in group 1, {values['activity-19']:.4f} in group 20"
    assert said in drawn["activity, wide"] and said in drawn["activity, narrow"]


def test_the_lift_has_a_line_and_intervals_for_every_other_model(drawn: dict[str, str]) -> None:
    for which in ("lift, wide", "lift, narrow"):
        lines = re.findall(r'<path [^>]*d="(M[^"]*L[^"]*)"[^>]*stroke="var', drawn[which])
        assert [path.count("L") for path in lines] == [19, 19]
        # ten users a group are too few for an interval
        assert not re.findall(r'<line [^>]*stroke="var', drawn[which])
    assert charts.lift(part(models=1), "x", narrow=False) == ""
    table = part().by_activity.with_columns(low=pl.col("difference") - 0.02, high=pl.col("difference") + 0.02)
    barred = charts.lift(replace(part(), by_activity=table), "x", narrow=False)
    assert len(re.findall(r'<line [^>]*stroke="var', barred)) == 40
    real = table.filter((pl.col("subject") == BETTER) & (pl.col("low") > 0)).height
    assert f"patches@1 · patches on cloud@1: the interval is above zero in {real} of 20 groups" in barred


def test_a_group_without_users_is_left_out() -> None:
    evaluation = part()
    gone = evaluation.aggregate.with_columns(
        pl.when(pl.col("group") == "activity-07").then(None).otherwise("value").alias("value")
    )
    svg = charts.activity(replace(evaluation, aggregate=gone), "a", narrow=False)
    lines = re.findall(r'<path [^>]*d="(M[^"]*L[^"]*)"[^>]*stroke="var', svg)
    assert [path.count("L") for path in lines] == [18, 18, 18]


def test_harm_is_counted_and_shaded(drawn: dict[str, str]) -> None:
    gains = np.array(part().gains[BETTER])
    worse, better = int((gains < 0).sum()), int((gains > 0).sum())
    assert worse >= 1  # user 0
    assert (
        f"{worse} of {USERS} users are worse off, {better} better off, {USERS - worse - better} unchanged"
        in drawn["gains"]
    )
    assert drawn["gains"].count('fill="var(--bad)"') >= 2  # the shade and a bar
    assert f"{better / USERS:.0%} better off" in drawn["gains"]


def test_users_without_a_change_are_counted_but_not_drawn() -> None:
    evaluation = replace(part(), gains={OPEN: [0.0] * 150 + [0.25] * 30 + [-0.25] * 20})
    svg = charts.gains(evaluation, MODELS[2], "g")
    assert "20 of 200 users are worse off, 30 better off, 150 unchanged" in svg
    # the frame and the shade are as high as the drawing
    low, high = sorted(height for height in bars(svg) if 0 < height < 150)
    assert low / high == pytest.approx(20 / 30, rel=1e-3)


def test_nobody_changed() -> None:
    evaluation = replace(part(), gains={BETTER: [0.0] * USERS})
    assert f"0 of {USERS} users are worse off" in charts.gains(evaluation, MODELS[1], "g")


def test_the_kept_epoch_is_told() -> None:
    [fit] = page().fits
    said = "the weights after epoch 1 were kept, which has the highest valid AUC, 0.6250 (valid loss 0.3750)."
    assert said in charts.learning(fit, "d")
    assert "the weights after epoch 0 were kept" in charts.learning(replace(fit, best_epoch=0), "d")
    ranked = charts.learning(replace(fit, best_valid_ndcg=0.125), "d")
    assert (
        "the weights after epoch 1 were kept, which has the highest valid NDCG@10, 0.1250 (valid loss 0.3750)."
        in ranked
    )


def test_one_epoch_is_a_picture_too() -> None:
    [fit] = page().fits
    ET.fromstring(charts.learning(replace(fit, epochs=fit.epochs[:1]), "d"))


def test_rounds_need_two_rounds(drawn: dict[str, str]) -> None:
    value = part().aggregate.filter(subject=BASELINE, group="all", metric="ndcg@10")["value"].item()
    assert f"round 0, cloud model, all users: {value:.4f}" in drawn["rounds"]
    assert charts.rounds(part(models=2), "e") == ""


def test_the_control_is_not_a_round() -> None:
    """A baseline that was trained further has no distillation behind it, and is no starting point either."""
    assert charts.rounds(replace(part(), control=True, models=[MODELS[0], MODELS[2]]), "e") == ""


def test_bins_with_few_rows_are_not_drawn(drawn: dict[str, str]) -> None:
    lines = re.findall(r'<path [^>]*d="(M[^"]*L[^"]*)"[^>]*stroke="var', drawn["calibration"])
    assert [path.count("L") for path in lines] == [2, 2, 2]  # three of four bins
    assert "cloud@1 · din trained on cloud: calibration error 0.1250" in drawn["calibration"]


def test_the_legend_tells_models_apart_by_more_than_colour() -> None:
    entries = charts.legend(part())
    assert [entry["text"] for entry in entries] == [f"{model.ref} · {model.role}" for model in MODELS]
    assert len({entry["colour"] for entry in entries}) == len({entry["dashes"] for entry in entries}) == 3


def test_a_hostile_name_is_inert() -> None:
    hostile = replace(MODELS[1], ref=HOSTILE)
    evaluation = replace(part(), models=[MODELS[0], hostile, MODELS[2]])
    for svg in (charts.activity(evaluation, "a", False), charts.gains(evaluation, hostile, "b")):
        assert ET.fromstring(svg).find(".//script") is None
        assert "<script" not in svg and "\x1b" not in svg and "\u202e" not in svg


def test_a_limit_of_memory_that_ends_the_drawing_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    from dcclctl.errors import DataError
    from dcclctl.report.charts import _check_address_space

    monkeypatch.setattr(resource, "getrlimit", lambda which: (4 * 2**30, resource.RLIM_INFINITY))
    with pytest.raises(DataError, match=r"4\.0 GiB of address space") as caught:
        _check_address_space()
    assert "ulimit -v unlimited" in caught.value.remedy
    monkeypatch.undo()
    _check_address_space()
