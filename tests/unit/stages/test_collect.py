"""Uplinks of devices become patches; hostile ones are rejected, with counts."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import KINDS
from world import World, dcclctl, done

from dcclctl.artifacts import Bundle, PatchSet
from dcclctl.devices.serving import Subject
from dcclctl.stages.export import token_of
from dcclctl.store.store import Store


@dataclass(frozen=True)
class Round:
    """A bundle of MetaPatch, and what honest devices would send."""

    root: Path
    ref: str
    honest: list[dict[str, Any]]

    def collected(self, folder: Path, sent: list[Any], *flags: str) -> tuple[dict[str, Any], PatchSet]:
        place = folder / "uplinks"
        place.mkdir()
        for at, each in enumerate(sent):
            (place / f"{at:04d}.json").write_text(each if isinstance(each, str) else json.dumps(each))
        made = done("collect", self.ref, place, *flags, store=self.root)
        return made, PatchSet(Store(self.root).resolve(made["ref"]))


@pytest.fixture
def round_(world: World, tmp_path: Path) -> Round:
    store = world.copy(tmp_path / "store")
    for command in KINDS["din-metapatch"]:
        done(*command, store=store)
    made = done("export", store=store)
    bundle = Bundle(Store(store).resolve(made["ref"]))
    assert bundle.patches is not None
    codes, _ = bundle.patches.codes()
    honest = [
        {"bundle": bundle.spec["id"], "token": token_of(bundle, user), "theta": codes[user].tolist(), "events": events}
        for user, events in bundle.patches.users.select("user_index", "events").iter_rows()
    ]
    return Round(store, made["ref"], honest)


def test_honest_uplinks_give_the_patches_of_central_learning(round_: Round, tmp_path: Path) -> None:
    made, patches = round_.collected(tmp_path, round_.honest, "--max-norm=1000")
    assert made["users"] == len(round_.honest) and made["clipped"] == 0 and sum(made["rejected"].values()) == 0
    bundle = Bundle(Store(round_.root).resolve(round_.ref))
    assert bundle.patches is not None
    wanted, patched = bundle.patches.codes()
    found, patched_too = patches.codes()
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(patched_too, patched)
    # they serve, and they teach
    found_ref = made["ref"]
    assert done("evaluate", found_ref, "--threads=1", store=round_.root)["subjects"] == [found_ref]
    assert dcclctl("audit", found_ref, store=round_.root).exit_code == 0
    again = done("collect", round_.ref, tmp_path / "uplinks", "--max-norm=1000", store=round_.root)
    assert again["reused"] and again["id"] == made["id"]
    # as an error would say where it is damaged
    words = shlex.split(patches.artifact.command.replace("UPLINKS", str(tmp_path / "uplinks")))
    assert done(*words[1:], "--force", store=round_.root)["id"] == made["id"]


def test_hostile_uplinks_are_rejected_and_counted(round_: Round, tmp_path: Path) -> None:
    first, *others = round_.honest
    size = len(first["theta"])
    hostile = [
        "not json",
        "[" * 100_000,
        "3",
        {**first, "bundle": "another"},
        {**first, "token": "unknown"},
        {**first, "token": ["list"]},
        {**others[0], "theta": [0.0] * (size + 1)},
        {**others[0], "theta": ["1"] * size},
        {**others[0], "theta": [True] * size},
        json.dumps({**others[0], "theta": [0.0] * size}).replace("0.0", "NaN", 1),
        json.dumps({**others[0], "theta": [0.0] * size}).replace("0.0", "1" + "0" * 400, 1),
        {**others[0], "noise": "1"},
        {**others[0], "noise": -1.0},
        json.dumps({**others[0], "noise": 0.5}).replace("0.5", "1e999"),
        {**others[1], "theta": [1e300] * size},
        others[2],
        others[2],
        *others[3:],
    ]
    made, patches = round_.collected(tmp_path, hostile)
    assert made["rejected"] == {
        "absurd": 1,
        "not-finite": 4,
        "other-bundle": 1,
        "shape": 4,
        "twice": 2,
        "unknown-device": 2,
        "unreadable": 3,
    }
    assert made["users"] == len(others[3:]) == patches.users.height
    codes, _ = patches.codes()
    assert np.isfinite(codes.numpy()).all()


def test_a_theta_beyond_the_bound_is_clipped(round_: Round, tmp_path: Path) -> None:
    bundle = Bundle(Store(round_.root).resolve(round_.ref))
    mean = np.array(bundle.spec["learning"]["start"])
    far = {**round_.honest[0]}
    far["theta"] = (mean + 30 * (np.array(far["theta"]) - mean)).tolist()
    made, patches = round_.collected(tmp_path, [far, *round_.honest[1:]])
    assert made["clipped"] >= 1
    codes, patched = patches.codes()
    distance = np.linalg.norm(codes.numpy()[patched.numpy()] - mean, axis=1)
    assert distance.max() <= made["bound"] * 1.001
    honest = np.array([each["theta"] for each in round_.honest]) - mean
    assert made["bound"] < np.linalg.norm(np.array(far["theta"]) - mean) / 3
    assert np.quantile(np.linalg.norm(honest, axis=1), 0.5) < made["bound"]


def test_theta_with_noise_is_moved_towards_the_mean(round_: Round, tmp_path: Path) -> None:
    bundle = Bundle(Store(round_.root).resolve(round_.ref))
    learning = bundle.spec["learning"]
    mean, clip = np.array(learning["start"]), learning["clip"]
    honest = np.array([each["theta"] for each in round_.honest])
    assert clip == pytest.approx(np.sort(np.linalg.norm(honest - mean, axis=1))[(len(honest) - 1) // 2])
    # noise as large as what is expected of a number of θ̂ leaves half of it
    noise = clip / np.sqrt(len(mean))
    first, second, third, *others = round_.honest
    sent = [{**first, "noise": noise}, {**second, "noise": 1e300}, third, *others]
    made, patches = round_.collected(tmp_path, sent, "--max-norm=1000")
    assert patches.facts["with_noise"] == 2
    codes = patches.codes()[0].numpy()[patches.users["user_index"].to_numpy()]
    np.testing.assert_allclose(codes[0], mean + (honest[0] - mean) / 2, atol=1e-6)
    np.testing.assert_allclose(codes[1], mean, atol=1e-6)
    np.testing.assert_array_equal(codes[2:], honest[2:].astype(np.float32))
    # the next round's bundle keeps the clip: noise says nothing of the usual distance
    again = done("export", made["ref"], store=round_.root)
    assert Bundle(Store(round_.root).resolve(again["ref"])).spec["learning"]["clip"] == clip


def test_nothing_usable_is_an_error(round_: Round, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("nothing")
    result = dcclctl("collect", round_.ref, tmp_path / "bad.json", store=round_.root)
    assert result.exit_code == 3 and "1 unreadable" in result.stderr
    assert "one JSON object in a file" in result.stderr
    missing = dcclctl("collect", round_.ref, tmp_path / "none.json", store=round_.root)
    assert missing.exit_code == 2
    (tmp_path / "far.jsonl").write_text("\n".join(map(json.dumps, round_.honest)))
    absurd = dcclctl("collect", round_.ref, tmp_path / "far.jsonl", "--max-norm=1e-6", store=round_.root)
    assert absurd.exit_code == 3 and "Raise --max-norm" in absurd.stderr


def test_an_uplink_in_several_lines_and_one_that_is_too_long(round_: Round, tmp_path: Path) -> None:
    """A file is one object however it is written, or one in each line; what is too long is one that is unreadable."""
    first, second, *others = round_.honest
    too_long = json.dumps({**others[0], "more": "x" * 3_000_000})
    lines = "\n".join([json.dumps(each) for each in others[1:]] + [too_long])
    made, patches = round_.collected(tmp_path, [json.dumps(first, indent=2), json.dumps(second) + "\n", lines])
    assert made["users"] == patches.users.height == len(round_.honest) - 1
    assert made["rejected"] == {"unreadable": 1}


def test_a_bundle_without_learning_has_nothing_to_collect(round_: Round, tmp_path: Path) -> None:
    made = done("export", "cloud@1", store=round_.root)
    result = dcclctl("collect", made["ref"], tmp_path, store=round_.root)
    assert result.exit_code == 2 and "--method metapatch" in result.stderr
    subject = Subject.of(made["ref"], Store(round_.root))
    assert subject.patches is None and subject.bundle is not None
