"""Where a store can be."""

from pathlib import Path

import pytest


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The place of a new store: a folder, and then a bucket."""
    return str(tmp_path / "store") if request.param == "folder" else str(request.getfixturevalue("bucket"))
