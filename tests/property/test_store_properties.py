"""Canonical JSON, references and streamed bytes under anything that hypothesis can think of."""

import json
import string
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcclctl.errors import UsageError
from dcclctl.store.canonical import canonical
from dcclctl.store.contents import pack_tensors, unpack_tensors
from dcclctl.store.manifest import KINDS
from dcclctl.store.references import check_alias, parse_reference

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
DOCUMENTS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)


@given(DOCUMENTS)
def test_canonical_json_loses_nothing(document: Any) -> None:
    data = canonical(document)
    assert json.loads(data) == document
    assert canonical(json.loads(data)) == data


@given(st.dictionaries(st.text(), SCALARS, min_size=2, max_size=6))
def test_canonical_json_does_not_depend_on_the_order_of_keys(document: dict[str, Any]) -> None:
    assert canonical(dict(reversed(document.items()))) == canonical(document)


@given(DOCUMENTS, DOCUMENTS)
def test_other_documents_are_other_bytes(one: Any, other: Any) -> None:
    # As text, because Python's 1 == 1.0 == True are three JSON documents, and -0.0 and 0.0 two.
    if json.dumps(one, sort_keys=True) != json.dumps(other, sort_keys=True):
        assert canonical(one) != canonical(other)


@given(st.text() | st.text(alphabet=string.hexdigits + "@.-_/\\ \n", max_size=12))
def test_any_text_is_a_reference_or_a_usage_error(text: str) -> None:
    for candidate in (text, f"cloud@{text}"):
        try:
            reference = parse_reference(candidate)
        except UsageError as error:
            assert error.remedy
        else:
            assert reference.kind in KINDS
            assert parse_reference(str(reference)) == reference
            assert "/" not in reference.name


@given(st.text(alphabet=string.ascii_lowercase + string.digits + ".-_", min_size=1, max_size=12))
def test_an_alias_that_is_taken_is_always_read_as_an_alias(alias: str) -> None:
    try:
        check_alias(alias)
    except UsageError:
        try:
            assert parse_reference(f"cloud@{alias}").by != "alias"
        except UsageError:
            pass
    else:
        reference = parse_reference(f"cloud@{alias}")
        assert (reference.by, reference.name) == ("alias", alias)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=6), DOCUMENTS, st.data())
def test_packed_tensors_come_back_and_no_flipped_bit_passes(numbers: list[int], note: Any, data: st.DataObject) -> None:
    import torch

    tensors = {"numbers": torch.tensor(numbers, dtype=torch.int32), "one": torch.tensor(1.5)}
    packed = pack_tensors(tensors, {"note": note})
    unpacked = unpack_tensors(packed)
    assert unpacked is not None
    assert torch.equal(unpacked[0]["numbers"], tensors["numbers"])
    assert unpacked[0]["one"].item() == 1.5
    assert unpacked[1] == {"note": note}
    bit = data.draw(st.integers(0, len(packed) * 8 - 1))
    flipped = bytearray(packed)
    flipped[bit // 8] ^= 1 << (bit % 8)
    assert unpack_tensors(bytes(flipped)) is None


def test_the_kinds_are_what_the_design_names() -> None:
    assert list(KINDS) == [
        *("dataset", "cloud", "memory", "patches", "evaluation", "tuning", "recommendations", "bundle")
    ]
    with pytest.raises(UsageError):
        parse_reference("raw@1")
