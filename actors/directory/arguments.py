"""The arguments of a request, read strictly; pure. Part of the Directory.

Invariants
- whatever a client sends, it is either what was asked for, or a UsageError that names the argument
"""

from __future__ import annotations

from typing import Any, Final

from ister.errors import UsageError

Arguments = dict[str, Any]

PAGE_MAX: Final = 500  # entries of one listing: some 200 bytes each, far below RESULT_BYTES_MAX


def text(arguments: Arguments, name: str, default: str | None = None) -> str:
    """Return an argument that is text. Raises UsageError."""
    value = arguments.get(name, default)
    if not isinstance(value, str):
        raise UsageError(f"the argument {name!r} is missing, or is not text")
    return value


def only(arguments: Arguments, *known: str) -> None:
    """Raise UsageError where there is an argument that is not known."""
    for name in arguments:
        if name not in known:
            raise UsageError(f"there is no argument {name!r:.40} here; known are {', '.join(known)}")


def all_but(arguments: Arguments, *known: str) -> Arguments:
    """Return the other arguments: the options."""
    return {key: value for key, value in arguments.items() if key not in known}


def page(arguments: Arguments) -> tuple[str, int]:
    """Return behind which name a listing is to begin, and how many entries it may have. Raises UsageError."""
    limit = arguments.get("limit", PAGE_MAX)
    if type(limit) is not int or not 1 <= limit <= PAGE_MAX:
        raise UsageError(f"limit {limit!r:.40} is not 1 to {PAGE_MAX}")
    return text(arguments, "after", ""), limit


def number(arguments: Arguments, name: str, refusal: str) -> int | None:
    """Return an argument that is a whole number from 0, None where it is not given.

    Raises UsageError with `refusal`, in which `{}` stands for what was given.
    """
    value = arguments.get(name)
    if value is not None and (type(value) is not int or value < 0):
        raise UsageError(refusal.format(f"{value!r:.40}"))
    return value
