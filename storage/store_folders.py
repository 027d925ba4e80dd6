"""Where the objects of a store in a folder lie, and what is known of them; pure: names, paths and bytes.

A folder costs a file system a block, however little is in it, and so does a file. A topic with one message has five
objects. So the kinds of a topic's objects, but for the segments, share its folder (`e/01` of a topic is the file
`e=01`), and what is known of a topic's objects is one small file while it is small.

    v1/topics/<topic>                 known in v1/topics/.known-<hh>, by a hash of the name
    v1/d/<hh>/<topic>/s/<rest>        the file of that name, known in v1/d/<hh>/<topic>/.known
    v1/d/<hh>/<topic>/<kind>/<rest>   the file v1/d/<hh>/<topic>/<kind>=<rest>, known there too
    v1/d/<hh>/<topic>/c/<s>/<rest>    the file of that name, known in v1/d/<hh>/<topic>/c/<s>/.known
    any other name                    the file of that name, known in .meta/<file> beside it

Invariants
- two names are two files
- what is known of an object in a file of its own counts before what the shared one has
- a shared file has at most `KNOWN_BYTES_MAX`; what has no room in it has a file of its own
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from ister.errors import StoreError
from ister.storage.checksum import crc32c

META: Final = ".meta"
KNOWN: Final = ".known"
KNOWN_BYTES_MAX: Final = (
    16 << 10
)  # some 60 objects; it is read for each look at one of them, and written for each put
FILE_NAME_MAX: Final = 255
_TOPICS: Final = "v1/topics"
_DATA: Final = "v1/d/"
_JOINED: Final = re.compile(r"(v1/d/[0-9a-f]{2}/[^/]+)/([efost])/([^/]+)")
_TOPIC: Final = re.compile(r"v1/d/[0-9a-f]{2}/[^/]+/?")
_KIND: Final = re.compile(r"(v1/d/[0-9a-f]{2}/[^/]+)/([efot])/")
_FILE: Final = re.compile(r"([efot])=(.+)")
_SEGMENTS: Final = "s"


class Place(NamedTuple):
    """The folder of an object, below the store, and its file, below that.

    `shared` is the file that may say what is known of it, "" if none may.
    """

    folder: str
    file: str
    shared: str

    @property
    def path(self) -> str:
        """Return the path of the object."""
        return _under(self.folder, self.file)

    @property
    def own(self) -> str:
        """Return the path of a file that says what is known of this object alone."""
        folder, _, last = self.path.rpartition("/")
        return _under(folder, f"{META}/{last}")


def _under(folder: str, file: str) -> str:
    return f"{folder}/{file}" if folder else file


def places(name: str) -> tuple[Place, ...]:
    """Return where an object is, and then where earlier versions made it, if that is elsewhere.

    Raises StoreError `invalid-name` for a name that would be another object's file.
    """
    folder, _, last = name.rpartition("/")
    plain = Place(folder, last, _shared(folder, last))
    joined = _JOINED.fullmatch(name)
    if joined is not None and joined[2] == _SEGMENTS:
        return (Place(joined[1], f"{_SEGMENTS}/{joined[3]}", f"{joined[1]}/{KNOWN}"),)
    if joined is not None and len(joined[3]) + 2 <= FILE_NAME_MAX:
        return Place(joined[1], f"{joined[2]}={joined[3]}", f"{joined[1]}/{KNOWN}"), plain
    if _TOPIC.fullmatch(folder) and _FILE.fullmatch(last):
        raise StoreError(f"an object cannot be called {name[:80]!r}", code="invalid-name", action="fix")
    return (plain,)


def _shared(folder: str, file: str) -> str:
    if folder == _TOPICS:
        return f"{folder}/{KNOWN}-{crc32c(file.encode()) & 0xFF:02x}"
    return f"{folder}/{KNOWN}" if folder.startswith(_DATA) else ""


def is_topic_folder(folder: str) -> bool:
    """Return whether the files of this folder (its name ends in "/") are named as kinds of a topic's objects."""
    return _TOPIC.fullmatch(folder) is not None


def kind_folder(folder: str) -> tuple[str, str] | None:
    """Return the topic's folder and the kind, if objects "in" this folder lie in their topic's; names end in "/"."""
    found = _KIND.fullmatch(folder)
    return None if found is None else (f"{found[1]}/", found[2])


def object_of(folder: str, file: str) -> str | None:
    """Return the name of the object that lies in a topic's folder as this file; None if that is not of a kind."""
    found = _FILE.fullmatch(file)
    return None if found is None else f"{folder}{found[1]}/{found[2]}"


# ---- what is known ---------------------------------------------------------------------------------------------


def checksum_of(about: Mapping[str, Any]) -> int:
    """Return the checksum of an object's description."""
    return crc32c(json.dumps(about, sort_keys=True).encode())


def describe(about: Mapping[str, Any]) -> bytes:
    """Return a description with its checksum."""
    return json.dumps({**about, "check": checksum_of(about)}).encode()


def _begin(file: str) -> bytes:
    return b'{"file": "%s", ' % file.encode()


def line_of(file: str, about: Mapping[str, Any]) -> bytes:
    """Return the line of a shared file that describes the object in `file`."""
    return describe({"file": file, **about}) + b"\n"


def line_in(contents: bytes, file: str) -> bytes | None:
    """Return the line of `file` in a shared file, None if there is none; of several, one that is not damaged."""
    begin = _begin(file)
    if begin not in contents:
        return None
    lines = [line for line in contents.splitlines() if line.startswith(begin)]
    if len(lines) > 1:  # the name in another's line has rotted
        lines.sort(key=_is_whole)
    return lines[-1] if lines else None


def _is_whole(line: bytes) -> bool:
    try:
        known = json.loads(line)
        check = known.pop("check")
        return bool(check == checksum_of(known))
    except (ValueError, KeyError, TypeError):
        return False


def without(contents: bytes, file: str) -> bytes:
    """Return a shared file without the line of `file`."""
    begin = _begin(file)
    return b"".join(line for line in contents.splitlines(keepends=True) if not line.startswith(begin))


def with_line(contents: bytes, file: str, line: bytes, is_there: Callable[[str], bool]) -> bytes | None:
    """Return a shared file with one more line; None if it has no room for that.

    `is_there(file)` says whether an object exists: if there is no room, the lines of others are left out.
    """
    kept = without(contents, file)
    if len(kept) + len(line) > KNOWN_BYTES_MAX:
        kept = b"".join(each for each in kept.splitlines(keepends=True) if is_there(_file_of(each)))
    if kept and not kept.endswith(b"\n"):
        kept += b"\n"
    return None if len(kept) + len(line) > KNOWN_BYTES_MAX else kept + line


def _file_of(line: bytes) -> str:
    """Return the file that a line is about; "" if it is damaged."""
    parts = line.split(b'"', 4)
    return parts[3].decode("ascii", "replace") if len(parts) > 3 else ""
