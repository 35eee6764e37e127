"""Ids of a file."""

from pathlib import Path

import pytest

from dcclctl.errors import UsageError
from dcclctl.logs.id_file import ids_in


def test_ids_stand_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_bytes("\ufeff7\r\n\n  a b \né\n7\n".encode())
    assert ids_in("items", f"@{path}", "item") == ["7", "a b", "é", "7"]


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ids.bin"
    path.write_bytes(b"\xff\xfe\x00")
    for place in (path, tmp_path / "none", tmp_path):
        with pytest.raises(UsageError, match=r"--users @.*cannot read") as raised:
            ids_in("users", f"@{place}", "user")
        assert "one user id a line" in raised.value.remedy
