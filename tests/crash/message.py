"""The messages of the crash campaign: each has its producer, its number and a checksum.

Pure. A payload is a header of 24 bytes and a body of any size; the checksum covers both.
"""

from __future__ import annotations

import struct
import zlib
from random import Random
from typing import Final, NamedTuple

MAGIC: Final = 0x43524153
_HEADER: Final = struct.Struct(
    "<IIQII"
)  # magic, producer, number, body bytes, CRC32 of the header before it and the body
_CHECKED: Final = struct.Struct("<IIQI")
HEADER_BYTES: Final = _HEADER.size
SMALL_BYTES_MAX: Final = 20 << 10
LARGE_BYTES: Final = 1 << 20
LARGE_ONE_IN: Final = 300


class Identity(NamedTuple):
    """Which message this is, in its topic."""

    producer: int
    number: int


class Parsed(NamedTuple):
    """A payload with a correct checksum."""

    identity: Identity
    checksum: int


def make_payload(producer: int, number: int, body: bytes) -> bytes:
    """Return the payload of a producer's message."""
    checked = _CHECKED.pack(MAGIC, producer, number, len(body))
    return checked + struct.pack("<I", zlib.crc32(body, zlib.crc32(checked))) + body


def parse_payload(payload: bytes) -> Parsed | None:
    """Return the contents of a payload, or None if it is not, byte for byte, what a producer made."""
    if len(payload) < HEADER_BYTES:
        return None
    magic, producer, number, size, checksum = _HEADER.unpack_from(payload)
    if magic != MAGIC or size != len(payload) - HEADER_BYTES:
        return None
    if zlib.crc32(memoryview(payload)[HEADER_BYTES:], zlib.crc32(payload[: _CHECKED.size])) != checksum:
        return None
    return Parsed(Identity(producer, number), checksum)


def random_body(random: Random) -> bytes:
    """Return a body: mostly small, some empty, a large one now and then."""
    if random.randrange(LARGE_ONE_IN) == 0:
        return random.randbytes(LARGE_BYTES)
    return random.randbytes(int(random.random() ** 3 * SMALL_BYTES_MAX))
