"""The state of a subscription's consumers for `explain`: who has credit, who is silent, who is gone; pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypedDict

from ister.actors.selection import Member

SHOWN_MAX: Final = 16  # consumers that are named; the numbers count all


class Silent(TypedDict, total=False):
    """A consumer that has been silent for longer than a client may be."""

    consumer: int  # its number in the subscription
    client: str  # the name that its client gave itself
    messages: int  # messages that it holds
    heard_ms: int  # when it last said something (unix ms)
    connected: bool  # False: its connection is known to be gone


class Presence(TypedDict, total=False):
    """The consumers' part of `ister.actors.explain.State`."""

    consumers: int  # attached
    ready: int  # of those not silent (of Failover the active one): with credit, and room on the connection
    no_credit: int  # of those not silent: without credit for messages or bytes
    no_credit_heard_ms: int | None  # the earliest time at which one of these was last heard
    connection_full: int  # of those not silent: with a full connection
    crowded: int  # of those not silent: holding as many ranges as a consumer may
    leaving: int  # of those not silent: closing, or opening again
    silent: list[Silent]  # those silent for too long, the longest first; the first few
    silence_ms_max: int  # after this long, a silent consumer's session ends


def presence(
    members: Sequence[Member],
    active: Member | None,
    now_s: float,
    now_ms: int,
    *,
    heartbeat_ms: int,
    session_timeout_ms: int,
) -> Presence:
    """Return the state of a subscription's consumers.

    `active` is the one that gets messages, in a Failover subscription. A client sends something at least every
    `heartbeat_ms`; one that has been silent for 1.5 times as long counts as silent.
    """

    def heard_ms(member: Member) -> int:
        return now_ms - round((now_s - member.heard_s()) * 1000)

    silent = [
        member
        for member in members
        if not member.connected() or (now_s - member.heard_s()) * 1000 > 1.5 * heartbeat_ms
    ]
    silent.sort(key=heard_ms)
    gone = {member.key for member in silent}
    takers = [member for member in members if member.key not in gone and (active is None or member is active)]
    dry = [member for member in takers if member.messages <= 0 or member.bytes <= 0]
    found: Presence = {
        "consumers": len(members),
        "ready": sum(member.ready for member in takers),
        "no_credit": len(dry),
        "no_credit_heard_ms": min(map(heard_ms, dry), default=None),
        "connection_full": sum(member.blocked_by == "full" for member in takers),
        "crowded": sum(member.blocked_by == "crowded" for member in takers),
        "leaving": sum(member.blocked_by == "leaving" for member in takers),
        "silent": [
            {
                "consumer": member.key,
                "client": member.client,
                "messages": member.outstanding,
                "heard_ms": heard_ms(member),
                "connected": member.connected(),
            }
            for member in silent[:SHOWN_MAX]
        ],
        "silence_ms_max": session_timeout_ms,
    }
    return found
