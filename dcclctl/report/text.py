"""Makes text from a log harmless wherever it is shown. Imports no package."""


def plain(text: object) -> str:
    """Write control and bidirectional-override characters as \\x1b or \\u202e, so that they have no effect."""
    return "".join(
        ch if ch.isprintable() or ch == " " else ch.encode("unicode_escape").decode("ascii") for ch in str(text)
    )
