"""An artifact is known by the settings that can have made a difference, and by no others."""

from pathlib import Path
from typing import Any

import pytest
from dcclctl.stages.models import MODULES, module_of
from world import DISTILL, PATCH, TRAIN, dcclctl, done

from dcclctl.config import DistillConfig, PatchConfig, Section, TrainConfig
from dcclctl.stages.patch import METHODS
from dcclctl.store.store import Store


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Settings that the code has looked at since the last `clear`."""
    seen: set[str] = set()
    plain = Section.__getattribute__

    def looked_at(self: Section, name: str) -> Any:
        if name in type(self).model_fields:
            seen.add(name)
        return plain(self, name)

    monkeypatch.setattr(Section, "__getattribute__", looked_at)
    return seen


def agree(section: type[Section], decided: str, read: set[str]) -> None:
    """What is left out was not looked at; what is only for some was looked at by this one, if it is one of them."""
    unread = section(**{section.DECIDES: decided}).unread()
    assert "seed" in read
    assert not unread & read
    assert {name for name, readers in section.ONLY.items() if decided in readers} <= read


@pytest.mark.parametrize("model", MODULES)
def test_a_model_is_known_by_what_it_reads(shop: Path, reads: set[str], model: str) -> None:
    reads.clear()
    made = done("train", f"--model={model}", "--epochs=1", "--threads=1", store=shop)["ref"]
    agree(TrainConfig, model, reads | set(module_of(model).SIZES))
    recorded = Store(shop).resolve(made).config
    assert set(recorded) == set(TrainConfig.model_fields) - TrainConfig(model=model).unread()  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["memory", *METHODS])
def test_patches_are_known_by_what_made_them(shop: Path, reads: set[str], method: str) -> None:
    if method == "memory":
        done("memory", "--neighbours=5", store=shop)
    reads.clear()
    made = done("patch", f"--method={method}", "--cloud=cloud@1", "--basis-epochs=1", "--threads=1", store=shop)["ref"]
    agree(PatchConfig, method, reads)
    recorded = Store(shop).resolve(made).config
    assert set(recorded) == set(PatchConfig.model_fields) - PatchConfig(method=method).unread()  # type: ignore[arg-type]


@pytest.mark.parametrize("lesson", ["events", "unlabelled"])
def test_a_student_is_known_by_what_it_was_taught(shop: Path, reads: set[str], lesson: str) -> None:
    if lesson == "unlabelled":
        done("memory", "--neighbours=5", store=shop)
        done("patch", "--cloud=cloud@1", "--threads=1", store=shop)
    reads.clear()
    done("distill", *DISTILL, f"--lesson={lesson}", store=shop)
    agree(DistillConfig, lesson, reads)


def test_what_nothing_reads_makes_no_other_artifact(shop: Path, tmp_path: Path) -> None:
    settings = tmp_path / "dccl.toml"
    settings.write_text("[train]\nridge = 7.0\nneighbours = 3\n[patch]\nmemory_hidden = 5\n")
    flags = ("--epochs=1", "--threads=1", f"--config={settings}")
    first = done("train", "--epochs=1", "--threads=1", store=shop)["ref"]
    assert done("train", *flags, store=shop)["ref"] == first
    assert (
        done("patch", *PATCH, "--cloud=cloud@1", f"--config={settings}", store=shop)["ref"]
        == (done("patch", *PATCH, "--cloud=cloud@1", store=shop)["ref"])
    )
    ease = done("train", "--model=ease", "--threads=1", store=shop)["ref"]
    assert done("train", "--model=ease", "--threads=1", f"--config={settings}", store=shop)["ref"] != ease


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("train", *TRAIN, "--ridge=7"), ["--ridge is read with --model ease only, not with din"]),
        (
            ("patch", "--method=metapatch", "--memory-hidden=5"),
            ["--memory-hidden is read with --method memory only", "metapatch"],
        ),
        (
            ("patch", "--method=fine-tune", "--newton-steps=5"),
            ["--newton-steps is read with --method linearised or item-space only"],
        ),
        (("distill", "--patches=patches@1", "--unlabelled=5"), ["--lesson unlabelled only, not with events"]),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(shop: Path, command: tuple[str, ...], said: list[str]) -> None:
    result = dcclctl(*command, store=shop)
    assert result.exit_code == 2
    for part in said:
        assert part in " ".join(result.stderr.split())
