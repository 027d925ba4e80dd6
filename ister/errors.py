"""Every error Ister raises or sends, as one small tree.

    IsterError                    code, text, action: "retry" (the same again, later), "fix" (change the call), "stop"
    ├── UsageError                the call was wrong; nothing was sent                        fix
    │   ├── ForkedError           a client was used in a process forked after it was made     fix
    │   └── ClosedError           the client, producer or consumer is already closed          stop
    ├── ConnectionLostError       the broker cannot be reached, or went away                  retry
    ├── TimeoutExpiredError       an answer did not come within the time given                retry
    ├── RemoteError               the broker answered with an error: its code says which (see CODES)
    ├── LocalProtocolError        this side was about to break the protocol                   fix
    ├── RemoteProtocolError       the other side broke the protocol                           stop
    ├── SettingsError             a setting is unknown or out of its range                    fix
    ├── NotInstalledError         a library is missing that an extra of the package installs  fix
    ├── StorageError              the local log or catalogue cannot do what was asked
    │   ├── DiskFullError         no space left; nothing was written                          retry
    │   ├── LogFailedError        a write or an fsync failed; the log must be opened again    retry
    │   ├── DamagedError          bytes in the middle of a log are not what was written       stop
    │   ├── GapError              offsets do not join where they must                         stop
    │   │   └── TrimmedError          what was asked for was deleted as the topic's policy says   fix
    │   └── LockedError           another broker holds the data folder                        fix
    └── StoreError                the object store refused or failed                          retry

A code is stable: programs may compare it. The text is for people and may change.
"""

from __future__ import annotations

from typing import Final, Literal

Action = Literal["retry", "fix", "stop"]

CODES: Final[dict[str, Action]] = {
    # the session
    "malformed": "fix",  # a frame that is not what PROTOCOL.md says
    "unsupported-version": "stop",  # no protocol version in common
    "unknown-operation": "fix",  # a frame type or request that this broker does not know
    "hello-required": "retry",  # no session here: say hello, open again, resend
    "session-expired": "retry",  # the session was silent for too long
    "unknown-handle": "fix",  # a producer or consumer number that was never opened
    "handle-in-use": "fix",  # that number is open already, for something else
    "closed": "stop",  # the handle was closed, or opened again, before this was answered
    "limit-exceeded": "fix",  # over a limit that welcome announced
    "internal": "retry",  # the broker failed; see its log
    "unavailable": "retry",  # the part that could answer is being restarted
    "busy": "retry",  # a bounded queue is full
    # names and settings
    "invalid-name": "fix",
    "invalid-argument": "fix",
    "unknown-topic": "fix",
    "topic-exists": "fix",
    "topic-deleted": "stop",
    "unknown-subscription": "fix",
    "subscription-exists": "fix",
    "subscription-busy": "retry",  # Exclusive, and somebody has it
    "subscription-type": "fix",  # it exists with another type
    "subscription-options": "fix",  # it exists with other options
    "topic-options": "fix",  # it exists with other settings
    "subscription-deleted": "stop",
    "taken-over": "stop",  # another consumer took the Exclusive subscription with force
    # publishing
    "message-too-large": "fix",
    "batch-too-large": "fix",
    "lengths-mismatch": "fix",  # the length table and the payload do not add up
    "sequence-gap": "retry",  # a batch before this one was refused or lost: resend from there
    "sequence-overlap": "stop",  # a resend was cut differently
    "producer-fenced": "stop",  # a newer producer took this producer id
    "disk-full": "retry",
    "log-failed": "retry",
    "log-damaged": "stop",
    "store-behind": "retry",  # too much waits for a store that is away
    "store-failed": "stop",  # the store cannot take the topic before a person has looked
    "fenced": "stop",  # another broker has taken the topic over
    # consuming
    "ack-unknown": "fix",  # acknowledging what was never delivered
    "offset-out-of-range": "fix",
    "not-active": "retry",  # a standby consumer of a Failover subscription
}


class IsterError(Exception):
    """The root of the tree: a stable `code`, a sentence, and what to do about it."""

    code: str = "internal"
    action: Action = "stop"

    def __init__(self, text: str, *, code: str | None = None, action: Action | None = None) -> None:
        super().__init__(text)
        if code is not None:
            self.code = code
        if action is not None:
            self.action = action

    @property
    def text(self) -> str:
        """The sentence for a person."""
        return str(self.args[0])


class UsageError(IsterError):
    """The call was wrong; nothing was sent."""

    code = "invalid-argument"
    action: Action = "fix"


class ForkedError(UsageError):
    """A client was used in a process that was forked after it was made."""

    code = "forked"


class ClosedError(UsageError):
    """The client, producer or consumer is closed."""

    code = "closed"
    action: Action = "stop"


class ConnectionLostError(IsterError):
    """The broker cannot be reached, or went away before it answered."""

    code = "connection-lost"
    action: Action = "retry"


class TimeoutExpiredError(IsterError, TimeoutError):
    """An answer did not come within the time that was given."""

    code = "timeout"
    action: Action = "retry"


class RemoteError(IsterError):
    """The broker answered with an error; `code` is one of `CODES`."""

    def __init__(self, code: str, text: str, action: Action | None = None) -> None:
        super().__init__(text, code=code, action=action or CODES.get(code, "stop"))


class LocalProtocolError(IsterError):
    """This side was about to break the protocol."""

    code = "malformed"
    action: Action = "fix"


class RemoteProtocolError(IsterError):
    """The other side broke the protocol."""

    code = "malformed"
    action: Action = "stop"


class SettingsError(IsterError):
    """A setting is unknown, or out of its range."""

    code = "invalid-setting"
    action: Action = "fix"


class NotInstalledError(IsterError, ImportError):
    """A library is missing that only an extra of the package installs; the text has the command."""

    code = "not-installed"
    action: Action = "fix"


class StorageError(IsterError):
    """The local log or catalogue cannot do what was asked."""

    code = "log-failed"
    action: Action = "retry"


class DiskFullError(StorageError):
    """No space is left; nothing was written."""

    code = "disk-full"


class LogFailedError(StorageError):
    """A write or an fsync failed: nothing after the last commit counts, and the log must be opened again."""


class DamagedError(StorageError):
    """Bytes in the middle of a log are not what was written; they are kept, and never served.

    `first` and `end` are the smallest range of offsets that cannot be served, where that is known.
    """

    code = "log-damaged"
    action: Action = "stop"
    first: int | None = None
    end: int | None = None


class GapError(StorageError):
    """Offsets do not join where they must: [first, end) are not there, where that is known."""

    code = "log-damaged"
    action: Action = "stop"
    first: int | None = None
    end: int | None = None


class TrimmedError(GapError):
    """Offsets [first, end) were deleted as the topic's policy says; reading can continue at `end`."""

    code = "offset-out-of-range"
    action: Action = "fix"
    first: int = 0
    end: int = 0


class LockedError(StorageError):
    """Another broker holds the data folder."""

    code = "data-locked"
    action: Action = "fix"


class StoreError(IsterError):
    """The object store refused, or failed."""

    code = "store-failed"
    action: Action = "retry"
