"""What changes of a topic and is stored again each time: its settings and its subscriptions' cursors.

Each version is an object of its own, named by epoch and number; the last name in order counts. A newer version is
stored first, and those before it are deleted while the topic still belongs to the writer. Blocking; made for threads.

May touch: the ObjectStore it is handed. When something is stored is decided by the actors.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ister.errors import StoreError
from ister.storage.checksum import crc32c
from ister.storage.claiming import check_fence, delete_all
from ister.storage.layout import Layout
from ister.storage.meta import SubscriptionMeta, TopicMeta
from ister.storage.objectstore import UNCHECKED, ObjectInfo, ObjectStore
from ister.storage.topic_entry import CATALOGUE_FORMAT, entered, own_settings

# ---- settings --------------------------------------------------------------------------------------------------


def put_settings(store: ObjectStore, topic: TopicMeta, epoch: int, number: int) -> None:
    """Store a topic's settings, check that they count, and delete older ones. Raises FencedError, StoreError.

    Nothing is written where the catalogue entry says the same, and nothing else was said since.
    """
    layout = Layout(topic.name, topic.incarnation)
    name = layout.settings(epoch, number)
    if number == 0 and _as_entered(store, topic):
        check_fence(store, topic, epoch)
        return
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


def _as_entered(store: ObjectStore, topic: TopicMeta) -> bool:
    """Return whether the store says of a topic's settings what its catalogue entry says, and that is right."""
    if any(store.list(Layout(topic.name, topic.incarnation).all_settings)):
        return False
    try:
        there = entered(store, topic.name)
    except StoreError as error:
        if error.code not in UNCHECKED:
            raise
        return False
    return there is not None and (there.incarnation, there.settings) == (
        topic.incarnation,
        own_settings(topic),
    )


def read_settings(store: ObjectStore, topic: TopicMeta) -> dict[str, Any] | None:
    """Return the settings that were set last; None if the topic still has those of its catalogue entry.

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
    """Store a subscription's cursor, then delete older ones while the topic is this writer's; return its name.

    `before` is the name of the only older one, if it is known: a listing costs as much as an upload.
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
    """Return each subscription with its newest whole cursor, which begins as a journal does; None if none is whole.

    `damaged` is called for what cannot be read. With an older cursor more messages are delivered again, and none is
    lost. Raises StoreError.
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
    """Return a cursor's subscription, from its metadata. Raises KeyError, ValueError, TypeError."""
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
