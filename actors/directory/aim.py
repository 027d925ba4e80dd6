"""Which topic or subscription a request is about: the one that had the name when the request was made. Pure.

Part of the Directory. A name can be used again after its topic or subscription was deleted. Mail takes time, and a
client without an answer asks again: meanwhile the thing that was to be deleted or changed may be gone and another may
have its name. A request may say which one it means; in any case it never means one that was made after it.

Invariants
- a request changes nothing that was made after it
- a request that names an incarnation or an instance applies to that one or to none
"""

from __future__ import annotations

from typing import Final

from ister.actors.addresses import instance_of
from ister.actors.directory.arguments import Arguments, text
from ister.actors.registry import Registry
from ister.errors import RemoteError

INCARNATION: Final = "incarnation"  # of a topic
INSTANCE: Final = "instance"  # of a subscription

# The operations that change something, and the argument that may say which topic or subscription is meant.
CHANGES: Final = {
    "topic.update": "",
    "topic.repair": "",
    "topic.delete": INCARNATION,
    "topic.forget": INCARNATION,
    "subscription.update": "",
    "subscription.seek": "",
    "subscription.unblock": "",
    "subscription.delete": INSTANCE,
}


def take_aim(registry: Registry, operation: str, arguments: Arguments, asked_s: float | None) -> Arguments:
    """Return the arguments without the one that says which topic or subscription is meant, after checking it.

    `asked_s` is the monotonic time in seconds at which the request was made; None: now. Raises RemoteError
    `unknown-topic` or `unknown-subscription` if another one was meant, UsageError, StorageError.
    """
    which = CHANGES.get(operation)
    if which is None:
        return arguments
    name = arguments.get("topic")
    subscription = arguments.get("subscription", "") if operation.startswith("subscription.") else ""
    if not isinstance(name, str) or not isinstance(subscription, str):
        return arguments  # the operation itself says that it is missing
    if asked_s is not None and registry.made_s(name, subscription) > asked_s:
        raise _gone(
            name, subscription, "it was deleted, and another was made under its name since this was asked"
        )
    if which and which in arguments:
        meant, there = text(arguments, which), _there(registry, name, subscription)
        if there is not None and there != meant:
            raise _gone(name, subscription, f"{which} {meant!r:.60} is gone; the one of that name is {there}")
    return {key: value for key, value in arguments.items() if key != which}


def check_repeated(registry: Registry, name: str, subscription: str, asked_s: float) -> None:
    """Check a repeated question about a subscription, which is created where it is not there; first asked at `asked_s`.

    The first question may have created it, and it may have been deleted since: it is not created again. Raises
    RemoteError `unavailable` where that is possible.
    """
    if registry.deleted_s >= asked_s and registry.subscription(name, subscription) is None:
        text = (
            f"it is not known whether subscription {subscription!r} of topic {name!r} was deleted meanwhile"
        )
        raise RemoteError("unavailable", f"{text}; try again")


def _there(registry: Registry, name: str, subscription: str) -> str | None:
    topic = registry.topic(name)
    if topic is None or not subscription:
        return None if topic is None else topic.incarnation.hex()
    found = registry.subscription(name, subscription)
    return None if found is None else instance_of(topic, found)


def _gone(name: str, subscription: str, why: str) -> RemoteError:
    if subscription:
        return RemoteError("unknown-subscription", f"subscription {subscription!r} of topic {name!r}: {why}")
    return RemoteError("unknown-topic", f"topic {name!r}: {why}")
