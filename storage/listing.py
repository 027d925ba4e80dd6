"""Listing a topic's objects in the order that makes a listing consistent, and reading footers where metadata is bad.

- Segments come first, then claims, starts and trims: whatever supersedes a segment that was seen is then seen too.
- The end of a segment whose metadata cannot be read is taken from its footer: it counts like any other.

May touch: the ObjectStore it is handed.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from ister.errors import StoreError
from ister.storage.history import History, plan_history, stored_segment
from ister.storage.layout import Layout
from ister.storage.objectstore import UNCHECKED, ObjectInfo, ObjectStore
from ister.storage.record import salt_of
from ister.storage.segment import FOOTER_BYTES, SEGMENT_BYTES_MAX, footer_at_end

log = logging.getLogger("ister.store")


def list_topic(store: ObjectStore, layout: Layout) -> list[ObjectInfo]:
    """Return a topic's objects except its cursors. Raises StoreError."""
    objects = [_told(store, layout, info) for info in store.list(layout.segments)]
    for kind in "eft":
        objects += store.list(f"{layout.prefix}{kind}/")
    return objects


def read_history(store: ObjectStore, layout: Layout) -> History:
    """Return what the store holds of a topic's history now. Raises StoreError."""
    return plan_history(layout, list_topic(store, layout))


def _told(store: ObjectStore, layout: Layout, info: ObjectInfo) -> ObjectInfo:
    """Return what is known of a segment, from its footer if its metadata is invalid."""
    place = layout.parse_segment(info.name)
    if place is None or stored_segment(layout, info) is not None or info.size < FOOTER_BYTES:
        return info
    try:
        tail = store.get_range(info.name, info.size - FOOTER_BYTES, FOOTER_BYTES)
    except StoreError as error:
        if error.code == "object-missing":
            return info
        raise
    footer = footer_at_end(tail, info.size, salt_of(layout.incarnation, place[0]))
    if footer is None:
        log.error("object %s is ignored: neither its metadata nor its footer can be read", info.name)
        return info
    return replace(
        info,
        metadata={
            "next": str(footer.next_offset),
            "first-timestamp": str(footer.first_timestamp_ms),
            "last-timestamp": str(footer.last_timestamp_ms),
        },
    )


def read_segment(store: ObjectStore, name: str, size: int, *, level: int = logging.DEBUG) -> bytes:
    """Return a segment's bytes, checked as a whole if possible; each record in it also has its own checksum.

    So the intact records of a damaged object can be read; the damage is logged at `level`. Raises StoreError.
    """
    try:
        return store.get(name)
    except StoreError as error:
        if error.code not in UNCHECKED:
            raise
        log.log(level, "object %s is read unchecked: %s", name, error.text)
        return store.get_range(name, 0, max(size, SEGMENT_BYTES_MAX))


__all__ = ["list_topic", "read_history", "read_segment"]
