"""Options of every stage beside its inputs and settings."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from dcclctl.artifacts.handle import Handle
from dcclctl.compute import OnProgress, no_progress
from dcclctl.config import Presets
from dcclctl.errors import ArtifactError
from dcclctl.store.store import NotMade

HandleT = TypeVar("HandleT", bound=Handle)
#: name → value, see stages/settings.py
Settings = Mapping[str, Any]
NO_SETTINGS: Settings = MappingProxyType({})


@dataclass(frozen=True)
class RunOptions:
    """How to run a stage. Only `config` can change the result.

    Attributes:
        on_progress: called with (what, done, total, note). remark: called with a line about how the stage runs.
        force: compute even if the store has the same artifact.
        name: a name for the artifact, an alias of its kind; '' for none.
        config: TOML file with settings, or a file and environment variables; what is given by name wins over them.
        executor: who works on shards of users: local, local:N, ray or ray://HOST:PORT; see scale/executor.py.
    """

    on_progress: OnProgress = no_progress
    force: bool = False
    name: str = ""
    config: Path | Presets | None = None
    remark: Callable[[str], None] = lambda line: None
    executor: str = "local"


#: nothing shown, nothing forced
DEFAULT_RUN = RunOptions()


def named(made: HandleT, run: RunOptions) -> HandleT:
    """Give the artifact the name of the options, if they have one.

    Raises:
        ArtifactError: the name cannot be written; the artifact is made nevertheless.
    """
    try:
        if run.name and (before := made.store.tag(made.artifact, run.name)):
            run.remark(f"the name {made.artifact.kind}@{run.name} was {before}'s until now")
    except ArtifactError as error:
        remedy = f"{error.remedy} Then: dcclctl artifacts tag {made.ref} {run.name}"
        raise ArtifactError(f"{made.ref} is made, but has no name yet: {error.what}", remedy) from error
    return made


def each_of(calls: Iterable[Callable[[], HandleT]]) -> list[HandleT]:
    """The results of several calls of a stage; a plan also goes on after one whose artifact is not there.

    Raises:
        NotMade: the store plans, and an artifact is not there.
    """
    made, missing = [], None
    for call in calls:
        try:
            made.append(call())
        except NotMade as error:
            missing = error
    if missing is not None:
        raise missing
    return made
