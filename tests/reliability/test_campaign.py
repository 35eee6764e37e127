"""The short form of the campaign, that it finds planted bugs, and that the page shows what the long form recorded."""

from collections.abc import Iterator

import pytest

from reliability import crowds, parts
from reliability.bench import why_not
from reliability.campaign import Campaign, prepared
from reliability.parts import PARTS
from reliability.plants import PLANTS

#: commands of the short form
SHORT = ("ingest", "train", "gc", "forget")
#: planted bugs that the short form tries: those that are found in a second or two
QUICK = ("file not synced", "folder not synced", "skipped hash", "swallowed count", "silent stop", "reader trips")


@pytest.fixture(scope="module")
def campaign() -> Iterator[Campaign]:
    if reason := why_not():
        pytest.skip(reason)
    with prepared(SHORT) as made:
        yield made


@pytest.mark.parametrize("name", [name for name, part in PARTS.items() if part.short and name != "crowds"])
def test_a_part_finds_nothing(name: str, campaign: Campaign) -> None:
    part = PARTS[name]
    found = part.run(campaign, part.short)
    assert found.problems == []
    assert found.phases[part.unit] >= part.short // 2, found.phases  # shares of commands are rounded


def test_a_crowd_computes_once(campaign: Campaign) -> None:
    found = crowds.crowds(campaign, 1, crowd=4)
    assert found.problems == []
    assert found.phases["equal commands"] == 4


@pytest.mark.parametrize("name", QUICK)
def test_a_planted_bug_is_found(name: str, campaign: Campaign) -> None:
    assert parts.catches(campaign, name)


def test_every_kind_of_stop_comes(campaign: Campaign) -> None:
    """The faults that are asked for happen: a kill at each class of operation that changes something."""
    scene = campaign.scenes["train"]
    assert {name for name, number in scene.end.counts.items() if number} >= {
        *("create", "write", "sync", "rename", "remove", "folder", "mode", "lock", "open", "read")
    }
    assert scene.end.count > 80


def test_the_page_shows_what_the_long_form_recorded() -> None:
    results = parts.read_results()
    page = parts.PAGE.read_text()
    assert page.split(parts.BEGIN)[1].split(parts.END)[0].strip() == parts.table(results)


def test_the_long_form_found_nothing_and_every_planted_bug() -> None:
    results = parts.read_results()
    assert results["parts"].keys() == PARTS.keys()
    assert {name: part["problems"] for name, part in results["parts"].items() if part["problems"]} == {}
    short = {name: part["count"] for name, part in results["parts"].items() if part["count"] < PARTS[name].long}
    assert short == {}
    assert {name for name, words in results["planted"].items() if words} == PLANTS.keys()
