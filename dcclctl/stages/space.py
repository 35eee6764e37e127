"""What `tune` tries for each setting. A setting's own values stand beside it, as `search` (see config.searched)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_origin

from pydantic import ValidationError

from dcclctl.config import Section
from dcclctl.errors import UsageError, nearest

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

#: a range is searched on a logarithmic scale if its end is so many times its beginning
_LOG_FROM = 10
#: digits of a drawn number, so that a file of settings can be read
_DIGITS = 4


@dataclass(frozen=True)
class Values:
    """The values of one setting that are tried: choices, or a range of numbers.

    Attributes:
        text: as it is written. choices: texts; empty for a range. low, high: ends of the range, both tried.
        whole: whole numbers only.
    """

    text: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    whole: bool = False

    @property
    def log(self) -> bool:
        """Is the range searched on a logarithmic scale?"""
        return not self.choices and self.low > 0 and self.high / self.low >= _LOG_FROM

    def draw(self, trial: Any, key: str) -> str | int | float:
        """A value for one trial of Optuna."""
        if self.choices:
            return str(trial.suggest_categorical(key, self.choices))
        if self.whole:
            return int(trial.suggest_int(key, int(self.low), int(self.high), log=self.log))
        drawn = float(trial.suggest_float(key, self.low, self.high, log=self.log))
        return min(max(float(f"{drawn:.{_DIGITS}g}"), self.low), self.high)

    def holds(self, value: Any) -> str | int | float | None:
        """A setting's value as one of these; None if it is none of them."""
        if self.choices:
            text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            same = [each for each in self.choices if each == text or _number(each) == _number(text) != math.nan]
            return same[0] if same else None
        inside = isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high
        return value if inside else None


def parse_values(key: str, text: str, section: type[Section], name: str) -> Values:
    """Read '1e-4..1e-2' (a range), '16,32,64' (choices), or '64,32|128,64' (choices that are lists).

    Args:
        key: as the message names it. section: that has the setting. name: of the setting in it.

    Raises:
        UsageError: neither, or a value that the setting does not take.
    """
    kind = section.model_fields[name].annotation
    low, dots, high = text.partition("..")
    if dots:
        ends = (_number(low), _number(high))
        if kind not in (int, float) or not ends[0] < ends[1] < math.inf:
            raise UsageError(f"{key}={text} is no range of numbers", f"Write e.g. {key}=1e-4..1e-2, or choices: A,B,C")
        if kind is int and any(end != int(end) for end in ends):
            raise UsageError(f"{key}={text}: the ends are no whole numbers", "Write e.g. 4..64")
        found = Values(text, low=ends[0], high=ends[1], whole=kind is int)
        tried: list[Any] = [int(end) if kind is int else end for end in ends]
    else:
        lists = get_origin(kind) in (list, tuple, dict)
        parts = text.split("|") if lists or "|" in text else text.split(",")
        tried = [part.strip() for part in parts if part.strip()]
        if not tried:
            raise UsageError(f"{key}={text} has no values", f"Write e.g. {key}=1e-4..1e-2, or choices: A,B,C")
        found = Values(text, tuple(tried))
    for value in tried:
        try:
            section(**{name: value})
        except ValidationError as error:
            raise UsageError(
                f"{key}={text}: {error.errors()[0]['msg'].lower()} (got {value!r})",
                "dcclctl settings shows what it takes.",
            ) from error
    return found


def own_space(prefix: str, section: type[Section]) -> dict[str, Values]:
    """The values that stand beside the settings of a section: name → values."""
    found = {}
    for name, field in section.model_fields.items():
        text = search_text(field)
        if text:
            found[name] = parse_values(f"{prefix}.{name}", text, section, name)
    return found


def search_text(field: "FieldInfo") -> str:
    """What stands beside a setting for tune; '' if tune leaves it alone."""
    extra = field.json_schema_extra
    return str(extra.get("search", "")) if isinstance(extra, dict) else ""


def changed_space(
    command: str, section: type[Section], variants: Mapping[str, type[Section]], texts: Sequence[str]
) -> dict[str, dict[str, Values]]:
    """Every variant's search space, with the changes of --space.

    Args:
        command: e.g. train. section: the settings that all variants read. variants: name → its own settings.
        texts: KEY=VALUES, where a key is COMMAND.VARIANT.KEY, COMMAND.KEY, or KEY for every variant that has it.

    Returns:
        variant → name ('item_size', or '.held_back' for one of the command's own settings) → values.

    Raises:
        UsageError: no '=', an unknown setting, or values that it does not take.
    """
    spaces = {name: own_space(f"{command}.{name}", own) for name, own in variants.items()}
    for text in texts:
        key, equals, values = (part.strip() for part in text.partition("="))
        if not equals or not key:
            raise UsageError(f"--space {text!r} is not KEY=VALUES", "Write e.g. --space train.din.item_size=16,32,64")
        short = key.removeprefix(f"{command}.")
        target, _, last = short.rpartition(".")
        readers = [name for name, own in variants.items() if target in ("", name) and last in own.model_fields]
        for name in readers:
            spaces[name][last] = parse_values(key, values, variants[name], last)
        if not readers and not target and last in section.model_fields:
            for name in variants:
                spaces[name][f".{last}"] = parse_values(key, values, section, last)
        elif not readers:
            known = [f"{command}.{name}.{each}" for name, own in variants.items() for each in own.model_fields]
            known += [f"{command}.{each}" for each in section.model_fields if each != "settings"]
            raise UsageError(f"--space {key}: there is no such setting here", nearest(f"{command}.{short}", known))
    return spaces


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
