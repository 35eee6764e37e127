"""References: 'cloud@7', 'cloud@3fa9c2d1', 'cloud@latest', 'cloud@my-alias', or 'cloud' for the newest."""

import re
from dataclasses import dataclass
from typing import Literal

from dcclctl.errors import UsageError, closest
from dcclctl.store.disk import NUMBER_DIGITS
from dcclctl.store.manifest import KINDS

MIN_ID_PREFIX = 4

_HEX = re.compile(rf"[0-9a-f]{{{MIN_ID_PREFIX},64}}")
_ALIAS = re.compile(r"[a-z][a-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Reference:
    """The parts of a reference.

    Args:
        kind: one of KINDS. by: what `name` is.
        name: the number without leading zeros, the id's first digits, or the alias; '' for latest.
    """

    kind: str
    by: Literal["latest", "number", "id", "alias"]
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind}@{self.name or 'latest'}"


def parse_reference(text: str) -> Reference:
    """Parse a reference.

    Raises:
        UsageError: an unknown kind, or a name that is not a number, an id or an alias.
    """
    kind, _, name = text.partition("@")
    if kind not in KINDS:
        meant = closest(kind, KINDS)
        hint = f"{meant}@{name or 'latest'}" if meant else "cloud@latest"
        raise UsageError(
            f"{text!r} is not a reference: it must start with one of {', '.join(KINDS)}",
            f"Type e.g. {hint}. To see what there is: dcclctl artifacts list",
        )
    if name == "latest" or text == kind:
        return Reference(kind, "latest")
    if name.isascii() and name.isdigit() and len(name) <= NUMBER_DIGITS:
        return Reference(kind, "number", str(int(name)))
    if _HEX.fullmatch(name):
        return Reference(kind, "id", name)
    if _ALIAS.fullmatch(name):
        return Reference(kind, "alias", name)
    raise UsageError(
        f"{text!r} is not a reference: after '@' comes a number, at least {MIN_ID_PREFIX} digits of an id, "
        "'latest', or an alias",
        f"Type e.g. {kind}@1 or {kind}@latest. To see what there is: dcclctl artifacts list",
    )


def is_alias(name: str) -> bool:
    """Could `tag` have written it?"""
    return bool(_ALIAS.fullmatch(name)) and not _HEX.fullmatch(name)


def check_alias(alias: str) -> None:
    """Refuse an alias that looks like a number or an id, or has other characters than an alias may have.

    Raises:
        UsageError: with the rule that it breaks.
    """
    if alias == "latest":
        raise UsageError("'latest' always means the newest artifact", "Choose another alias, e.g. 'release'.")
    if not _ALIAS.fullmatch(alias):
        raise UsageError(
            f"{alias!r} cannot be an alias",
            "An alias starts with a letter a-z and has only a-z, 0-9, '.', '_' and '-', at most 64 of them.",
        )
    if _HEX.fullmatch(alias):
        raise UsageError(
            f"{alias!r} cannot be an alias: it reads like the start of an id", f"Choose e.g. '{alias}-model'."
        )
