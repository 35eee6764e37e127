"""The command line that makes an artifact again, from its manifest."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dcclctl.config import SECTIONS
from dcclctl.devices.serving import SUFFIXES
from dcclctl.stages import report
from dcclctl.stages.report import command_of
from dcclctl.store.store import Artifact

IDS = {"dataset": "da" * 32, "cloud": "c0" * 32, "patches": "9a" * 32, "memory": "3e" * 32}


def artifact(stage: str, kind: str, inputs: dict[str, tuple[str, str]], number: int = 1, **config: Any) -> Artifact:
    settings = (
        SECTIONS[stage](**config).model_dump(mode="json")
        if "users" not in config
        else SECTIONS[stage]().model_dump(mode="json") | config
    )
    manifest = {
        "stage": stage,
        "seed": settings["seed"],
        "config": settings,
        "inputs": {role: {"kind": given, "id": id} for role, (given, id) in inputs.items()},
        "facts": {},
    }
    return Artifact(kind, number, Path("nowhere"), IDS.get(kind, "ee" * 32), manifest)


DATASET = artifact("ingest", "dataset", {"log:a.csv": ("raw", "ab" * 32)}, 4)
CLOUD = artifact("train", "cloud", {"dataset": ("dataset", DATASET.id)}, 2)
PATCHES = artifact("patch", "patches", {"cloud": ("cloud", CLOUD.id), "dataset": ("dataset", DATASET.id)}, 3)
MEMORY = artifact("memory", "memory", {"dataset": ("dataset", DATASET.id)}, 5, size=100)
REMEMBERING = replace(
    artifact("patch", "patches", {"cloud": ("cloud", CLOUD.id), "memory": ("memory", MEMORY.id)}, 9), id="ab" * 32
)
STUDENT = replace(artifact("train", "cloud", {"dataset": ("dataset", DATASET.id)}, 8), id="57" * 32)
MADE = {each.id: each for each in (DATASET, CLOUD, PATCHES, MEMORY, STUDENT, REMEMBERING)}


@pytest.mark.parametrize(
    ("made", "command"),
    [
        (DATASET, "dataset_4=$(dcclctl ingest a.csv --quiet)"),
        (CLOUD, 'cloud_2=$(dcclctl train --dataset "${dataset_4}" --quiet)'),
        (PATCHES, 'patches_3=$(dcclctl patch --cloud "${cloud_2}" --quiet)'),
        (MEMORY, 'memory_5=$(dcclctl memory --dataset "${dataset_4}" --size 100 --quiet)'),
        (
            artifact("patch", "patches", {"cloud": ("cloud", CLOUD.id), "memory": ("memory", MEMORY.id)}, 6),
            'patches_6=$(dcclctl patch --cloud "${cloud_2}" --memory "${memory_5}" --quiet)',
        ),
        (
            artifact("distill", "cloud", {"patches": ("patches", PATCHES.id), "cloud": ("cloud", STUDENT.id)}, 7),
            'cloud_7=$(dcclctl distill --patches "${patches_3}" --cloud "${cloud_8}" --quiet)',
        ),
        *(
            (
                artifact(
                    "distill",
                    "cloud",
                    {"patches": ("patches", REMEMBERING.id), "cloud": ("cloud", CLOUD.id)},
                    7,
                    lesson=lesson,
                ),
                f'cloud_7=$(dcclctl distill --patches "${{patches_9}}" --lesson {lesson} --quiet)',
            )
            for lesson in ("events", "unlabelled")
        ),
        (
            artifact(
                "ingest",
                "dataset",
                {
                    "items:i.csv": ("raw", "01" * 32),
                    "log:b c.csv": ("raw", "02" * 32),
                    "users:u.csv": ("raw", "03" * 32),
                },
                map={"user": "uid", "item": "sku"},
                allow_empty=True,
                label="rating>=4",
                periods=["50", "20", "20", "10"],
            ),
            "dataset_1=$(dcclctl ingest 'b c.csv' --items i.csv --users u.csv --map user=uid,item=sku --label 'rating>=4' "
            "--allow-empty --periods 50,20,20,10 --quiet)",
        ),
        (
            artifact(
                "train",
                "cloud",
                {"cloud": ("cloud", CLOUD.id), "dataset": ("dataset", DATASET.id)},
                5,
                on=["device"],
                item_size=8,
            ),
            'cloud_5=$(dcclctl train --continue "${cloud_2}" --on device --quiet)',
        ),
        (
            artifact("patch", "patches", {"cloud": ("cloud", CLOUD.id)}, users="@sha256:" + "04" * 32, guard=True),
            'patches_1=$(dcclctl patch --cloud "${cloud_2}" --users @FILE --guard --quiet)',
        ),
        (
            artifact(
                "distill",
                "cloud",
                {"cloud": ("cloud", CLOUD.id), "patches": ("patches", PATCHES.id)},
                6,
                beta=0.0,
                seed=9,
            ),
            'cloud_6=$(dcclctl distill --patches "${patches_3}" --seed 9 --beta 0.0 --quiet)',
        ),
        (
            artifact(
                "evaluate",
                "evaluation",
                {
                    "dataset": ("dataset", DATASET.id),
                    "subject-00:cloud@c0c0c0c0": ("cloud", CLOUD.id),
                    "subject-01:cloud@c0c0c0c0+encoder": ("cloud", CLOUD.id),
                },
                against="cloud@c0c0c0c0",
                k=[3],
            ),
            'evaluation_1=$(dcclctl evaluate "${cloud_2}" "${cloud_2}+encoder" --against "${cloud_2}" --k 3 --quiet)',
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
    hostile = artifact("ingest", "dataset", {"log:$(rm -rf ~)\x1b[31m'.csv": ("raw", "05" * 32)})
    assert shlex.split(command_of(hostile, {}))[2:] == ["$(rm -rf ~)\\x1b[31m'.csv", "--quiet)"]


def test_a_setting_that_is_no_longer_recorded_is_not_named() -> None:
    """Artifacts from before hold every setting; a flag that would do nothing is refused now."""
    old = artifact("train", "cloud", {"dataset": ("dataset", DATASET.id)}, 2, ridge=20.0)
    assert old.config["ridge"] == 20.0
    assert command_of(old, MADE) == command_of(CLOUD, MADE)


@pytest.mark.parametrize("roles", [report._PLACEBOS, report._OF_MEMORY])
def test_every_placebo_has_a_name(roles: dict[str, str]) -> None:
    assert set(roles) == {"", *SUFFIXES["patches"]}
    assert len(set(roles.values())) == len(roles)
