"""Deleting a topic from the store: only by its owner, in steps that may be interrupted. Blocking; for threads.

    claim the next epoch, to delete --> catalogue entry --> everything else --> that claim

Only the broker with the newest claim may delete, and it claims first: the very next epoch, create-only, with
`erasing` in its metadata. Either that fails, because another broker has claimed the epoch and so owns the topic; or a
broker that claims later finds it in the listing after its claim, and withdraws (`claim` in `claiming.py`). All brokers
see claims in the same order, so a topic cannot be taken over while it is being deleted. The claim is deleted last: a
broker that finds neither it nor the entry knows that the topic is deleted.

Invariants
- a broker whose claim is not the newest deletes nothing of a topic; a newer claim that has begun ends a deletion
- an interrupted deletion is continued: by the broker that began it, or by whichever clears orphans
- objects that no broker owns are deleted by their own age, and only after the catalogue was asked once more
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ister.errors import StoreError
from ister.storage.claiming import BROKER, ERASING, delete_all
from ister.storage.continuing import FencedError
from ister.storage.layout import Layout, decode_topic
from ister.storage.meta import TopicMeta
from ister.storage.objectstore import ObjectInfo, ObjectStore
from ister.storage.topic_entry import entered, list_topics

_INCARNATION_DIGITS: Final = 32


class NotOwnerError(FencedError):
    """The topic in the store belongs to another broker: nothing of it was deleted."""


def erase(store: ObjectStore, topic: TopicMeta, broker: str, identity: str) -> int:
    """Delete all objects of a topic that belongs to `broker`; return how many. `identity` is unique to this run.

    May be called again after a failure, also by a later run. Raises NotOwnerError, StoreError.
    """
    layout = Layout(topic.name, topic.incarnation)
    epoch = _claim_to_erase(store, topic, broker, identity)
    return 0 if epoch is None else _finish(store, topic, layout, epoch)


def _claim_to_erase(store: ObjectStore, topic: TopicMeta, broker: str, identity: str) -> int | None:
    """Return the epoch under which a topic is deleted; None if there is nothing to delete."""
    layout = Layout(topic.name, topic.incarnation)
    listed = list(store.list(f"{layout.prefix}e/"))
    claims = {epoch: info for info in listed if (epoch := layout.parse_epoch(info.name)) is not None}
    # A writer whose claim is above this one will find it and withdraw; `_finish` checks whether it has begun.
    newest = max((epoch for epoch in claims if ERASING in claims[epoch].metadata), default=0)
    newest = newest or max(claims, default=0)
    if not newest:
        found = entered(store, topic.name)
        ours = found is not None and found.incarnation == topic.incarnation
        if not ours and next(iter(store.list(layout.prefix)), None) is None:
            return None
    elif claims[newest].metadata.get(BROKER) != broker:
        raise NotOwnerError(
            f"topic {topic.name!r} belongs to another broker in the store, by epoch {newest}: nothing was deleted there"
        )
    elif ERASING in claims[newest].metadata:
        return newest
    epoch = newest + 1
    about = {"id": identity, BROKER: broker, ERASING: "1"}
    if not store.put_if_absent(layout.epoch(epoch), b"", metadata=about):
        there = store.head(layout.epoch(epoch))
        if there is None or there.metadata.get("id") != identity or ERASING not in there.metadata:
            raise NotOwnerError(
                f"epoch {epoch} of topic {topic.name!r} was claimed by another broker: nothing was deleted in the store"
            )
    return epoch


def _finish(store: ObjectStore, topic: TopicMeta, layout: Layout, epoch: int) -> int:
    """Delete everything under a claim that was made for deleting."""

    def check() -> None:
        if store.head(layout.epoch(epoch + 1)) is None:
            return
        for info in store.list(f"{layout.prefix}f/"):
            begun = layout.parse_begins(info.name)
            if begun is not None and begun[0] > epoch:
                raise NotOwnerError(
                    f"topic {topic.name!r} was taken over by epoch {begun[0]} while it was deleted: the rest is kept"
                )

    check()
    deleted = 0
    found = entered(store, topic.name)
    if found is not None and found.incarnation == topic.incarnation:
        deleted += store.delete(layout.catalogue)
    last = layout.epoch(epoch)
    names = [info.name for info in store.list(layout.prefix) if info.name != last]
    return deleted + delete_all(store, names, check) + store.delete(last)


def sweep_orphans(store: ObjectStore, oldest_ms: int) -> int:
    """Delete the objects of topics without a catalogue entry that were created before `oldest_ms`; return how many.

    Also finishes deletions that were started before then. While an entry cannot be read nothing is deleted, because the
    owner of the objects is unknown. Raises StoreError.
    """

    def damaged(_name: str, error: StoreError) -> None:
        raise error

    topics = {Layout(topic.name, topic.incarnation).prefix: topic for topic in list_topics(store, damaged)}
    found: dict[str, list[ObjectInfo]] = {}
    for info in store.list("v1/d/"):
        found.setdefault("/".join(info.name.split("/")[:4]) + "/", []).append(info)
    deleted = 0
    for prefix, objects in found.items():
        topic = topics.get(prefix) or _topic_of(prefix)
        if topic is None:
            continue
        layout = Layout(topic.name, topic.incarnation)
        epoch, begun = _erasing(objects, layout)
        if begun is not None:
            if _old(begun, oldest_ms):
                deleted += _finish(store, topic, layout, epoch)
        elif prefix not in topics and all(_old(info, oldest_ms) for info in objects):
            deleted += _sweep(store, topic, [info.name for info in objects])
    return deleted


def _sweep(store: ObjectStore, topic: TopicMeta, names: Sequence[str]) -> int:
    """Delete objects of a topic that has no entry; the entry is looked up again before every few objects."""

    def check() -> None:
        try:
            found = entered(store, topic.name)
        except StoreError as error:
            raise StoreError(f"orphans are kept: {error}") from error
        if found is not None and found.incarnation == topic.incarnation:
            raise StoreError(f"topic {topic.name!r} is in the catalogue after all: its objects are kept")

    return delete_all(store, names, check)


def _old(info: ObjectInfo, oldest_ms: int) -> bool:
    """Return whether an object was created before `oldest_ms`; one without a known time may be new."""
    return info.created_ms is not None and info.created_ms < oldest_ms


def _erasing(objects: Sequence[ObjectInfo], layout: Layout) -> tuple[int, ObjectInfo | None]:
    """Return the claim under which a topic is being deleted, and its epoch; None if it is not."""
    claims = [
        (epoch, at)
        for at, info in enumerate(objects)
        if ERASING in info.metadata and (epoch := layout.parse_epoch(info.name)) is not None
    ]
    epoch, at = max(claims, default=(0, -1))
    return epoch, objects[at] if claims else None


def _topic_of(prefix: str) -> TopicMeta | None:
    """Return the topic that a prefix of the store belongs to, as far as its name tells; None for foreign names."""
    name, _, incarnation = prefix.split("/")[3].rpartition(".")
    try:
        found = TopicMeta(decode_topic(name), bytes.fromhex(incarnation), "reliable", "fsync", 0)
    except ValueError:
        return None
    layout = Layout(found.name, found.incarnation)
    return found if layout.prefix == prefix and len(incarnation) == _INCARNATION_DIGITS else None


__all__ = ["NotOwnerError", "erase", "sweep_orphans"]
