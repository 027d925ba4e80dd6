"""The tables of README.md and benchmarks/README.md, from files of results: what was measured is copied by no hand.

    python benchmarks/tables.py build/bench/peers.json      a line for each system beside its durability, and the goals
    python benchmarks/tables.py build/bench/scaling.json    a line for each number of workers
    python benchmarks/tables.py against.json                a line for each figure of two builds (`against.py --json`)
    python benchmarks/tables.py ratio.json                  a line for each case beside the bare transfer

Prints Markdown: medians; ratios with the lowest and the highest of a round.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from goals import HEAD, by_name, cells, that_ran

from ister.bench.results import FORMAT, SYSTEM, in_figures, middle

FLOWS: Final = {"100": "100 B", "1k": "1 KiB", "16k": "16 KiB"}
LEVELS: Final = ("fsync", "os", "none")
ROLES: Final = ("worker", "producer", "consumer")
ABSENT: Final = ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a table; columns whose head begins with ">" are aligned to the right."""
    lines = ["| " + " | ".join(each.lstrip(">") for each in head) + " |"]
    lines.append("|" + "|".join("---:" if each.startswith(">") else "---" for each in head) + "|")
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def rounded(value: float) -> str:
    """Return a number with three digits that count."""
    if not value:
        return "0"
    size = 10 ** max(0, len(str(int(abs(value)))) - 3)
    return f"{round(value / size) * size:,}" if abs(value) >= 100 else f"{value:.3g}"


# ---- peers ------------------------------------------------------------------------------------------------------


def peers(found: Mapping[str, Any]) -> list[str]:
    """Return a line for each system; Ister has one for each durability and kind of calls."""
    told = {(each["system"], each["name"]): each for each in found["results"]}

    def cell(system: str, name: str, *figures: str) -> str:
        have = told.get((system, name), {}).get("figures", {})
        return " / ".join(rounded(middle(have[each])) for each in figures if each in have)

    def line(label: str, system: str, durability: str, row_of: Callable[[str], str], rest: bool) -> list[str]:
        flows = [cell(system, row_of(row), "messages_per_second") for row in FLOWS]
        lone = cell(system, row_of("lone"), "messages_per_second") if rest else ABSENT
        latency = [
            cell(system, row_of("latency"), f"{what}_p50_us", f"{what}_p99_us") if rest else ABSENT
            for what in ("receipt", "delivered")
        ]
        return [label, durability, *flows, lone, *latency]

    flows = any(each["name"] in FLOWS for each in found["results"])
    rows: list[list[str]] = []
    for level in LEVELS:
        for api in ("message", "batch"):

            def ours(row: str, level: str = level, api: str = api) -> str:
                return f"{row} {level} {api}" if row in FLOWS else f"{row} {level}"

            durability = next(
                (
                    each["durability"]
                    for (system, name), each in told.items()
                    if system == SYSTEM and f" {level}" in name
                ),
                "",
            )
            label = f"**Ister**, {api} calls" if flows else "**Ister**"
            rows.append(line(label, SYSTEM, durability, ours, api == "message"))
    for system in dict.fromkeys(each["system"] for each in found["results"]):
        if system != SYSTEM:
            durability = next(each["durability"] for each in found["results"] if each["system"] == system)
            rows.append(line(system, system, durability, lambda row: row, True))
    head = ["system", "an answer promises", *(f">{each}" for each in FLOWS.values()), ">one at a time"]
    head += [">receipt p50 / p99, us", ">delivered p50 / p99, us"]
    used = [column for column in range(len(head)) if column < 2 or any(row[column] for row in rows)]
    rows = [row for row in rows if any(row[2:])]
    return table([head[column] for column in used], ([row[column] for column in used] for row in rows))


def goals(found: Mapping[str, Any]) -> list[str]:
    """Return a line for each goal of rows that ran."""
    results = by_name(found["results"])
    rows = [cells(goal, results) for goal in that_ran(results)]
    return table([*(HEAD[:2]), ">Ister's", ">the other's", ">ratio", *HEAD[5:]], rows)


# ---- scaling ----------------------------------------------------------------------------------------------------


def scaling(found: Mapping[str, Any]) -> list[str]:
    """Return a line for each mode and number of workers."""
    rows = []
    for each in found["results"]:
        figures = {name: middle(figure) for name, figure in each["figures"].items()}
        parts = " / ".join(f"{figures[f'cpu_{role}_us']:.2f}" for role in ROLES)
        rows.append(
            [
                each["series"],
                str(each["x"]),
                rounded(figures["messages_per_second"]),
                f"{figures['cpu_seconds_per_million']:.2f}",
                parts,
            ]
        )
    return table(
        ["mode", ">workers", ">delivered/s", ">CPU s a million", "worker / producer / consumer"], rows
    )


# ---- two builds -------------------------------------------------------------------------------------------------


def against(found: Mapping[str, Any]) -> list[str]:
    """Return a line for each figure of a row, with the ratio of the CPU time by process in the first."""
    rows = []
    for each in found["rows"]:
        cpu = each["cpu_us"]
        told = "; ".join(
            f"{role} {cpu[role]['ratio']:.2f}"
            for role in ROLES
            if role in cpu and cpu[role]["ratio"] is not None
        )
        for name, figure in each["figures"].items():
            ratio = ABSENT
            if figure["ratio"] is not None:
                ratio = f"{figure['ratio']:.2f} ({figure['low']:.2f} to {figure['high']:.2f})"
            label = f"`{each['row']}`, {name}"
            rows.append([label, in_figures(figure["base"]), in_figures(figure["new"]), ratio, told])
            told = ABSENT
    return table(["row", ">base", ">now", "ratio", "CPU"], rows)


def ratio(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each case."""
    rows = [
        [
            _case(each["case"]),
            rounded(each["ister"]),
            rounded(each["road"]),
            f"{each['ratio']:.0%}",
            f"{each['low']:.0%} to {each['high']:.0%}",
        ]
        for each in found
    ]
    return table(["strategy, size, calls", ">Ister", ">bare transfer", ">ratio", "rounds"], rows)


def _case(name: str) -> str:
    strategy, size, api = name.split()
    words = {"1024": "1 KiB", "16384": "16 KiB"}.get(size, f"{size} B")
    return f"{strategy}, {words}, {'batch calls' if api == 'batch' else 'one call a message'}"


def table_of(found: Any) -> list[str]:
    """Return the table of a file, whichever script wrote it."""
    if isinstance(found, list):
        return ratio(found)
    if found.get("format") != FORMAT:
        return against(found)
    if all(each["group"] == "scaling" for each in found["results"]):
        return scaling(found)
    return [*peers(found), "", *goals(found)]


def main() -> int:
    """Print the tables."""
    if len(sys.argv) < 2 or {"-h", "--help"} & set(sys.argv):
        asked = len(sys.argv) > 1
        print(__doc__, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    for name in sys.argv[1:]:
        try:
            lines = table_of(json.loads(Path(name).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise SystemExit(f"{name}: {error}") from None
        except (KeyError, TypeError, AttributeError):
            raise SystemExit(f"{name} is not a file of results that a script of this folder wrote") from None
        print("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
