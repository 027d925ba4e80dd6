"""The object store, where sealed segments go permanently: the interface, and what every implementation shares.

- An object is created once, whole, and never changes: of several creators of a name exactly one succeeds.
- Names are ASCII parts joined by "/", none empty or beginning with "."; no object's name is a folder of another.
- An object is on stable storage when its creation returns. What `get` returns has been checked against its CRC32C;
  a range is not: its reader checks the records in it.

Calls block; they are made from threads. A store may be used by several threads at a time. Implementations are
`folderstore.py` and `gcs.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

from ister.errors import StoreError
from ister.storage.checksum import Buffer

# The most entries of a page of a listing, because Google Cloud Storage returns no more.
PAGE_OBJECTS_MAX: Final = 1000
# Limits of names: 1,024 bytes in Google Cloud Storage, 255 bytes per part in file systems.
NAME_BYTES_MAX: Final = 1024
# What `get` raises when an object's bytes cannot be verified.
UNCHECKED: Final = frozenset(("object-damaged", "checksum-missing"))
_NAME = re.compile(
    r"[A-Za-z0-9_~%=+-][A-Za-z0-9_.~%=+-]{0,254}(?:/[A-Za-z0-9_~%=+-][A-Za-z0-9_.~%=+-]{0,254})*"
)


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store says of one object, without its bytes.

    `crc32c` is None if the store does not state it; `problem` says why nothing else is known of an existing object.
    """

    name: str
    size: int
    crc32c: int | None
    metadata: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""
    # When it was created, by the store's clock; None if the store does not say. It is not compared: two descriptions of
    # an object are equal whatever this says.
    created_ms: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a listing, in order of names; `next` continues it, None at its end."""

    objects: tuple[ObjectInfo, ...]
    next: str | None


class ObjectStore(Protocol):
    """What Ister needs of an object store."""

    def put_if_absent(
        self, name: str, data: Buffer, *, metadata: Mapping[str, str] | None = None, crc32c: int | None = None
    ) -> bool:
        """Create an object; return False if the name is taken, by any object.

        `crc32c` is checked against the bytes, if given. Raises StoreError; then the object may be there or not.
        """

    def put_file_if_absent(
        self, name: str, path: str, *, metadata: Mapping[str, str] | None = None, crc32c: int | None = None
    ) -> bool:
        """Create an object of a file's bytes; the file must never change after. Otherwise as `put_if_absent`."""

    def get(self, name: str) -> bytes:
        """Return an object's bytes, checked. Raises StoreError, `object-missing` if there is none."""

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Return up to `length` bytes from `start`, fewer only at the object's end, unchecked. Raises StoreError."""

    def head(self, name: str) -> ObjectInfo | None:
        """Return the description of an object, None if there is none. Raises StoreError."""

    def list_page(self, prefix: str, *, page: str | None = None, page_size: int = PAGE_OBJECTS_MAX) -> Page:
        """Return objects whose names begin with `prefix`, in order; `page` is `next` of the page before."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield all objects whose names begin with `prefix`, in order of names. Raises StoreError."""

    def delete(self, name: str) -> bool:
        """Delete an object; return False if there is none. Raises StoreError."""

    def close(self) -> None:
        """Release resources; may be called again."""


def check_name(name: str) -> str:
    """Return `name` if it is a valid object name. Raises StoreError `invalid-name`."""
    if len(name) > NAME_BYTES_MAX or _NAME.fullmatch(name) is None:
        raise StoreError(f"an object cannot be called {name[:80]!r}", code="invalid-name", action="fix")
    return name


def missing(name: str) -> StoreError:
    """Return the error for an object that is not there."""
    return StoreError(f"there is no object {name!r} in the store", code="object-missing", action="stop")


def unchecked(name: str, problem: str = "") -> StoreError:
    """Return the error for bytes that cannot be checked, because their checksum is unknown."""
    if problem:
        return StoreError(problem, code="object-damaged", action="stop")
    return StoreError(
        f"the store has no CRC32C of object {name!r}, so its bytes cannot be checked",
        code="checksum-missing",
        action="stop",
    )


@contextmanager
def reading(path: str, name: str) -> Iterator[None]:
    """Raise StoreError where a file cannot be read that is to become an object."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path} cannot be read for object {name!r}: {error}") from error


def mismatch(name: str, found: int, expected: int) -> StoreError:
    """Return the error for bytes with a wrong checksum."""
    return StoreError(
        f"the bytes of object {name!r} have the CRC32C {found:08x}, and should have {expected:08x}",
        code="object-damaged",
        action="stop",
    )
