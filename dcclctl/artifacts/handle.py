"""The common part of all handles."""

from collections.abc import Mapping
from typing import Any, cast

from pydantic import ValidationError

from dcclctl.config import Section
from dcclctl.errors import ArtifactError
from dcclctl.store.store import Artifact, Store


class Handle:
    """A committed artifact of one kind."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.ref}>"

    @property
    def ref(self) -> str:
        """Short name in its store, e.g. 'cloud@7'."""
        return self.artifact.ref

    @property
    def id(self) -> str:
        """SHA-256 of its manifest; the same in every store."""
        return self.artifact.id

    @property
    def reused(self) -> bool:
        """Did the command that returned it find it in the store?"""
        return self.artifact.reused

    @property
    def store(self) -> Store:
        """The store that it is in."""
        return cast(Store, self.artifact.home)

    @property
    def config(self) -> dict[str, Any]:
        """The settings that it was made with."""
        return self.artifact.config

    @property
    def facts(self) -> Mapping[str, Any]:
        """What its stage recorded about it, beside its settings."""
        return self.artifact.facts


def check_recorded(artifact: Artifact, section: type[Section]) -> None:
    """Refuse an artifact whose recorded settings are none that its command takes.

    Raises:
        ArtifactError: a setting of the section has another type or lies out of its range.
    """
    known = {name: value for name, value in artifact.manifest["config"].items() if name in section.model_fields}
    try:
        section.model_validate(known)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise ArtifactError(
            f"{artifact.ref} cannot be used: its setting {'.'.join(map(str, wrong['loc']))} is {wrong['input']!r:.60}",
            "dcclctl did not write it so; make it again, or remove it with dcclctl artifacts rm.",
        ) from error


def check_same(what: str, left: Artifact, left_value: str, right: Artifact, right_value: str) -> None:
    """Refuse two artifacts that do not belong together.

    Raises:
        ArtifactError: the values differ.
    """
    if left_value != right_value:
        raise ArtifactError(
            f"{left.ref} and {right.ref} do not belong together: {what} is {left_value[:12]} in one and "
            f"{right_value[:12]} in the other",
            f"Use artifacts of one lineage; see: dcclctl artifacts lineage {left.ref}",
        )
