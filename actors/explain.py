"""Why nothing flows: what a subscription and its topic say of themselves, as numbers; pure.

Times are unix ms. A key that is missing, or None, means: not known, or not so.
"""

from __future__ import annotations

from typing import TypedDict


class Holder(TypedDict, total=False):
    """A consumer that holds messages without having acknowledged them."""

    consumer: int  # its number in the subscription
    client: str  # what its client calls itself
    messages: int
    since_ms: int  # of the oldest of them
    key: str  # only in `State.keys`: the key that waits for it


class Stop(TypedDict, total=False):
    """One place at which a subscription stands."""

    first: int
    end: int
    attempts: int
    since_ms: int
    text: str


class State(TypedDict, total=False):
    """What a subscription says of itself, as the answer to `actors.messages.Explain`."""

    type: str  # of the subscription
    starting: bool  # the topic has not answered yet, or where to begin is not fixed
    failure: str | None  # why it serves nobody
    paused: bool
    consumers: int  # attached
    ready: int  # of those, with message and byte credit, and a connection that takes
    no_credit: int  # of those, without message or byte credit
    connection_full: int  # of those, whose connection takes nothing
    standby: int  # of those of Failover, not active
    handing_over: int  # consumers that were active, and still give back what they hold
    cursor: int  # everything below is acknowledged
    position: int  # the first offset never delivered
    durable_end: int  # as far as the topic is known to be
    unacknowledged: int  # messages below durable_end without acknowledgment
    in_flight: int  # delivered, and with a consumer
    holders: list[Holder]  # the consumers that hold them, oldest first; the first few
    due: int  # messages that came back and may be delivered now
    backoff: int  # messages that came back and wait
    backoff_until_ms: int | None  # when the first of them is due
    delayed: int  # messages that wait for their `deliver_at`
    delayed_until_ms: int | None
    keyed: int  # messages that wait because an earlier one of their key is with a consumer
    keys: list[Holder]  # such keys, the first few, and who has them
    tracked_full: bool  # so much is delivered and unacknowledged that nothing new is read
    tracked: int  # in whatever unit is bounded
    tracked_max: int
    poison: Stop | None  # the message that blocks
    damage: Stop | None
    fetch: Stop | None  # the segment that is being brought back from the store; text: what goes wrong
    burying: int  # messages on their way to the dead-letter topic
    dead_letter_topic: str
    bury_trouble: str | None  # why that does not work
    last_delivered_ms: int | None
    consumer_left_ms: int | None  # when the last consumer left


class TopicState(TypedDict, total=False):
    """What a topic says of itself, as the answer to `Describe`; it has more than this."""

    producers: int
    next_offset: int
    durable_end: int
    start_offset: int
    messages_in: int
    last_published_ms: int | None
    failure: str | None
