"""Which events are scored; and new users who are served with exactly their first K events.

Each K is an evaluation of its own, so that report, audit and gate read it like any other. Either all of them score the
same events of the same users against the same candidates, and only the histories that the models see differ; or (`next`)
each scores what comes right after the first K events, so that no history is out of date.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import polars as pl

from dcclctl.artifacts import Dataset, Evaluation
from dcclctl.config import EvaluateConfig
from dcclctl.errors import DataError, UsageError
from dcclctl.events.log import EventLog
from dcclctl.events.sampling import Ints


def one_each(config: EvaluateConfig) -> list[EvaluateConfig]:
    """The settings of one evaluation for each K, ascending; they agree on which events are scored, unless those are the next."""
    given = config.targets_after
    after = given if given == "next" else max(given, *config.first_events)
    return [
        config.model_copy(update={"first_events": [first], "targets_after": after})
        for first in sorted(set(config.first_events))
    ]


def seen_by_models(log: EventLog, config: EvaluateConfig) -> EventLog:
    """The log that models are served from: itself, or with --first-events K every history cut to its first K events.

    An event counts here if it is positive: histories are made of nothing else. Of events at one moment the log's own
    order says which came first.

    Raises:
        UsageError: several K, or more events in the histories than are kept from being scored.
    """
    if not config.first_events:
        return log
    first, after = config.first_events[0], config.targets_after
    if len(config.first_events) > 1 or (after != "next" and first > after):
        raise UsageError(
            f"one evaluation has one K, of at most --targets-after {after} events",
            "Make one for each K: dcclctl evaluate --first-events 0,3,10",
        )
    return replace(log, history_end=(log.history_start + first).clip(max=log.history_end))


def targets_of(dataset: Dataset, log: EventLog, events: Ints, config: EvaluateConfig) -> Ints:
    """Which of the block's events are scored: all, those of `targets`, or with --first-events those of new users that come late enough.

    Late enough is a strictly later moment than each of the user's first `targets_after` positive events; next are those
    before which there are exactly K of them (a user who has several at once may have none).

    Args:
        log: the dataset's, or a part of it. events: of the block.

    Returns:
        The events that are left; there may be none.
    """
    if config.targets != "all":
        events = events[log.interacted_before(events) == (config.targets == "repeat")]
    if not config.first_events:
        return events
    events = of_new_users(dataset, log, events)
    known, first, after = (
        log.history_end[events] - log.history_start[events],
        config.first_events[0],
        config.targets_after,
    )
    chosen: Ints = events[known == first if after == "next" else known >= after]
    return chosen


def check_targets(dataset: Dataset, count: int, config: EvaluateConfig) -> None:
    """Refuse an evaluation that has asked for some of the events, and has none of them.

    Raises:
        DataError: the count is 0.
    """
    if count:
        return
    if config.targets != "all":
        which = "interacted with before" if config.targets == "repeat" else "did not interact with before"
        raise DataError(
            f"{dataset.artifact.ref} has no event in {config.on} of an item that its user {which}",
            "Leave --targets out"
            + (", or keep repeated events (dcclctl ingest --repeats keep)." if config.targets == "repeat" else "."),
        )
    if not config.first_events:
        raise DataError(f"{dataset.ref} has no events in {config.on}", "Choose another period with --on.")
    if config.targets_after == "next":
        raise DataError(
            f"{dataset.artifact.ref} has no event in {config.on} before which a new user has exactly "
            f"{config.first_events[0]} others",
            "Leave that K out of --first-events, or make more users new (dcclctl ingest --new-users 0.1).",
        )
    raise DataError(
        f"{dataset.artifact.ref} has no new user with more than {config.targets_after} events in {config.on}",
        "Make some users new (dcclctl ingest --new-users 0.1), or score earlier events (--targets-after).",
    )


def targets_in_words(config: Mapping[str, Any]) -> str:
    """What to add to a number of scored events; nothing where all are scored."""
    known = {
        "all": "",
        "repeat": ", only of items that the user interacted with before",
        "explore": ", only of items that are new to the user",
    }
    return known[config["targets"]]


def of_new_users(dataset: Dataset, log: EventLog, events: Ints) -> Ints:
    """Those events of the dataset's log, or of a part of it, whose user has nothing before test."""
    own: Ints = events[(dataset.users["group"] == "new").to_numpy()[log.user[events]]]
    return own


def by_first_events(evaluations: list[Evaluation]) -> pl.DataFrame:
    """What every model achieves for every K, and its difference to the baseline at the same K.

    Args:
        evaluations: one for each K, of the same models.

    Returns:
        first_events (K), subject, metric, value, users, and against the baseline difference, low, high, verdict.
    """
    parts = []
    for evaluation in evaluations:
        figures = evaluation.aggregate.filter(pl.col("group") == "new").drop("group")
        compared = ["subject", "metric", "difference", "low", "high", "verdict"]
        if evaluation.against:
            comparison = evaluation.comparison.filter(pl.col("group") == "new").select(compared)
        else:
            comparison = pl.DataFrame(
                schema=dict(zip(compared, (pl.String, pl.String, *[pl.Float64] * 3, pl.String), strict=True))
            )
        joined = figures.join(comparison, on=["subject", "metric"], how="left", maintain_order="left")
        parts.append(joined.select(pl.lit(evaluation.config["first_events"][0]).alias("first_events"), pl.all()))
    return pl.concat(parts)
