"""Canonical JSON: equal documents have equal bytes in every process."""

import json
import math
from typing import Any


def canonical(document: Any, where: str = "document") -> bytes:
    """Encode a document: keys sorted, no spaces, ASCII only, floats as Python's repr, a newline at the end.

    Args:
        document: dicts with text keys, lists, tuples (they become lists), text, integers, finite floats, booleans, None.
        where: name of the document in an error.

    Raises:
        ValueError: NaN or infinity.
        TypeError: a key that is not text, or a value that JSON does not have.
    """
    _check(document, where)
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def _check(value: Any, where: str) -> None:
    """Refuse values that json.dumps would silently change."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where}: the key {key!r} is not text")
            _check(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check(item, f"{where}[{index}]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}: canonical JSON has no such number, use None")
    elif not (value is None or isinstance(value, str | int)):
        raise TypeError(f"{where} is a {type(value).__name__}, which JSON does not have")
