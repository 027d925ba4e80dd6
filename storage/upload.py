"""The upload protocol: what a writer does with the store, step by step. Blocking; made for threads.

    claim an epoch (create-only) --> list --> note where the epoch begins --> put segments (create-only)
                                                                              after each: is a newer epoch claimed?

Why it is safe: if a stale writer found no newer claim after an upload, the upload came before that claim, so the new
writer's list includes it. If it found one, it does not count the upload; and readers do not either, because the newer
epoch begins where the new writer's list ended.

Invariants
- a lost answer never creates a duplicate: what is there is compared with what should be there
- no writer continues a topic that is being deleted (`storage/erase.py`): its claim is withdrawn before it begins
- a writer deletes nothing unless it looked for a newer claim just before; after a trim's note it looks again, and
  takes the note back if there is a newer claim
- a segment counts only after a look for a newer claim that found none
- an epoch that has not begun when a newer one does never begins: the newer one's note says so
- nobody claims a topic whose store holds other messages than the local log at the same offsets
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from ister.errors import StoreError
from ister.storage.catalogue import SubscriptionMeta, TopicMeta
from ister.storage.checksum import crc32c
from ister.storage.history import History, StoredSegment, parse_void, plan_history, stored_segment, voided
from ister.storage.layout import Layout, segment_metadata
from ister.storage.listing import list_topic
from ister.storage.objectstore import UNCHECKED, ObjectInfo, ObjectStore
from ister.storage.segment import SegmentInfo

CATALOGUE_FORMAT: Final = 1
ENTRY_BYTES_MAX: Final = 1 << 20  # far more than a catalogue entry has
# In the metadata of a claim: whose it is, over restarts; and that it was made to delete the topic.
BROKER: Final = "broker"
ERASING: Final = "erasing"
RESTORED_END: Final = "restored_end"  # a setting of a topic that came back: where its local log begins
DELETIONS_MAX: Final = 50  # objects, between two looks for a newer claim


class FencedError(StoreError):
    """Another writer has claimed the topic: whatever we upload from now on does not count."""

    code = "fenced"
    action = "stop"


class AheadError(FencedError):
    """The store has the topic up to `end`, which is more than the local log was said to have sealed."""

    def __init__(self, text: str, end: int) -> None:
        super().__init__(text)
        self.end = end


@dataclass(frozen=True, slots=True)
class Claim:
    """A writer's right to upload: its epoch, the history that was there when it began, and where its own begins."""

    epoch: int
    history: History
    start: int


def claim(
    store: ObjectStore,
    topic: TopicMeta,
    identity: str,
    begin: int | None = 0,
    check: Callable[[History], None] = lambda _history: None,
    *,
    broker: str = "",
    enter: bool = True,
) -> Claim:
    """Claim the next epoch of a topic, and note where it begins; `identity` is this run's own, never used before.

    `begin` is where the local log begins, None where there is none; `check` raises if the history cannot be continued,
    before another broker is fenced. `broker` owns the claim, across restarts. Without `enter` the topic must be in
    the store's catalogue, before and after the claim: it is brought back, not made. Raises FencedError, StoreError
    `object-missing` for a topic that is not there, StoreError.
    """
    layout = Layout(topic.name, topic.incarnation)
    if enter:
        enter_topic(store, topic)
    else:
        check_entered(store, topic)
    before = list_history(store, layout)
    _check_kept(topic, before)
    check(before.for_broker(broker))
    epoch = before.epoch + 1
    while not _claimed(store, layout, epoch, identity, broker):
        epoch += 1
    listed = list_history(store, layout)
    history, newest, undecided = listed.for_broker(broker), listed.epoch, listed.undecided
    try:
        _check_kept(topic, listed)
        if not enter:
            check_entered(store, topic)
    except StoreError as error:
        if error.action == "stop":  # deleted meanwhile: nothing of ours is to be left there
            store.delete(layout.epoch(epoch))
        raise
    if newest > epoch:
        raise FencedError(f"epoch {newest} of topic {topic.name!r} was claimed by another broker")
    check(history)
    start = resume_at(history, begin)
    about = {"id": identity}
    if void := " ".join(f"{each:08x}" for each in undecided if each != epoch):
        about["void"] = void
    store.put_if_absent(layout.begins(epoch, start), b"", metadata=about)
    return Claim(epoch, history, start)


def resume_at(history: History, begin: int | None) -> int:
    """Return where a writer continues a history: at the first offset that it lacks and the log from `begin` on has.

    What is missing below the log cannot be filled any more: it stays a gap, and all that is there behind it counts.
    """
    if begin is None:
        return history.end
    for first, end in history.gaps:
        if end > begin:
            return max(first, begin)
    return max(history.end, begin)


def lost_below(history: History, start: int) -> tuple[tuple[int, int], ...]:
    """Return what a writer that continues at `start` finds missing in the store below it, permanently."""
    found = [(first, min(end, start)) for first, end in history.gaps if first < start]
    end = max(history.end, history.trimmed) if history.pieces else history.trimmed
    if end < start:
        found.append((end, start))
    return tuple(found)


def check_joins(
    topic: TopicMeta, history: History, log: Sequence[SegmentInfo], end: int, begin: int | None = None
) -> None:
    """Raise FencedError if the store's history is not that of a local log that is [begin, end).

    AheadError if it only is longer: perhaps the log has grown. `log` are sealed segments of it, any of them, and `end`
    is where these end; `begin` is None where there is no log, or it is not known.
    """
    if history.others is not None and begin is not None and begin < history.trimmed:
        first, behind = max(begin, history.others), min(end, history.trimmed)
        if first < behind:  # retention took what would show that it is not the same
            raise FencedError(
                f"another broker wrote offsets {first} to {behind} of topic {topic.name!r} in the store, and retention "
                "dropped them there: what the local log has there is something else"
            )
    stored_end = max(history.end, history.trimmed)  # what retention took was there
    if stored_end > end:
        raise AheadError(
            f"the store has had topic {topic.name!r} up to offset {stored_end}, the local log up to {end}: "
            "another broker continued it, or the local log lost its end",
            stored_end,
        )
    stored = {piece.segment.base: piece for piece in history.pieces}
    for segment in log:
        if segment.end <= history.start or segment.base >= history.end:
            continue
        piece = stored.get(segment.base)
        if piece is None and not any(
            each.start < segment.end and segment.base < each.end
            for each in history.from_offset(segment.base)[:1]
        ):
            continue  # the store lacks all of it
        if piece is None or piece.end != segment.end or not _same(piece.segment, segment):
            raise FencedError(
                f"offsets {segment.base} to {segment.end} of topic {topic.name!r} are other messages in the store than "
                "in the local log: another broker continued the topic"
            )


def _same(stored: StoredSegment, local: SegmentInfo) -> bool:
    return (stored.end, stored.bytes, stored.first_timestamp_ms, stored.last_timestamp_ms) == (
        local.end,
        local.bytes,
        local.first_timestamp_ms,
        local.last_timestamp_ms,
    )


def _check_kept(topic: TopicMeta, listed: Listed) -> None:
    if listed.erasing:
        raise FencedError(f"topic {topic.name!r} is being deleted by the broker that had it last")


class Listed(NamedTuple):
    """What a listing says: the history, the newest epoch claimed (0: none), and those that have not begun.

    `erasing` is the epoch under which the topic is being deleted, 0 if it is not. `brokers` says who claimed an epoch,
    as far as that is known, and `begins` where those that count began.
    """

    history: History
    epoch: int
    undecided: tuple[int, ...]
    erasing: int = 0
    brokers: Mapping[int, str] = MappingProxyType({})
    begins: Mapping[int, int] = MappingProxyType({})

    def for_broker(self, broker: str) -> History:
        """Return the history, and from where on others than this broker wrote it after it had the topic last."""
        mine = max((epoch for epoch, who in self.brokers.items() if who == broker), default=0)
        others = [
            start
            for epoch, start in self.begins.items()
            if epoch > mine and self.brokers.get(epoch, broker) != broker
        ]
        return replace(self.history, others=min(others)) if broker and others else self.history


def list_history(store: ObjectStore, layout: Layout) -> Listed:
    """List a topic's objects, segments first: whatever supersedes a segment that was seen is then seen too."""
    objects = list_topic(store, layout)
    claims: set[int] = set()
    brokers: dict[int, str] = {}
    starts: dict[int, int] = {}
    voids: dict[int, frozenset[int]] = {}
    erasing = newest = 0
    for info in objects:
        if (place := layout.parse_segment(info.name)) is not None:
            newest = max(newest, place[1])  # its claim may have been deleted, by a person
        elif (begins := layout.parse_begins(info.name)) is not None:
            voids[begins[0]] = parse_void(info.metadata)
            starts[begins[0]] = begins[1]
        elif (epoch := layout.parse_epoch(info.name)) is not None:
            claims.add(epoch)
            if BROKER in info.metadata:
                brokers[epoch] = info.metadata[BROKER]
            if ERASING in info.metadata:
                erasing = max(erasing, epoch)
    void = voided(voids)
    undecided = claims - voids.keys() - void
    newest = max((newest, *claims, *voids))
    if erasing < max(voids.keys() - void, default=0):
        erasing = 0  # another broker continued the topic since
    counted = {epoch: start for epoch, start in starts.items() if epoch not in void}
    return Listed(plan_history(layout, objects), newest, tuple(sorted(undecided)), erasing, brokers, counted)


def _claimed(store: ObjectStore, layout: Layout, epoch: int, identity: str, broker: str) -> bool:
    about = {"id": identity} | ({BROKER: broker} if broker else {})
    if store.put_if_absent(layout.epoch(epoch), b"", metadata=about):
        return True
    found = store.head(layout.epoch(epoch))
    return (
        found is not None and found.metadata.get("id") == identity
    )  # the answer was lost, the claim was not


def check_fence(store: ObjectStore, topic: TopicMeta, epoch: int) -> None:
    """Raise FencedError if a newer epoch than ours is claimed, or was, by who has deleted the topic since.

    Whoever deletes a topic deletes its catalogue entry first. So a claim of ours that is gone while the entry is there
    was deleted by somebody who is not a broker (a person, a lifecycle rule), and fences nobody.
    """
    layout = Layout(topic.name, topic.incarnation)
    if store.head(layout.epoch(epoch + 1)) is not None:
        raise FencedError(
            f"epoch {epoch + 1} of topic {topic.name!r} was claimed: another broker has taken the topic over"
        )
    if store.head(layout.epoch(epoch)) is None and not _is_entered(store, topic):
        raise FencedError(
            f"epoch {epoch} of topic {topic.name!r} is no longer in the store: another broker has taken the topic "
            "over, and deleted it there"
        )


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
    """Upload again, in place of a local segment that is damaged, what an earlier epoch has of it; False if none has.

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

    That is also what a trim before this one left, and what was superseded; or `known`, where these are known to be all:
    a listing costs as much as an upload. Whoever claims the topic after the look
    behind the note lists that note: what is deleted then is history for nobody. Raises FencedError, StoreError.
    """
    layout = Layout(topic.name, topic.incarnation)
    check_fence(store, topic, epoch)
    noted = store.put_if_absent(layout.trimmed(point), b"")
    try:
        check_fence(store, topic, epoch)
    except FencedError:
        if noted:  # it is not ours to say what is kept
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


def delete_all(store: ObjectStore, names: Sequence[str], check: Callable[[], None]) -> int:
    """Delete objects in this order, and return how many were there; `check` is called before each few of them."""
    deleted = 0
    for at in range(0, len(names), DELETIONS_MAX):
        check()
        deleted += sum(store.delete(name) for name in names[at : at + DELETIONS_MAX])
    return deleted


def enter_topic(store: ObjectStore, topic: TopicMeta) -> None:
    """Write a topic's catalogue entry. Raises StoreError `topic-exists` if another topic of that name has one."""
    layout = Layout(topic.name, topic.incarnation)
    if store.put_if_absent(layout.catalogue, encode_topic_entry(topic)):
        return
    try:
        found = decode_topic_entry(store.get(layout.catalogue))
    except StoreError as error:
        if error.code not in UNCHECKED or not _is_ours(store, topic):
            raise
        return  # what is damaged of it is not whose it is
    if found.incarnation != topic.incarnation:
        raise StoreError(
            f"the store has another topic {topic.name!r}, of incarnation {found.incarnation.hex()}",
            code="topic-exists",
            action="retry",  # it may just be being deleted
        )


def _is_ours(store: ObjectStore, topic: TopicMeta) -> bool:
    """Return whether a catalogue entry that cannot be checked says in so many words that it is this topic's."""
    name = Layout(topic.name, topic.incarnation).catalogue
    try:
        found = decode_topic_entry(store.get_range(name, 0, ENTRY_BYTES_MAX))
    except StoreError:
        return False
    return (found.name, found.incarnation) == (topic.name, topic.incarnation)


def entered(store: ObjectStore, name: str) -> TopicMeta | None:
    """Return the topic that the store's catalogue has of that name. Raises StoreError."""
    place = Layout(name, b"").catalogue
    if store.head(place) is None:
        return None
    try:
        return decode_topic_entry(store.get(place))
    except StoreError as error:
        if error.code != "object-missing":
            raise
        return None


def _is_entered(store: ObjectStore, topic: TopicMeta) -> bool:
    """Return whether the store's catalogue has this very topic. Raises StoreError."""
    found = entered(store, topic.name)
    return found is not None and found.incarnation == topic.incarnation


def check_entered(store: ObjectStore, topic: TopicMeta) -> None:
    """Raise StoreError `object-missing` unless the store's catalogue has this very topic."""
    if not _is_entered(store, topic):
        raise StoreError(
            f"topic {topic.name!r} is no longer in the store: it was deleted",
            code="object-missing",
            action="stop",
        )


def own_settings(topic: TopicMeta) -> dict[str, Any]:
    """Return a topic's settings without what is only true of one disk."""
    return {name: value for name, value in topic.settings.items() if name != RESTORED_END}


def encode_topic_entry(topic: TopicMeta) -> bytes:
    """Return the contents of a topic's catalogue entry: JSON, as storage/FORMAT.md says."""
    entry = {
        "format": CATALOGUE_FORMAT,
        "name": topic.name,
        "incarnation": topic.incarnation.hex(),
        "dispatch": topic.dispatch,
        "durability": topic.durability,
        "settings": own_settings(topic),
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


# ---- settings --------------------------------------------------------------------------------------------------


def put_settings(store: ObjectStore, topic: TopicMeta, epoch: int, number: int) -> None:
    """Store a topic's settings, make sure that they count, and drop the ones before. Raises FencedError, StoreError."""
    layout = Layout(topic.name, topic.incarnation)
    name = layout.settings(epoch, number)
    body = json.dumps({"format": CATALOGUE_FORMAT, "settings": own_settings(topic)}, sort_keys=True).encode()
    if not store.put_if_absent(name, body) and store.get(name) != body:
        raise StoreError(
            f"object {name} has other settings than those of topic {topic.name!r}",
            code="object-differs",
            action="stop",
        )
    check_fence(store, topic, epoch)
    older = [info.name for info in store.list(layout.all_settings) if info.name < name]
    delete_all(store, older, lambda: check_fence(store, topic, epoch))


def read_settings(store: ObjectStore, topic: TopicMeta) -> dict[str, Any] | None:
    """Return the settings a topic was given last; None if it has those of its catalogue entry.

    Raises StoreError, `object-damaged` where they cannot be read.
    """
    names = [info.name for info in store.list(Layout(topic.name, topic.incarnation).all_settings)]
    if not names:
        return None
    try:
        settings = json.loads(store.get(names[-1]))["settings"]
        if not isinstance(settings, dict):
            raise TypeError("its settings are not a map")
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"object {names[-1]} cannot be read: {error}", code="object-damaged", action="stop"
        ) from error
    return settings


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
    before: str | None = None,
) -> str:
    """Store a subscription's cursor, then drop the ones before it, while the topic is ours; return its name.

    `before` is the name of the only one before it, where that is known: a listing costs as much as an upload.
    Raises FencedError, StoreError.
    """
    name = cursor_name(topic, subscription.name, epoch, number)
    about = {
        "subscription": subscription.name,
        "type": subscription.type,
        "start": str(subscription.start),
        "created-ms": str(subscription.created_ms),
        "settings": json.dumps(subscription.settings),
    }
    store.put_if_absent(name, journal, metadata=about, crc32c=crc32c(journal))
    if before is None:
        older = [info.name for info in store.list(f"{name.rpartition('/')[0]}/") if info.name < name]
    else:
        older = [before]
    delete_all(store, older, lambda: check_fence(store, topic, epoch))
    return name


def drop_cursors(store: ObjectStore, topic: TopicMeta, subscription: str, epoch: int) -> None:
    """Delete the cursors of a deleted subscription, but for those of a newer epoch. Raises FencedError, StoreError."""
    end = cursor_name(topic, subscription, epoch + 1, 0)
    older = [info.name for info in store.list(f"{end.rpartition('/')[0]}/") if info.name < end]
    delete_all(store, older, lambda: check_fence(store, topic, epoch))


def stored_subscriptions(store: ObjectStore, topic: TopicMeta) -> set[str]:
    """Return the names of the subscriptions that have cursors in the store. Raises StoreError."""
    prefix = f"{Layout(topic.name, topic.incarnation).prefix}c/"
    return {_decode(info.name[len(prefix) :].partition("/")[0]) for info in store.list(prefix)}


def read_cursors(
    store: ObjectStore, topic: TopicMeta, damaged: Callable[[str], None] = lambda _text: None
) -> list[tuple[SubscriptionMeta, bytes | None]]:
    """Return each subscription with its newest cursor that is whole, as a journal begins; None if none is.

    `damaged` is told of what cannot be read. An older cursor is as good, but for what comes again. Raises StoreError.
    """
    prefix = f"{Layout(topic.name, topic.incarnation).prefix}c/"
    cursors: dict[str, list[ObjectInfo]] = {}
    for info in store.list(prefix):
        cursors.setdefault(info.name.rpartition("/")[0], []).append(info)
    found: list[tuple[SubscriptionMeta, bytes | None]] = []
    for folder, versions in cursors.items():
        known: SubscriptionMeta | None = None
        journal: bytes | None = None
        for info in reversed(versions):
            try:
                meta = _subscription_of(topic, info)
                known = known or meta
                journal = store.get(info.name)
            except (KeyError, ValueError, TypeError) as error:
                damaged(f"what is known of cursor {info.name} cannot be read ({info.problem or repr(error)})")
            except StoreError as error:
                if error.code not in UNCHECKED:
                    raise
                damaged(error.text)
            else:
                break
        if known is not None:
            found.append((known, journal))
        else:
            damaged(f"subscription {_decode(folder[len(prefix) :])} is not back: no cursor of it can be read")
    return found


def _subscription_of(topic: TopicMeta, info: ObjectInfo) -> SubscriptionMeta:
    """Return what a cursor's metadata say of its subscription. Raises KeyError, ValueError, TypeError."""
    about = info.metadata
    start, settings = about["start"], json.loads(about["settings"])
    if not isinstance(settings, dict):
        raise TypeError("settings are not a map")
    return SubscriptionMeta(
        topic.name,
        about["subscription"],
        about["type"],
        int(start) if start.isdecimal() else start,
        int(about["created-ms"]),
        settings,
    )


def _decode(subscription: str) -> str:
    return subscription[1:] if subscription.startswith("~.") else subscription


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
