"""Settings of variants: who reads them, what is recorded of them, and what is said of the others."""

import os
from pathlib import Path

import pytest
import torch
from world import PATCH, TRAIN, World, dcclctl, done

from dcclctl.artifacts import CloudModel, PatchSet
from dcclctl.artifacts.handle import Handle
from dcclctl.devices.method import METHODS as PATCH_METHODS
from dcclctl.devices.serving import Subject
from dcclctl.distillation.method import METHODS as DISTILL_METHODS
from dcclctl.errors import UsageError
from dcclctl.stages.distill import distill
from dcclctl.stages.evaluate import evaluate
from dcclctl.stages.patch import patch
from dcclctl.stages.recommend import recommend
from dcclctl.stages.run import RunOptions
from dcclctl.stages.score import score
from dcclctl.stages.settings import COMMANDS, variant_section
from dcclctl.stages.train import train
from dcclctl.store.store import Store

ONCE = {"epochs": 1, "threads": 1}


def cloud_of(store: Path, reference: str = "cloud@1") -> CloudModel:
    return CloudModel(Store(store).resolve(reference))


# -- what is recorded (that all of it is read: tests/unit/test_settings_are_read.py)


def chosen_alone(made: Handle, command: str, variant: str) -> None:
    """The chosen variant alone is recorded, whole."""
    common, own = COMMANDS[command].section, variant_section(command, variant)
    assert set(made.config) == set(common.model_fields) - {"seed", "settings"} | {variant}
    assert set(made.config[variant]) == set(own.model_fields)


@pytest.mark.parametrize("model", ["din", "sasrec", "bpr", "ease", "popularity"])
def test_a_model_is_known_by_its_own_settings(shop: Path, model: str) -> None:
    once = {"epochs": 1} if "epochs" in variant_section("train", model).model_fields else {}
    chosen_alone(train(cloud_of(shop).dataset, {"model": model, "threads": 1} | once), "train", model)


@pytest.mark.parametrize("method", PATCH_METHODS)
def test_patches_are_known_by_their_methods_settings(shop: Path, method: str) -> None:
    chosen_alone(patch(cloud_of(shop), {"method": method, "threads": 1}), "patch", method)


@pytest.mark.parametrize("method", DISTILL_METHODS)
def test_a_student_is_known_by_its_methods_settings(shop: Path, method: str) -> None:
    patches = PatchSet(Store(shop).resolve("patches@1"))
    chosen_alone(distill(patches, ONCE | {"method": method}), "distill", method)


# -- what the chosen variant does not read


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            ("train", "--set=ridge=7"),
            ["the setting ridge is read by --model ease only, not by din", "choose --model ease"],
        ),
        (
            ("train", "--model=ease", "--epochs=2"),
            ["the setting epochs is read by --model din, sasrec, gru4rec, bpr, fm, neumf only, not by ease"],
        ),
        (("train", "--set=train.ease.ridge=7"), ["the setting ridge is read by --model ease only, not by din"]),
        (("train", "--set=train.sasrec.epochs=7"), ["the chosen model is din", "Write train.din.epochs"]),
        (("train", "--set=train.ridge=7"), ["the setting ridge is read by --model ease only"]),
        (("train", "--set=patch.guard=true"), ["this command is train", "Write train.KEY=VALUE"]),
        (("train", "--set=rigde=7"), ["train has no setting 'rigde'"]),
        (("train", "--set=train.din.epocs=7"), ["train.din has no setting 'epocs'", "Did you mean 'epochs'?"]),
        (("train", "--set=settings=7"), ["train has no setting 'settings'"]),
        (("patch", "--steps=5"), ["the setting steps is read by --method metapatch, fine-tune only, not by memory"]),
        (
            ("patch", "--method=metapatch", "--set=hidden_size=5"),
            ["the setting hidden_size is read by --method memory only"],
        ),
        (
            ("distill", "--patches=patches@1", "--set=others=5"),
            ["the setting others is read by --method from-memory only, not by momodistill"],
        ),
        (("evaluate", "cloud@1", "--set=epochs=5"), ["evaluate has no setting 'epochs'"]),
    ],
)
def test_a_setting_that_would_do_nothing_is_refused(world: World, command: tuple[str, ...], said: list[str]) -> None:
    result = dcclctl(*command, store=world.root)
    assert result.exit_code == 2
    for part in said:
        assert part in " ".join(result.stderr.split()), result.stderr


def test_it_is_refused_from_python_too(world: World) -> None:
    cloud = world.cloud()
    with pytest.raises(UsageError, match="the setting ridge is read by --model ease only, not by din"):
        train(cloud.dataset, {"ridge": 7.0})
    with pytest.raises(
        UsageError, match="the setting steps is read by --method metapatch, fine-tune only, not by memory"
    ):
        patch(cloud, {"steps": 3})
    with pytest.raises(UsageError, match="the setting others is read by --method from-memory only, not by momodistill"):
        distill(world.patches(), {"distill.from-memory.others": 3})
    with pytest.raises(UsageError, match="evaluate has no setting"):
        evaluate([Subject(cloud)], {"ridge": 7.0})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[train]\nridge = 7.0", ["unknown key 'ridge' in [train]", "write it in [train.ease]"]),
        ("[train.din]\nridge = 7.0", ["unknown key 'ridge' in [train.din]"]),
        ("[train.eese]\nridge = 7.0", ["unknown key 'eese' in [train]", "Did you mean 'ease'?"]),
        ("[patch.metapatch]\nhidden_size = 7", ["unknown key 'hidden_size' in [patch.metapatch]"]),
    ],
)
def test_a_file_puts_settings_where_they_are_read(world: World, tmp_path: Path, text: str, said: list[str]) -> None:
    file = tmp_path / "dccl.toml"
    file.write_text(text)
    for command in ("train", "patch"):  # a mistake anywhere in the file stops every command
        result = dcclctl(command, f"--config={file}", store=world.root)
        assert result.exit_code == 2
        assert all(part in result.stderr for part in said), result.stderr


def test_a_file_may_hold_tables_of_several_variants(shop: Path, tmp_path: Path) -> None:
    file = tmp_path / "dccl.toml"
    file.write_text(
        "[train.din]\nepochs = 1\nnegatives = 6\n[train.ease]\nridge = 7.0\n[train.item-knn]\nneighbours = 3\n"
        "[patch]\nmethod = 'fine-tune'\n[patch.fine-tune]\nsteps = 2\n[patch.memory]\nhidden_size = 5\n"
    )
    dataset, run = cloud_of(shop).dataset, RunOptions(config=file)
    din, ease, knn = (
        train(dataset, {"threads": 1} | ({"model": model} if model else {}), run) for model in ("", "ease", "item-knn")
    )
    assert (din.model, din.negatives, len(din.facts["epochs"])) == ("din", 6, 1)
    assert (ease.config["ease"]["ridge"], knn.config["item-knn"]["neighbours"]) == (7.0, 3)
    patches = patch(din, {"threads": 1}, run)
    assert (patches.method, patches.settings["steps"]) == ("fine-tune", 2)
    assert patch(din, {"threads": 1, "method": "memory", "epochs": 1}, run).settings["hidden_size"] == 5
    # what is given wins over the file, in each of its forms
    for name in ("negatives", "din.negatives", "train.din.negatives"):
        assert train(dataset, ONCE | {name: 3}, run).negatives == 3


def test_what_other_variants_would_read_makes_no_other_artifact(shop: Path, tmp_path: Path) -> None:
    file = tmp_path / "dccl.toml"
    file.write_text("[train.ease]\nridge = 7.0\n[train.item-knn]\nneighbours = 3\n[patch.memory]\nhidden_size = 5\n")
    assert done("train", *TRAIN, f"--config={file}", store=shop)["ref"] == "cloud@1"
    assert (
        done("patch", "--users=tail", "--cloud=cloud@1", *PATCH, f"--config={file}", store=shop)["ref"] == "patches@1"
    )
    usual, other = (
        done("train", "--model=ease", "--threads=1", *more, store=shop) for more in ((), (f"--config={file}",))
    )
    assert usual["ref"] != other["ref"]


# -- nothing global is changed


def test_stages_called_from_python_leave_torch_as_it_was(shop: Path) -> None:
    cloud, patches = cloud_of(shop), PatchSet(Store(shop).resolve("patches@1"))
    subject = Subject(cloud, patches)
    calls = (
        lambda: train(cloud.dataset, ONCE),
        lambda: patch(cloud, {"method": "fine-tune", "steps": 1, "threads": 1}),
        lambda: patch(cloud, ONCE),
        lambda: distill(patches, ONCE),
        lambda: evaluate([subject], {"threads": 1, "seed": 3}),
        lambda: score(subject, ["u1"], {"threads": 1}),
        lambda: recommend(subject, {"users": "u1", "threads": 1}),
    )
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        torch.use_deterministic_algorithms(False)
        before, environment = (3, False, torch.utils.deterministic.fill_uninitialized_memory), dict(os.environ)
        generator = torch.get_rng_state()
        for call in calls:
            call()
            now = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
            assert (*now, torch.utils.deterministic.fill_uninitialized_memory) == before
            assert dict(os.environ) == environment
        assert torch.get_rng_state().equal(generator)
    finally:
        torch.set_num_threads(threads)
