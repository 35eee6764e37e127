"""All users' events in groups of consecutive users, one group in memory at a time."""

from collections.abc import Callable
from dataclasses import dataclass

from dcclctl.events.log import EventLog


@dataclass(frozen=True)
class UserGroups:
    """All users' events in groups of consecutive users.

    Attributes:
        count: number of groups. open: number of a group → its events, a part of the log of all users.
    """

    count: int
    open: Callable[[int], EventLog]

    @classmethod
    def of(cls, log: "EventLog | UserGroups") -> "UserGroups":
        """Groups as they are; a log is one group."""
        return log if isinstance(log, UserGroups) else cls(1, lambda number: log)
