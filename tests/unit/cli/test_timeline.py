"""Where the time of a command goes: phases inside phases, their shares, and the trace."""

import json
import re
import threading
from pathlib import Path

import pytest
from world import dcclctl

from dcclctl.cli.timeline import StackSampler, Timeline, profiled


class Clock:
    """Seconds that pass only when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def told(*calls: tuple[float, str, float, float]) -> Timeline:
    """A timeline after some calls of on_progress, each so many seconds after the start."""
    clock = Clock()
    timeline = Timeline(clock)
    for second, what, done, total in calls:
        clock.now = 100.0 + second
        timeline.at(what, done, total, "")
    return timeline


def test_a_phase_goes_on_where_an_inner_one_is_done() -> None:
    timeline = told(
        (1, "train", 0, 20), (4, "train", 10, 20), (4, "validate", 0, 5), (6, "validate", 5, 5), (9, "train", 20, 20)
    )
    assert dict(timeline.seconds) == {"start": 1, "train": 6, "validate": 2}
    assert timeline.under_way == [] and [(span.what, end) for span, end in timeline.ended] == [
        ("validate", 106.0),
        ("train", 109.0),
    ]


def test_a_phase_of_unknown_size_ends_where_the_next_begins() -> None:
    timeline = told((0, "start", 0, 0), (2, "open", 0, 0), (5, "train", 0, 4), (6, "train", 4, 4), (8, "commit", 0, 0))
    assert dict(timeline.seconds) == {"start": 2, "open": 3, "train": 1, "other": 2}
    assert [span.what for span in timeline.under_way] == ["commit"]


def test_a_phase_that_begins_again_is_another_span() -> None:
    timeline = told((0, "open", 0, 2), (1, "open", 2, 2), (3, "open", 0, 2), (4, "open", 1, 2), (5, "open", 0, 2))
    assert [end for _, end in timeline.ended] == [101.0, 105.0]
    assert timeline.seconds["open"] == 1 + 2 and timeline.seconds["other"] == 2


def test_the_outer_phase_ends_the_inner_one_that_did_not_say_so() -> None:
    timeline = told((0, "train", 0, 10), (1, "validate", 0, 9), (3, "train", 5, 10))
    assert [span.what for span in timeline.under_way] == ["train"]


def test_the_summary_names_the_largest_shares_first() -> None:
    timeline = told((1, "read", 0, 9), (5, "read", 9, 9), (5, "tiny", 0, 9), (5.05, "tiny", 9, 9))
    timeline.clock.now = 110.0
    assert timeline.summary() == "time: 10.0 s: other 50 %, read 40 %, start 10 %"
    timeline.clock.now = 100.0 + 7200
    assert timeline.summary() == "time: 2 h 0 min: other 100 %"


def test_the_trace_has_phases_with_what_was_done_and_functions(tmp_path: Path) -> None:
    timeline = Timeline()
    seen = threading.Event()
    with profiled(timeline, tmp_path / "trace.json"):
        timeline.at("read", 0, 10, "")
        _in_the_package(seen)
        timeline.at("read", 10, 10, "a note")
        timeline.at("open", 0, 0, "")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    spans = {event["name"]: event for event in events if event["ph"] == "X"}
    assert spans["read"]["args"]["done"] == spans["read"]["args"]["of"] == 10
    assert spans["read"]["args"]["note"] == "a note" and spans["read"]["dur"] > 0
    assert "open" in spans  # also what was not done when it was written
    function = spans["compute.Phase.__init__"]
    assert function["tid"] != spans["read"]["tid"]
    assert spans["read"]["ts"] <= function["ts"] <= spans["read"]["ts"] + spans["read"]["dur"]
    assert {event["tid"] for event in events if event["ph"] == "M"} == {1, 2}


def _in_the_package(seen: threading.Event) -> None:
    """Stay in a function of the package until the sampler has looked."""
    from dcclctl.compute import Phase

    Phase(lambda *_: seen.wait(0.1), "inside", 1, "events")


def test_counters_of_memory_and_processor(tmp_path: Path) -> None:
    timeline = Timeline()
    sampler = StackSampler(timeline)
    while not any(event["ph"] == "C" for event in sampler._events):
        pass
    sampler.write(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    counters = {name: value for event in events if event["ph"] == "C" for name, value in event["args"].items()}
    assert set(counters) == {"cores in use", "peak memory, MiB"} and counters["peak memory, MiB"] > 1


def test_the_trace_is_written_where_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), profiled(Timeline(), tmp_path / "trace.json"):
        raise ValueError("no")
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def test_a_stage_says_last_where_the_time_went(shop: Path, tmp_path: Path) -> None:
    command = ["train", "--model", "item-knn", "--force"]
    result = dcclctl(*command, "--profile", tmp_path / "trace.json", store=shop)
    last = result.stderr.splitlines()[-1]
    assert re.fullmatch(r"time: \d+\.\d s: \w[\w ]* \d+ %(, \w[\w ]* \d+ %)*", last), last
    names = {event["name"] for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert {"count pairs of items", "stages.train.train"} <= names
    assert "time:" not in dcclctl(*command, "--quiet", store=shop).stderr
