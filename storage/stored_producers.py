"""The producers of a topic according to its segments in the store: their state at the start of one, and its batches.

That one is the last, or the last before a gap. Segments are uploaded side by side, so a broker that was lost may have
left out one of them: its batches may never have had a receipt, and are resent. A later segment knows them as stored.
What is resent of the batches after the gap is then stored twice, which loses nothing.

May touch: the store it is handed; one object is read.
"""

from __future__ import annotations

from ister.errors import DamagedError
from ister.storage.history import History
from ister.storage.listing import read_segment
from ister.storage.objectstore import ObjectStore
from ister.storage.producers import ProducerTable
from ister.storage.record import BATCH, Header, salt_of
from ister.storage.recovery import walk_headers


def stored_producers(store: ObjectStore, history: History, incarnation: bytes) -> bytes:
    """Return a snapshot of the producers at the end of a topic's history, or at its first gap; empty without a segment.

    Raises StoreError; DamagedError if the last segment cannot be read.
    """
    gap = history.gaps[0][0] if history.gaps else history.end
    joined = [piece for piece in history.pieces if piece.end <= gap]
    if not joined:
        return b""
    piece = joined[-1]
    segment = piece.segment
    data = read_segment(store, segment.name, segment.bytes)
    batches: list[Header] = []
    try:
        snapshot = walk_headers(data, segment.base, salt_of(incarnation, segment.base), batches.append)
        table = ProducerTable() if snapshot is None else ProducerTable.decode(snapshot)
    except ValueError as error:
        raise DamagedError(f"object {segment.name} does not tell its producers: {error}") from None
    for header in batches:
        if header[1] == BATCH and header[7] + header[5] <= piece.end:
            table.advance(header[9], header[10], header[5], header[7], header[8])
    return table.encode()
