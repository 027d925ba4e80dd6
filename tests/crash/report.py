"""The results of a crash campaign: as plain values, and as tables."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

from tests.crash.oracle import Oracle


@dataclass(frozen=True, slots=True)
class Kill:
    """A fault of the campaign, for the history; `at_s` since the campaign began."""

    round: int
    at_s: float
    what: str


@dataclass(slots=True)
class Result:
    """The results of a campaign."""

    seed: int
    rounds: int = 0
    seconds: float = 0.0
    kills: list[Kill] = field(default_factory=list)
    by_kind: dict[str, list[float]] = field(default_factory=dict)  # recovery times, in seconds
    oracle: Oracle = field(default_factory=lambda: Oracle(lambda: time.time() * 1000))
    folder: str = ""
    client: str = ""  # the language of two of three clients, if it is not Python

    @property
    def failed(self) -> bool:
        """Whether anything was violated."""
        return bool(self.oracle.violations)


def describe(result: Result) -> dict[str, Any]:
    """Return the results as plain values; times in seconds."""
    counts = result.oracle.counts
    recoveries = [took for each in result.by_kind.values() for took in each]
    kinds: dict[str, int] = {}
    for kill in result.kills:
        kinds[kill.what] = kinds.get(kill.what, 0) + 1
    return {
        "seed": result.seed,
        "client": result.client or "python",
        "rounds": result.rounds,
        "seconds": round(result.seconds, 1),
        "kills": kinds,
        "messages_with_receipt": counts["receipts"],
        "messages_sent": counts["sent"],
        "refused": counts["refused"],
        "abandoned": counts["abandoned"],
        "lost": counts["violation lost"],
        "duplicates_stored": counts["violation stored-twice"],
        "duplicates_delivered": counts["delivered again"],
        "delivered": counts["delivered"],
        "delayed": counts["sent with a time"],
        "poison": counts["sent poison"],
        "dead_letters": counts["buried"],
        "dead_letters_again": counts["buried again"],
        "keys_handed_over": counts["keys handed over"],
        "seeks": counts["moved"],
        "read": counts["read"],
        "acknowledged_confirmed": counts["confirmed"],
        "acknowledged_came_back": counts["violation acknowledged-came-back"],
        "recovery_s_median": round(statistics.median(recoveries), 3) if recoveries else None,
        "recovery_s_max": round(max(recoveries), 3) if recoveries else None,
        "recovery_s": {
            kind: {
                "median": round(statistics.median(times), 3),
                "max": round(max(times), 3),
                "rounds": len(times),
            }
            for kind, times in sorted(result.by_kind.items())
        },
        "messages_per_second": round(counts["receipts"] / result.seconds, 1) if result.seconds else 0,
        "counts": dict(sorted(counts.items())),
        "violations": [violation._asdict() for violation in result.oracle.violations],
        "history": [[kill.round, kill.at_s, kill.what] for kill in result.kills],
        "folder": result.folder if result.failed else None,
    }


def print_tables(result: Result) -> None:
    """Print the results as tables."""
    from rich.console import Console
    from rich.table import Table

    told = describe(result)
    console = Console()
    kills = Table(title="kills", title_justify="left")
    for heading, side in (
        ("what", "left"),
        ("times", "right"),
        ("recovery median", "right"),
        ("max", "right"),
    ):
        kills.add_column(heading, justify=side)  # type: ignore[arg-type]
    for kind, times in sorted(told["kills"].items()):
        took = told["recovery_s"].get(kind)
        kills.add_row(
            kind, str(times), *((f"{took['median']:.2f} s", f"{took['max']:.2f} s") if took else ("", ""))
        )
    console.print(kills)
    table = Table(
        title=f"crash campaign, seed {result.seed}, clients: {told['client']}",
        title_justify="left",
        show_header=False,
    )
    for name, value in (
        ("rounds", f"{told['rounds']} in {told['seconds']:.0f} s"),
        (
            "messages with a receipt",
            f"{told['messages_with_receipt']:,} ({told['messages_per_second']:,.0f}/s)",
        ),
        ("lost", str(told["lost"])),
        ("stored twice", str(told["duplicates_stored"])),
        ("delivered", f"{told['delivered']:,}, and again (legal): {told['duplicates_delivered']:,}"),
        ("acknowledgments confirmed", f"{told['acknowledged_confirmed']:,}"),
        ("confirmed and given again", str(told["acknowledged_came_back"])),
        ("poison and dead letters", f"{told['poison']:,} and {told['dead_letters']:,}"),
        (
            "also",
            (
                f"{told['delayed']:,} delayed, {told['keys_handed_over']:,} keys handed over, "
                f"{told['seeks']:,} seeks, {told['read']:,} read"
            ),
        ),
        ("recovery", f"median {told['recovery_s_median']} s, max {told['recovery_s_max']} s"),
        ("violations of any kind", str(len(told["violations"]))),
    ):
        table.add_row(name, value)
    console.print(table)
    for violation in told["violations"][:20]:
        console.print(f"[red]{violation['kind']}[/red]: {violation['text']}", soft_wrap=True)
    if result.failed:
        console.print(f"counts: {told['counts']}", soft_wrap=True)
        again = f" CLIENT={result.client}" if result.client else ""
        console.print(f"again: make crash ROUNDS={max(result.rounds, 1)} SEED={result.seed}{again}")
        console.print(f"log and data are kept in {result.folder}; the last kills:")
        for kill in result.kills[-5:]:
            console.print(f"  round {kill.round}, {kill.at_s} s: {kill.what}")
