"""The upload protocol: what a writer does with the store, step by step. Blocking; made for threads.

    claim an epoch (create-only) --> list --> note where the epoch begins --> put segments (create-only)
The claim and the note are made in `claiming.py`; this file uploads and trims segments.

Why it is safe: if a stale writer found no newer claim after an upload, the upload came before that claim, so the new
writer's list includes it. If it found one, it does not count the upload; and readers do not either, because the newer
epoch begins where the new writer's list ended.

Invariants
- a lost answer never creates a duplicate: what is there is compared with what should be there
- a writer deletes nothing unless it looked for a newer claim just before; after a trim's note it looks again, and
  takes the note back if there is a newer claim
- a segment counts only after a look for a newer claim that found none

May touch: the ObjectStore it is handed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ister.errors import StoreError
from ister.storage.claiming import check_fence, delete_all
from ister.storage.continuing import FencedError
from ister.storage.history import History, stored_segment
from ister.storage.layout import Layout, segment_metadata
from ister.storage.meta import TopicMeta
from ister.storage.objectstore import UNCHECKED, ObjectStore
from ister.storage.segment import SegmentInfo


def put_segment(
    store: ObjectStore,
    topic: TopicMeta,
    epoch: int,
    segment: SegmentInfo,
    identity: str,
    *,
    damaged: bool = False,
) -> None:
    """Upload a sealed segment, or what is left of a damaged one, and make sure that it counts.

    Raises FencedError; StoreError `object-differs` if there is another segment of that name; StoreError otherwise.
    """
    name = Layout(topic.name, topic.incarnation).segment(segment.base, epoch)
    about = segment_metadata(segment, identity, damaged=damaged)
    if not store.put_file_if_absent(name, segment.path, metadata=about):
        found = store.head(name)
        if found is None:
            raise StoreError(f"object {name} existed, and is missing now")
        if found.problem:
            raise StoreError(found.problem, code="object-damaged", action="stop")
        own = (str(segment.end), identity)
        if found.size != segment.bytes or (found.metadata.get("next"), found.metadata.get("id")) != own:
            raise StoreError(
                f"object {name} has {found.size} bytes up to offset {found.metadata.get('next')}, "
                f"our segment {segment.bytes} bytes up to {segment.end}",
                code="object-differs",
                action="stop",
            )
    check_fence(store, topic, epoch)


def put_stored(
    store: ObjectStore,
    topic: TopicMeta,
    epoch: int,
    segment: SegmentInfo,
    identity: str,
    history: History,
) -> bool:
    """Upload an earlier epoch's copy in place of a damaged local segment; return False if no epoch has a whole one.

    Raises FencedError, StoreError.
    """
    stored = next(
        (
            piece.segment
            for piece in history.pieces
            if (piece.segment.base, piece.segment.end) == (segment.base, segment.end)
            and not piece.segment.damaged
        ),
        None,
    )
    if stored is None:
        return False
    try:
        data = store.get(stored.name)
    except StoreError as error:
        if error.code not in (*UNCHECKED, "object-missing"):
            raise
        return False
    whole = replace(
        segment,
        bytes=len(data),
        first_timestamp_ms=stored.first_timestamp_ms,
        last_timestamp_ms=stored.last_timestamp_ms,
    )
    name = Layout(topic.name, topic.incarnation).segment(segment.base, epoch)
    store.put_if_absent(name, data, metadata=segment_metadata(whole, identity))
    check_fence(store, topic, epoch)
    return True


def trim(
    store: ObjectStore, topic: TopicMeta, epoch: int, point: int, known: Sequence[str] | None = None
) -> int:
    """Drop what lies wholly below `point`: the boundary first, then the objects, oldest first; return how many.

    That includes what an earlier trim left, and what was superseded. `known` has the names of all such objects, where
    they are known: a listing costs as much as an upload. A writer that claims the topic after the second look for newer
    claims finds the note in its listing, so what is deleted then belongs to nobody's history. Raises FencedError,
    StoreError.
    """
    layout = Layout(topic.name, topic.incarnation)
    check_fence(store, topic, epoch)
    noted = store.put_if_absent(layout.trimmed(point), b"")
    try:
        check_fence(store, topic, epoch)
    except FencedError:
        if noted:  # another writer decides what is kept
            store.delete(layout.trimmed(point))
        raise
    if known is not None:
        return delete_all(store, known, lambda: check_fence(store, topic, epoch))
    segments = [stored_segment(layout, info) for info in store.list(layout.segments)]
    older = [info.name for info in store.list(f"{layout.prefix}t/") if info.name < layout.trimmed(point)]
    names = [segment.name for segment in segments if segment is not None and segment.end <= point]
    dropped = delete_all(store, names, lambda: check_fence(store, topic, epoch))
    delete_all(store, older, lambda: check_fence(store, topic, epoch))
    return dropped
