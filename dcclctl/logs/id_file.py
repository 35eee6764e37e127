"""The ids of an option that names a file: @FILE, one id a line."""

from pathlib import Path

from dcclctl.errors import UsageError


def ids_in(option: str, value: str, what: str) -> list[str]:
    """The ids of a file given as @FILE, without spaces around them and without empty lines.

    Args:
        option: its name, for the message. value: @FILE. what: the ids are of, e.g. 'item'.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        # -sig: some editors put a byte-order mark before the first id
        text = Path(value[1:]).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--{option} {value}: cannot read {value[1:]} ({error})", f"Give a text file with one {what} id a line."
        ) from error
    return [line.strip() for line in text.splitlines() if line.strip()]
