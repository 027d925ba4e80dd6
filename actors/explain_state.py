"""What a subscription and its topic say of themselves when somebody asks why nothing flows.

The parts of a subscription fill these in, each its own keys; `explain.py` reads them. Times are unix ms. A key that is
missing or None means unknown, or false.
"""

from __future__ import annotations

from typing import TypedDict

from ister.actors.presence import Presence


class Holder(TypedDict, total=False):
    """A consumer that holds unacknowledged messages."""

    consumer: int  # its number in the subscription
    client: str  # the name that its client gave itself
    messages: int
    since_ms: int  # when it got the oldest of them
    key: str  # only in `State.keys`: the key whose messages wait for this consumer


class Stop(TypedDict, total=False):
    """A place at which a subscription stands."""

    first: int
    end: int
    attempts: int
    since_ms: int
    text: str
    here: str  # only for a request to the store: what is wrong with these offsets in the local log


class State(Presence, total=False):
    """A subscription's answer to `ister.actors.messages.Explain`."""

    type: str  # the subscription's type
    starting: bool  # the topic has not answered yet, or the start offset is not fixed
    started_ms: int  # when its actor started
    failure: str | None  # why no consumer can be served
    failure_code: str | None
    paused: bool
    standby: int  # consumers of a Failover subscription that are not active
    handing_over: int  # consumers that have to return what they hold and have not done so
    seeking: str | None  # where it is being moved to
    cursor: int  # everything below is acknowledged
    position: int  # the first offset never delivered
    durable_end: int  # how far the topic is known to be durable
    unacknowledged: int  # messages below durable_end that are not acknowledged
    in_flight: int  # messages that consumers hold
    holders: list[Holder]  # the consumers that hold them, the first few, oldest first
    due: int  # returned messages that may be delivered now
    backoff: int  # returned messages that wait for their back-off
    backoff_until_ms: int | None  # when the first of them is due
    delayed: int  # messages that wait for their `deliver_at`
    delayed_until_ms: int | None
    keyed: int  # messages that wait because a consumer holds an earlier one of their key
    keys: list[Holder]  # such keys, the first few, and who holds their messages
    tracked_full: bool  # so much is delivered and unacknowledged that nothing new is read
    tracked: int  # how much that is, in the unit that is limited
    tracked_max: int
    poison: Stop | None  # the message that blocks the subscription
    damage: Stop | None
    fetch: Stop | None  # the segment that is being fetched from the store; its text says what goes wrong
    burying: int  # messages in transit to the dead-letter topic
    dead_letter_topic: str
    bury_trouble: str | None  # why that fails
    dead_lettered: int  # messages that were moved there since the actor started
    given_up: Stop | None  # the last message that failed too often
    ack_timeout_ms: int
    expired: int  # messages that outlived their time to live since the actor started
    trimmed: int  # messages that retention took
    skipped: int  # messages that an operator skipped as damaged
    missing: int  # messages that neither the local log nor the store has
    dropped: int  # messages of a non-reliable topic that were lost for lack of credit
    last_delivered_ms: int | None
    consumer_left_ms: int | None  # when the last consumer left


class TopicState(TypedDict, total=False):
    """A topic's answer to `Describe`, as far as it is used here."""

    producers: int
    next_offset: int
    durable_end: int
    start_offset: int
    messages_in: int
    last_published_ms: int | None
    failure: str | None
    failure_code: str | None
    upload_failure: str | None
    uploads_stopped: bool
