"""The states of a topic's log, and what each event makes of them: a table; pure.

    closed    it was not opened yet, or its actor ends
    open      it takes batches
    failed    it takes nothing; where that may pass, it is opened again a little later
    fenced    another broker has the topic: nothing is opened before a person has decided
    deleted   the topic is no more

Invariants
- a log that failed takes nothing more; it is opened again from what is really on disk, or not at all
- there is one timer, for opening again; every transition cancels it, and only one that says so sets it
- deleted is for ever
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from ister.errors import StorageError


class LogState(Enum):
    """What there is of a log."""

    CLOSED = "closed"
    OPEN = "open"
    FAILED = "failed"
    FENCED = "fenced"
    DELETED = "deleted"


class LogEvent(Enum):
    """What happens to a log."""

    OPENED = "opened"
    FAILED = "failed"  # it may pass: the disk was full, or answered with an error
    STOPPED = "stopped"  # it does not pass by itself: a person must look
    FENCED = "fenced"
    DELETED = "deleted"
    ENDED = "ended"  # its actor stops, or failed


class Next(NamedTuple):
    """What an event makes of a state; `reopens`: the log is opened again in a while."""

    state: LogState
    reopens: bool = False


_CLOSED, _OPEN = Next(LogState.CLOSED), Next(LogState.OPEN)
_FAILED, _STOPPED = Next(LogState.FAILED, reopens=True), Next(LogState.FAILED)
_FENCED, _DELETED = Next(LogState.FENCED), Next(LogState.DELETED)

# What is not in the table cannot happen: only a log that is closed or failed is opened.
TRANSITIONS: Final[dict[tuple[LogState, LogEvent], Next]] = {
    (LogState.CLOSED, LogEvent.OPENED): _OPEN,
    (LogState.CLOSED, LogEvent.FAILED): _FAILED,
    (LogState.CLOSED, LogEvent.STOPPED): _STOPPED,
    (LogState.CLOSED, LogEvent.FENCED): _FENCED,
    (LogState.CLOSED, LogEvent.DELETED): _DELETED,
    (LogState.CLOSED, LogEvent.ENDED): _CLOSED,
    (LogState.OPEN, LogEvent.FAILED): _FAILED,
    (LogState.OPEN, LogEvent.STOPPED): _STOPPED,
    (LogState.OPEN, LogEvent.FENCED): _FENCED,
    (LogState.OPEN, LogEvent.DELETED): _DELETED,
    (LogState.OPEN, LogEvent.ENDED): _CLOSED,
    (LogState.FAILED, LogEvent.OPENED): _OPEN,
    (LogState.FAILED, LogEvent.FAILED): _FAILED,
    (LogState.FAILED, LogEvent.STOPPED): _STOPPED,  # what failed before could be tried again, this cannot
    (LogState.FAILED, LogEvent.FENCED): _FENCED,
    (LogState.FAILED, LogEvent.DELETED): _DELETED,
    (LogState.FAILED, LogEvent.ENDED): _CLOSED,
    (LogState.FENCED, LogEvent.FAILED): _FENCED,
    (LogState.FENCED, LogEvent.STOPPED): _STOPPED,  # the store's last word is of something else
    (LogState.FENCED, LogEvent.FENCED): _FENCED,
    (LogState.FENCED, LogEvent.DELETED): _DELETED,
    (LogState.FENCED, LogEvent.ENDED): _CLOSED,
    (LogState.DELETED, LogEvent.FAILED): _DELETED,
    (LogState.DELETED, LogEvent.STOPPED): _DELETED,
    (LogState.DELETED, LogEvent.FENCED): _DELETED,
    (LogState.DELETED, LogEvent.DELETED): _DELETED,
    (LogState.DELETED, LogEvent.ENDED): _DELETED,
}


def event_of(error: StorageError) -> LogEvent:
    """Return what an error is to a log."""
    if error.code == "fenced":
        return LogEvent.FENCED
    return LogEvent.FAILED if error.action == "retry" else LogEvent.STOPPED
