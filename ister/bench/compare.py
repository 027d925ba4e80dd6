"""What got slower between two files of results, beyond noise. Pure.

The rule: a figure has changed if the medians are further apart than `SHARE_LEAST` of the first, and further apart than
the rounds of either file are (highest less lowest). With a single round in either file nothing is known about the
noise, and the medians must be `SHARE_ALONE` apart. Rounds shorter than `SECONDS_LEAST` are named: they are
compared all the same, and not to be relied on. Workloads that only one of the files has are named, not judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from ister.bench.results import middle, spread

SHARE_LEAST: Final = 0.05
SHARE_ALONE: Final = 0.10
SECONDS_LEAST: Final = 0.5  # of a round: a shorter one measures its beginning and the scheduler
MACHINE: Final = (
    "machine",
    "cores",
    "memory_mb",
    "system",
    "file_system",
    "python",
    "profile_guided",
    "compiled",
)

Verdict = Literal["slower", "faster", "same"]


@dataclass(frozen=True, slots=True)
class Change:
    """A figure in both files: medians, the noise of the rounds, and what follows."""

    system: str
    name: str
    figure: str
    unit: str
    before: float
    after: float
    noise: float | None
    verdict: Verdict

    @property
    def ratio(self) -> float | None:
        """The second median as a part of the first; None where that is 0."""
        return self.after / self.before if self.before else None


def judge(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[float | None, Verdict]:
    """Return the noise of a figure, None if nothing is known about it, and whether the figure has changed."""
    first, second = middle(before), middle(after)
    alone = min(len(before["rounds"]), len(after["rounds"])) < 2
    noise = None if alone else max(spread(before), spread(after))
    apart = abs(second - first)
    if apart <= abs(first) * (SHARE_ALONE if alone else SHARE_LEAST) or apart <= (noise or 0.0):
        return noise, "same"
    return noise, "faster" if (second > first) == (after["better"] == "higher") else "slower"


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    """Yield every figure that both files have, in the order of the second."""
    known = {(each["system"], each["name"]): each for each in before["results"]}
    for each in after["results"]:
        other = known.get((each["system"], each["name"]))
        if other is None:
            continue
        for name, figure in each["figures"].items():
            if name in other["figures"]:
                noise, verdict = judge(other["figures"][name], figure)
                yield Change(
                    each["system"],
                    each["name"],
                    name,
                    figure.get("unit", ""),
                    middle(other["figures"][name]),
                    middle(figure),
                    noise,
                    verdict,
                )


def only_in(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return the names of the workloads that the second file does not have."""
    known = {(each["system"], each["name"]) for each in second["results"]}
    return [
        f"{each['system']} {each['name']}"
        for each in first["results"]
        if (each["system"], each["name"]) not in known
    ]


def too_short(found: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return the workloads of which a round was shorter than `SECONDS_LEAST`, with the seconds of the shortest."""
    return [
        (f"{each['system']} {each['name']}", min(seconds))
        for each in found["results"]
        if (seconds := each.get("seconds")) and min(seconds) < SECONDS_LEAST
    ]


def machines_differ(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return in words what differs between the machines and interpreters of two files."""
    a, b = ({"compiled": False, **each["about"]} for each in (before, after))  # older files do not say
    return [f"{name}: {a.get(name)} and {b.get(name)}" for name in MACHINE if a.get(name) != b.get(name)]
