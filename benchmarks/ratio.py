"""How fast is Ister, with all that a broker does, compared with the bare transfer of the same messages?

Runs `road.py` and `ister bench` alternately, so that both meet the same machine, and prints medians, and the median of
the rounds' ratios beside the goal. The first round is a warm-up and does not count.

    python benchmarks/ratio.py                       every case, 3 rounds: about 4 minutes
    python benchmarks/ratio.py --case "reliable 1024 message" --rounds 7
    python benchmarks/ratio.py --json > ratio.json

Both sides are measured by the consumer: messages per second from its first message on. Exit code 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from arguments import made_folder, whole

ROAD: Final = Path(__file__).with_name("road.py")
MESSAGES: Final = {16384: 20_000, 1024: 300_000, 100: 2_000_000}


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison, and the ratio that Ister must reach."""

    strategy: str
    message_bytes: int
    api: str
    goal: float

    @property
    def name(self) -> str:
        """Its name on the command line."""
        return f"{self.strategy} {self.message_bytes} {self.api}"

    @property
    def mode(self) -> str:
        """The mode of `road.py` to compare it with."""
        return "walsync" if self.strategy == "reliable" else "mem"


CASES: Final = tuple(
    Case(strategy, message_bytes, api, goal)
    for strategy, message_bytes, api, goal in (
        ("reliable", 1024, "message", 0.70),
        ("reliable", 1024, "batch", 0.85),
        ("reliable", 100, "message", 0.35),
        ("reliable", 100, "batch", 0.50),
        ("reliable", 16384, "message", 0.50),
        ("reliable", 16384, "batch", 0.85),
        ("non-reliable", 1024, "message", 0.60),
        ("non-reliable", 1024, "batch", 0.75),
        ("non-reliable", 100, "message", 0.25),
        ("non-reliable", 100, "batch", 0.80),
    )
)


def road(case: Case, messages: int, data: str) -> dict[str, Any]:
    """Run `road.py` once."""
    command = [sys.executable, str(ROAD), "--json", "--mode", case.mode, "--bytes", str(case.message_bytes)]
    return _run([*command, "--messages", str(messages), "--data", data])


def bench(case: Case, messages: int, data: str) -> dict[str, Any]:
    """Run `ister bench` once, as a user would."""
    command = [
        sys.executable,
        "-m",
        "ister",
        "bench",
        "--json",
        "--strategy",
        case.strategy,
        "--api",
        case.api,
    ]
    return _run(
        [*command, "--message-bytes", str(case.message_bytes), "--messages", str(messages), "--data", data]
    )


def _run(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def compare(case: Case, rounds: int, data: str, *, progress: bool) -> dict[str, Any]:
    """Run `road.py` and Ister alternately; return medians, ratio and the figures of each round."""
    messages = MESSAGES[case.message_bytes]
    roads, isters, dropped = [], [], 0
    for number in range(rounds + 1):
        beside = road(case, messages, data)
        report = bench(case, messages, data)
        if progress:
            print(
                f"  {case.name}: bare {beside['consumed']:,}, ister {report['consumed_per_second']:,}"
                f"{' (warm-up)' if number == 0 else ''}",
                file=sys.stderr,
            )
        if number:
            roads.append(beside["consumed"])
            isters.append(report["consumed_per_second"])
            dropped += report["dropped"]
    ratios = [ours / bare for ours, bare in zip(isters, roads, strict=True)]
    ratio = statistics.median(ratios)
    return {
        "case": case.name,
        "road_mode": case.mode,
        "road": round(statistics.median(roads)),
        "ister": round(statistics.median(isters)),
        "ratio": round(ratio, 3),
        "low": round(min(ratios), 3),
        "high": round(max(ratios), 3),
        "goal": case.goal,
        "reached": ratio >= case.goal,
        "dropped": dropped,
        "roads": roads,
        "isters": isters,
    }


def main() -> int:
    """Run the cases and print one table; return the exit code."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.name for case in CASES]
    parse.add_argument("--case", action="append", choices=names, help="only this one; may be repeated")
    parse.add_argument("--rounds", type=whole, default=3, help="how many count, after the first")
    parse.add_argument(
        "--data", type=made_folder, default=".", help="where folders for logs are made: a real disk"
    )
    parse.add_argument("--json", action="store_true")
    given = parse.parse_args()
    chosen = [case for case in CASES if not given.case or case.name in given.case]
    results, failed = [], False
    for case in chosen:
        try:
            results.append(compare(case, given.rounds, given.data, progress=sys.stderr.isatty()))
        except subprocess.CalledProcessError as error:  # the other cases are measured all the same
            failed = True
            print(
                f"FAILED: {case.name}: exit code {error.returncode} of {' '.join(error.cmd)}", file=sys.stderr
            )
    if given.json:
        print(json.dumps(results))
    else:
        print(
            f"{'strategy, bytes, api':<28}{'bare transfer':>14}{'Ister':>14}{'ratio':>9}{'rounds':>16}{'goal':>9}"
        )
        for each in results:
            mark = "" if each["reached"] else "   missed"
            mark += f"   {each['dropped']:,} dropped" if each["dropped"] else ""
            spread = f"{each['low']:.0%} to {each['high']:.0%}"
            print(
                f"{each['case']:<28}{each['road']:>12,}/s{each['ister']:>12,}/s{each['ratio']:>9.1%}{spread:>16}{each['goal']:>9.0%}{mark}"
            )
    return 0 if not failed and all(each["reached"] for each in results) else 1


if __name__ == "__main__":
    sys.exit(main())
