"""Settings: default < file < flag, and mistakes that say what was meant."""

from pathlib import Path

import pytest
from pydantic import ValidationError
from world import dcclctl

from dcclctl.config import SECTIONS, EvaluateConfig, IngestConfig, PatchConfig, TrainConfig, read_toml, resolve
from dcclctl.errors import UsageError


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text('seed = 4\n[train]\nepochs = 5\non = ["cloud", "device"]\n[patch]\nseed = 6\nguard = true\n')
    return path


def test_default_file_flag(settings: Path) -> None:
    assert resolve(TrainConfig).epochs == 20
    assert resolve(TrainConfig, settings).epochs == 5
    assert resolve(TrainConfig, settings, epochs=7).epochs == 7
    assert resolve(TrainConfig, settings, epochs=None).epochs == 5
    assert resolve(TrainConfig, settings).on == ["cloud", "device"]
    assert resolve(TrainConfig, settings, on=["cloud"]).on == ["cloud"]
    assert resolve(PatchConfig, settings).guard is True
    assert resolve(PatchConfig, settings, guard=False).guard is False


def test_seed_at_the_top_or_in_a_section(settings: Path) -> None:
    assert [resolve(section, settings).seed for section in (IngestConfig, TrainConfig, PatchConfig)] == [4, 4, 6]
    assert resolve(PatchConfig, settings, seed=0).seed == 0


@pytest.mark.parametrize(
    ("text", "what", "remedy"),
    [
        ("[train]\nepoch = 5", "unknown key 'epoch' in [train]", "Did you mean 'epochs'?"),
        ("[trian]\nepochs = 5", "unknown section or key 'trian'", "Did you mean 'train'?"),
        ("epochs = 5", "unknown section or key 'epochs'", "Known: "),
        ("train = 5", "unknown section or key 'train'", ""),
        ("[seed]\nx = 1", "unknown section or key 'seed'", ""),
        ("[train\nepochs = 5", "is not valid TOML", "README"),
        ("[train]\nzzzzzzz = 5", "unknown key 'zzzzzzz'", "Known: "),
    ],
)
def test_unknown_keys(tmp_path: Path, text: str, what: str, remedy: str) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        read_toml(path)
    assert what in error.value.what and str(path) in error.value.what
    assert remedy in error.value.remedy
    # a mistake in any section stops every command
    result = dcclctl("patch", "--config", path, store=tmp_path)
    assert result.exit_code == 2 and what in result.stderr


def test_files_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not valid TOML"):
        read_toml(path)
    with pytest.raises(UsageError, match="cannot read the configuration"):
        read_toml(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("epochs = 0", ["--epochs", "greater than or equal to 1", "(got 0)"]),
        ('epochs = "many"', ["--epochs", "(got 'many')"]),
        ('on = "device"', ["--on", "list"]),
        ("hidden_sizes = [1]", ["--hidden-sizes"]),
        ("learning_rate = inf", ["--learning-rate"]),
        ("epochs = 0\npatience = -1", ["--epochs", "--patience"]),
        ('on = ["test"]', ["--on", "device:2/3", "'test'"]),
    ],
)
def test_values_out_of_range(tmp_path: Path, text: str, messages: list[str]) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(f"[train]\n{text}\n")
    with pytest.raises(UsageError) as error:
        resolve(TrainConfig, path)
    assert all(message in error.value.what for message in messages), error.value.what
    assert error.value.remedy == "See: dcclctl train --help"


def test_flag_mends_what_the_file_breaks(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("[train]\nepochs = 0\n")
    assert resolve(TrainConfig, path, epochs=1).epochs == 1


@pytest.mark.parametrize("name", SECTIONS)
def test_sections(name: str) -> None:
    section = SECTIONS[name]
    made = resolve(section)
    assert made == section()
    with pytest.raises(ValidationError):
        made.seed = 3  # type: ignore[misc]
    for field, info in section.model_fields.items():
        assert info.description, field  # a setting is documented beside its default


@pytest.mark.parametrize(
    ("on", "fits"), [("device", True), ("device:2/3", True), ("test", True), ("device:0/3", False)]
)
def test_blocks(on: str, fits: bool) -> None:
    if fits:
        assert resolve(EvaluateConfig, None, on=on).on == on
    else:
        with pytest.raises(UsageError, match="--on"):
            resolve(EvaluateConfig, None, on=on)


def test_lists_are_not_shared() -> None:
    resolve(EvaluateConfig).k.append(99)
    assert resolve(EvaluateConfig).k == [5, 10, 20]
