"""How signatures are checked while the tests run: as mypy reads them, so an int is a float."""

from typing import Any, Self, TypeVar

from beartype import BeartypeConf, beartype

Checked = TypeVar("Checked")
_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(checked: Checked) -> Checked:
    """Check a function's signature when it is called; `Self`, which beartype can read in whole classes only, is left out."""
    annotations = getattr(checked, "__annotations__", {})
    for name, annotation in annotations.items():
        if annotation is Self:
            annotations[name] = Any
    return _check(checked)  # type: ignore[no-any-return,call-overload]
