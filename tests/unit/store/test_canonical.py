import math

import pytest

from dcclctl.store.canonical import canonical


def test_known_bytes() -> None:
    document = {"b": [1, 2.5, None, True], "a": {"é": (1e-7, "x y")}}
    assert canonical(document) == b'{"a":{"\\u00e9":[1e-07,"x y"]},"b":[1,2.5,null,true]}\n'


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_are_named(value: float) -> None:
    with pytest.raises(ValueError, match=r"facts\.tail\[1\]"):
        canonical({"tail": [0.5, value]}, "facts")


@pytest.mark.parametrize("document", [{1: "a"}, {"a": {1, 2}}, {"a": b"x"}, {"a": object()}])
def test_what_json_would_bend_is_refused(document: object) -> None:
    with pytest.raises(TypeError):
        canonical(document)
