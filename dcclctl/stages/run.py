"""Options of every stage beside its inputs and settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from dcclctl.artifacts.handle import Handle
from dcclctl.compute import OnProgress
from dcclctl.config import Presets

HandleT = TypeVar("HandleT", bound=Handle)
#: name → value, see stages/settings.py
Settings = Mapping[str, Any]
NO_SETTINGS: Settings = MappingProxyType({})


def no_progress(what: str, done: float, total: float, note: str) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class RunOptions:
    """How to run a stage. Only `config` can change the result.

    Attributes:
        on_progress: called with (what, done, total, note).
        force: compute even if the store has the same artifact.
        name: a name for the artifact, an alias of its kind; '' for none.
        config: TOML file with settings, or a file and environment variables; what is given by name wins over them.
    """

    on_progress: OnProgress = no_progress
    force: bool = False
    name: str = ""
    config: Path | Presets | None = None


#: nothing shown, nothing forced
DEFAULT_RUN = RunOptions()


def named(made: HandleT, run: RunOptions) -> HandleT:
    """Give the artifact the name of the options, if they have one."""
    if run.name:
        made.store.tag(made.artifact, run.name)
    return made
