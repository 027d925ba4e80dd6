"""A file of received batches in the order of arrival, which a consumer writes before it acknowledges them.

A batch is a header (time, first offset, count, attempt, bytes of payloads, bytes of keys; little-endian), the lengths
of the payloads as u32, the payloads, the lengths of the keys, the keys.

Invariant: every batch in the file was received; the last one is complete, or the file ends before it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ister import bodies
from ister.message import Batch

HEADER: Final = struct.Struct("<QQIIQQ")


@dataclass(frozen=True, slots=True)
class Piece:
    """One batch as it was received, at `at_ns` (CLOCK_MONOTONIC)."""

    at_ns: int
    first: int
    attempt: int
    payloads: list[bytes]
    keys: list[bytes]

    @property
    def end(self) -> int:
        """The offset after the last message."""
        return self.first + len(self.payloads)


class Spool:
    """The writing side; what `write` returned for was given to the operating system."""

    def __init__(self, path: str) -> None:
        self._file = Path(path).open("wb", buffering=0)  # noqa: SIM115  (closed by `close`)

    def write(self, at_ns: int, batch: Batch) -> None:
        """Write a batch: a piece for each run of consecutive offsets."""
        payloads, keys = batch.payloads, [message.key or b"" for message in batch]
        at = 0
        written: list[bytes] = []
        for first, end in batch.ranges:
            until = at + end - first
            run, run_keys = payloads[at:until], keys[at:until]
            body, tail = b"".join(run), b"".join(run_keys)
            head = HEADER.pack(at_ns, first, len(run), batch.attempt, len(body), len(tail))
            written += (head, bodies.pack_lengths(run), body, bodies.pack_lengths(run_keys), tail)
            at = until
        self._file.write(b"".join(written))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_spool(path: str) -> Iterator[Piece]:
    """Yield what was written, in order."""
    with Path(path).open("rb") as file:
        while head := file.read(HEADER.size):
            at_ns, first, count, attempt, body_bytes, tail_bytes = HEADER.unpack(head)
            payloads = bodies.split_payloads(file.read(4 * count), file.read(body_bytes))
            keys = bodies.split_payloads(file.read(4 * count), file.read(tail_bytes))
            yield Piece(at_ns, first, attempt, payloads, keys)
