"""Words for people: text from a log made harmless, and names of metrics. Nothing here needs a package."""


def plain(text: object) -> str:
    """Text with every control and bidirectional-override character shown as \\x1b or \\u202e instead of acting."""
    return "".join(
        ch if ch.isprintable() or ch == " " else ch.encode("unicode_escape").decode("ascii") for ch in str(text)
    )


def metric_title(metric: str) -> tuple[str, str]:
    """A metric's name for people, and how it was ranked: 'ndcg@10/1000' → ('NDCG@10', '1,000 sampled')."""
    name, _, sampled = metric.partition("/")
    shown = {"mrr": "MRR", "gauc": "GAUC", "log_loss": "log loss"}.get(name, name.upper())
    return shown, f"{int(sampled):,} sampled" if sampled else ""
