"""Progress: what is shown on a terminal and in a log file, at which times of an injected clock."""

import threading
from pathlib import Path

import pytest
from world import World

import dcclctl
from dcclctl.cli.console import LINE_EVERY, LOOK_EVERY, Progress, Reporter
from dcclctl.cli.timeline import Timeline, duration
from dcclctl.compute import Phase


class Clock:
    """Seconds that pass only when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_line_every_thirty_seconds_where_stderr_is_no_terminal() -> None:
    clock, said = Clock(), []
    progress = Progress(live=False, say=said.append, timeline=Timeline(clock))
    for second in range(100):
        clock.now = 100.0 + second
        progress("train", second, 200, "loss 0.5")
    assert said == [
        "train: 15 %, loss 0.5, 3 min left",
        "train: 30 %, loss 0.5, 2 min left",
        "train: 45 %, loss 0.5, 2 min left",
    ]


def test_a_phase_that_says_nothing_is_still_seen_to_run() -> None:
    """One call for a long operation, such as the inverse of a matrix: its size is not known in parts."""
    clock, said = Clock(), []
    progress = Progress(live=False, say=said.append, timeline=Timeline(clock))
    progress("invert", 0, 0, "a matrix of 9,000 × 9,000")
    for _ in range(2):
        clock.now += LINE_EVERY
        progress.look()
        progress.look()
    assert said == ["invert: a matrix of 9,000 × 9,000, 30 s so far", "invert: a matrix of 9,000 × 9,000, 60 s so far"]


def test_a_short_command_prints_no_line() -> None:
    clock, said = Clock(), []
    progress = Progress(live=False, say=said.append, timeline=Timeline(clock))
    progress("train", 0, 10)
    clock.now += LINE_EVERY - 1
    progress("train", 10, 10)
    assert said == []


def test_the_time_left_counts_from_where_a_resumed_run_began() -> None:
    clock, said = Clock(), []
    progress = Progress(live=False, say=said.append, timeline=Timeline(clock))
    progress("train", 60, 100)
    clock.now += 40
    progress("train", 70, 100)  # 10 in 40 s, so 30 more in 120 s
    assert said == ["train: 70 %, 2 min left"]
    progress("validate", 0, 10)  # a new phase has a time of its own
    clock.now += 30
    progress("validate", 9, 10)
    assert said[1:] == ["validate: 90 %, 3 s left"]


def test_the_display_may_be_entered_twice_and_ends_once() -> None:
    """A command enters it before it imports anything, a stage's run again."""
    said: list[str] = []
    progress = Progress(live=False, say=said.append)
    with progress:
        threads = threading.active_count()
        with progress:
            assert threading.active_count() == threads
        assert progress._ended.is_set()


def test_a_phase_of_unknown_size_leaves_no_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes stderr for a terminal
    clock = Clock()
    with Progress(live=True, timeline=Timeline(clock)) as live:
        live("start", 0, 0)
        assert live._bars is None  # nothing is drawn for a command that is done at once
        clock.now += LOOK_EVERY
        live("train", 1, 2)
        assert [task.description for task in live._bars.tasks] == ["train"]
        live("invert", 0, 0, "a matrix")
        live("invert", 0, 0, "a matrix")
    assert "train" in capsys.readouterr().err


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Reporter(as_json=False, quiet=True).progress() as progress:
        progress.timeline.clock = clock
        clock.now += 1_000_000
        progress("train", 1, 2)
        progress.look()
    assert capsys.readouterr().err == ""


def test_a_line_goes_to_stderr_unless_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(as_json=True, quiet=False).progress() as progress:
        clock = Clock()
        progress.timeline.clock, progress._said = clock, 0.0
        progress("train", 1, 2)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "train: 50 %\n")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (7500, "2 h 5 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_phase_tells_its_rate() -> None:
    clock, told = Clock(), []
    phase = Phase(lambda *call: told.append(call), "train", 1000, "events", done=200, clock=clock)
    clock.now += 2
    phase.add(300, "loss 0.5")
    clock.now += 2
    phase.at(1000)
    assert told == [
        ("train", 200, 1000, ""),
        ("train", 500, 1000, "loss 0.5  150 events/s"),
        ("train", 1000, 1000, "200 events/s"),
    ]


def told_by(world: World, stage: str) -> list[tuple[str, float, float]]:
    """(what, done, total) of every call while a stage of the tiny shop runs."""
    told: list[tuple[str, float, float]] = []

    def on_progress(what: str, done: float, total: float, note: str) -> None:
        told.append((what, done, total))

    run = {"on_progress": on_progress, "force": True}
    small = {"threads": 1}
    data, cloud, patches = world.dataset(), world.cloud(), world.patches()
    made = {
        "ingest": lambda: dcclctl.ingest(world.log, store=data.store, **run),
        "train": lambda: dcclctl.train(data, epochs=2, **small, **run),
        "count": lambda: dcclctl.train(data, model="item-knn", **small, **run),
        "memory": lambda: dcclctl.memory(data, **run),
        "patch": lambda: dcclctl.patch(cloud, epochs=2, **small, **run),
        "metapatch": lambda: dcclctl.patch(cloud, method="metapatch", basis_epochs=2, **small, **run),
        "distill": lambda: dcclctl.distill(patches, epochs=2, **small, **run),
        "evaluate": lambda: dcclctl.evaluate([cloud, patches], against=cloud, k=[3], **small, **run),
    }
    made[stage]()
    return told


#: the phases that a person waits for, in order
PHASES = {
    "ingest": ["hash", "read", "arrange"],
    "train": ["validate", "train", "validate"],
    "count": ["count pairs of items"],
    "memory": ["count pairs of items", "count what precedes", "usual features", "fill memories"],
    "patch": ["count pairs of items", "count what precedes", "usual features", "compute features", "learn (held back)"],
    "metapatch": ["learn the basis", "patch"],
    "distill": ["validate", "teach the cloud model", "validate", "teach basis and encoder"],
    "evaluate": ["evaluate", "compare", "compare tail and head"],
}


@pytest.mark.parametrize("stage", PHASES)
def test_every_phase_goes_from_its_start_to_its_end(stage: str, shop: Path, world: World) -> None:
    own = World(shop, world.log, world.ids)
    told = told_by(own, stage)
    names = list(dict.fromkeys(what for what, _, _ in told))
    assert [name for name in names if name in PHASES[stage]] == list(dict.fromkeys(PHASES[stage]))
    for name in PHASES[stage]:
        shares = [done / total for what, done, total in told if what == name]
        assert shares[0] == 0 and all(0 <= share <= 1 for share in shares)
        assert shares[-1] == 1  # no bar stays at 67 %
