"""Why nothing flows: turns the state of a subscription and its topic into reasons in plain words; pure.

What is asked is in `explain_state.py`, the words for times and holders in `explain_words.py`.

Invariants
- reasons come in the order in which to look at them: first those that stop everything, last those that delay messages
- each reason says what is the case, since or until when if known, and what to do about it
- if nothing is delivered there is at least one reason
- a reason claims only what the numbers show: a consumer without credit is not necessarily a slow program
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

from ister.actors.explain_state import State, Stop, TopicState
from ister.actors.explain_words import ago, because, but_for, duration, held_by, since_when, until, up_to
from ister.actors.presence import Silent
from ister.words import counted

Reason = dict[str, Any]  # code, text, and the numbers it is about

# While one of these applies, nothing at all is delivered.
STOPPING: Final = frozenset(
    {
        "starting",
        "topic-failed",
        "paused",
        "poison-block",
        "damage",
        "no-consumer",
        "standby-only",
        "handing-over",
        "consumer-silent",
        "consumers-leaving",
        "connection-full",
        "no-credit",
        "too-many-pieces",
        "too-many-unacknowledged",
        "cloud-fetch",
    }
)
RECENT_MS: Final = 2_000  # deliveries or publishes this recent count as going on
SHOWN_MAX: Final = 3  # holders named in a text; the numbers have more
_BY_ITSELF: Final = (
    "log-failed",
    "disk-full",
    "unavailable",
    "internal",
    "store-behind",
)  # the last reasons of messages that a consumer was lost with


def explain(
    name: str, subscription: Mapping[str, Any] | None, topic: Mapping[str, Any] | None, now_ms: int
) -> dict[str, Any]:
    """Return `state`, `flowing`, `reasons` and `numbers` of the subscription called `name`.

    An answer that is missing is None. `state`: "flowing" (messages are delivered, or are about to be), "caught-up"
    (nothing is left to deliver), "waiting" (what is left waits for its time, its turn or an acknowledgment) or
    "stopped". `flowing` is true for the first two: nothing holds up the next message.
    """
    state, source = cast(State, subscription or {}), cast(TopicState, topic or {})
    reasons = list(
        _stops(name, None if subscription is None else state, None if topic is None else source, now_ms)
    )
    reasons += _waits(state, now_ms)
    if source.get("uploads_stopped"):
        text = (
            f"uploads of the topic stopped: {source.get('upload_failure')}; messages are "
            "delivered, and kept here alone until that is put right"
        )
        reasons.append(_reason("uploads-stopped", text))
    left = _deliverable(state)
    if not left and subscription is not None:
        reasons += _ends(state, source, now_ms)
    stopped = any(reason["code"] in STOPPING and not _goes_on(reason, state) for reason in reasons)
    last = state.get("last_delivered_ms")
    recent = last is not None and now_ms - last < RECENT_MS
    numbers = {
        "subscription": dict(state),
        "topic": {key: source.get(key) for key in TopicState.__annotations__},
    }
    if stopped or subscription is None:
        stands = "stopped"
    elif left > 0 or recent:
        stands = "flowing"
    else:
        caught_up = any(reason["code"] == "caught-up" for reason in reasons)
        stands = "caught-up" if caught_up else "waiting"
    flowing = stands in ("flowing", "caught-up")
    return {"state": stands, "flowing": flowing, "reasons": reasons, "numbers": numbers}


def _goes_on(reason: Reason, state: State) -> bool:
    """Whether messages are delivered nevertheless, such as the durable ones of a topic that accepts no new ones."""
    if reason["code"] in ("consumer-silent", "consumers-leaving"):  # the other consumers get the messages
        return bool(state.get("ready"))
    return reason["code"] == "topic-failed" and bool(reason.get("serves"))


def _deliverable(state: State) -> int:
    """Return how many messages could be delivered now if nothing stopped the subscription."""
    waiting = sum(_counts(state, "in_flight", "backoff", "delayed", "keyed", "burying"))
    if "unacknowledged" in state:
        return max(0, state["unacknowledged"] - waiting)
    return state.get("due", 0) + max(0, state.get("durable_end", 0) - state.get("position", 0))


def _stops(name: str, state: State | None, topic: TopicState | None, now_ms: int) -> Iterator[Reason]:
    """Yield the reasons that stop all deliveries."""
    if topic is None:
        yield _reason("topic-failed", "the topic's process does not answer: it is being restarted; ask again")
    elif topic.get("failure") and not (
        topic.get("uploads_stopped") and topic["failure_code"] == "store-failed"
    ):
        yield _failed(topic, state)
    if state is None:
        yield _reason(
            "starting", "the subscription's process does not answer: it is being restarted; ask again"
        )
        return
    if state.get("failure"):
        text = f"the subscription delivers nothing: {state['failure']}"
        if state.get("failure_code") in _BY_ITSELF:
            text += "; consumers that open it again are served once that is over"
        yield _reason("topic-failed", text)
    elif state.get("starting"):
        started_ms = state.get("started_ms")
        since = "" if started_ms is None else f", since {ago(started_ms, now_ms)}"
        text = (
            f"the topic has not reported its offsets yet{since}: it is being started, or waits for "
            "the store; ask again, and see 'ister topic show' if it stays so"
        )
        yield _reason("starting", text, started_ms=started_ms)
    if state.get("paused"):
        yield _reason("paused", "the subscription is paused: nothing is delivered until somebody resumes it")
    poison = state.get("poison")
    if poison:
        yield _reason("poison-block", _poison_text(poison, now_ms), **_stop_numbers(poison))
    damage = state.get("damage")
    if damage:
        text = (
            f"offsets {damage.get('first')} to before {damage.get('end')} are damaged{because(damage)}; nothing is "
            "skipped automatically: repair the topic (skip damaged) to continue after them"
        )
        yield _reason("damage", text, **_stop_numbers(damage))
    yield from _consumers(name, state, now_ms)
    if state.get("tracked_full"):
        text = (
            f"too many messages are delivered and not acknowledged, with gaps between them: it takes "
            f"{state.get('tracked', 0)} bytes of at most {state.get('tracked_max', 0)} to keep track of them: "
            f"acknowledge the oldest, from offset {state.get('cursor', 0)} on"
        )
        yield _reason(
            "too-many-unacknowledged",
            text,
            tracked=state.get("tracked"),
            tracked_max=state.get("tracked_max"),
        )
    fetch = state.get("fetch")
    if fetch:
        here = (
            f"cannot be read from the local log ({fetch['here']})"
            if fetch.get("here")
            else "is in the store alone"
        )
        text = f"offset {fetch.get('first')} {here}, and is being brought back"
        text += f"{since_when(fetch, now_ms)}{because(fetch)}; "
        text += (
            "it is tried again until the store returns it" if fetch.get("text") else "it continues by itself"
        )
        yield _reason("cloud-fetch", text, **_stop_numbers(fetch))


def _consumers(name: str, state: State, now_ms: int) -> Iterator[Reason]:
    """Yield the reasons why no consumer can take anything."""
    consumers = state.get("consumers", 0)
    if not consumers:
        left_ms = state.get("consumer_left_ms")
        since = "" if left_ms is None else f"; the last one left {ago(left_ms, now_ms)}"
        yield _reason("no-consumer", f"no consumer is connected{since}: start one of subscription {name!r}")
        return
    if state.get("seeking") is not None:
        text = f"the subscription is being moved to {state['seeking']}"
        if giving := state.get("handing_over"):
            text += f"; {giving} of {counted(consumers, 'consumer')} must still give back what they hold"
        yield _reason("handing-over", f"{text}; then it continues by itself", consumers=giving)
    elif state.get("handing_over"):
        text = (
            "the previously active consumer must acknowledge, or give back, what it holds; "
            "then the next one starts by itself"
        )
        yield _reason("handing-over", text, consumers=state["handing_over"])
    silent = state.get("silent", [])
    if silent:
        yield _silence(silent, state, now_ms)
    if state.get("ready", 0):
        return
    full, dry, standby = _counts(state, "connection_full", "no_credit", "standby")
    if standby >= consumers:
        yield _reason(
            "standby-only", "all consumers are on standby, none is active; ask again", standby=standby
        )
    if full:
        text = (
            f"the connections of {full} of {counted(consumers, 'consumer')} accept nothing: their programs, or the "
            "network, do not keep up"
        )
        yield _reason("connection-full", text, consumers=full)
    crowded, leaving = _counts(state, "crowded", "leaving")
    if crowded:
        text = (
            f"{crowded} of {counted(consumers, 'consumer')} reached the limit of pieces a consumer may hold: have them "
            "acknowledge, or give back, what they have; "
            f"{counted(state.get('in_flight', 0), 'message is', 'messages are')} with them"
        )
        yield _reason("too-many-pieces", text, consumers=crowded)
    if leaving:
        text = f"{leaving} of {counted(consumers, 'consumer')} must finish closing or opening; ask again"
        yield _reason("consumers-leaving", text, consumers=leaving)
    if dry and not _idle(state):
        heard_ms = state.get("no_credit_heard_ms")
        heard = (
            "" if heard_ms is None or silent else f" (each was heard of within {duration(now_ms - heard_ms)})"
        )
        text = (
            f"no credit is left at {dry} of {counted(consumers, 'consumer')}: they were sent as much "
            "as they asked for, "
            f"and did not ask for more{heard}; {counted(state.get('in_flight', 0), 'message is', 'messages are')} with "
            "consumers; have their programs take "
            "more, or start another consumer"
        )
        yield _reason("no-credit", text, consumers=dry, in_flight=state.get("in_flight"))


def _silence(silent: list[Silent], state: State, now_ms: int) -> Reason:
    """Return the reason for consumers that are killed, stopped, or cut off."""
    who = []
    for one in silent[:SHOWN_MAX]:
        client = f" ({one['client']:.60})" if one.get("client") else ""
        lost = "" if one.get("connected", True) else ", its connection is lost"
        holds = f", and holds {counted(one['messages'], 'message')}" if one.get("messages") else ""
        heard = f"was last heard of {ago(one.get('heard_ms', now_ms), now_ms)}{lost}{holds}"
        who.append(f"consumer {one.get('consumer')}{client} {heard}")
    limit_ms = state.get("silence_ms_max")
    after = "" if limit_ms is None else f" {duration(limit_ms)} after its last word"
    text = (
        f"{'; '.join(who)}: its program was killed or stopped, or the network is cut; unless it comes "
        "back it is removed"
        f"{after}, and what it holds is delivered to others"
    )
    return _reason("consumer-silent", text, consumers=len(silent), silent=silent)


def _failed(topic: TopicState, state: State | None) -> Reason:
    """Return the reason for a topic that accepts nothing."""
    code, failure = topic.get("failure_code"), topic["failure"]
    serves = state is not None and not state.get("failure") and not state.get("starting")
    if code == "fenced":
        text = (
            f"another broker has taken the topic over ({failure}): nothing is accepted here any more, "
            "and that broker does not know what is acknowledged here; "
            "let producers and consumers connect to that broker"
        )
        return _reason("topic-failed", text)
    text = f"the topic accepts no messages: {failure}"
    if code in _BY_ITSELF:
        text += "; it is tried again by itself"
    if serves:
        text += "; what was durable before is still delivered"
    return _reason("topic-failed", text, serves=serves or None)


def _waits(state: State, now_ms: int) -> Iterator[Reason]:
    """Yield the reasons why some messages are not delivered now."""
    if state.get("keyed"):
        keys = [
            f"{holder.get('key', '')!r:.60} with {held_by(holder, now_ms)}"
            for holder in state.get("keys", [])[:SHOWN_MAX]
        ]
        text = counted(
            state["keyed"],
            "message waits for an earlier one of its",
            "messages wait for an earlier one of their",
        )
        text += " key to be acknowledged"
        text += f": {'; '.join(keys)}" if keys else ""
        yield _reason("waiting-for-key", text, messages=state["keyed"], keys=state.get("keys", []))
    if state.get("backoff"):
        until_ms = state.get("backoff_until_ms")
        text = (
            f"{counted(state['backoff'], 'message failed, and waits', 'messages failed, and wait')} for "
            f"another try{until(until_ms, now_ms)}"
        )
        yield _reason("waiting-for-backoff", text, messages=state["backoff"], until_ms=until_ms)
    if state.get("delayed"):
        until_ms = state.get("delayed_until_ms")
        text = (
            f"{counted(state['delayed'], 'message waits for its', 'messages wait for their')} time of "
            f"delivery{until(until_ms, now_ms)}"
        )
        yield _reason("waiting-for-delay", text, messages=state["delayed"], until_ms=until_ms)
    if state.get("burying") and state.get("bury_trouble"):
        target = state.get("dead_letter_topic", "")
        text = (
            f"{counted(state['burying'], 'message is', 'messages are')} to go to dead-letter topic "
            f"{target!r}: {state['bury_trouble']}"
        )
        yield _reason("dead-letter-delayed", text, messages=state["burying"], dead_letter_topic=target)
    if state.get("dead_lettered"):
        target = state.get("dead_letter_topic", "")
        last = state.get("given_up")
        which = ""
        if last is not None:
            which = f"; the last one, offset {last.get('first')}, after {counted(last.get('attempts', 0), 'attempt')}"
            which += because(last) + since_when(last, now_ms)
        text = (
            f"{counted(state['dead_lettered'], 'message', 'messages')} failed too often and went to "
            f"dead-letter topic {target!r}{which}: "
            "look at them, send them back or throw them away with ister dlq list, redrive and purge"
        )
        yield _reason("dead-letters", text, messages=state["dead_lettered"], dead_letter_topic=target)


def _ends(state: State, topic: TopicState, now_ms: int) -> Iterator[Reason]:
    """Yield the reasons why nothing is left to deliver."""
    if state.get("in_flight"):
        holders = state.get("holders", [])
        held = "; ".join(held_by(holder, now_ms) for holder in holders[:SHOWN_MAX])
        text = (
            f"everything is delivered; {counted(state['in_flight'], 'message waits', 'messages wait')} to "
            "be acknowledged"
        )
        text += f", with {held}" if held else ""
        if timeout_ms := state.get("ack_timeout_ms"):
            text += f"; what is not acknowledged {duration(timeout_ms)} after its delivery is delivered again"
        yield _reason("unacknowledged", text, messages=state["in_flight"], holders=holders)
    if not _idle(state):
        return
    behind = topic.get("next_offset", 0) - state.get("durable_end", 1 << 63)
    if behind > 0:
        trouble = topic.get("upload_failure")
        text = f"{counted(behind, 'message', 'messages')} arrived and cannot be delivered before they are durable"
        yield _reason("waiting-for-durability", text + (f": {trouble}" if trouble else ""), messages=behind)
        return
    if not state.get("in_flight"):
        done = "delivered and acknowledged" if "durable_end" in state else "delivered"
        yield _reason("caught-up", f"every message{up_to(state)} is {done}{but_for(state)}: nothing is left")
    last_ms, producers = topic.get("last_published_ms"), topic.get("producers")
    if producers is None or (last_ms is not None and now_ms - last_ms < RECENT_MS):
        return
    last = (
        "none has come since the topic was started"
        if last_ms is None
        else f"the last message came {ago(last_ms, now_ms)}"
    )
    some = counted(producers, "producer is connected, and sends", "producers are connected, and send")
    who = f"{some} nothing" if producers else "no producer is connected"
    yield _reason("producer-not-publishing", f"{who}; {last}", producers=producers, last_published_ms=last_ms)


def _counts(state: State, *keys: str) -> list[int]:
    numbers = cast(Mapping[str, int | None], state)
    return [numbers.get(key) or 0 for key in keys]


def _idle(state: State) -> bool:
    """Whether every message is acknowledged or held by a consumer."""
    waiting = sum(_counts(state, "due", "backoff", "delayed", "keyed", "burying"))
    return not waiting and state.get("position", 0) >= state.get("durable_end", 0)


# ---- words -----------------------------------------------------------------------------------------------------------


def _reason(code: str, text: str, **numbers: Any) -> Reason:
    return {"code": code, "text": text} | {key: value for key, value in numbers.items() if value is not None}


def _stop_numbers(stop: Stop) -> dict[str, Any]:
    return {key: value for key, value in stop.items() if key != "text"}


def _poison_text(poison: Stop, now_ms: int) -> str:
    return (
        f"the message at offset {poison.get('first')} failed "
        f"{counted(poison.get('attempts', 0), 'time')} and blocks the "
        f"subscription{since_when(poison, now_ms)}{because(poison)}; unblock it: retry, drop or dead-letter"
    )
