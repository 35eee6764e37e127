"""`dcclctl sample`: the bundled log and the commands to type next."""

import json
from pathlib import Path

from world import dcclctl

from dcclctl.stages.sample import FILES, NEXT

SAMPLE = Path(__file__).parents[3] / "sample_data"


def test_the_files_are_those_of_the_repository(tmp_path: Path) -> None:
    shown = dcclctl("sample", tmp_path / "new" / "folder")
    assert shown.exit_code == 0
    folder = tmp_path / "new" / "folder"
    assert {path.name for path in folder.iterdir()} == set(FILES)
    for name in FILES:
        if name != "README.md":
            assert (folder / name).read_bytes() == (SAMPLE / name).read_bytes()
    assert all(f"  {command}" in shown.stdout for command in NEXT)


def test_the_readme_has_the_commands_the_source_and_the_licence(tmp_path: Path) -> None:
    dcclctl("sample", tmp_path / "s")
    text = (tmp_path / "s" / "README.md").read_text(encoding="utf-8")
    assert all(f"    {command}\n" in text for command in NEXT)
    assert "MIT licence" in text and "Copyright (c)" in text
    assert "sample_data/" not in text  # paths are those of the folder


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    refused = dcclctl("sample", tmp_path)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "has README.md already" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    (tmp_path / "file").write_text("")
    assert "cannot write" in dcclctl("sample", tmp_path / "file" / "folder").stderr


def test_json_and_quiet(tmp_path: Path) -> None:
    told = json.loads(dcclctl("sample", tmp_path / "a", "--json").stdout)
    assert told == {"folder": str(tmp_path / "a"), "files": list(FILES), "next": list(NEXT)}
    assert dcclctl("sample", tmp_path / "b", "-q").stdout == f"{tmp_path / 'b'}\n"


def test_the_commands_are_right(tmp_path: Path) -> None:
    """Each one is planned on the sample itself, from the first: flags, columns and files exist."""
    import os

    dcclctl("sample", tmp_path / "s")
    before = Path.cwd()
    os.chdir(tmp_path / "s")
    try:
        first, second, third = (command.split()[1:] for command in NEXT[:3])
        assert dcclctl(*first).exit_code == 0
        assert dcclctl(*second, "--plan").exit_code == 0
        assert dcclctl("train", "--model", "popularity", "--threads", "1").exit_code == 0
        assert dcclctl(*third, "--plan").exit_code == 0
    finally:
        os.chdir(before)
