"""Settings from dccl.toml and from DCCL_* variables: their order, what is said of them, and that Python ignores both."""

from pathlib import Path

import pytest
from world import dcclctl

from dcclctl.config import IngestConfig, MemoryConfig, Presets, TrainConfig
from dcclctl.errors import UsageError
from dcclctl.models.din import DinSettings
from dcclctl.stages.ingest import ingest
from dcclctl.stages.settings import resolve
from dcclctl.store.store import Store

LOG = "user_id,item_id,timestamp\n" + "".join(f"u{n % 3},{n},{1_600_000_000 + n}\n" for n in range(30))


def epochs(config: TrainConfig) -> int:
    assert isinstance(config.settings, DinSettings)
    return config.settings.epochs


def test_flag_over_variable_over_file_over_default(tmp_path: Path) -> None:
    file = tmp_path / "dccl.toml"
    file.write_text("seed = 7\n[train]\nthreads = 2\n[train.din]\nepochs = 4\nnegatives = 9\n")
    variables = {"DCCL_TRAIN_EPOCHS": "5", "DCCL_SEED": "8", "DCCL_TRAIN_ON": "cloud,device"}
    default, of_file = resolve(TrainConfig, {}), resolve(TrainConfig, {}, file)
    assert (epochs(of_file), of_file.seed, of_file.threads, of_file.on) == (4, 7, 2, ["cloud"])
    assert epochs(default) != 4
    both = resolve(TrainConfig, {}, Presets(file, variables))
    assert (epochs(both), both.seed, both.threads, both.on) == (5, 8, 2, ["cloud", "device"])
    for given in ({"epochs": 6}, {"train.din.epochs": "6"}, {"train.epochs": 6}):
        assert epochs(resolve(TrainConfig, given, Presets(file, variables))) == 6


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"DCCL_TRAIN_DIN_EPOCHS": "3"}, 3),
        ({"DCCL_TRAIN_DIN_EPOCHS": "3", "DCCL_TRAIN_EPOCHS": "4"}, 3),
        ({"DCCL_TRAIN_SASREC_EPOCHS": "3", "DCCL_TRAIN_EPOCHS": "4"}, 4),
        ({"DCCL_TRAIN_DIN_EPOCHS": "", "DCCL_TRAIN_EPOCHS": "4"}, 4),
    ],
)
def test_a_variable_of_one_model(variables: dict[str, str], expected: int) -> None:
    assert epochs(resolve(TrainConfig, {}, Presets(None, variables))) == expected


def test_a_variable_chooses_the_model_and_others_may_not_read_the_rest() -> None:
    config = resolve(TrainConfig, {}, Presets(None, {"DCCL_TRAIN_MODEL": "popularity", "DCCL_TRAIN_EPOCHS": "3"}))
    assert config.model == "popularity"
    assert resolve(TrainConfig, {"model": "din"}, Presets(None, {"DCCL_TRAIN_MODEL": "popularity"})).model == "din"


def test_variables_of_commands_without_variants() -> None:
    variables = {"DCCL_MEMORY_SIZE": "50", "DCCL_MEMORY_SEED": "2", "DCCL_SEED": "1", "DCCL_TRAIN_NONE": "x"}
    config = resolve(MemoryConfig, {}, Presets(None, variables))
    assert (config.size, config.seed) == (50, 2)
    mapped = resolve(IngestConfig, {}, Presets(None, {"DCCL_INGEST_MAP": "user=a,item=b"}))
    assert mapped.map == {"user": "a", "item": "b"}


@pytest.mark.parametrize(
    ("variable", "near"),
    [
        ("DCCL_TRAIN_EPOCH", "DCCL_TRAIN_EPOCHS"),
        ("DCCL_TRAIN_DIN_ITEM_SIZ", "DCCL_TRAIN_DIN_ITEM_SIZE"),
        ("DCCL_TRAIN_SED", "DCCL_TRAIN_SEED"),
    ],
)
def test_an_unknown_variable_of_the_command(variable: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"{variable} is set, but train has no such setting") as caught:
        resolve(TrainConfig, {}, Presets(None, {variable: "3"}))
    assert near in caught.value.remedy


def test_a_bad_value_names_the_variable() -> None:
    with pytest.raises(UsageError, match="--epochs") as caught:
        resolve(TrainConfig, {}, Presets(None, {"DCCL_TRAIN_EPOCHS": "many"}))
    assert "DCCL_TRAIN_EPOCHS" in caught.value.remedy


# -- the command line finds them, Python does not


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "log.csv").write_text(LOG)
    (tmp_path / "dccl.toml").write_text('[ingest]\nsplit = "per-user"\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_dccl_toml_is_found_and_said(here: Path) -> None:
    made = dcclctl("ingest", "log.csv", store=here / "s")
    assert made.stderr.count("settings from dccl.toml\n") == 1
    assert Store(here / "s").resolve("dataset").facts["split"] == "per-user"


def test_config_wins_over_dccl_toml(here: Path) -> None:
    (here / "other.toml").write_text('[ingest]\nsplit = "leave-one-out"\n')
    made = dcclctl("ingest", "log.csv", "--config=other.toml", store=here / "s")
    assert "dccl.toml" not in made.stderr
    assert Store(here / "s").resolve("dataset").facts["split"] == "leave-one-out"


def test_variables_are_said(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCCL_INGEST_SPLIT", "leave-one-out")
    monkeypatch.setenv("DCCL_TRAIN_EPOCHS", "3")
    monkeypatch.setenv("DCCL_INGETS_SPLIT", "global")
    said = dcclctl("ingest", "log.csv", store=here / "s").stderr
    assert "settings from dccl.toml, DCCL_INGEST_SPLIT\n" in said
    assert "warning: DCCL_INGETS_SPLIT is set, but no setting has this name" in said
    assert "DCCL_TRAIN_EPOCHS" not in said
    assert Store(here / "s").resolve("dataset").facts["split"] == "leave-one-out"


def test_an_unknown_variable_stops_the_command(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCCL_INGEST_SPLITS", "global")
    made = dcclctl("ingest", "log.csv", store=here / "s")
    assert made.exit_code == 2
    assert "DCCL_INGEST_SPLITS is set, but ingest has no such setting" in made.stderr


def test_python_looks_at_neither(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCCL_INGEST_SPLIT", "leave-one-out")
    made = ingest([here / "log.csv"], Store(here / "s"))
    assert made.facts["split"] == "global"
