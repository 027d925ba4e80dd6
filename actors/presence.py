"""What the consumers of a subscription are up to, for `explain`: who has room, who was heard of, who is gone; pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypedDict

from ister.actors.selection import Member

SHOWN_MAX: Final = 16  # consumers that are named; the numbers count all


class Silent(TypedDict, total=False):
    """A consumer of which nothing was heard for longer than a client may be silent."""

    consumer: int  # its number in the subscription
    client: str  # what its client calls itself
    messages: int  # that it holds
    heard_ms: int  # when it last said something (unix ms)
    connected: bool  # False: its connection is known to be gone


class Presence(TypedDict, total=False):
    """The consumers' part of `ister.actors.explain.State`."""

    consumers: int  # attached
    ready: int  # of those that are heard of (of Failover the active one): with credit, and a connection that takes
    no_credit: int  # of those, without message or byte credit
    no_credit_heard_ms: int | None  # of these, when the most silent one last said something
    connection_full: int  # of those, whose connection takes nothing
    crowded: int  # of those, that hold as many pieces as a consumer may
    leaving: int  # of those, that are closing, or opening again
    silent: list[Silent]  # of those, not heard of for too long, the most silent first; the first few
    silence_ms_max: int  # after so long such a consumer is let go


def presence(
    members: Sequence[Member],
    active: Member | None,
    now_s: float,
    now_ms: int,
    *,
    heartbeat_ms: int,
    session_timeout_ms: int,
) -> Presence:
    """Say what a subscription's consumers are up to.

    `active`: the only one that is given anything, where there is such a one. A client says something at least every
    `heartbeat_ms`: one that has been silent for half as long again is not well.
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
