"""The command line that makes an artifact again, from its manifest."""

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from world import dcclctl

from dcclctl.config import VariantSection
from dcclctl.stages.report import command_of
from dcclctl.stages.settings import COMMANDS, resolve, variant_section
from dcclctl.store.store import Artifact, Input

IDS = {"dataset": "da" * 32, "cloud": "c0" * 32, "patches": "9a" * 32, "memory": "3e" * 32}


class Shelf:
    """Artifacts that are in no store."""

    def __init__(self) -> None:
        self.held: dict[str, Artifact] = {}

    def find(self, kind: str, id: str) -> Artifact:
        return self.held[id]

    def artifacts(self, kind: str | None = None) -> list[Artifact]:
        return list(self.held.values())

    def aliases(self, artifact: Artifact) -> list[str]:
        return []


SHELF = Shelf()


def artifact(stage: str, kind: str, inputs: dict[str, Artifact | str], number: int = 1, **config: Any) -> Artifact:
    """One as the stage would record it; inputs by role, a raw file by its SHA-256."""
    section, recorded = COMMANDS[stage].section, {}
    if config.get("users", "").startswith("@"):  # what is recorded of a list of users is no setting that can be given
        recorded["users"] = config.pop("users")
    settings = resolve(section, config)
    given = {role: Input("raw", each) if isinstance(each, str) else each.as_input() for role, each in inputs.items()}
    manifest = {
        "stage": stage,
        "seed": settings.seed,
        "config": {"collect": settings.recorded()} if stage == "collect" else settings.recorded() | recorded,
        "inputs": {role: {"kind": each.kind, "id": each.id} for role, each in given.items()},
        "facts": {"id_map": "1d", "own_basis": True},
        "files": {},
    }
    return Artifact(kind, number, Path("nowhere"), IDS.get(kind, "ee" * 32), manifest, SHELF)


DATASET = artifact("ingest", "dataset", {"log:a.csv": "ab" * 32}, 4)
CLOUD = artifact("train", "cloud", {"dataset": DATASET}, 2)
PATCHES = artifact("patch", "patches", {"cloud": CLOUD, "dataset": DATASET}, 3, method="metapatch")
MEMORY = artifact("memory", "memory", {"dataset": DATASET}, 5, size=100)
REMEMBERING = replace(artifact("patch", "patches", {"cloud": CLOUD, "memory": MEMORY}, 9), id="ab" * 32)
STUDENT = replace(artifact("train", "cloud", {"dataset": DATASET}, 8), id="57" * 32)
MADE = {each.id: each for each in (DATASET, CLOUD, PATCHES, MEMORY, STUDENT, REMEMBERING)}
SHELF.held = MADE


@pytest.mark.parametrize(
    ("made", "command"),
    [
        (DATASET, "dataset_4=$(dcclctl ingest a.csv --quiet)"),
        (CLOUD, 'cloud_2=$(dcclctl train --dataset "${dataset_4}" --quiet)'),
        (PATCHES, 'patches_3=$(dcclctl patch --cloud "${cloud_2}" --method metapatch --quiet)'),
        (MEMORY, 'memory_5=$(dcclctl memory --dataset "${dataset_4}" --size 100 --quiet)'),
        (
            artifact("patch", "patches", {"cloud": CLOUD, "memory": MEMORY}, 6, negatives=3, hidden_size=8),
            'patches_6=$(dcclctl patch --cloud "${cloud_2}" --memory "${memory_5}" --set patch.negatives=3 '
            "--set patch.memory.hidden_size=8 --quiet)",
        ),
        (
            artifact("distill", "cloud", {"patches": PATCHES, "cloud": STUDENT}, 7),
            'cloud_7=$(dcclctl distill --patches "${patches_3}" --cloud "${cloud_8}" --quiet)',
        ),
        (
            artifact("distill", "cloud", {"patches": REMEMBERING, "cloud": CLOUD}, 7, method="momodistill"),
            'cloud_7=$(dcclctl distill --patches "${patches_9}" --method momodistill --quiet)',
        ),
        (
            artifact("distill", "cloud", {"patches": REMEMBERING, "cloud": CLOUD}, 7, method="from-memory"),
            'cloud_7=$(dcclctl distill --patches "${patches_9}" --quiet)',
        ),
        (
            artifact("distill", "cloud", {"patches": PATCHES, "cloud": CLOUD}, 7, method="from-memory"),
            'cloud_7=$(dcclctl distill --patches "${patches_3}" --method from-memory --quiet)',
        ),
        (
            artifact(
                "ingest",
                "dataset",
                {"items:i.csv": "01" * 32, "log:b c.csv": "02" * 32, "users:u.csv": "03" * 32},
                map={"user": "uid", "item": "sku"},
                allow_empty=True,
                label="rating>=4",
                periods=["50", "20", "20", "10"],
            ),
            "dataset_1=$(dcclctl ingest 'b c.csv' --items i.csv --users u.csv --map user=uid,item=sku --label 'rating>=4' "
            "--allow-empty --periods 50,20,20,10 --quiet)",
        ),
        (
            artifact("train", "cloud", {"cloud": CLOUD, "dataset": DATASET}, 5, on=["device"], item_size=8, epochs=3),
            'cloud_5=$(dcclctl train --continue "${cloud_2}" --on device --set train.din.epochs=3 --quiet)',
        ),
        (
            artifact("train", "cloud", {"dataset": DATASET}, 5, model="sasrec", item_size=8),
            'cloud_5=$(dcclctl train --dataset "${dataset_4}" --model sasrec --set train.sasrec.item_size=8 --quiet)',
        ),
        (
            artifact("patch", "patches", {"cloud": CLOUD}, users="@sha256:" + "04" * 32, guard=True),
            'patches_1=$(dcclctl patch --cloud "${cloud_2}" --users @FILE --guard --quiet)',
        ),
        (
            artifact("distill", "cloud", {"cloud": CLOUD, "patches": PATCHES}, 6, beta=0.0, seed=9),
            'cloud_6=$(dcclctl distill --patches "${patches_3}" --seed 9 --set distill.momodistill.beta=0.0 --quiet)',
        ),
        (
            artifact(
                "evaluate",
                "evaluation",
                {"dataset": DATASET, "subject-00:cloud@c0c0c0c0": CLOUD, "subject-01:cloud@c0c0c0c0+encoder": CLOUD},
                against="cloud@c0c0c0c0",
                k=[3],
                auc_negatives=7,
            ),
            'evaluation_1=$(dcclctl evaluate "${cloud_2}" "${cloud_2}+encoder" --against "${cloud_2}" --k 3 '
            "--set evaluate.auc_negatives=7 --quiet)",
        ),
    ],
)
def test_settings_that_differ_from_the_default_are_named(made: Artifact, command: str) -> None:
    words, expected = shlex.split(command_of(made, MADE)), shlex.split(command)
    assert sorted(words) == sorted(expected)
    # flags may come in any order; what has no flag may not
    plain, wanted = ([word for word in line[: line.index("--quiet)")] if "$" in word] for line in (words, expected))
    assert plain == wanted


def test_a_hostile_file_name_is_one_harmless_word() -> None:
    hostile = artifact("ingest", "dataset", {"log:$(rm -rf ~)\x1b[31m'.csv": "05" * 32})
    assert shlex.split(command_of(hostile, {}))[2:] == ["$(rm -rf ~)\\x1b[31m'.csv", "--quiet)"]


@pytest.mark.parametrize("stage", list(COMMANDS))
def test_every_setting_is_given_by_a_flag_that_there_is_or_by_set(stage: str) -> None:
    section, variants = COMMANDS[stage].section, COMMANDS[stage].variants
    inputs: dict[str, Artifact | str] = {
        "ingest": {"log:a.csv": "ab" * 32},
        "distill": {"patches": PATCHES, "cloud": CLOUD},
        "patch": {"cloud": CLOUD},
    }.get(stage, {"dataset": DATASET})
    shown = dcclctl(stage, "--help").stdout
    for variant in variants or [""]:
        chosen = {section.VARIANT: variant} if issubclass(section, VariantSection) else {}
        made = artifact(stage, "evaluation", inputs, **chosen)
        config = made.manifest["config"].get("collect", made.manifest["config"])
        for settings in (config, config.get(variant, {})):  # another value than the default everywhere
            settings |= {name: "x" for name in settings if name not in (*chosen, variant, "against")}
        words = shlex.split(command_of(made, MADE))
        flags = {word for word in words if word.startswith("--") and not word.endswith(")")}
        assert all(re.search(rf"{flag}[ /]", shown) for flag in flags), flags
        keys = [words[at + 1].partition("=")[0] for at, word in enumerate(words) if word == "--set"]
        assert len(keys) + len(flags) > len(config.get(variant, ())) + 1
        for key in keys:
            owner, _, name = key.rpartition(".")
            assert name in (section.model_fields if owner == stage else variant_section(stage, variant).model_fields)
