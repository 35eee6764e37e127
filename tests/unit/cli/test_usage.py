"""Command lines with a mistake: the exit code, what is wrong, what to type instead, and never a traceback."""

import errno
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from world import PATCH, TRAIN, World, dcclctl, done, ingest

from dcclctl.cli.console import Reporter
from dcclctl.cli.main import COMMANDS, app
from dcclctl.cli.options import shown_default
from dcclctl.errors import ArtifactError
from dcclctl.stages.settings import COMMANDS as SETTINGS
from dcclctl.stages.settings import variant_section

#: words of the command line, exit code, what stderr must say
BAD = [
    # flags, commands and values that do not exist
    (["trian"], 2, ["No such command 'trian'", "train"]),
    (["train", "--epoch=3"], 2, ["--epoch", "--epochs"]),
    (["train", "--epochs=many"], 2, ["--epochs", "valid integer", "train -h"]),
    (["train", "--epochs=0"], 2, ["--epochs", "greater than or equal to 1", "dcclctl settings train --model din"]),
    (["train", "--set=train.din.dropout=1"], 2, ["train.din.dropout", "less than 1"]),
    (["train", "--learning-rate=0"], 2, ["--learning-rate"]),
    (["train", "--learning-rate=1e39"], 2, ["--learning-rate"]),
    (["train", "--learning-rate=nan"], 2, ["--learning-rate"]),
    (["train", "--hidden-sizes=64,32"], 2, ["No such option: --hidden-sizes"]),
    (["train", "--set=train.din.hidden_sizes=64"], 2, ["train.din.hidden_sizes"]),
    (["train", "--set=train.din.hidden_sizes=64,x"], 2, ["train.din.hidden_sizes", "(got 'x')"]),
    (["train", "--model=dine"], 2, ["--model", "'din'"]),
    (["train", "--on="], 2, ["--on"]),
    (["train", "--on=test"], 2, ["--on", "give cloud, device"]),
    (["train", "--on=device:3/2"], 2, ["there is no part 3 of 2"]),
    (["train", "--on=tuesday"], 2, ["--on", "device:2/3", "'tuesday'"]),
    (["train", "--seed=-1"], 2, ["--seed"]),
    (["train", "--threads=-2"], 2, ["--threads"]),
    (["train", "--device=tpu"], 2, ["--device", "'auto', 'cpu'"]),
    (["train", "surplus"], 2, ["surplus"]),
    (["patch", "--held-back=2"], 2, ["--held-back"]),
    (["patch", "--method=magic"], 2, ["--method", "metapatch"]),
    (["patch", "--on=test"], 2, ["--on"]),
    (["patch", "--steps=3"], 2, ["--method metapatch, fine-tune only, not by memory", "--method metapatch"]),
    (["distill", "--beta=-1"], 2, ["--beta"]),
    (["evaluate", "--k=5,x"], 2, ["--k", "'x'"]),
    (["evaluate", "--k="], 2, ["--k", "at least 1"]),
    (["evaluate", "--k=0"], 2, ["--k"]),
    (["evaluate", "--candidates=some"], 2, ["--candidates", "all, auto, or a number"]),
    (["evaluate", "--candidates=0"], 2, ["--candidates", "all, auto, or a number"]),
    (["evaluate", "--candidates=-5"], 2, ["--candidates", "all, auto, or a number"]),
    (["evaluate", "--markdown=s.md"], 2, ["--markdown compares with a baseline, and none is given", "--against"]),
    (["evaluate", "--max-drop=tail.ndcg@10=1%"], 2, ["a gate compares with a baseline, and none is given"]),
    # --set
    (["train", "--set=epochs"], 2, ["'epochs' is not KEY=VALUE", "--set train.din.item_size=64"]),
    (["train", "--set==3"], 2, ["'=3' is not KEY=VALUE"]),
    (["train", "--set=train.din.epoch=3"], 2, ["train.din has no setting 'epoch'", "Did you mean 'epochs'?"]),
    (["train", "--set=train.dni.epochs=3"], 2, ["Did you mean 'train.din.epochs'?"]),
    (["train", "--set=onn=cloud"], 2, ["train has no setting 'onn'", "Did you mean 'on'?"]),
    (["train", "--set=train.sasrec.epochs=3"], 2, ["the chosen model is din", "Write train.din.epochs"]),
    (["train", "--set=patch.users=all"], 2, ["this command is train"]),
    (["train", "--set=train.din.epochs=3", "--set=train.din.epochs=4"], 2, ["train.din.epochs is given twice"]),
    (["train", "--set=epochs=3", "--set=train.din.epochs=3"], 2, ["epochs is given twice"]),
    (["train", "--epochs=3", "--set=epochs=3"], 2, ["--epochs and --set epochs are the same setting"]),
    (["train", "--epochs=3", "--set=train.din.epochs=3"], 2, ["epochs is given twice"]),
    (["patch", "--guard", "--set=patch.guard=false"], 2, ["guard is given twice"]),
    (["evaluate", "--set=batch=3"], 2, ["evaluate has no setting 'batch'"]),
    (["score", "patches", "--user=u1", "--set=score.unpatchd=cloud"], 2, ["'unpatchd'", "'unpatched'"]),
    # names
    (["train", "--name=7"], 2, ["'7' cannot be an alias"]),
    (["train", "--name=Control"], 2, ["'Control' cannot be an alias"]),
    (["evaluate", "--unpatched=nobody"], 2, ["--unpatched", "'encoder' or 'cloud'"]),
    (["ingest", "x.csv", "--map=user"], 2, ["--map: give NAME=COLUMN"]),
    (["score", "patches"], 2, ["--user"]),
    (["recommend", "cloud", "-o", "top.xlsx"], 2, ["the suffix .xlsx", ".parquet, .csv, .jsonl"]),
    (["recommend", "dataset"], 2, ["dataset cannot serve users"]),
    (["score", "--user=u1"], 2, ["REF"]),
    (["score", "patches", "--user=u1", "--top=0"], 2, ["--top"]),
    # references
    (["train", "--dataset=dataset@9"], 2, ["there is no dataset@9", "dataset@1"]),
    (["train", "--dataset=cloud@1"], 2, ["is of kind cloud, but dataset is needed here", "dataset@1"]),
    (["train", "--continue=patches@1"], 2, ["cloud is needed here", "cloud@1, cloud@2"]),
    (["patch", "--cloud=cluod@1"], 2, ["cloud@1"]),
    (["patch", "--cloud=cloud@best"], 2, ["there is no cloud@best", "cloud@1, cloud@2"]),
    (["distill", "--patches=cloud@2"], 2, ["patches is needed here", "patches@1"]),
    (["evaluate", "dataset"], 2, ["cannot serve users", "patches"]),
    (["evaluate", "cloud@1", "cloud@1"], 2, ["named twice"]),
    (["evaluate", "cloud@17"], 2, ["there is no cloud@17", "cloud@1, cloud@2"]),
    (["evaluate", "cloud@1+encoder"], 2, ["has no encoder", "dcclctl distill"]),
    (["score", "evaluation", "--user=u1"], 2, ["evaluation cannot serve"]),
    (["score", "patches", "--user=u1000"], 2, ["no user 'u1000'", "u"]),
    # contradictions
    (
        ["train", "--continue=cloud@1", "--set=train.din.history=4"],
        2,
        ["a model that is trained further keeps its", "Leave out train.din.history"],
    ),
    (
        ["train", "--continue=cloud@1", "--model=din"],
        2,
        ["cloud@1 is a din, and a model that is trained further keeps its kind", "Leave out model"],
    ),
    (["train", "--continue=cloud@1", "--dataset=dataset@1"], 2, ["keeps its dataset", "--continue"]),
    (["ingest", "x.csv", "--implicit", "--label=rating>=4"], 2, ["contradict"]),
    (["ingest", "nowhere.csv"], 2, ["nowhere.csv"]),
    # configuration files
    (["train", "--config=nowhere.toml"], 2, ["nowhere.toml", "--config"]),
    (["train", "--config=/"], 2, ["--config"]),
]


@pytest.mark.parametrize(("words", "code", "messages"), BAD, ids=[" ".join(words) for words, _, _ in BAD])
def test_mistakes(world: World, words: list[str], code: int, messages: list[str]) -> None:
    before = sorted(world.root.glob("*/v/*"))
    result = dcclctl(*words, store=world.root)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    for message in messages:
        assert message in " ".join(result.stderr.split()), result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(world.root.glob("*/v/*")) == before


@pytest.mark.parametrize(
    ("command", "first"),
    [
        (["train"], "dcclctl ingest LOG"),
        (["patch"], "dcclctl train"),
        (["distill"], "dcclctl patch"),
        (["evaluate"], "dcclctl train"),
        (["score", "patches", "--user=1"], "dcclctl patch"),
    ],
)
def test_an_empty_store_says_what_comes_first(tmp_path: Path, command: list[str], first: str) -> None:
    result = dcclctl(*command, store=tmp_path / "none")
    assert result.exit_code == 2
    assert f"Run first: {first}" in result.stderr
    assert not (tmp_path / "none").exists()


def test_a_store_that_is_a_file(tmp_path: Path, world: World) -> None:
    (tmp_path / "store").write_text("not a folder")
    for command in (["train"], ["ingest", str(world.log)]):
        result = dcclctl(*command, store=tmp_path / "store")
        assert result.exit_code in (2, 3)
        assert "error:" in result.stderr and str(tmp_path / "store") in result.stderr


def commands(name: str) -> dict[str, Any]:
    """Command and subcommand names → typer's commands."""
    group = typer.main.get_command(app)
    context = typer.Context(group, info_name="dcclctl")
    command = group.get_command(context, name)  # type: ignore[attr-defined]
    inner = getattr(command, "commands", None)
    return {f"{name} {sub}": found for sub, found in inner.items()} if inner else {name: command}


EVERY = {name: command for top in COMMANDS for name, command in commands(top).items()}


def flags_of(command: Any) -> set[str]:
    return {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}


@pytest.mark.parametrize("name", EVERY)
def test_help_has_an_example_with_flags_that_exist(name: str) -> None:
    shown = dcclctl(*name.split(), "--help")
    assert shown.exit_code == 0
    examples = [line.strip() for line in shown.stdout.splitlines() if line.strip().startswith("dcclctl ")]
    assert examples
    assert any(example.startswith(f"dcclctl {name}") for example in examples)
    for example in examples:
        words = shlex.split(example, comments=True)[1:]
        width = 2 if words[0] == "artifacts" else 1
        command = EVERY[" ".join(words[:width])]
        used = {word.partition("=")[0] for word in words[width:] if re.match(r"--?[a-z]", word)}
        assert used <= flags_of(command), example


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_what_the_command_says(name: str) -> None:
    """The list is kept apart from the commands, so that no command is imported to show it."""
    if name == "artifacts":
        return
    assert COMMANDS[name] == (EVERY[name].help or "").strip().splitlines()[0]


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_with_a_flag_is_in_the_help_once_with_its_default(name: str) -> None:
    command, spec = EVERY[name], SETTINGS[name]
    text = dcclctl(name, "--help").stdout.partition("Options:")[2]
    shown = "".join(text.split())  # a line may end within a word
    for key, setting in spec.flags().items():
        flag = f"--{key.replace('_', '-')}"
        (option,) = [option for option in command.params if flag in option.opts]
        assert len(re.findall(rf"^  (?:-\w, )?{flag}\b(?!-)", text, flags=re.MULTILINE)) == 1
        assert shown.count("".join(option.help.split())) == 1
        if (name, key) == ("distill", "method"):  # its default depends on the patches
            continue
        assert (setting.description or "").rstrip(".") in option.help
        default = setting.get_default(call_default_factory=True)
        if key not in spec.section.model_fields:
            assert option.help.endswith(f"[default: set by --{spec.choice}]")
        elif default not in ("", [], {}):
            assert f"[default: {shown_default(setting)}]" in option.help
        else:
            assert "[default" not in option.help
        # a boolean can be switched off again where the file has switched it on
        assert option.secondary_opts == ([f"--no-{flag[2:]}"] if isinstance(default, bool) else [])
    makes = {"--name", "--force"} if name != "score" else set()  # score makes no artifact
    assert makes | {"--set", "--store", "--config", "--json", "--quiet", "--seed"} <= flags_of(command)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_order_of_the_help(name: str) -> None:
    """The command's own options, its settings, those of its variants, where and how to compute, what all commands have."""
    spec = SETTINGS[name]
    order = [parameter.name.rstrip("_") for parameter in EVERY[name].params]
    places = {
        **dict.fromkeys(("seed", "device", "threads"), 3),
        **dict.fromkeys(
            ("set", "config", "name", "track", "store", "as_json", "quiet", "force", "plan", "profile", "executor"), 4
        ),
    }
    settings = {key: 1 if key in spec.section.model_fields else 2 for key in spec.flags()} | places
    ranks = [settings.get(key, 0) for key in order if (name, key) != ("distill", "method")]
    assert ranks == sorted(ranks)
    assert set(ranks) >= ({1, 3, 4} if not spec.variants else {0, 1, 2, 3, 4})


@pytest.mark.parametrize(("name", "choice"), [("train", "model"), ("patch", "method"), ("distill", "method")])
def test_the_help_names_every_variant(name: str, choice: str) -> None:
    (option,) = [option for option in EVERY[name].params if f"--{choice}" in option.opts]
    for variant in SETTINGS[name].variants:
        assert variant in re.split(r"[|, .]+", f"{option.metavar} {option.help}")


def test_a_setting_without_a_flag_is_not_in_the_help_and_is_listed() -> None:
    assert "item_size" not in dcclctl("train", "--help").stdout.partition("Options:")[2].replace(
        "train.din.item_size=64", ""
    )
    assert "--item-size" not in flags_of(EVERY["train"])
    listed = dcclctl("settings", "train", "--model=din").stdout
    assert "train.din.item_size = 32    [whole number ≥ 1]" in listed


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_lists_every_setting_once(name: str) -> None:
    spec = SETTINGS[name]
    for variant in ("", *spec.variants):
        chosen = [f"--{spec.choice}", variant] if variant else []
        found = json.loads(dcclctl("settings", name, *chosen, "--json").stdout)
        assert list(found["variants"]) == list(spec.variants)
        keys = [f"{name}.{key}" for key in spec.section.model_fields if key != "settings"]
        keys += [f"{name}.{variant}.{key}" for key in variant_section(name, variant).model_fields] if variant else []
        assert [row["key"] for row in found["settings"]] == keys
        assert all(row["meaning"] and row["values"] for row in found["settings"])
        shown = dcclctl("settings", name, *chosen).stdout
        assert all(f"{key} = " in shown for key in keys)
        assert all(f"  {each} " in shown for each in spec.variants) or variant


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["tran"], ["no command 'tran'", "Did you mean 'train'?"]),
        (["train", "--model=dine"], ["no such model", "Did you mean 'din'?"]),
        (["train", "--method=metapatch"], ["train has no method", "--model"]),
        (["ingest", "--model=din"], ["ingest has no model", "dcclctl settings ingest"]),
    ],
)
def test_settings_of_what_is_not_there(words: list[str], messages: list[str]) -> None:
    result = dcclctl("settings", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert all(message in result.stderr for message in messages)


def test_set_is_the_same_as_the_flag_and_the_file(world: World, tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("[train]\nthreads = 1\n[train.din]\nepochs = 1\nhidden_sizes = [16, 8]\n")
    made = done("train", "--config", path, store=tmp_path / "store") if ingest(tmp_path, tmp_path / "store") else {}
    ways: list[tuple[object, ...]] = [
        ("--threads=1", "--epochs=1", "--set=train.din.hidden_sizes=16,8"),
        ("--set=train.threads=1", "--set=train.din.epochs=1", "--set", "train.din.hidden_sizes=16,8"),
        ("--set=threads=1", "--set=epochs=1", "--set=din.hidden_sizes=16, 8"),
        ("--config", path, "--epochs=1"),
    ]
    for way in ways:
        again = done("train", *way, store=tmp_path / "store")
        assert (again["id"], again["reused"]) == (made["id"], True)
    other = done("train", "--config", path, "--set=train.din.epochs=2", store=tmp_path / "store")
    assert other["id"] != made["id"]  # what is given on the command line wins over the file


def test_a_boolean_is_switched_off_where_the_file_has_switched_it_on(shop: Path, tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("[patch]\nguard = true\n")
    arguments = ("patch", "--cloud=cloud@1", "--users=tail", *PATCH, "--config", path)
    assert not done(*arguments, store=shop)["reused"]
    off = done(*arguments, "--no-guard", store=shop)
    assert (off["ref"], off["reused"]) == ("patches@1", True)


def test_a_name_is_said_and_can_be_used(shop: Path) -> None:
    shown = dcclctl("train", *TRAIN, "--name=release", store=shop)
    assert "cloud@release is cloud@1" in shown.stdout
    assert done("train", *TRAIN, "--name=again", store=shop)["name"] == "again"
    assert done("artifacts", "show", "cloud@release", store=shop)["ref"] == "cloud@1"


def test_root_help_and_version() -> None:
    shown = dcclctl("--help")
    assert shown.exit_code == 0
    assert all(f"  {name}" in shown.stdout and text in shown.stdout for name, text in COMMANDS.items())
    from dcclctl import __version__

    assert dcclctl("--version").stdout == f"dcclctl {__version__}\n"
    assert dcclctl("-h").stdout == shown.stdout


def test_files_of_an_editor_that_writes_a_byte_order_mark(shop: Path, tmp_path: Path) -> None:
    config, gate = tmp_path / "dccl.toml", tmp_path / "gate.toml"
    config.write_text("[train]\nthreads = 1\n", encoding="utf-8-sig")
    gate.write_text('[[rule]]\ngroup = "all"\nmetric = "gauc"\nmax_drop = "100%"\n', encoding="utf-8-sig")
    assert dcclctl("train", "--model=popularity", "--config", config, store=shop).exit_code == 0
    command = ("evaluate", "cloud@2", "--against=cloud@1", "--gate", gate, "--k=3", "--threads=1")
    assert dcclctl(*command, store=shop).exit_code == 0


@pytest.mark.parametrize("name", EVERY)
def test_arguments_are_plain_words_in_the_help(name: str) -> None:
    """Not '[[REF]...]...' or 'LOG... <list[Path]>': a word in capitals, REF... for several, in [ ] if it may be left out."""
    shown = dcclctl(*name.split(), "--help").stdout
    usage = shown.splitlines()[0].removeprefix(f"Usage: dcclctl {name} [OPTIONS]")
    assert all(re.fullmatch(r"[A-Z]+(\.\.\.)?|\[[A-Z]+(\.\.\.)?\]", word) for word in usage.split()), usage
    assert not re.search(r"<\w+|list\[", shown)
    described = shown.partition("Arguments:")[2].partition("Options:")[0]
    assert re.findall(r"^  ([A-Z]+(?:\.\.\.)?)  ", described, re.M) == [word.strip("[]") for word in usage.split()]


@pytest.mark.parametrize("error", [ArtifactError("the disk is gone", "Mend it."), OSError(errno.EIO, "a fault")])
def test_an_error_after_the_commit_names_what_is_made(
    error: Exception, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Reporter, line: str) -> None:
        raise error

    with monkeypatch.context() as patching:
        patching.setattr(Reporter, "line", broken)
        ended = dcclctl("memory", store=shop)
    assert (ended.exit_code, ended.stdout) == (3, "")
    assert ended.stderr.splitlines()[-1] == "  memory@1 is made and stays; the same command finds it."
    assert done("memory", store=shop)["reused"]


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limit")
def test_a_limit_of_memory_that_libraries_would_not_survive(shop: Path) -> None:
    command = ["bash", "-c", 'ulimit -v 2000000; exec "$@"', "_", sys.executable, "-m", "dcclctl", "train", "--force"]
    ran = subprocess.run([*command, "--store", str(shop)], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 3, ran.stderr
    assert ran.stderr.splitlines() == [
        "error: this process may use 1.9 GiB of address space (ulimit -v), and needs 3",
        "  Lift the limit for this command: ulimit -v unlimited",
    ]
