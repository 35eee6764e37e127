"""Every setting of a model, a device method or a distillation method is read by its code: none is accepted in silence.

A setting becomes part of an artifact's identity, so one that nothing reads makes equal artifacts look different.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from world import World

from dcclctl.artifacts import CloudModel, Memory, PatchSet
from dcclctl.config import Section
from dcclctl.errors import UsageError
from dcclctl.events.log import TEST
from dcclctl.models.kind import open_backbone
from dcclctl.stages.distill import distill
from dcclctl.stages.memory import remember
from dcclctl.stages.patch import patch
from dcclctl.stages.settings import COMMANDS
from dcclctl.stages.train import train
from dcclctl.store.store import Store

VARIANTS = [(command, variant) for command, about in COMMANDS.items() for variant in about.variants]
#: so that runs are short; only what the variant has
QUICK = {"epochs": 1, "basis_epochs": 1, "steps": 2, "hidden_size": 4, "item_size": 8}


def recording(section: type[Section], read: set[str]) -> type[Section]:
    """The section, which notes each of its settings that is read by name (not those that are only recorded)."""

    class Recording(section):  # type: ignore[misc,valid-type]
        def __getattribute__(self, name: str) -> Any:
            if name in section.model_fields:
                read.add(name)
            return super().__getattribute__(name)

    return Recording


def run(command: str, variant: str, world: World, root: Path) -> CloudModel | PatchSet:
    """The command with this variant, on the world's artifacts."""
    store = Store(world.copy(root))
    own = World(store.root, world.log, {})
    section = COMMANDS[command].variants[variant].load().Settings
    settings = {name: value for name, value in QUICK.items() if name in section.model_fields} | {"threads": 1}
    if command == "train":
        made = train(own.dataset(), {"model": variant, **settings})
        backbone, events = open_backbone(made, torch.device("cpu")), made.dataset.log.events_in(TEST)[:3]
        backbone.head(events, None, backbone.activations(events, None))  # some settings are read where items are scored
        return made
    if command == "patch":
        return patch(own.cloud(), {"method": variant, **settings}, memory=memory(own) if variant == "memory" else None)
    assert command == "distill", f"say here how to run a small {command}"
    quick = {"method": "memory", "epochs": 1, "hidden_size": 4, "threads": 1}
    teachers = own.patches() if variant == "momodistill" else patch(own.cloud(), quick, memory=memory(own))
    return distill(teachers, {"method": variant, **settings})


def memory(world: World) -> Memory:
    return remember(world.dataset(), {"size": 8, "neighbours": 5})


@pytest.mark.parametrize(("command", "variant"), VARIANTS)
def test_every_setting_is_read(
    command: str, variant: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, read = COMMANDS[command].variants[variant].load(), set[str]()
    section = kind.Settings
    monkeypatch.setattr(kind, "Settings", recording(section, read))
    made = run(command, variant, world, tmp_path / "store")
    unread = set(section.model_fields) - read
    assert not unread, f"dcclctl {command} accepts {command}.{variant}.{sorted(unread)}, which nothing reads"
    # and an artifact is known by them all
    assert set(made.config[variant]) == set(section.model_fields)


@pytest.mark.parametrize(("command", "variant"), VARIANTS)
def test_a_setting_that_only_other_variants_read_is_refused_by_name(
    command: str, variant: str, world: World, tmp_path: Path
) -> None:
    variants = COMMANDS[command].variants
    own = set(variants[variant].load().Settings.model_fields) | set(COMMANDS[command].section.model_fields)
    others = {
        name: other for other in variants for name in variants[other].load().Settings.model_fields if name not in own
    }
    if not others:
        pytest.skip("this variant reads what all others read")
    name, other = sorted(others.items())[0]
    section = variants[other].load().Settings()
    call = {
        "train": lambda given: train(world.dataset(), given),
        "patch": lambda given: patch(world.cloud(), given),
        "distill": lambda given: distill(world.patches(), given),
    }[command]
    before = _files(world.root)
    with pytest.raises(UsageError) as error:
        call({COMMANDS[command].section.VARIANT: variant, name: getattr(section, name)})
    text = f"{error.value.what} {error.value.remedy}"
    assert name in text and other in text, text
    assert _files(world.root) == before, "nothing may be written"


def _files(root: Path) -> list[Path]:
    """Everything in a store but the leases of running processes."""
    return sorted(path for path in root.rglob("*") if "leases" not in path.parts and path.name != "hygiene.lock")
