"""What an audit has found."""

from dataclasses import dataclass
from typing import Literal

from dcclctl.errors import ArtifactError


@dataclass(frozen=True)
class Finding:
    """One thing that the audit found.

    Attributes:
        kind: proven; remark (worth knowing, but no leak); or leak.
        artifact: reference of the artifact that it is about. text: one sentence.
    """

    kind: Literal["proven", "remark", "leak"]
    artifact: str
    text: str


def leaks(findings: list[Finding]) -> ArtifactError | None:
    """The error that names every leak; None if there is none."""
    found = [finding for finding in findings if finding.kind == "leak"]
    if not found:
        return None
    more = f" ({len(found)} leaks in all)" if len(found) > 1 else ""
    return ArtifactError(
        f"{found[0].artifact}: {found[0].text}{more}",
        "Metrics made from it cannot be trusted: make it again from a clean dataset, and forget what was made from it.",
    )


def as_rows(findings: list[Finding]) -> dict[str, list[dict[str, str]]]:
    """Findings by kind, for --json."""
    return {
        name: [{"artifact": each.artifact, "text": each.text} for each in findings if each.kind == kind]
        for name, kind in (("proven", "proven"), ("remarks", "remark"), ("leaks", "leak"))
    }
