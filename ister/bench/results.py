"""The file of results: what was measured, round by round, on which machine, with which versions. Pure.

One JSON object:

    format    "ister-bench-1"
    about     machine and versions (`about.py`)
    results   a list of what was measured:
      name        unique together with `system`; two files are compared by it
      what        the workload in words
      system      "Ister", or the name of a peer
      durability  what a receipt promises: "fsync", "os", "cloud", "none", or a peer's own words
      group       "throughput", "latency", "topics", "consumers", "backlog", "scaling": the plot it belongs to
      series      the line of that plot, "" for the system's name
      x           the value on that plot's axis (number of topics, workers, ...), or null
      figures     by name: {"unit", "better" ("higher" or "lower"), "rounds": [value of each round]}
      curves      by name: [[percentile, value in us], ...] of all rounds together
      seconds     how long each round was measured; missing where nobody said

Unknown keys are kept; a reader ignores what it does not know.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from ister.errors import UsageError

FORMAT: Final = "ister-bench-1"
SYSTEM: Final = "Ister"
# of the percentile curves: each step towards 100 % has a tenth of what is left
CURVE: Final = (0, 10, 25, 50, 75, 90, 95, 97.5, 99, 99.5, 99.75, 99.9, 99.95, 99.99, 100)
UNITS: Final = {"_us": "us", "_mb": "MB", "_percent": "%", "_per_second": "/s", "_per_million": "s"}
MORE_IS_BETTER: Final = ("_per_second",)


def figure(name: str, rounds: Sequence[float]) -> dict[str, Any]:
    """Return a figure; its unit, and whether more is better, follow from the end of its name."""
    unit = next((unit for end, unit in UNITS.items() if name.endswith(end)), "")
    return {
        "unit": unit,
        "better": "higher" if name.endswith(MORE_IS_BETTER) else "lower",
        "rounds": list(rounds),
    }


def result(
    name: str,
    what: str,
    rounds: Sequence[Mapping[str, float]],
    *,
    group: str,
    durability: str,
    system: str = SYSTEM,
    series: str = "",
    x: float | None = None,
    curves: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    seconds: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Return an entry of `results`; `rounds` has the figures of each round by name, `seconds` how long each was."""
    return {
        "name": name,
        "what": what,
        "system": system,
        "durability": durability,
        "group": group,
        "series": series,
        "x": x,
        "figures": {each: figure(each, [one[each] for one in rounds]) for each in rounds[0]},
        "curves": {each: [list(point) for point in points] for each, points in (curves or {}).items()},
        **({"seconds": [round(each, 3) for each in seconds]} if seconds else {}),
    }


def document(about: Mapping[str, Any], results: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what a file of results has."""
    return {"format": FORMAT, "about": dict(about), "results": [dict(each) for each in results]}


def curve_of(nanoseconds: Sequence[int]) -> list[tuple[float, float]]:
    """Return the percentile curve of values in ns, in us; each value of it was measured. Empty for none."""
    ordered = sorted(nanoseconds)
    if not ordered:
        return []
    last = len(ordered) - 1
    return [
        (part, round(ordered[max(0, min(last, -int(-len(ordered) * part // 100) - 1))] / 1e3, 1))
        for part in CURVE
    ]


def in_figures(value: float) -> str:
    """Return a number as people write it: whole above a thousand, four digits below, never with an exponent."""
    if abs(value) >= 1000 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 0.001 else f"{value:.6f}"


def middle(figure: Mapping[str, Any]) -> float:
    """Return the median of a figure's rounds."""
    return float(statistics.median(figure["rounds"]))


def spread(figure: Mapping[str, Any]) -> float:
    """Return how far a figure's rounds are apart, highest less lowest."""
    return float(max(figure["rounds"]) - min(figure["rounds"]))


def parse(text: str, name: str) -> dict[str, Any]:
    """Return the content of a file of results called `name`; raises `UsageError` that says what is wrong with it."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{name} is not JSON: {error}") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UsageError(
            f'{name} has no results: its "format" is not {FORMAT!r}; ister bench --json FILE writes such a file'
        )
    wrong = next(_wrong(found), None)
    if wrong is not None:
        raise UsageError(f"{name}: {wrong}")
    return found


def _wrong(found: dict[str, Any]) -> Iterator[str]:
    if not isinstance(found.get("about"), dict):
        yield '"about" is missing'
    results = found.get("results")
    if not isinstance(results, list):
        yield '"results" is missing'
        return
    seen = set()
    for number, each in enumerate(results):
        if not isinstance(each, dict):
            yield f"result {number} is not an object"
            return
        for key in ("name", "what", "system", "durability", "group"):
            if not isinstance(each.get(key), str):
                yield f'result {number} has no "{key}"'
                return
        identity = (each["system"], each["name"])
        if identity in seen:
            yield f"there are two results {each['name']!r} of {each['system']}"
        seen.add(identity)
        if not isinstance(each.get("figures"), dict):
            yield f'result {each["name"]!r} has no "figures"'
            return
        if not all(_is_number(value) for value in _list(each.get("seconds", []))):
            yield f'result {each["name"]!r} has no numbers in "seconds"'
        for name, one in each["figures"].items():
            rounds = one.get("rounds") if isinstance(one, dict) else None
            if not isinstance(rounds, list) or not rounds or not all(_is_number(value) for value in rounds):
                yield f'figure {name!r} of {each["name"]!r} has no numbers in "rounds"'
            elif one.get("better") not in ("higher", "lower"):
                yield f'figure {name!r} of {each["name"]!r} does not say what is better: "higher" or "lower"'


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [None]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
