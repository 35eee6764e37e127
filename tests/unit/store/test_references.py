import pytest

from dcclctl.errors import UsageError
from dcclctl.store.references import Reference, check_alias, parse_reference


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cloud", Reference("cloud", "latest")),
        ("cloud@latest", Reference("cloud", "latest")),
        ("patches@7", Reference("patches", "number", "7")),
        ("patches@000007", Reference("patches", "number", "7")),
        ("cloud@1234", Reference("cloud", "number", "1234")),
        ("cloud@1234567", Reference("cloud", "id", "1234567")),
        ("cloud@3fa9", Reference("cloud", "id", "3fa9")),
        ("cloud@" + "ab" * 32, Reference("cloud", "id", "ab" * 32)),
        ("cloud@abc", Reference("cloud", "alias", "abc")),
        ("dataset@in-test.v2", Reference("dataset", "alias", "in-test.v2")),
    ],
)
def test_parsed(text: str, expected: Reference) -> None:
    assert parse_reference(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@",
        "cloud@",
        "cloud@@1",
        "7",
        "models@1",
        "cloud@-1",
        "cloud@../x",
        "cloud@A",
        "cloud@²",
        "cloud@1.5",
        " cloud",
    ],
)
def test_refused_with_something_to_type(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_reference(text)
    assert "Type e.g. " in caught.value.remedy


def test_nearest_kind_is_offered() -> None:
    with pytest.raises(UsageError) as caught:
        parse_reference("clod@7")
    assert "cloud@7" in caught.value.remedy


@pytest.mark.parametrize(
    "alias", ["7", "123456", "beef", "3fa9c2d1", "ab" * 32, "latest", "", "../x", "a/b", "Prod", ".x", "é", "z" * 65]
)
def test_aliases_that_are_refused(alias: str) -> None:
    with pytest.raises(UsageError):
        check_alias(alias)


@pytest.mark.parametrize("alias", ["release", "in-test", "v2", "abc", "beef-model", "z" * 64])
def test_aliases_that_are_taken(alias: str) -> None:
    check_alias(alias)
    assert parse_reference(f"cloud@{alias}") == Reference("cloud", "alias", alias)
