"""How a command ends: exit codes, and errors as a line with advice.

Exit codes are those of sysexits.h where it has one, so that service files and scripts can act on them.

Invariants
- a command that fails writes `ister: <text> (<code>)` to stderr, then what to do about it, and nothing else
- with --json the same is one object, also on stderr
"""

from __future__ import annotations

import json
import sys
from typing import Final

from ister.errors import (
    ConnectionLostError,
    IsterError,
    LockedError,
    NotInstalledError,
    SettingsError,
    StorageError,
    TimeoutExpiredError,
    UsageError,
)

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 69  # EX_UNAVAILABLE
ADDRESS_IN_USE: Final = 71  # EX_OSERR
CANNOT_WRITE: Final = 73  # EX_CANTCREAT
TRY_AGAIN: Final = 75  # EX_TEMPFAIL
CONFIGURATION: Final = 78  # EX_CONFIG
HUNG_UP: Final = 129  # 128 + SIGHUP: the terminal is gone
INTERRUPTED: Final = 130  # 128 + SIGINT, what a shell says of Ctrl-C
PIPE_CLOSED: Final = 141  # 128 + SIGPIPE, what a shell says of a writer nobody reads

EXIT_CODES_HELP: Final = (
    "Exit codes: 0 done; 1 refused or failed; 2 wrong usage; 69 no broker there; 75 try again later; "
    "78 a setting is wrong; 130 Ctrl-C; 129 and 143 SIGHUP and SIGTERM."
)

# The most common advice, by code; other errors get the sentence of their action.
_HINTS: Final[dict[str, str]] = {
    "connection-lost": "is a broker running there? Start one with `ister serve`, or name another with --endpoint",
    "unknown-host": "correct --endpoint, or ISTER_ENDPOINT",
    "unknown-topic": "`ister topic list` lists topics, `ister topic create NAME` creates one",
    "topic-exists": "use it, or delete it first with `ister topic delete`",
    "unknown-subscription": "`ister subscription list TOPIC` lists them",
    "subscription-exists": "use it, or delete it first with `ister subscription delete`",
    "subscription-busy": "wait until its consumer has left, take it with --force, or use a shared subscription",
    "taken-over": "another consumer has it now",
    "paused": "`ister subscription resume TOPIC SUBSCRIPTION`",
    "blocked": "`ister subscription unblock TOPIC SUBSCRIPTION retry|drop|dead-letter`",
    "subscription-type": "give the type it has, or another subscription name",
    "data-locked": "stop that broker, or give another folder with --data",
    "address-in-use": "stop the program that listens there, or give another address with --listen",
    "catalogue-lost": "restore a copy of catalogue.sqlite, or rebuild it: --rebuild-catalogue",
    "data-unwritable": "give a folder that this user may write, with --data",
    "not-installed": "run that in the environment of this `ister`",
    "invalid-setting": "correct it where it was given; conf/ister.toml lists every setting",
}
_ACTIONS: Final[dict[str, str]] = {
    "retry": "it may work again later: try again",
    "fix": "change the command; it will fail again unchanged",
    "stop": "trying again will not help",
}


def exit_code_of(error: IsterError) -> int:
    """Return the exit code for an error."""
    given = getattr(error, "exit_code", None)
    if isinstance(given, int):
        return given
    if error.code == "address-in-use":
        return ADDRESS_IN_USE
    match error:
        case ConnectionLostError():
            return UNREACHABLE
        case SettingsError():
            return CONFIGURATION
        case LockedError() | TimeoutExpiredError():
            return TRY_AGAIN
        case StorageError():
            return CANNOT_WRITE
        case UsageError() | NotInstalledError():
            return USAGE
    return TRY_AGAIN if error.action == "retry" else FAILED


def hint_of(error: IsterError) -> str:
    """Return the advice for an error, as half a sentence."""
    if error.code == "unknown-topic" and isinstance(error, UsageError):  # it was found without a broker
        return "`ister store ls URL` shows the topics that the store has"
    return _HINTS.get(error.code) or _ACTIONS[error.action]


def print_error(error: IsterError, *, as_json: bool) -> None:
    """Write an error to stderr, for a person or as one JSON object."""
    if as_json:
        body = {"code": error.code, "text": error.text, "action": error.action, "hint": hint_of(error)}
        print(json.dumps({"error": body}), file=sys.stderr)
    else:
        print(f"ister: {error.text} ({error.code})\n  {error.action}: {hint_of(error)}", file=sys.stderr)
