"""Claims: which writer a topic in the store belongs to, and how one takes it. Blocking; made for threads.

Invariants
- a lost answer never makes a second claim: the claim that is there is compared with the one that was made
- a writer withdraws its claim, and begins nothing, while the topic is being deleted (`erase.py`)
- an epoch that has not begun when a newer one does never begins: the note where the newer one begins says so
- nobody claims a topic whose store holds other messages than the local log at the same offsets (`continuing.py`)

May touch: the ObjectStore it is handed. What a writer uploads once it has a claim is in `upload.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, NamedTuple

from ister.errors import StoreError
from ister.storage.continuing import FencedError, resume_at
from ister.storage.history import History, parse_void, plan_history, voided
from ister.storage.layout import Layout
from ister.storage.listing import list_topic
from ister.storage.meta import TopicMeta
from ister.storage.objectstore import ObjectStore
from ister.storage.topic_entry import check_entered, enter_topic, is_entered

# In the metadata of a claim: the broker that made it (the same across restarts), and whether it was made to delete the
# topic.
BROKER: Final = "broker"
ERASING: Final = "erasing"
DELETIONS_MAX: Final = 50  # objects, between two looks for a newer claim


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
    """Claim the next epoch of a topic, and note where it begins; `identity` is unique to this run.

    `begin` is where the local log begins, None if there is none. `check` raises if the history cannot be continued; it
    is called before another broker is fenced. `broker` owns the claim, across restarts. With `enter` false the topic is
    brought back, not created: it must be in the store's catalogue before and after the claim. Raises FencedError,
    StoreError `object-missing` for a topic that is not there, StoreError.
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
        if error.action == "stop":  # deleted meanwhile: this claim must not remain
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


def _check_kept(topic: TopicMeta, listed: ListedTopic) -> None:
    if listed.erasing:
        raise FencedError(f"topic {topic.name!r} is being deleted by the broker that had it last")


class ListedTopic(NamedTuple):
    """What a listing says: the history, the newest epoch claimed (0: none), and the epochs that have not begun.

    `erasing` is the epoch under which the topic is being deleted, 0 if it is not. `brokers` says who claimed an epoch,
    as far as that is known, and `begins` where the epochs that count began.
    """

    history: History
    epoch: int
    undecided: tuple[int, ...]
    erasing: int = 0
    brokers: Mapping[int, str] = MappingProxyType({})
    begins: Mapping[int, int] = MappingProxyType({})

    def for_broker(self, broker: str) -> History:
        """Return the history, with the offset from which other brokers wrote it since `broker` last had the topic."""
        mine = max((epoch for epoch, who in self.brokers.items() if who == broker), default=0)
        others = [
            start
            for epoch, start in self.begins.items()
            if epoch > mine and self.brokers.get(epoch, broker) != broker
        ]
        return replace(self.history, others=min(others)) if broker and others else self.history


def list_history(store: ObjectStore, layout: Layout) -> ListedTopic:
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
    return ListedTopic(
        plan_history(layout, objects), newest, tuple(sorted(undecided)), erasing, brokers, counted
    )


def _claimed(store: ObjectStore, layout: Layout, epoch: int, identity: str, broker: str) -> bool:
    about = {"id": identity} | ({BROKER: broker} if broker else {})
    if store.put_if_absent(layout.epoch(epoch), b"", metadata=about):
        return True
    found = store.head(layout.epoch(epoch))
    return (
        found is not None and found.metadata.get("id") == identity
    )  # the answer was lost, the claim was not


def check_fence(store: ObjectStore, topic: TopicMeta, epoch: int) -> None:
    """Raise FencedError if a newer epoch is claimed, or was claimed by a broker that has since deleted the topic.

    A broker that deletes a topic deletes its catalogue entry first. So if the claim of `epoch` is gone while the entry
    is there, somebody else deleted it (a person, a lifecycle rule), and that fences nobody.
    """
    layout = Layout(topic.name, topic.incarnation)
    if store.head(layout.epoch(epoch + 1)) is not None:
        raise FencedError(
            f"epoch {epoch + 1} of topic {topic.name!r} was claimed: another broker has taken the topic over"
        )
    if store.head(layout.epoch(epoch)) is None and not is_entered(store, topic):
        raise FencedError(
            f"epoch {epoch} of topic {topic.name!r} is no longer in the store: another broker has taken the topic "
            "over, and deleted it there"
        )


def delete_all(store: ObjectStore, names: Sequence[str], check: Callable[[], None]) -> int:
    """Delete objects in this order, and return how many existed; `check` is called before each DELETIONS_MAX."""
    deleted = 0
    for at in range(0, len(names), DELETIONS_MAX):
        check()
        deleted += sum(store.delete(name) for name in names[at : at + DELETIONS_MAX])
    return deleted
