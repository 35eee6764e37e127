"""Device-Cloud Collaborative Learning on recommendation logs. The public API; docs/python-api.md shows it."""

from dcclctl.version import __version__ as __version__

TYPE_CHECKING = False  # typing is not imported: the program starts here, too
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "Bundle",
    "CloudModel",
    "Dataset",
    "Evaluation",
    "Memory",
    "PatchSet",
    "Recommendations",
    "Store",
    "Tuning",
    "collect",
    "distill",
    "evaluate",
    "export",
    "find_leaks",
    "forget",
    "ingest",
    "load",
    "memory",
    "patch",
    "recommend",
    "train",
    "tune",
    "write_report",
    "write_sample",
]


def __getattr__(name: str) -> "Any":
    """Load the API when a name of it is first used: torch takes two seconds."""
    if name in __all__:
        from dcclctl import api

        return getattr(api, name)
    raise AttributeError(f"module 'dcclctl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"TYPE_CHECKING"})
