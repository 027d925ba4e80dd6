"""The upload protocol: what a writer says to the store, step by step. Blocking; made for threads.

    claim an epoch (create-only) --> list --> note where the epoch begins --> put segments (create-only)
                                                                              after each: is a newer epoch claimed?

Why it is safe: if a stale writer's look found no newer claim, its upload came before that claim, so the new writer's
list includes it. If it found one, it does not count what it uploaded; and readers do not either, because the newer
epoch begins where the new writer's list ended.

Invariants
- an answer that was lost never makes two of one: what is there is compared with what we wanted to be there
- a segment counts only after a look for a newer claim that found none
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from ister.errors import StoreError
from storage.catalogue import SubscriptionMeta, TopicMeta
from storage.checksum import crc32c
from storage.history import History, plan_history
from storage.segment import SegmentInfo
from storage.store import ObjectStore
from storage.tier import Layout, segment_metadata

CATALOGUE_FORMAT: Final = 1


class FencedError(StoreError):
    """Another writer has claimed the topic: whatever we upload from now on counts for nobody."""

    code = "fenced"
    action = "stop"


@dataclass(frozen=True, slots=True)
class Claim:
    """A writer's right to upload: its epoch, and the history that was there when it began."""

    epoch: int
    history: History


def claim(store: ObjectStore, topic: TopicMeta, identity: str, begin: int = 0) -> Claim:
    """Claim the next epoch of a topic, and note where it begins; `identity` is this run's own, never used before.

    `begin` is where the history begins if the store has nothing of it yet. Raises FencedError, StoreError.
    """
    layout = Layout(topic.name, topic.incarnation)
    enter_topic(store, topic)
    epoch = list_history(store, layout).epoch + 1
    while not _claimed(store, layout, epoch, identity):
        epoch += 1
    history, newest = list_history(store, layout)
    if newest > epoch:
        raise FencedError(f"epoch {newest} of topic {topic.name!r} was claimed by another broker")
    if not history.pieces and begin > history.end:
        history = History(begin, begin, ())
    store.put_if_absent(layout.begins(epoch, history.end), b"", metadata={"id": identity})
    return Claim(epoch, history)


class Listed(NamedTuple):
    """What a listing says: the history, and the newest epoch that anybody claimed, 0 for none."""

    history: History
    epoch: int


def list_history(store: ObjectStore, layout: Layout) -> Listed:
    """List a topic's objects, segments first: whatever supersedes a segment that was seen is then seen too."""
    objects = list(store.list(layout.segments))
    for kind in "eft":
        objects += store.list(f"{layout.prefix}{kind}/")
    epochs = [0]
    for info in objects:
        begins = layout.parse_begins(info.name)
        epochs.append(layout.parse_epoch(info.name) or (0 if begins is None else begins[0]))
    return Listed(plan_history(layout, objects), max(epochs))


def _claimed(store: ObjectStore, layout: Layout, epoch: int, identity: str) -> bool:
    if store.put_if_absent(layout.epoch(epoch), b"", metadata={"id": identity}):
        return True
    found = store.head(layout.epoch(epoch))
    return (
        found is not None and found.metadata.get("id") == identity
    )  # the answer was lost, the claim was not


def check_fence(store: ObjectStore, topic: TopicMeta, epoch: int) -> None:
    """Raise FencedError if a newer epoch than ours is claimed."""
    layout = Layout(topic.name, topic.incarnation)
    if store.head(layout.epoch(epoch + 1)) is not None:
        raise FencedError(
            f"epoch {epoch + 1} of topic {topic.name!r} was claimed: another broker has taken the topic over"
        )


def put_segment(
    store: ObjectStore, topic: TopicMeta, epoch: int, segment: SegmentInfo, identity: str
) -> None:
    """Upload a sealed segment, and make sure that it counts.

    Raises FencedError; StoreError `object-differs` if there is another segment of that name; StoreError otherwise.
    """
    name = Layout(topic.name, topic.incarnation).segment(segment.base, epoch)
    if not store.put_file_if_absent(name, segment.path, metadata=segment_metadata(segment, identity)):
        found = store.head(name)
        if found is None:
            raise StoreError(f"object {name} was there, and is gone")
        if found.size != segment.bytes or found.metadata.get("next") != str(segment.end):
            raise StoreError(
                f"object {name} has {found.size} bytes up to offset {found.metadata.get('next')}, "
                f"our segment {segment.bytes} bytes up to {segment.end}",
                code="object-differs",
                action="stop",
            )
    check_fence(store, topic, epoch)


def trim(store: ObjectStore, topic: TopicMeta, history: History, point: int) -> int:
    """Drop what lies wholly below `point`: the boundary first, then the objects, oldest first; return how many."""
    layout = Layout(topic.name, topic.incarnation)
    store.put_if_absent(layout.trimmed(point), b"")
    dropped = 0
    for piece in history.pieces:
        if piece.end > point:
            break
        dropped += store.delete(piece.segment.name)
    for info in list(store.list(f"{layout.prefix}t/")):
        older = layout.parse_trimmed(info.name)
        if older is not None and older < point:
            store.delete(info.name)
    return dropped


def enter_topic(store: ObjectStore, topic: TopicMeta) -> None:
    """Write a topic's catalogue entry. Raises StoreError `topic-exists` if another topic of that name has one."""
    layout = Layout(topic.name, topic.incarnation)
    if store.put_if_absent(layout.catalogue, encode_topic_entry(topic)):
        return
    found = decode_topic_entry(store.get(layout.catalogue))
    if found.incarnation != topic.incarnation:
        raise StoreError(
            f"the store has another topic {topic.name!r}, of incarnation {found.incarnation.hex()}",
            code="topic-exists",
            action="stop",
        )


def erase(store: ObjectStore, topic: TopicMeta) -> int:
    """Delete all objects of a topic, its catalogue entry first, so that nobody restores it; return how many."""
    layout = Layout(topic.name, topic.incarnation)
    found = store.head(layout.catalogue)
    if found is not None and decode_topic_entry(store.get(layout.catalogue)).incarnation == topic.incarnation:
        store.delete(layout.catalogue)
    return sum(store.delete(info.name) for info in list(store.list(layout.prefix)))


def encode_topic_entry(topic: TopicMeta) -> bytes:
    """Return the contents of a topic's catalogue entry: JSON, as storage/FORMAT.md says."""
    entry = {
        "format": CATALOGUE_FORMAT,
        "name": topic.name,
        "incarnation": topic.incarnation.hex(),
        "dispatch": topic.dispatch,
        "durability": topic.durability,
        "settings": topic.settings,
        "created_ms": topic.created_ms,
    }
    return json.dumps(entry, sort_keys=True).encode()


def decode_topic_entry(data: bytes) -> TopicMeta:
    """Return the topic of a catalogue entry. Raises StoreError `object-damaged`."""
    try:
        entry: dict[str, Any] = json.loads(data)
        return TopicMeta(
            entry["name"],
            bytes.fromhex(entry["incarnation"]),
            entry["dispatch"],
            entry["durability"],
            entry["created_ms"],
            entry["settings"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"a catalogue entry of the store cannot be read: {error}", code="object-damaged", action="stop"
        ) from error


# ---- cursors ---------------------------------------------------------------------------------------------------


def cursor_name(topic: TopicMeta, subscription: str, epoch: int, number: int) -> str:
    """Return the name of the `number`-th cursor that the writer of `epoch` stores of a subscription."""
    return (
        f"{Layout(topic.name, topic.incarnation).prefix}c/{_encode(subscription)}/{epoch:08x}-{number:010d}"
    )


def put_cursor(
    store: ObjectStore,
    topic: TopicMeta,
    subscription: SubscriptionMeta,
    epoch: int,
    number: int,
    journal: bytes,
) -> None:
    """Store a subscription's cursor, then drop the ones before it. Raises StoreError."""
    name = cursor_name(topic, subscription.name, epoch, number)
    about = {
        "subscription": subscription.name,
        "type": subscription.type,
        "start": str(subscription.start),
        "created-ms": str(subscription.created_ms),
        "settings": json.dumps(subscription.settings),
    }
    store.put_if_absent(name, journal, metadata=about, crc32c=crc32c(journal))
    for info in list(store.list(f"{name.rpartition('/')[0]}/")):
        if info.name < name:
            store.delete(info.name)


def drop_cursors(store: ObjectStore, topic: TopicMeta, subscription: str) -> None:
    """Delete the cursors of a deleted subscription. Raises StoreError."""
    folder = cursor_name(topic, subscription, 0, 0).rpartition("/")[0]
    for info in list(store.list(f"{folder}/")):
        store.delete(info.name)


def read_cursors(store: ObjectStore, topic: TopicMeta) -> list[tuple[SubscriptionMeta, bytes]]:
    """Return each subscription with its newest cursor, as a journal begins. Raises StoreError."""
    prefix = f"{Layout(topic.name, topic.incarnation).prefix}c/"
    newest = {info.name.rpartition("/")[0]: info for info in store.list(prefix)}
    found: list[tuple[SubscriptionMeta, bytes]] = []
    for info in newest.values():
        about = info.metadata
        start = about["start"]
        meta = SubscriptionMeta(
            topic.name,
            about["subscription"],
            about["type"],
            int(start) if start.isdecimal() else start,
            int(about["created-ms"]),
            json.loads(about["settings"]),
        )
        found.append((meta, store.get(info.name)))
    return found


def _encode(subscription: str) -> str:
    return f"~{subscription}" if subscription.startswith(".") else subscription


def list_topics(store: ObjectStore, damaged: Callable[[str, StoreError], None]) -> list[TopicMeta]:
    """Return the topics that have a catalogue entry; one that cannot be read is told to `damaged`."""
    topics = []
    for info in store.list("v1/topics/"):
        try:
            topics.append(decode_topic_entry(store.get(info.name)))
        except StoreError as error:
            if error.action == "retry":
                raise
            damaged(info.name, error)
    return topics
