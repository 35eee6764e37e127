"""The page: it claims what the comparison shows, is inert, accessible, and the same bytes every time."""

import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest
from pages import BASELINE, BETTER, HOSTILE, MODELS, OPEN, USERS, page, part, per_user

from dcclctl.config import PERIODS
from dcclctl.report.html import SHOWN_GROUPS, headline, notes, period_name, render
from dcclctl.tables import MAIN_GROUPS, SERVED_BY

#: elements that never have an end tag
VOID = {"meta", "link", "br", "line", "path"}


class Tree(HTMLParser):
    """Tags in order with their attributes, headings, text, and whether every end tag closes what is open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def rendered() -> str:
    return render(page())


@pytest.fixture(scope="module")
def tree(rendered: str) -> Tree:
    return Tree(rendered)


# -- what it claims


def test_a_real_gain_is_claimed_with_its_interval() -> None:
    told = headline(part(models=2))
    row = part(models=2).comparison.filter(group="all", metric="ndcg@10").row(0, named=True)
    share = f"{row['difference'] / row['baseline']:+.1%}".replace("%", " %")
    gain = f"NDCG@10 {100 * row['difference']:+.2f} points, {share}"
    assert told[0] == (
        f"patches@1 (patches on cloud@1) is better than cloud@1 ({gain}); before you deploy it, compare it with the same "
        "model trained further."
    )
    assert f"{100 * row['difference']:+.2f} points" in told[1]
    assert f"95 % interval {100 * row['low']:+.2f} to {100 * row['high']:+.2f}" in told[1]
    assert told[2].startswith("Tail users: +")


def test_deployment_is_advised_only_against_the_strong_control() -> None:
    told = headline(part(models=2, control=True))[0]
    assert told.startswith(
        "Deploy patches@1 (patches on cloud@1): it is better than cloud@1, the same model trained further ("
    )
    assert "Deploy" not in headline(part(models=2))[0]


def test_what_a_better_model_is_worse_by_is_said_beside_it() -> None:
    given = part(models=2, control=True)
    ranked = given.comparison.filter(metric="ndcg@10").with_columns(pl.lit("better").alias("verdict"))
    lost = {
        metric: ranked.with_columns(pl.lit(metric).alias("metric"), pl.lit("worse").alias("verdict"))
        for metric in ("log_loss", "gauc")
    }
    told = headline(replace(given, comparison=pl.concat([ranked, lost["log_loss"]])))
    assert told[0].startswith("Deploy patches@1")
    assert told[1] == "But patches@1 is worse by log loss over all users: do not read its scores as probabilities."
    told = headline(replace(given, comparison=pl.concat([ranked, *lost.values()])))
    assert told[1] == "But patches@1 is worse by log loss and GAUC over all users."
    tail = lost["gauc"].with_columns(
        pl.when(pl.col("group") == "tail").then(pl.lit("worse")).otherwise(pl.lit("better")).alias("verdict")
    )
    told = headline(replace(given, comparison=pl.concat([ranked, lost["log_loss"], tail])))
    assert told[1] == "But patches@1 is worse by log loss over all users, and by GAUC for tail users."
    only = ranked.with_columns(
        pl.when(pl.col("group") == "tail").then(pl.lit("worse")).otherwise("verdict").alias("verdict")
    )
    told = headline(replace(given, comparison=only))
    assert told[1] == "But patches@1 is worse by NDCG@10 for tail users."
    assert "But patches@1" not in " ".join(headline(part(models=2)))


def test_a_real_loss_is_called_worse() -> None:
    told = headline(part(per_user(lift=-0.05), models=2))
    assert told[0] == "Keep cloud@1: patches@1 is worse by NDCG@10."


def test_an_open_comparison_is_called_open() -> None:
    whole = part()
    told = headline(replace(whole, models=[MODELS[0], MODELS[2]], comparison=whole.comparison.filter(subject=OPEN)))
    assert told[0] == "Keep cloud@1 for now: it is open whether cloud@2 is better or worse by NDCG@10."
    assert "inconclusive" in told[1]
    assert not re.search(r"\b(is|are) (better|worse) than", told[1])


def test_models_that_rank_alike_leave_nothing_to_decide() -> None:
    same = per_user(lift=0).filter(pl.col("subject") == BASELINE)
    twins = pl.concat([same, same.with_columns(pl.lit(BETTER).alias("subject"))])
    given = part(twins, models=2)
    assert headline(given)[0] == "Nothing to decide: patches@1 and cloud@1 rank alike for every user."
    text = Tree(render(page(given))).text
    assert "inconclusive: no difference" not in text and text.count("no difference") >= 3


def test_a_model_that_ranks_alike_beside_a_better_one_is_not_called_inconclusive() -> None:
    values = per_user()
    same = values.filter(pl.col("subject") == BASELINE).with_columns(pl.lit(OPEN).alias("subject"))
    told = headline(part(pl.concat([values.filter(pl.col("subject") != OPEN), same])))
    assert "No difference for any user: cloud@2." in told
    assert not any(line.startswith("Inconclusive") for line in told)


def test_several_models_are_sorted_by_their_verdict() -> None:
    told = headline(part())
    assert told[0].startswith("patches@1 (patches on cloud@1) is better than cloud@1 (NDCG@10 +")
    assert told[1:] == [
        "Better over all users: patches@1.",
        "Inconclusive over all users: cloud@2.",
        "Tail users gain with patches@1.",
    ]


def test_no_verdict_is_no_claim() -> None:
    evaluation = part()
    undecided = evaluation.comparison.with_columns(pl.lit("inconclusive").alias("verdict"))
    told = headline(replace(evaluation, comparison=undecided))
    assert told == [
        "Keep cloud@1 for now: it is open whether patches@1 and cloud@2 are better or worse by NDCG@10.",
        "Inconclusive over all users: patches@1 and cloud@2.",
        "No gain of tail users is shown.",
    ]


def test_the_page_begins_with_what_to_do_then_the_picture(tree: Tree, rendered: str) -> None:
    """Lead, log and days, the twenty groups with intervals; tables come after it."""
    at = [rendered.index(text) for text in ('class="lead"', "The test period of clicks.csv, 2026-01-01 to 2026-02-01")]
    at += [
        rendered.index(text)
        for text in ("with 95 % intervals over the users", "Chart of the difference to cloud@1", "<table")
    ]
    assert at == sorted(at)
    assert "clicks.csv" in rendered[: rendered.index("</title>")]


def test_groups_are_explained_and_fewer_users_are_said(tree: Tree) -> None:
    assert "tail users (least active 80 %)" in tree.text
    assert "head: the 20 % of users with most events before test; tail: the other 80 %" in tree.text
    without = per_user().with_columns(pl.when(pl.col("user_index") < 190).then("auc").alias("auc"))
    assert "152 users; GAUC of 150" in Tree(render(page(part(without)))).text


def test_a_model_at_chance_level_is_named() -> None:
    assert "cloud@1: GAUC is at chance level, 0.5 (95 % interval 0.4900 to 0.5200)" in " ".join(
        notes(part(at_chance={BASELINE: (0.49, 0.52)}))
    )


def test_who_gains_more_stands_beside_the_verdicts() -> None:
    extra = pl.when((pl.col("group") == "tail") & (pl.col("subject") == BETTER)).then(0.15).otherwise(0.0)
    text = Tree(render(page(part(per_user().with_columns(pl.col("ndcg@10") + extra), models=2)))).text
    cell = text[text.index("tail minus head") :]
    found = re.search(r"\+(\d+\.\d\d)\s+\[\+\d+\.\d\d, \+\d+\.\d\d\]\s*favours the tail", cell)
    assert found and 15 <= float(found[1]) <= 17.5  # 15 points by design; the head has the one user who loses 50
    few = per_user().filter(pl.col("group") != "tail")
    assert "favours" not in Tree(render(page(part(few, models=2)))).text


def test_a_placebo_among_the_models_answers_the_note() -> None:
    asked = "is personal only if it disappears with another user's patch or memory"
    assert asked in " ".join(notes(part()))
    for suffix in ("+mean", "+shuffled"):
        lent = replace(MODELS[1], name=f"{BETTER}{suffix}", ref=f"patches@1{suffix}", placebo=True)
        assert asked not in " ".join(notes(replace(part(), models=[*MODELS, lent])))


def test_one_model_is_compared_with_nothing() -> None:
    assert headline(part(models=1)) == ["Only cloud@1 was scored, so there is nothing to compare it with."]
    text = Tree(render(page(part(models=1)))).text
    assert "worse off" not in text and "Who gains" not in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "not the strong control"),
        ({}, "is personal only if it disappears with another user's"),
        ({}, "randomness of training"),
        ({"candidates": 1000}, "1,000 sampled items"),
        ({"split": "per-user"}, "trends leak"),
        ({"users_without_auc": 7}, "7 users have events of one label only"),
    ],
)
def test_what_the_figures_do_not_say_is_said(changes: dict[str, object], said: str) -> None:
    assert said in " ".join(notes(part(**changes)))


def test_no_note_without_its_reason() -> None:
    told = " ".join(notes(part(control=True)))
    assert all(word not in told for word in ("strong control", "sampled", "leak", "one label"))


# -- what it shows


def test_every_group_and_model_has_its_figures(tree: Tree) -> None:
    for row in part().aggregate.filter(pl.col("metric") == "ndcg@10").to_dicts():
        if row["value"] is not None:
            assert f"{row['value']:.4f}" in tree.text
    assert all(f"{model.ref}" in tree.text and model.role in tree.text for model in MODELS)


def test_harm_names_the_user_who_lost_most(tree: Tree) -> None:
    shown = "<script>alert(1)</script>=cmd|'/c calc'![/red]\\x1b[31m\\u202eevil\"'"
    assert f"patches@1, largest losses: {shown} (head, -50.00)" in tree.text.replace("\n", " ")
    gains = np.array(part().gains[BETTER])
    assert f"{(gains < 0).mean():.0%}" in tree.text


def test_configuration_lineage_and_commands_are_there(tree: Tree) -> None:
    text = tree.text
    assert "aaaaaaaaaaaa" in text and "abababababab" in text and "log:<b>.csv" in text
    assert "cloud_1=$(dcclctl train)  # cacacacacaca" in text
    assert 'dcclctl report "${evaluation_1}" -o report.html' in text
    settings = dict(re.findall(r'<th scope="row">(\w+)</th><td class="text wrap">(.*?)</td>', render(page())))
    assert settings["k"] == "5,10" and settings["guard"] == "off" and settings["epochs"] == "3"


def test_several_evaluations_have_a_table_of_contents() -> None:
    second = part(ref="evaluation@2", on="valid")
    tree = Tree(render(page(part(), second)))
    targets = [link["href"] for link in tree.all("a")]
    ids = {attributes.get("id") for _, attributes in tree.tags}
    assert {"#evaluation-1", "#evaluation-2"} <= set(targets)
    assert all((target or "").removeprefix("#") in ids for target in targets)
    assert "the validation period" in tree.text


# -- what it is


def test_the_same_content_gives_the_same_bytes(rendered: str) -> None:
    assert render(page()) == rendered


def test_hostile_text_is_inert(rendered: str, tree: Tree) -> None:
    assert HOSTILE not in rendered and "alert(1)" in rendered
    assert not tree.all("script")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", rendered)
    assert not any(name.startswith("on") for _, attributes in tree.tags for name in attributes)


def test_nothing_is_loaded_from_anywhere(rendered: str, tree: Tree) -> None:
    named = [
        value
        for _, attributes in tree.tags
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href")
    ]
    assert all(value and value.startswith(("#", "data:,")) for value in named)
    assert "@import" not in rendered and not re.search(r"url\((?!#)", rendered)
    [policy] = [meta["content"] for meta in tree.all("meta") if meta.get("http-equiv")]
    assert policy and policy.startswith("default-src 'none'")


def test_it_is_small(rendered: str) -> None:
    assert len(rendered.encode()) < 500_000


def test_markup_is_balanced_and_ids_are_unique(tree: Tree) -> None:
    assert not tree.open
    ids = [attributes["id"] for _, attributes in tree.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_it_can_be_read_aloud(tree: Tree) -> None:
    assert tree.all("html")[0]["lang"] == "en"
    levels = [int(tag[1]) for tag, _ in tree.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below - above <= 1 for above, below in itertools.pairwise(levels))
    assert len(tree.all("table")) == len(tree.all("caption"))
    assert all(cell.get("scope") for cell in tree.all("th"))
    drawings = [svg for svg in tree.all("svg") if svg.get("aria-hidden") != "true"]
    assert len(drawings) == 9 and all(svg.get("role") == "img" and svg.get("aria-label") for svg in drawings)


def test_wide_parts_scroll_by_keyboard_in_their_own_frame(tree: Tree) -> None:
    frames = [attributes for _, attributes in tree.tags if attributes.get("class") == "scroll"]
    assert len(frames) == len(tree.all("table")) + 1  # and the commands
    assert all(frame["tabindex"] == "0" and frame["role"] == "region" and frame["aria-label"] for frame in frames)
    assert "width=device-width" in str([meta.get("content") for meta in tree.all("meta")])


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_colours_contrast_in_light_and_dark(rendered: str) -> None:
    """WCAG 2.2 AA: text 4.5, lines of charts 3."""
    assert contrast("#ffffff", "#000000") == 21
    light, dark = re.findall(r":root \{(.*?)\}", rendered, re.S)
    for block in (light, dark):
        colours = {
            name: f"#{value * 2 if len(value) == 3 else value}"
            for name, value in re.findall(r"--([\w-]+): #([0-9a-f]{3,6});", block)
        }
        for text in ("ink", "soft", "focus", "good", "bad"):
            for ground in ("card", "page"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        for name, tint in (("good", "good-tint"), ("bad", "bad-tint"), ("ink", "flat-tint")):
            assert contrast(colours[name], colours[tint]) >= 4.5, name
        for at in range(8):
            assert contrast(colours[f"s{at}"], colours["card"]) >= 3, at


def test_every_model_is_served(tree: Tree) -> None:
    assert f"{USERS - 8}" in tree.text and BASELINE not in tree.text  # people read references, not names in tables


def served(*by: dict[str, int]) -> list[list[str]]:
    """Header and rows of the table that says how users were served, without its last two columns."""
    models = [replace(model, served_by=given) for model, given in zip(MODELS, by, strict=False)]
    table = (
        render(page(replace(part(), models=models, baseline=models[0])))
        .partition("How users were served")[2]
        .partition("</table>")[0]
    )
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>.*?</tr>", table, re.S)]
    return [row[:-2] for row in cells]


def test_every_way_to_serve_has_a_column_if_anybody_was_served_so() -> None:
    header, *rows = served({"cloud": USERS}, {"memory": USERS - 8, "cloud": 8}, {"cloud": USERS})
    assert header == ["model", "by memory", "by cloud"]
    assert [row[1:] for row in rows] == [["0", "200"], ["192", "8"], ["0", "200"]]
    (header, *rows) = served(*({by: USERS} for by in ("patch", "encoder", "memory")))
    assert header == ["model", "by patch", "by memory", "by encoder"]
    assert [row[1:] for row in rows] == [["200", "0", "0"], ["0", "0", "200"], ["0", "200", "0"]]
    for by in SERVED_BY:  # all users of each model are somewhere
        assert f"by {by}" in served(*[{by: USERS}] * 3)[0]


def test_the_tables_show_every_main_group() -> None:
    assert sorted(SHOWN_GROUPS) == sorted(MAIN_GROUPS)


@pytest.mark.parametrize(
    ("on", "said"),
    [
        *((period, f"the {period} period") for period in PERIODS if period != "valid"),
        ("valid", "the validation period"),
        ("device:2/3", "part 2/3 of the device period"),
        ("test, only of items that are new to the user", "the test period, only of items that are new to the user"),
    ],
)
def test_every_period_has_a_name(on: str, said: str) -> None:
    assert period_name(on) == said
    shown = render(page(part(on=on)))
    assert f">{said[0].upper()}{said[1:]} of clicks.csv, 2026" in shown and "; one seed</h2>" in shown
