"""`recommend`: a cloud model or patches → the lists of many users, in shards of users."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from dcclctl.artifacts import Dataset, Recommendations
from dcclctl.artifacts.recommendations import shard_name
from dcclctl.compute import OnProgress, compute_settings, torch_device
from dcclctl.config import ListSettings, RecommendConfig, ScoreSettings
from dcclctl.devices.serving import Subject
from dcclctl.errors import UsageError
from dcclctl.evaluation.lists import Lister, ListRules, Moment, allowed_candidates
from dcclctl.evaluation.parts import exchanges_histories
from dcclctl.events.log import EventLog
from dcclctl.events.sampling import Ints
from dcclctl.stages.chosen import chosen_items, chosen_users
from dcclctl.stages.people import People, people_of
from dcclctl.stages.run import DEFAULT_RUN, NO_SETTINGS, RunOptions, Settings, named
from dcclctl.stages.settings import resolve
from dcclctl.store.store import Input, Work
from dcclctl.tables import SERVED_BY


def recommend(
    subject: Subject, settings: Settings = NO_SETTINGS, run: RunOptions = DEFAULT_RUN, logs: Sequence[Path] = ()
) -> Recommendations:
    """Make the lists of many users; each user's is what `score` shows of that user at the same moment.

    Args:
        subject: a cloud model, patches or a bundle. settings: see RecommendConfig. run: how to run.
        logs: new events of known and new users, read as the dataset's own log was.

    Raises:
        UsageError: an unknown user, no candidate, or a new log and the start of the test period.
        DataError: a new log that cannot be read or has too many bad rows.
    """
    config = resolve(RecommendConfig, settings, run.config)
    dataset = subject.cloud.dataset
    check_moment(config.as_of, logs)
    people = people_of(dataset, logs, run.on_progress)
    users, spec = chosen_users(dataset, config.users, people.users)
    if not len(users):
        raise UsageError(f"--users {spec}: {dataset.ref} has no such user", "Use all, tail, head, @FILE, or ids.")
    rules, unknown, items_spec = list_rules(config, config.as_of, dataset)
    exclude = "seen" if rules.exclude_seen else "none"
    config = config.model_copy(update={"users": spec, "candidates": items_spec, "exclude": exclude})
    inputs = {"model": subject.artifact.as_input(), "dataset": dataset.artifact.as_input()}
    for role, value in (("users", spec), ("candidates", items_spec)):
        if value.startswith("@sha256:"):
            inputs[role] = Input("raw", value.removeprefix("@sha256:"))
    for number, source in enumerate(people.sources, 1):
        inputs[f"log-{number}:{source.name}"] = Input("raw", source.sha256)
    with compute_settings(config) as config:
        recorded = config.recorded() | {"suffix": subject.suffix}
        store = subject.cloud.store
        pairs = len(users) * dataset.items.height
        with store.begin("recommend", "recommendations", recorded, config.seed, inputs, run.force, pairs) as work:
            if work.reused is not None:
                return named(Recommendations(work.reused), run)
            listers = _Listers(subject, people.log, users, rules, torch_device(config), config)
            if people.rejects is not None:
                work.write_table("rejects.parquet", people.rejects)
            facts = _write(work, listers, people, users, config, run.on_progress)
            from dcclctl.logs.split import iso  # with what reads logs, which takes a while to import

            facts |= {
                "id_map": dataset.id_map,
                "candidates": dataset.items.height
                if (candidates := listers.candidates) is None
                else int(candidates.sum()),
                "unknown_candidates": len(unknown),
                "newest_event": people.newest if dataset.facts["time_kind"] == "ordinal" else iso(people.newest),
                "log": people.facts,
            }
            return named(Recommendations(work.commit(facts)), run)


def check_moment(as_of: Moment, logs: Sequence[Path]) -> None:
    """Refuse lists for the start of the test period, when newer events are given.

    Raises:
        UsageError: both are wanted.
    """
    if logs and as_of == "test":
        raise UsageError(
            "--as-of test makes lists for the start of the test period, and --log gives events after it",
            "Leave one of them out.",
        )


def list_rules(config: ListSettings, as_of: Moment, dataset: Dataset) -> tuple[ListRules, list[str], str]:
    """What lists may hold; the candidates that the dataset does not have; and --candidates without any path.

    Raises:
        UsageError: no candidate.
    """
    candidates, unknown, spec = chosen_items(dataset, config.candidates) if config.candidates else (None, [], "")
    exclude = config.exclude == "seen" or (config.exclude == "auto" and dataset.repeats != "keep")
    return ListRules(config.top, as_of, exclude, candidates), unknown, spec


class _Listers:
    """A model that makes the lists of some users after others; in a large log each time with the events of these alone.

    Args:
        log: None: the dataset's own. users: (U,) ascending. rules, settings: see Lister.
    """

    def __init__(
        self,
        subject: Subject,
        log: EventLog | None,
        users: Ints,
        rules: ListRules,
        device: torch.device,
        settings: ScoreSettings,
    ) -> None:
        self.subject, self.log, self.users = subject, log, users
        self._open = partial(Lister, subject, rules=rules, device=device, settings=settings)
        dataset = subject.cloud.dataset
        at_once = len(dataset.parts) == 1 or exchanges_histories(subject)
        whole = dataset.log if log is None and at_once else log
        self._whole = None if whole is None else self._open(log=whole, users=users)
        self.candidates = allowed_candidates(subject, rules)

    def of(self, first: int, last: int) -> tuple[Lister, slice]:
        """The lister of the users at some places, and the places that they have in it."""
        if self._whole is not None:
            return self._whole, slice(first, last)
        members = self.users[first:last]
        return self._open(log=self.subject.cloud.dataset.log_with(members), users=members), slice(0, len(members))


def _write(
    work: Work, listers: "_Listers", people: People, users: Ints, config: RecommendConfig, on_progress: OnProgress
) -> dict[str, Any]:
    """Write the lists that a run before this one has not written yet, shard by shard, and count what they hold."""
    items, size = listers.subject.cloud.dataset.items, config.shard_users
    n_shards = -(-len(users) // size)
    started, computed = time.perf_counter(), 0
    served = dict.fromkeys(SERVED_BY, 0)
    rows, full, shown = 0, 0, np.zeros(items.height, dtype=bool)
    for shard in range(n_shards):
        first = shard * size
        members = users[first : first + size]

        def on_users(done: int, first: int = first, before: int = computed) -> None:
            rate = (before + done) / max(time.perf_counter() - started, 1e-9)
            on_progress("recommend", first + done, len(users), f"{rate:,.0f} users/s")

        if work.finished(shard_name(shard)):
            on_progress("recommend", first + len(members), len(users), "found")
        else:
            lister, places = listers.of(first, first + size)
            found = lister.lists(places, on_users)
            work.write_table(shard_name(shard), _table(found, members, people.users, items))
            computed += len(members)
        table = work.read_table(shard_name(shard))
        for by, count in table.filter(pl.col("rank") == 1).group_by("served_by").len().iter_rows():
            served[by] += count
        rows += table.height
        full += table.filter(pl.col("rank") == config.top).height
        shown[items["item_id"].is_in(table["item_id"].unique().implode()).to_numpy()] = True
    if computed:
        seconds = time.perf_counter() - started
        work.note_run(users_per_second=computed / seconds)
    lists = sum(served.values())
    return {
        "users": len(users),
        "lists": lists,
        "rows": rows,
        "users_without_list": len(users) - lists,
        "short_lists": lists - full,
        "served_by": {by: count for by, count in served.items() if count},
        "items_shown": int(shown.sum()),
        "shards": n_shards,
    }


def _table(found: pl.DataFrame, members: Ints, users: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """A RECOMMENDATIONS table of lists as `Lister.lists` gives them."""
    item = found["item_index"]
    return pl.DataFrame(
        {
            "user_id": users["user_id"].gather(members[found["place"].to_numpy()]),
            "rank": found["rank"],
            "item_id": items["item_id"].gather(item),
            "name": items["name"].gather(item),
            "score": found["score"],
            "served_by": found["served_by"],
        }
    )
