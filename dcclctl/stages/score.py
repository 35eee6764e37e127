"""`score` and `recommend`: lists of recommendations, for one user with explanations or for many."""

from pathlib import Path

import polars as pl

from dcclctl.compute import compute_settings, torch_device
from dcclctl.config import EvaluateConfig, Presets
from dcclctl.devices.serving import Subject
from dcclctl.evaluation import lists
from dcclctl.evaluation.lists import Explanation
from dcclctl.stages.patch import chosen_users
from dcclctl.stages.run import NO_SETTINGS, Settings
from dcclctl.stages.settings import resolve


def score(
    subject: Subject,
    user_id: str,
    top: int = 10,
    settings: Settings = NO_SETTINGS,
    config_file: Path | Presets | None = None,
) -> Explanation:
    """Rank all items for one user as of the start of the test period.

    Args:
        subject: a cloud model or patches. user_id: the outside id. top: items per ranking.
        settings: see EvaluateConfig; `unpatched`, `device`, `threads` and `seed` are used. config_file: TOML.

    Raises:
        UsageError: no such user.
    """
    with compute_settings(resolve(EvaluateConfig, settings, config_file)) as config:
        return lists.explain(subject, user_id, top, torch_device(config), config.unpatched, config.seed)


def recommend(subject: Subject, users: str = "all", k: int = 10, settings: Settings = NO_SETTINGS) -> pl.DataFrame:
    """The best k items of many users as of the start of the test period; for each user what `score` shows.

    Args:
        users: as for `patch`: all, tail, head, new, @FILE, or ids. settings: as for `score`.

    Returns:
        user_id, rank from 1, item_id, name, logit, served_by.

    Raises:
        UsageError: an unknown user.
    """
    with compute_settings(resolve(EvaluateConfig, settings)) as config:
        chosen, _ = chosen_users(subject.cloud.dataset, users)
        return lists.recommend(subject, chosen, k, torch_device(config), config.unpatched, config.seed)
