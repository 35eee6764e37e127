"""`score`: some users' lists, and what they are made of."""

from collections.abc import Sequence
from pathlib import Path

from dcclctl.compute import compute_settings, no_progress, torch_device
from dcclctl.config import Presets, ScoreConfig
from dcclctl.devices.serving import Subject
from dcclctl.evaluation.lists import Explanation, Lister
from dcclctl.evaluation.parts import exchanges_histories
from dcclctl.stages.chosen import find_users
from dcclctl.stages.people import people_of
from dcclctl.stages.recommend import check_moment, list_rules
from dcclctl.stages.run import NO_SETTINGS, Settings
from dcclctl.stages.settings import resolve


def score(
    subject: Subject,
    user_ids: Sequence[str],
    settings: Settings = NO_SETTINGS,
    config_file: Path | Presets | None = None,
    logs: Sequence[Path] = (),
) -> list[Explanation]:
    """Rank all items for some users; each list is what `recommend` makes for the same moment.

    Args:
        subject: a cloud model, patches or a bundle. user_ids: outside ids.
        settings: see ScoreConfig. config_file: TOML. logs: new events, as for `recommend`.

    Returns:
        One explanation a user, in the order asked for.

    Raises:
        UsageError: no such user, no candidate, or new events and the start of the test period.
        DataError: a new log that cannot be read.
    """
    config = resolve(ScoreConfig, settings, config_file)
    as_of = "end" if logs and "as_of" not in config.model_fields_set else config.as_of
    check_moment(as_of, logs)
    dataset = subject.cloud.dataset
    with compute_settings(config) as config:
        people = people_of(dataset, logs, no_progress) if logs else None
        known = dataset.users.select("user_index", "user_id", "group") if people is None else people.users
        users = find_users(known, dataset.ref, list(user_ids))
        rules, _, _ = list_rules(config, as_of, dataset)
        numbers = users["user_index"].to_numpy().astype("int64")
        log = people.log if people is not None else None
        if log is None:
            log = dataset.log if exchanges_histories(subject) else dataset.log_with(numbers)
        found = Lister(subject, log, numbers, rules, torch_device(config), config).explain(users)
    by_id = {each.user_id: each for each in found}
    return [by_id[user_id] for user_id in dict.fromkeys(user_ids)]
