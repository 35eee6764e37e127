"""Text from a log, made harmless wherever it is shown. Needs no package."""


def plain(text: object) -> str:
    """Text with every control and bidirectional-override character shown as \\x1b or \\u202e instead of acting."""
    return "".join(
        ch if ch.isprintable() or ch == " " else ch.encode("unicode_escape").decode("ascii") for ch in str(text)
    )
