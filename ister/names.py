"""Valid names of topics and subscriptions, patterns of topic names, and the folder name of a topic's log.

Invariants
- A valid name has only ASCII letters, digits, `.`, `_`, `-`, and for topics `/` between parts.
- `topic_folder` gives two topics two folders, also where the file system ignores case (macOS): each one printable name
  of at most 200 bytes, without a separator or a leading dot.
"""

from __future__ import annotations

import re
from typing import Final, NoReturn

from ister.errors import UsageError

NAME_CHARACTERS_MAX: Final = 200  # a name fits a folder name, an object's key and a line on a terminal
FOLDER_BYTES_MAX: Final = 200  # file systems allow 255; the rest is for suffixes

_ALLOWED: Final = re.compile(r"[A-Za-z0-9._-]*")
_ALLOWED_OR_SLASH: Final = re.compile(r"[A-Za-z0-9._/-]*")
_ALLOWED_IN_PATTERN: Final = re.compile(r"[A-Za-z0-9._/*>-]*")
_PLAIN: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789._-")
# no escaped name has it, so that the folder of a long name never equals that of a short one
_HASH_MARK: Final = "~"


def check_topic_name(name: object) -> str:
    """Return `name` if it is a valid topic name: 1 to 200 letters, digits, `.`, `_`, `-`, with `/` between parts.

    Raises UsageError (code `invalid-name`), which says which character or length is wrong.
    """
    text = _check_characters("topic", name, _ALLOWED_OR_SLASH, "letters, digits, '.', '_', '-' and '/'")
    for part in text.split("/"):
        if part == "":
            _refuse(
                "topic", text, "has an empty part: '/' stands between two parts, never first, last or twice"
            )
        if part in (".", ".."):
            _refuse("topic", text, f"has the part {part!r}, which would mean a folder")
    return text


def check_subscription_name(name: object) -> str:
    """Return `name` if it is a valid subscription name: 1 to 200 letters, digits, `.`, `_`, `-`.

    Raises UsageError (code `invalid-name`), which says which character or length is wrong.
    """
    text = _check_characters("subscription", name, _ALLOWED, "letters, digits, '.', '_' and '-'")
    if text in (".", ".."):
        _refuse("subscription", text, "would mean a folder")
    return text


def is_pattern(text: str) -> bool:
    """Whether this is a pattern of topic names: no topic's name has `*` or `>`."""
    return "*" in text or ">" in text


def topic_pattern(pattern: object) -> re.Pattern[str]:
    """Return a regular expression that fully matches the topics of a pattern.

    `*` is one part of a name, whatever it is; `>`, at the end, is one part or more. Raises UsageError (code
    `invalid-name`).
    """
    text = _check_characters("pattern", pattern, _ALLOWED_IN_PATTERN, "what topic names have, '*' and '>'")
    parts = text.split("/")
    expressions: list[str] = []
    for number, part in enumerate(parts):
        if part == ">" and number == len(parts) - 1:
            expressions.append("[^/]+(?:/[^/]+)*")
        elif part == "*":
            expressions.append("[^/]+")
        elif is_pattern(part):
            _refuse(
                "pattern", text, f"has the part {part!r}: '*' is a whole part, and '>' the whole last one"
            )
        elif part in ("", ".", ".."):
            _refuse("pattern", text, f"has the part {part!r}, which no topic has")
        else:
            expressions.append(re.escape(part))
    return re.compile("/".join(expressions))


def topic_folder(name: str) -> str:
    """Return a topic's folder name, the same on every machine and in every version.

    Small letters, digits, `_`, `-` and `.` (except at the beginning) stand for themselves, any other byte is `=` and
    two small hexadecimal digits. A result over 200 bytes is shortened, and ends in `~` and the SHA-256 of the topic's
    name. Raises UsageError (code `invalid-name`) for an invalid name.
    """
    raw = check_topic_name(name).encode("ascii")
    escaped = "".join(chr(byte) if byte in _PLAIN else f"={byte:02x}" for byte in raw)
    if escaped.startswith("."):
        escaped = f"=2e{escaped[1:]}"
    if len(escaped) <= FOLDER_BYTES_MAX:
        return escaped
    import hashlib  # OpenSSL with it takes milliseconds to load, and clients need none of it

    digest = hashlib.sha256(raw).hexdigest()
    return escaped[: FOLDER_BYTES_MAX - len(_HASH_MARK) - len(digest)] + _HASH_MARK + digest


def _check_characters(kind: str, name: object, allowed: re.Pattern[str], listed: str) -> str:
    if not isinstance(name, str):
        raise UsageError(f"{kind} name must be text, not {type(name).__name__}", code="invalid-name")
    if name == "":
        raise UsageError(
            f"{kind} name is empty; it takes 1 to {NAME_CHARACTERS_MAX} characters", code="invalid-name"
        )
    if len(name) > NAME_CHARACTERS_MAX:
        _refuse(kind, name, f"is {len(name)} characters long; at most {NAME_CHARACTERS_MAX} are allowed")
    match = allowed.match(name)
    position = match.end() if match is not None else 0
    if position < len(name):
        character = name[position]
        _refuse(
            kind,
            name,
            f"has {character!a} (U+{ord(character):04X}) at position {position}; allowed are {listed}",
        )
    return name


def _refuse(kind: str, name: str, complaint: str) -> NoReturn:
    shown = f"{name!a}" if len(name) <= 60 else f"{name[:57]!a}..."
    raise UsageError(f"{kind} name {shown} {complaint}", code="invalid-name")
