"""The states of a topic's log, and the table of their transitions; pure.

    closed    not opened yet, or its actor ends
    open      accepts batches
    failed    accepts nothing; if the error may pass, it is opened again after a pause
    fenced    another broker has the topic: it is not opened until an operator has decided
    deleted   the topic was deleted

Invariants
- a log that failed accepts nothing; it is opened again from what is really on disk, or not at all
- there is one timer, for opening again; every transition cancels it, and only one that says so sets it
- deleted is final
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from ister.errors import StorageError


class LogState(Enum):
    """The state of a log."""

    CLOSED = "closed"
    OPEN = "open"
    FAILED = "failed"
    FENCED = "fenced"
    DELETED = "deleted"


class LogEvent(Enum):
    """An event of a log."""

    OPENED = "opened"
    FAILED = "failed"  # the error may pass: the disk was full, or returned an error
    STOPPED = "stopped"  # the error does not pass by itself: an operator must act
    FENCED = "fenced"
    DELETED = "deleted"
    ENDED = "ended"  # its actor stops or failed


class Next(NamedTuple):
    """The state after an event; `reopens`: the log is opened again after a pause."""

    state: LogState
    reopens: bool = False


_CLOSED, _OPEN = Next(LogState.CLOSED), Next(LogState.OPEN)
_FAILED, _STOPPED = Next(LogState.FAILED, reopens=True), Next(LogState.FAILED)
_FENCED, _DELETED = Next(LogState.FENCED), Next(LogState.DELETED)

# What is not in the table cannot happen: only a closed or failed log is opened.
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
    (LogState.FAILED, LogEvent.STOPPED): _STOPPED,  # the earlier error could pass, this one cannot
    (LogState.FAILED, LogEvent.FENCED): _FENCED,
    (LogState.FAILED, LogEvent.DELETED): _DELETED,
    (LogState.FAILED, LogEvent.ENDED): _CLOSED,
    (LogState.FENCED, LogEvent.FAILED): _FENCED,
    (LogState.FENCED, LogEvent.STOPPED): _STOPPED,  # the store's latest error replaces the earlier one
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
    """Return the event that an error is for a log."""
    if error.code == "fenced":
        return LogEvent.FENCED
    return LogEvent.FAILED if error.action == "retry" else LogEvent.STOPPED
