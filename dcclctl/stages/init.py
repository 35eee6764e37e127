"""`init`: looks at a log, and writes the settings that fit it, a gate file and a workflow for continuous integration."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl

from dcclctl.config import IngestConfig
from dcclctl.errors import DataError, UsageError
from dcclctl.logs.batch import Batch
from dcclctl.logs.formats import detect_log
from dcclctl.logs.impressions import one_by_one
from dcclctl.logs.layout import Layout
from dcclctl.logs.reader import batches, list_columns
from dcclctl.logs.rules import REMEDIES
from dcclctl.logs.sources import Source, find_paths, identify
from dcclctl.logs.split import split
from dcclctl.logs.times import TimeColumn
from dcclctl.models.settings import TrainedSettings
from dcclctl.report.text import plain
from dcclctl.stages.settings import FILE, read_toml
from dcclctl.version import __version__

#: records that are looked at
_RECORDS = 200_000
#: a larger share of events of a pair that came before: people come back to items
_MANY_REPEATS = 0.1
#: the batch size of train where none is given, and the smallest one that is written for a small log
_BATCH, _SMALLEST_BATCH = TrainedSettings().batch_size, 64
GATE, WORKFLOW = Path("gate.toml"), Path(".github/workflows/dcclctl-gate.yml")


@dataclass(frozen=True)
class Guess:
    """One setting of ingest, and what in the log speaks for it."""

    key: str
    value: Any
    why: str


def init(log: Path, folder: Path, columns: dict[str, str] | None = None, force: bool = False) -> list[Path]:
    """Write dccl.toml, gate.toml and a workflow that fit a log, and return their paths.

    Args:
        log: a file, glob or folder as for ingest. folder: where the files go. columns: role → column, as for ingest's --map.
        force: replace files that are there.

    Raises:
        UsageError: a file is there already.
        DataError: the log cannot be read, or its columns cannot be told.
    """
    source = identify(find_paths([log])[0])
    guesses, records = look_at(source, columns or {})
    texts = {FILE: _settings(log, records, guesses), GATE: _GATE, WORKFLOW: _workflow(log)}
    there = [str(folder / name) for name in texts if (folder / name).exists()]
    if there and not force:
        raise UsageError(f"{', '.join(there)}: there already", "Replace them with --force, or choose another --dir.")
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    read_toml(folder / FILE)
    return [folder / name for name in texts]


def look_at(source: Source, columns: dict[str, str]) -> tuple[list[Guess], int]:
    """The settings of ingest that fit a log, and the number of records that they are guessed from.

    Raises:
        DataError: the log cannot be read, or its columns cannot be told.
    """
    layout = detect_log(source, IngestConfig(map=columns, split="per-user"), near=True)
    roles = layout.roles
    batch = _first_records(source, layout)
    if not batch.frame.height:
        raise DataError(f"{source.path} has no rows", "Fetch or write the file again.")
    kept = {role: name for role, name in roles.items() if role != "label"}
    if "impressions" in roles:
        del kept["item"]
    guesses = [
        Guess("format", layout.format, "what its name and first lines look like"),
        Guess("map", kept, f"its columns: {', '.join(map(repr, layout.columns[:20]))}"),
        *_times(source, layout, batch),
    ]
    labels = _label(batch.frame, roles)
    guesses += labels
    if "behaviour" in roles:
        counts = batch.frame[roles["behaviour"]].drop_nulls().value_counts(sort=True).head(8).rows()
        counted = ", ".join(f"{name!r} {count:,}" for name, count in counts)
        guesses.append(Guess("behaviours", [], f"all are kept; name some to keep only these: {counted}"))
    pairs = batch.frame.select(pl.col(roles["user"]).alias("user"), pl.col(roles["item"]).alias("item"))
    share = 1 - pairs.n_unique() / len(pairs)
    keep = share > _MANY_REPEATS and not labels and "impressions" not in roles
    why = f"{share:.0%} of the events are of a user and item that came before"
    meaning = (
        "every item may be recommended again"
        if keep
        else "an item counts once for each user, and only new ones are recommended"
    )
    guesses.append(Guess("repeats", "keep" if keep else "first", f"{why}; {meaning}"))
    return guesses, batch.frame.height


def _first_records(source: Source, layout: Layout) -> Batch:
    shown = "impressions" in layout.roles
    found: Batch | None = None
    for batch, _ in batches(source, layout, list(dict.fromkeys(layout.roles.values())), list_columns(layout)):
        batch = one_by_one(batch, layout.roles) if shown else batch
        found = batch if found is None else replace(found, frame=pl.concat([found.frame, batch.frame]))
        if found.frame.height >= _RECORDS:
            break
    if found is None:
        raise DataError(f"{source.path} has no rows", "Fetch or write the file again.")
    return replace(found, frame=found.frame.head(_RECORDS), records=pl.arange(1, _RECORDS + 1, eager=True).to_numpy())


def _times(source: Source, layout: Layout, batch: Batch) -> list[Guess]:
    """Unit and zone of the times, and a split that they allow."""
    by_user = "only each user's own order is known: there is no common timeline to cut"
    if "time" not in layout.roles:
        return [
            Guess("split", "per-user", f"the log has no time column, so its rows must be in order of time; {by_user}")
        ]
    column = layout.roles["time"]
    texts, known = batch.frame[column], IngestConfig()
    where = f"{source.path}, column {column!r}"
    unit, guesses = "ordinal" if column == "ordinal" else "auto", []
    times = TimeColumn(unit, "", known.now, where)
    try:
        read, refused = times.read(texts, batch)
    except DataError:
        times = TimeColumn(unit, "UTC", known.now, where)
        read, refused = times.read(texts, batch)  # what is wrong beside a missing zone is an error here too
        guesses.append(
            Guess("timezone", "UTC", "the times name no zone; change it where they are not UTC, e.g. Europe/Paris")
        )
    if times.unit in get_args(IngestConfig.model_fields["time_unit"].annotation) and times.unit != "auto":
        first = texts.drop_nulls().first()
        guesses.insert(0, Guess("time_unit", times.unit, f"{column!r} begins with {first!r}"))
    if times.unit == "ordinal":
        return [*guesses, Guess("split", "per-user", by_user)]
    kept = read[~np.logical_or.reduce(list(refused.values()), axis=0)] if refused else read
    if not len(kept):
        raise DataError(f"{where}: none of the first {len(read):,} rows has a time", REMEDIES["bad-time"])
    try:
        split(np.zeros(len(kept), np.int32), kept, "timestamp", known)
    except (DataError, ValueError):
        return [*guesses, Guess("split", "per-user", "too many events have the same time to cut one timeline in four")]
    return [*guesses, Guess("split", "global", "one timeline for all users; no model sees a later period")]


def _label(frame: pl.DataFrame, roles: dict[str, str]) -> list[Guess]:
    """A condition that makes an event positive; none where a column says nothing or impressions say it."""
    column = roles.get("label")
    if column is None or "impressions" in roles:
        return []
    texts = frame[column].str.strip_chars().str.to_lowercase().replace({"true": "1", "false": "0"})
    numbers = texts.cast(pl.Float64, strict=False).drop_nulls()
    numbers = numbers.filter(numbers.is_finite())
    if numbers.n_unique() < 2:
        return []
    values = numbers.to_numpy()
    lowest, highest = float(values.min()), float(values.max())
    if highest == 5:  # stars
        least = 4.0
    elif highest == 1:
        least = 1.0 if numbers.n_unique() == 2 else 0.5
    else:
        least = float(np.median(values[values > lowest]))  # where most have the lowest value, that is no sign of liking
    share = (values >= least).mean()
    why = f"{column!r} runs from {lowest:g} to {highest:g}; {share:.0%} of the events are positive then; without it all are"
    return [Guess("label", f"{column}>={least:g}", why)]


def _settings(log: Path, records: int, guesses: list[Guess]) -> str:
    lines = [
        f"# Settings of dcclctl for {plain(str(log))}, guessed from its first {records:,} records. Correct what is wrong.",
        "# All commands find this file in the working directory; --config FILE names another one, and a flag wins over it.",
        "# dcclctl settings COMMAND lists every setting.",
        "seed = 0",
        "",
        "[ingest]",
    ]
    for guess in guesses:
        lines += [f"# {plain(guess.why)}", f"{guess.key} = {_toml(guess.value)}"]
    size = _batch_size(records)
    if size < _BATCH:
        why = f"# a small log: with {_BATCH:,} events to a step an epoch would have too few steps"
        lines += ["", "[train.din]", why, f"batch_size = {size}"]
    return "\n".join(lines) + "\n"


def _batch_size(records: int) -> int:
    """A batch size with which an epoch on half of the events has 25 steps or more, if that can be."""
    size = _BATCH
    while size > _SMALLEST_BATCH and records < 50 * size:
        size //= 2
    return size


def _toml(value: Any) -> str:
    """A text, a list of texts or a mapping of texts as TOML."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    # JSON and TOML escape alike, but TOML also wants DEL escaped
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")


def _workflow(log: Path) -> str:
    return _WORKFLOW.replace("{log}", json.dumps(log.as_posix())).replace("{version}", __version__)


_GATE = """\
# How much a candidate may be worse than the release:
#   dcclctl evaluate cloud@candidate --against cloud@release --gate gate.toml
# A rule fails if the drop is larger than max_drop and chance does not explain it. Two trainings with other seeds differ too:
# train the release with three seeds, compare them, and allow at least 1.5 times their largest difference.

[[rule]]
group = "all"
metric = "gauc"
max_drop = "2%"

[[rule]]
group = "tail"
metric = "gauc"
max_drop = "2%"

[[rule]]
group = "tail"
metric = "ndcg@10"
max_drop = "25%"
"""

_WORKFLOW = """\
# Trains a candidate for each pull request and stops it if a group of users would really be worse off (see gate.toml).
# Commit dccl.toml and gate.toml beside it. If the log is not in this repository, add a step that fetches it to $LOG.
# Run it once by hand on the main branch (Actions, dcclctl gate, Run workflow): that trains the release that pull requests are
# compared with. A pull request never makes a release from its own code: without one the job fails.
name: dcclctl gate
on:
  pull_request:
  workflow_dispatch:
permissions:
  contents: read
jobs:
  gate:
    runs-on: ubuntu-latest
    timeout-minutes: 60
    env:
      DCCL_STORE: .dccl
      LOG: {log}
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.11"
      # runners have no GPU: torch's installation page names an index with a far smaller build (PIP_EXTRA_INDEX_URL)
      - run: pip install dcclctl=={version}
      - uses: actions/cache@v4
        with:
          path: .dccl
          key: dccl-${{ github.sha }}
          restore-keys: dccl-
      - run: dcclctl ingest "$LOG"
      # by hand: the release; do it again after a change of the log or of [ingest]
      - if: github.event_name == 'workflow_dispatch'
        run: dcclctl train --name release
      - run: dcclctl artifacts show cloud@release --quiet > /dev/null
      - run: dcclctl train --seed 1 --name candidate
      - run: dcclctl audit cloud@candidate
      - run: dcclctl evaluate cloud@candidate --against cloud@release --gate gate.toml --junit gate.xml --markdown gate.md
      - if: always()
        run: if [ -f gate.md ]; then cat gate.md >> "$GITHUB_STEP_SUMMARY"; fi
"""
