"""Tests of the comparison: it must notice every way in which a broker could break its promises."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ister.demo.source import Source, SourceFile
from ister.demo.spool import Piece
from ister.demo.verify import Verdict, check_non_reliable, check_receipts, check_reliable

TEXTS = {"a.py": [b"import b", b"", b"x = 1"], "b.py": [b"\xff\x00", b""], "c.py": [b""]}
LINES = [line for lines in TEXTS.values() for line in lines]
NAMES = [name.encode() for name, lines in TEXTS.items() for _ in lines]


def make_source() -> Source:
    """Return the source of `TEXTS`."""
    files, first = [], 0
    for name, lines in TEXTS.items():
        digest = hashlib.sha256(b"\n".join(lines)).digest()
        files.append(SourceFile(name, name, first, len(lines), digest))
        first += len(lines)
    return Source(tuple(files), first, sum(map(len, LINES)))


SOURCE = make_source()


def piece(first: int, end: int, at: int = 0) -> Piece:
    """Return a correct batch of lines `first` to `end - 1`."""
    return Piece(at or first + 1, first, 1, LINES[first:end], NAMES[first:end])


def verdict_of(*pieces: Piece, ordered: bool = True) -> Verdict:
    """Check pieces that came in this order."""
    timed = [Piece(at, p.first, p.attempt, p.payloads, p.keys) for at, p in enumerate(pieces, 1)]
    return check_reliable(SOURCE, timed, ordered=ordered)


def test_everything_in_order_is_well() -> None:
    """All messages without repetitions: every file is verified, and there are no problems."""
    verdict = verdict_of(piece(0, 2), piece(2, 6))
    assert (verdict.received, verdict.redelivered, verdict.files, verdict.problems) == (6, 0, 3, [])


def test_repetitions_are_counted_and_forgiven() -> None:
    """At least once: a repetition is a redelivery, also when it overlaps what is new."""
    verdict = verdict_of(piece(0, 4), piece(2, 5), piece(0, 1), piece(5, 6))
    assert (verdict.received, verdict.redelivered, verdict.problems) == (6, 3, [])


@pytest.mark.parametrize(
    "pieces",
    [
        [piece(0, 2), piece(3, 6)],  # in the middle
        [piece(0, 5)],  # at the end
        [piece(1, 6)],  # at the beginning
        [],
    ],
)
@pytest.mark.parametrize("ordered", [True, False])
def test_a_missing_message_is_seen(pieces: list[Piece], ordered: bool) -> None:
    """One message too few, wherever it was, fails the subscription."""
    verdict = verdict_of(*pieces, ordered=ordered)
    assert any("missing" in problem for problem in verdict.problems)


def test_disorder_is_seen_where_order_is_promised() -> None:
    """Exclusive and Failover keep the order of first occurrences; Shared need not."""
    pieces = [piece(0, 2), piece(4, 6), piece(2, 4)]
    assert any("came where 2 was next" in problem for problem in verdict_of(*pieces).problems)
    assert verdict_of(*pieces, ordered=False).problems == []


def test_a_changed_byte_a_changed_key_and_a_stranger_are_seen() -> None:
    """Payloads by digest, keys by name, and no message that nobody sent."""
    wrong = piece(2, 6)
    wrong.payloads[0] += b"!"
    assert any("a.py did not arrive" in problem for problem in verdict_of(piece(0, 2), wrong).problems)
    wrong = piece(2, 6)
    wrong.keys[-1] = b"x.py"
    assert any("as their key" in problem for problem in verdict_of(piece(0, 2), wrong).problems)
    stranger = Piece(9, 6, 1, [b"who?"], [b"a.py"])
    assert any("6 messages were sent" in problem for problem in verdict_of(piece(0, 6), stranger).problems)


@given(st.data())
def test_any_cutting_and_repeating_is_well_and_any_gap_is_not(data: st.DataObject) -> None:
    """However batches are cut and repeated in order, everything is found; a missing message is noticed."""
    missing = data.draw(st.none() | st.integers(0, 5))
    pieces, at = [], 0
    while at < 6:
        begin = data.draw(st.integers(0, at))
        end = data.draw(st.integers(at + 1, 6))
        pieces.append(piece(begin, end))
        at = end
    if missing is not None:
        parts = []
        for each in pieces:
            parts += [piece(each.first, max(each.first, min(each.end, missing)))]
            parts += [piece(min(each.end, max(each.first, missing + 1)), each.end)]
        pieces = [part for part in parts if part.payloads]
    verdict = verdict_of(*pieces)
    assert bool(verdict.problems) == (missing is not None)
    assert verdict.received == 6 - (missing is not None)


def test_receipts_must_cover_every_line_at_its_own_offset() -> None:
    """A batch that was stored twice shifts later ones, and is noticed; so is a line without a receipt."""
    assert check_receipts(SOURCE, [(0, 0, 4), (4, 4, 2)]) == []
    assert "says offset 8" in check_receipts(SOURCE, [(0, 0, 4), (4, 8, 2)])[0]
    assert "no receipt for lines 4 to 5" in check_receipts(SOURCE, [(0, 0, 4)])[0]
    assert "no receipt for lines 2 to 3" in check_receipts(SOURCE, [(0, 0, 2), (4, 4, 2)])[0]


def test_a_non_reliable_topic_may_lose_and_never_change() -> None:
    """What arrives must be the line of its number; what does not arrive is only counted."""
    numbers = [number.to_bytes(8) for number in range(6)]
    good = Piece(1, 0, 1, LINES[:3], numbers[:3])
    verdict = check_non_reliable(LINES, [good, good])
    assert (verdict.received, verdict.redelivered, verdict.problems) == (3, 3, [])
    bad = Piece(2, 0, 1, [b"other"], numbers[:1])
    assert check_non_reliable(LINES, [bad]).problems
    assert check_non_reliable(LINES, [Piece(2, 0, 1, [b""], [b"short"])]).problems
