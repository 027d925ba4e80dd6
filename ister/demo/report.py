"""The results of the demonstration: a plain map for scripts, two tables for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ister.demo.run import NON_RELIABLE, RELIABLE, Outcome
from ister.show import print_table, size_in_words
from ister.words import counted


def describe(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as one plain map."""
    return {
        "ok": not outcome.problems,
        "problems": outcome.problems,
        "files": len(outcome.source.files),
        "lines": outcome.source.lines,
        "bytes": outcome.source.bytes,
        "seconds": round(outcome.seconds, 2),
        "subscriptions": list(_rows(outcome)),
        "worker_killed": {
            "node": outcome.worker_killed,
            "pid": outcome.pid_killed,
            "pid_after": outcome.pid_after,
        },
        "consumer_stopped": outcome.consumer_stopped,
        "replay": _replay(outcome),
        "actors": list(_actors(outcome)),
    }


def _rows(outcome: Outcome) -> Iterator[dict[str, Any]]:
    for (topic, subscription), verdict in outcome.verdicts.items():
        produced = outcome.produced[topic]
        yield {
            "topic": topic,
            "subscription": subscription,
            "type": outcome.types[topic, subscription],
            "sent": produced.messages,
            "received": verdict.received,
            "redelivered": verdict.redelivered,
            "dropped": outcome.dropped[topic, subscription],
            "lost": outcome.source.lines - verdict.received,
            "messages_per_second": round(verdict.rate),
            "files_verified": verdict.files if topic == RELIABLE else None,
            "ok": not verdict.problems,
        }


def _actors(outcome: Outcome) -> Iterator[dict[str, Any]]:
    for process in outcome.status["processes"]:
        for kind, count in sorted(process["actors"].items()):
            yield {"actor": kind, "count": count, "process": process["node"], "pid": process["pid"]}


def _replay(outcome: Outcome) -> dict[str, Any]:
    replay = outcome.replay
    if replay is None:
        return {}
    messages = replay.from_store + replay.from_log + replay.from_live
    return {
        "messages": messages,
        "from_store": replay.from_store,
        "from_log": replay.from_log,
        "from_live": replay.from_live,
        "local_log_begins_at": replay.local_start,
        "messages_per_second": round(messages / replay.seconds) if replay.seconds else 0,
    }


def _places(outcome: Outcome) -> list[list[Any]]:
    """Return a row for each kind of actor: how many there are, and in which processes."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for each in _actors(outcome):
        rows.setdefault(each["actor"], []).append(each)
    return [
        [
            kind,
            sum(each["count"] for each in places),
            ", ".join(f"{p['process']} ({p['pid']})" for p in places),
        ]
        for kind, places in sorted(rows.items())
    ]


def print_outcome(outcome: Outcome) -> None:
    """Print what was sent and received, where each kind of actor runs, and the verdict."""
    rows = list(_rows(outcome))
    counts = ("sent", "received", "redelivered", "dropped", "lost")
    print_table(
        ["topic, subscription", *counts, "rate"],
        [
            [
                f"{row['topic'].partition('/')[2]} {row['subscription']}",
                *map(row.__getitem__, counts),
                f"{row['messages_per_second'] / 1000:,.0f}k/s",
            ]
            for row in rows
        ],
    )
    print()
    for row in rows:
        print(f"{row['topic']} {row['subscription']}: {_verified(row)}")
    print()
    print_table(
        ["actor", "how many", "process (pid)"],
        _places(outcome),
    )
    print(f"\nstopped half way: {outcome.consumer_stopped}; its messages went to the next in line")
    print(
        f"killed half way:  {outcome.worker_killed}, pid {outcome.pid_killed}, with SIGKILL; "
        f"started again as pid {outcome.pid_after}"
    )
    replay = _replay(outcome)
    if replay:
        print(
            f"read back later:  {counted(replay['messages'], 'message')}, {replay['from_store']:,} of "
            "them from the store, "
            f"{replay['from_log']:,} from the log, {replay['from_live']:,} live"
        )
    lost = sum(row["lost"] for row in rows if row["topic"] == NON_RELIABLE)
    if lost:
        print(
            f"the non-reliable topic lost {lost:,}: in memory of that worker, sent while it was away, or dropped"
        )
    if not outcome.problems:
        print(
            f"\n{counted(outcome.source.lines, 'line')} of {counted(len(outcome.source.files), 'file')} "
            f"({size_in_words(outcome.source.bytes)}) arrived byte for byte, at every reliable subscription, "
            f"in {outcome.seconds:.1f} s"
        )


def _verified(row: dict[str, Any]) -> str:
    if not row["ok"]:
        return "NOT as it was sent"
    if row["files_verified"] is None:
        return "each line that arrived is the one that was sent"
    order = ", in order" if row["type"] != "shared" else ""
    return f"{counted(row['files_verified'], 'file')}{order}, each with the SHA-256 it has on disk"
