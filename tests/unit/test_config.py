"""Settings: default < file < what is given by name, and mistakes that say what was meant."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from world import dcclctl

from dcclctl.config import (
    DistillConfig,
    EvaluateConfig,
    IngestConfig,
    PatchConfig,
    Section,
    TrainConfig,
    recorded_settings,
)
from dcclctl.errors import UsageError
from dcclctl.stages.settings import COMMANDS, read_toml, resolve, variant_section

#: (command, variant or '') → its section
SECTIONS = {(name, ""): command.section for name, command in COMMANDS.items()} | {
    (name, variant): variant_section(name, variant)
    for name, command in COMMANDS.items()
    for variant in command.variants
}


def own(section: Any) -> Any:
    """The chosen variant's settings; Any, as each variant has others."""
    return section.settings


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(
        'seed = 4\n[train]\non = ["cloud", "device"]\n[train.din]\nepochs = 5\n[train.sasrec]\nepochs = 6\n'
        '[patch]\nseed = 6\nguard = true\nmethod = "metapatch"\n[patch.metapatch]\nsteps = 3\n'
    )
    return path


def test_default_file_name(settings: Path) -> None:
    assert own(resolve(TrainConfig, {})).epochs == 20
    assert own(resolve(TrainConfig, {}, settings)).epochs == 5
    assert own(resolve(TrainConfig, {"epochs": 7}, settings)).epochs == 7
    assert own(resolve(TrainConfig, {"epochs": None}, settings)).epochs == 5
    assert resolve(TrainConfig, {}, settings).on == ["cloud", "device"]
    assert resolve(TrainConfig, {"on": ["cloud"]}, settings).on == ["cloud"]
    assert resolve(PatchConfig, {}, settings).guard is True
    assert resolve(PatchConfig, {"guard": False}, settings).guard is False


@pytest.mark.parametrize("name", ["epochs", "din.epochs", "train.din.epochs"])
def test_a_setting_of_a_variant_has_a_short_and_a_full_name(name: str, settings: Path) -> None:
    assert own(resolve(TrainConfig, {name: "7"}, settings)).epochs == 7
    # memory is a command, and a method of patch
    assert (
        own(resolve(PatchConfig, {name.replace("train.din", "patch.memory").replace("din", "memory"): 7})).epochs == 7
    )


@pytest.mark.parametrize("name", ["on", "train.on"])
def test_text_becomes_what_the_setting_is(name: str) -> None:
    assert resolve(TrainConfig, {name: "cloud, device"}).on == ["cloud", "device"]
    assert own(resolve(TrainConfig, {"train.din.hidden_sizes": "16,8"})).hidden_sizes == (16, 8)
    assert resolve(IngestConfig, {"map": "user=uid,item=sku"}).map == {"user": "uid", "item": "sku"}
    assert resolve(PatchConfig, {"guard": "true"}).guard is True


def test_the_variant_comes_from_the_file_from_its_name_or_from_what_the_command_was_given(settings: Path) -> None:
    assert resolve(PatchConfig, {}).variant == "memory"
    assert resolve(PatchConfig, {}, settings).variant == "metapatch"
    assert resolve(PatchConfig, {"method": "fine-tune"}, settings).variant == "fine-tune"
    # each variant reads its own table of the file
    assert own(resolve(PatchConfig, {}, settings)).steps == 3
    assert own(resolve(PatchConfig, {"method": "fine-tune"}, settings)).steps != 3
    assert own(resolve(TrainConfig, {"train.model": "sasrec"}, settings)).epochs == 6
    assert resolve(DistillConfig, {}, None, "from-memory").variant == "from-memory"
    assert resolve(DistillConfig, {"method": "momodistill"}, None, "from-memory").variant == "momodistill"
    # the variant that an input asks for is weaker than the one that the file names
    assert resolve(PatchConfig, {}, settings, "fine-tune").variant == "metapatch"


def test_seed_at_the_top_or_in_a_section(settings: Path) -> None:
    assert [resolve(section, {}, settings).seed for section in (IngestConfig, TrainConfig, PatchConfig)] == [4, 4, 6]
    assert resolve(PatchConfig, {"seed": 0}, settings).seed == 0


def test_recorded_is_everything_that_was_read_and_nothing_else(settings: Path) -> None:
    config = resolve(PatchConfig, {"threads": 1}, settings)
    recorded = config.recorded()
    assert set(recorded) == {*PatchConfig.model_fields, "metapatch"} - {"seed", "settings"}
    assert recorded["metapatch"]["steps"] == 3
    assert recorded_settings(recorded, "method") == own(config).model_dump(mode="json")


@pytest.mark.parametrize(
    ("section", "given", "what", "remedy"),
    [
        (TrainConfig, {"epoch": 5}, "train has no setting 'epoch'", "Did you mean 'epochs'?"),
        (TrainConfig, {"train.din.epoch": 5}, "train.din has no setting 'epoch'", "Did you mean 'epochs'?"),
        (TrainConfig, {"train.dni.item_size": 5}, "'train.dni.item_size'", "Did you mean 'train.din.item_size'?"),
        (TrainConfig, {"trian.din.epochs": 5}, "'train.trian.din.epochs'", "Did you mean 'train.din.epochs'?"),
        (TrainConfig, {"zzzzzzz": 5}, "train has no setting 'zzzzzzz'", "Known: "),
        (TrainConfig, {"settings": {}}, "train has no setting 'settings'", "Known: "),
        (TrainConfig, {"patch.users": "all"}, "this command is train", "train.KEY=VALUE"),
        (TrainConfig, {"model": "dine"}, "there is no such model", "Did you mean 'din'?"),
        (TrainConfig, {"train.sasrec.epochs": 5}, "the chosen model is din", "train.din.epochs"),
        (TrainConfig, {"model": "ease", "epochs": 5}, "not by ease", "--model din"),
        (PatchConfig, {"steps": 5}, "read by --method metapatch, fine-tune only, not by memory", "--method metapatch"),
        (PatchConfig, {"patch_size": 5}, "read by --method metapatch only, not by memory", "--method metapatch"),
        (EvaluateConfig, {"epochs": 5}, "evaluate has no setting 'epochs'", "Known: "),
        (EvaluateConfig, {"candidate": "all"}, "evaluate has no setting 'candidate'", "Did you mean 'candidates'?"),
        (TrainConfig, {"epochs": 5, "train.din.epochs": 6}, "epochs is given twice", "once"),
        (TrainConfig, {"on": "cloud", "train.on": "device"}, "on is given twice", "once"),
        (EvaluateConfig, {"k": "5", "evaluate.k": "10"}, "k is given twice", "once"),
    ],
)
def test_names_that_nothing_reads(section: Any, given: dict[str, Any], what: str, remedy: str) -> None:
    with pytest.raises(UsageError) as error:
        resolve(section, given)
    assert what in error.value.what
    assert remedy in error.value.remedy


@pytest.mark.parametrize(
    ("text", "what", "remedy"),
    [
        ("[train.din]\nepoch = 5", "unknown key 'epoch' in [train.din]", "Did you mean 'epochs'?"),
        ("[train]\nepochs = 5", "unknown key 'epochs' in [train]", "write it in [train.din]"),
        ("[train]\nonn = 5", "unknown key 'onn' in [train]", "Did you mean 'on'?"),
        ("[train.dine]\nepochs = 5", "unknown key 'dine' in [train]", "Did you mean 'din'?"),
        ("[trian]\nepochs = 5", "unknown table or key 'trian'", "Did you mean 'train'?"),
        ("epochs = 5", "unknown table or key 'epochs'", "Known: "),
        ("train = 5", "unknown table or key 'train'", ""),
        ("[seed]\nx = 1", "unknown table or key 'seed'", ""),
        ("[train\nepochs = 5", "is not valid TOML", "docs/cli.md"),
        ("[train]\nzzzzzzz = 5", "unknown key 'zzzzzzz'", "Known: "),
        ("[train]\nsettings = 5", "unknown key 'settings'", "Known: "),
    ],
)
def test_unknown_keys_of_a_file(tmp_path: Path, text: str, what: str, remedy: str) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        read_toml(path)
    assert what in error.value.what and str(path) in error.value.what
    assert remedy in error.value.remedy
    # a mistake in any table stops every command
    with pytest.raises(UsageError):
        resolve(IngestConfig, {}, path)
    result = dcclctl("evaluate", "--config", path, store=tmp_path)
    assert result.exit_code == 2 and what in result.stderr


def test_files_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not valid TOML"):
        read_toml(path)
    with pytest.raises(UsageError, match="cannot read the configuration"):
        read_toml(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("table", "text", "messages"),
    [
        ("train.din", "epochs = 0", ["--epochs", "greater than or equal to 1", "(got 0)"]),
        ("train.din", 'epochs = "many"', ["--epochs", "(got 'many')"]),
        ("train", "on = 5", ["--on", "list"]),
        # a setting without a flag is named as --set and the file name it
        ("train.din", "hidden_sizes = [1]", ["train.din.hidden_sizes: "]),
        ("train.din", "dropout = 1.0", ["train.din.dropout: ", "less than 1"]),
        ("train.din", "learning_rate = inf", ["--learning-rate"]),
        ("train.din", "epochs = 0\npatience = -1", ["--epochs", "--patience"]),
        ("train", 'on = ["test"]', ["--on", "device:2/3", "'test'"]),
    ],
)
def test_values_out_of_range(tmp_path: Path, table: str, text: str, messages: list[str]) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(f"[{table}]\n{text}\n")
    with pytest.raises(UsageError) as error:
        resolve(TrainConfig, {}, path)
    assert all(message in error.value.what for message in messages), error.value.what
    assert error.value.remedy == "See: dcclctl settings train" + (" --model din" if "." in table else "")
    assert dcclctl(*error.value.remedy.split()[2:]).exit_code == 0


def test_a_name_mends_what_the_file_breaks(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("[train.din]\nepochs = 0\n")
    assert own(resolve(TrainConfig, {"epochs": 1}, path)).epochs == 1


@pytest.mark.parametrize(("command", "variant"), SECTIONS, ids=lambda name: name or "own")
def test_sections(command: str, variant: str) -> None:
    section = SECTIONS[command, variant]
    made = section()
    for field, info in section.model_fields.items():
        assert info.description, field  # a setting is documented beside its default
        with pytest.raises(ValidationError):
            setattr(made, field, getattr(made, field))
    with pytest.raises(ValidationError):
        section(zzzzzzz=3)
    if variant:
        choice = COMMANDS[command].choice
        given = COMMANDS[command].section
        assert own(resolve(given, {choice: variant})) == made
        # its own names and the command's are different, so that a short name is one setting
        assert not set(section.model_fields) & set(given.model_fields)


@pytest.mark.parametrize("name", COMMANDS)
def test_settings_with_a_flag_that_variants_share_are_read_by_several(name: str) -> None:
    command = COMMANDS[name]
    shared: type[Section] = command.shared
    for field in shared.model_fields:
        readers = [variant for variant in command.variants if field in variant_section(name, variant).model_fields]
        assert len(readers) > 1, field


@pytest.mark.parametrize(
    ("on", "fits"), [("device", True), ("device:2/3", True), ("test", True), ("device:0/3", False)]
)
def test_blocks(on: str, fits: bool) -> None:
    if fits:
        assert resolve(EvaluateConfig, {"on": on}).on == on
    else:
        with pytest.raises(UsageError, match="--on"):
            resolve(EvaluateConfig, {"on": on})


def test_lists_are_not_shared() -> None:
    resolve(EvaluateConfig, {}).k.append(99)
    assert resolve(EvaluateConfig, {}).k == [5, 10, 20]
