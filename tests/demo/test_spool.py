"""Tests of the files that consumers of the demonstration write."""

from __future__ import annotations

from pathlib import Path

from ister import bodies
from ister.demo.spool import Spool, read_spool
from ister.message import Batch, Delivery
from ister.wire import Column, Key, Type


def make_batch(first: int, payloads: list[bytes], keys: list[bytes], attempt: int = 1) -> Batch:
    """Return a batch as a consumer gets it."""
    header = {
        Key.TYPE: Type.DELIVER,
        Key.OFFSET: first,
        Key.COUNT: len(payloads),
        Key.COLUMNS: Column.KEYS,
        Key.TIMESTAMPS: [len(payloads), 1],
        Key.ATTEMPT: attempt,
    }
    frames = [bodies.pack_lengths(payloads), b"".join(payloads), bodies.pack_column(keys)]
    return Batch(Delivery(None, "t", 0, header, frames), 0, len(payloads))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """Payloads, keys, offsets, attempts and times are read as they were written, empty ones too."""
    path = str(tmp_path / "spool")
    spool = Spool(path)
    spool.write(5, make_batch(10, [b"a", b"", b"\xff" * 1000], [b"k", b"", b"kk"]))
    spool.write(6, make_batch(0, [b""], [b""], attempt=3))
    spool.close()
    first, second = read_spool(path)
    assert (first.at_ns, first.first, first.end, first.attempt) == (5, 10, 13, 1)
    assert first.payloads == [b"a", b"", b"\xff" * 1000]
    assert first.keys == [b"k", b"", b"kk"]
    assert (second.at_ns, second.first, second.attempt, second.payloads) == (6, 0, 3, [b""])
