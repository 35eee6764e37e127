"""What the Tab key offers: models, methods and other names, and the references of the store. Imports nothing heavy."""

import contextlib
import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from dcclctl.config import PERIODS
from dcclctl.errors import DcclError
from dcclctl.store.manifest import KINDS
from dcclctl.store.store import Store

#: offers words for what has been typed; typer gives both arguments by these names
Completer = Callable[[Any, str], list[str]]

#: parameter → the kind of its reference; other references may be of any kind
_KIND_OF = {
    "dataset": "dataset",
    "cloud": "cloud",
    "continue": "cloud",
    "memory": "memory",
    "learn_with": "cloud",
    "patches": "patches",
}
#: parameter → its usual words
_WORDS = {
    "kind": tuple(KINDS),
    "users": ("all", "head", "tail", "new"),
    "on": PERIODS,
    "counted_through": PERIODS[:2],
    "candidates": ("auto", "all"),
    "log": ("tensorboard", "mlflow"),
}
#: set by bash in the environment of a command that is asked for completions
_ASKED, _WORDS_TYPED, _WORD_AT = "_DCCLCTL_COMPLETE", "COMP_WORDS", "COMP_CWORD"


def completer(name: str, metavar: str, words: Iterable[str] = ()) -> Completer | None:
    """What completes one parameter; None for a file, a number or free text.

    Args:
        name, metavar: of the parameter. words: that it takes, if they are known.
    """
    if metavar in ("REF", "EVALUATION", "A", "B") or name == "against":
        kind = "evaluation" if metavar == "EVALUATION" else _KIND_OF.get(name, "")
        return lambda ctx, incomplete: references(ctx.params.get("store") or ".dccl", kind)
    fixed = [*words] or (metavar.split("|") if "|" in metavar else [*_WORDS.get(name, ())])
    if not fixed or metavar.startswith("FILE"):
        return None
    return lambda ctx, incomplete: fixed


def references(root: Path | str, kind: str = "") -> list[str]:
    """Every reference of a store: kinds, numbers and names; of one kind only if it is given. None if it cannot be reached."""
    found: list[str] = []
    with contextlib.suppress(DcclError):
        store = Store(root)
        for each in [kind] if kind else KINDS:
            numbers = store.numbers(each)
            if numbers:
                names = store.alias_names(each)
                found += [each, *(f"{each}@{name}" for name in [*names, *map(str, reversed(numbers))])]
    return found


@contextlib.contextmanager
def whole_references() -> Any:
    """For the body, give the completion of typer the references that bash has split, and bash only what is missing.

    For bash 'cloud@1' is three words, and it replaces the last of them only.
    """
    words = os.environ.get(_WORDS_TYPED, "").split("\n")
    if os.environ.get(_ASKED) != "complete_bash" or not os.environ.get(_WORD_AT, "").isdigit():
        yield
        return
    at, prefix = int(os.environ[_WORD_AT]), ""
    for place in range(len(words) - 1, 0, -1):
        if words[place].startswith("@") and words[place - 1] in KINDS:
            several = words[place - 1 : place + (2 if words[place] == "@" else 1)]
            if place - 1 < at < place - 1 + len(several):
                prefix, at = f"{words[place - 1]}@", place - 1
            elif at >= place - 1 + len(several):
                at -= len(several) - 1
            words[place - 1 : place - 1 + len(several)] = ["".join(several)]
    os.environ |= {_WORDS_TYPED: "\n".join(words), _WORD_AT: str(at)}
    offered = io.StringIO()
    try:
        with contextlib.redirect_stdout(offered):
            yield
    finally:
        print("\n".join(line.removeprefix(prefix) for line in offered.getvalue().splitlines()))
