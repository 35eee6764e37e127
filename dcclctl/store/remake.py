"""The command that makes an artifact again. Only the stages know their commands: here is what the store asks them."""

from collections.abc import Callable
from typing import Any

Manifest = dict[str, Any]
#: of a manifest and the `Home` of its artifact
Teller = Callable[[Manifest, Any], str]


def _stage_alone(manifest: Manifest, home: Any) -> str:
    return f"dcclctl {manifest['stage']}"


_teller: Teller = _stage_alone


def tell_with(teller: Teller) -> None:
    """Ask this function from now on; `dcclctl.stages` names its own when it is imported."""
    global _teller
    _teller = teller


def remake(manifest: Manifest, home: Any) -> str:
    """The command line that makes an artifact again, with its inputs, seed and settings.

    Args:
        manifest: checked, but not trusted. home: a `Home`, where the artifacts are that it was made from.
    """
    return _teller(manifest, home)
