"""Checks that what was received is what was sent. Pure: lists in, verdicts out.

Invariants that are checked of a reliable topic
- a receipt for line n says offset n: offsets are dense, and a batch that was sent again is not stored again
- every offset with a receipt was received by every subscription, and nothing else was
- first occurrences come in the order of their offsets, without a gap (Exclusive, Failover)
- the lines of a file, joined, have the SHA-256 of the file on disk, and carry its name as their key
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final

from ister.demo.source import Source
from ister.demo.spool import Piece
from ister.words import counted

PROBLEMS_MAX: Final = 10  # reported for each subscription; a broken one has thousands

Run = tuple[int, list[bytes], list[bytes]]  # first offset, payloads, keys: without repetitions


@dataclass(slots=True)
class Verdict:
    """The verdict on one subscription; `problems` is empty if all is well."""

    received: int = 0
    redelivered: int = 0
    began_ns: int = 0
    ended_ns: int = 0
    files: int = 0
    problems: list[str] = field(default_factory=list)

    def complain(self, problem: str) -> None:
        """Add a problem, unless there are many already."""
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)

    @property
    def rate(self) -> float:
        """Messages per second, from the first to the last."""
        seconds = (self.ended_ns - self.began_ns) / 1e9
        return self.received / seconds if seconds > 0 else 0.0


def check_receipts(source: Source, receipts: Iterable[tuple[int, int, int]]) -> list[str]:
    """Return what is wrong with the receipts (line, offset, count) of a reliable topic."""
    problems: list[str] = []
    expected = 0
    for line, offset, count in receipts:
        if line != expected and len(problems) < PROBLEMS_MAX:
            problems.append(f"no receipt for lines {expected} to {line - 1}")
        if offset != line and len(problems) < PROBLEMS_MAX:
            problems.append(f"the receipt for line {line} says offset {offset}")
        expected = line + count
    if expected != source.lines:
        problems.append(f"no receipt for lines {expected} to {source.lines - 1}")
    return problems


def check_reliable(source: Source, pieces: Iterable[Piece], *, ordered: bool) -> Verdict:
    """Compare what one subscription received, by all its consumers, with the source."""
    verdict = Verdict()
    runs = _first_occurrences(source.lines, sorted(pieces, key=attrgetter("at_ns")), verdict, ordered=ordered)
    runs.sort(key=lambda run: run[0])
    lines: list[bytes] = []
    keys: list[bytes] = []
    for first, some_lines, some_keys in runs:
        if first != len(lines):
            verdict.complain(
                f"{counted(first - len(lines), 'message is missing', 'messages are missing')} from "
                f"offset {len(lines)} on"
            )
            return verdict
        lines += some_lines
        keys += some_keys
    if len(lines) != source.lines:
        verdict.complain(
            f"{counted(source.lines - len(lines), 'message is missing', 'messages are missing')} from "
            f"offset {len(lines)} on"
        )
        return verdict
    for file in source.files:
        part = slice(file.first, file.first + file.count)
        if hashlib.sha256(b"\n".join(lines[part])).digest() != file.digest:
            verdict.complain(f"{file.name} did not arrive as it is on disk")
        elif set(keys[part]) != {file.name.encode()}:
            verdict.complain(f"lines of {file.name} did not arrive with its name as their key")
        else:
            verdict.files += 1
    return verdict


def _first_occurrences(lines: int, pieces: Sequence[Piece], verdict: Verdict, *, ordered: bool) -> list[Run]:
    seen = bytearray(lines)
    following = 0  # the next offset in order
    runs: list[Run] = []
    for piece in pieces:
        verdict.began_ns = verdict.began_ns or piece.at_ns
        verdict.ended_ns = piece.at_ns
        count = len(piece.payloads)
        if piece.end > lines:
            verdict.complain(
                f"offset {piece.end - 1} was received, but {counted(lines, 'message was', 'messages were')} sent"
            )
            continue
        fresh = seen.count(0, piece.first, piece.end)
        verdict.received += fresh
        verdict.redelivered += count - fresh
        at = 0
        while fresh and at < count:
            begin = seen.find(0, piece.first + at, piece.end)
            if begin < 0:
                break
            end = seen.find(1, begin, piece.end)
            end = piece.end if end < 0 else end
            if ordered and begin != following:
                verdict.complain(f"offset {begin} came where {following} was next")
            following = end
            part = slice(begin - piece.first, end - piece.first)
            runs.append((begin, piece.payloads[part], piece.keys[part]))
            at = part.stop
        seen[piece.first : piece.end] = b"\1" * count
    return runs


def check_non_reliable(lines: Sequence[bytes], pieces: Iterable[Piece]) -> Verdict:
    """Compare what came of a non-reliable topic with the lines; its keys are their numbers (8 bytes, big-endian)."""
    verdict = Verdict()
    seen = bytearray(len(lines))
    for piece in pieces:
        verdict.began_ns = verdict.began_ns or piece.at_ns
        verdict.ended_ns = piece.at_ns
        for key, payload in zip(piece.keys, piece.payloads, strict=True):
            number = int.from_bytes(key)
            if len(key) != 8 or number >= len(lines) or lines[number] != payload:
                verdict.complain(f"a message with key {key.hex()} is not the line of that number")
            elif seen[number]:
                verdict.redelivered += 1
            else:
                seen[number] = 1
                verdict.received += 1
    return verdict
