"""What does this machine reach: throughput, latency, and how cost grows with topics, consumers, subscriptions, backlog?

    python benchmarks/suite.py                  two minutes: a table and a plot in the terminal     (make bench)
    python benchmarks/suite.py --full           25 minutes: five rounds, and what grows             (make bench-full)
    python benchmarks/suite.py --only latency --rounds 9 --out build/bench/latency

Writes a file of results (`--out` with .json: for `ister bench compare` and `page`) and one page with plots (.html).
Rounds are interleaved: each runs every workload once, so that a machine that drifts drifts for all. No workload begins
after `--minutes`; what was left out then is said.
"""

from __future__ import annotations

import argparse
import functools
import json
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from against import warm_memory
from arguments import above_zero, made_folder, output, whole
from workloads import SIZES, backlog, flow, keys, seconds_of, topics

from ister.bench.about import about, in_words
from ister.bench.page import page
from ister.bench.plot import bars
from ister.bench.results import curve_of, document, result
from ister.bench.run import file_system_of

Run = Callable[[float, str], dict[str, Any]]
FIGURES: Final = (
    "messages_per_second",
    "receipt_p50_us",
    "receipt_p99_us",
    "delivered_p50_us",
    "delivered_p99_us",
    "worker_rss_mb",
)


@dataclass(frozen=True)
class Case:
    """A workload of the suite, and the plot it belongs to."""

    name: str
    what: str
    group: str
    durability: str
    run: Run
    series: str = ""
    x: float | None = None
    quick: bool = True


def _cases() -> Iterator[Case]:
    some = functools.partial
    for rate in (1000, 10_000):
        for strategy, durability in (("reliable", "fsync"), ("non-reliable", "none")):
            yield Case(
                f"latency {strategy} {rate}/s",
                f"{rate:,} messages of 1 KiB a second, {strategy}",
                "latency",
                durability,
                some(flow, messages=rate * 3, size=1024, rate=rate, strategy=strategy, raw=True),
                series=f"{strategy}, {rate:,}/s",
                quick=rate == 1000,
            )
    for strategy, durability in (("reliable", "fsync"), ("non-reliable", "none")):
        for name, (size, reliable, non_reliable, batch) in SIZES.items():
            for api, per_batch in (("message", 0), ("batch", batch)):
                yield Case(
                    f"{strategy} {name} {api}",
                    f"{size:,} B, {strategy}, one call a {api}",
                    "throughput",
                    durability,
                    some(
                        flow,
                        messages=reliable if strategy == "reliable" else non_reliable,
                        size=size,
                        batch=per_batch,
                        strategy=strategy,
                    ),
                    quick=name != "16k" or strategy == "reliable",
                )
    for durability, messages in (("os", 300_000), ("cloud", 100_000)):
        yield Case(
            f"reliable 1k message {durability}",
            f"1,024 B, durability {durability}, one call a message",
            "throughput",
            durability,
            some(flow, messages=messages, size=1024, durability=durability),
            quick=False,
        )
    for count in (1, 10, 100, 1000):
        yield Case(
            f"topics {count}",
            f"batches of 10 of 100 B to {count:,} topics in turn",
            "topics",
            "fsync",
            some(topics, count=count, messages=200_000, batch=10),
            series="batches of ten",
            x=count,
            quick=False,
        )
    for kind in ("shared", "key-shared"):
        for count in (1, 8, 32, 100):
            yield Case(
                f"consumers {kind} {count}",
                f"a backlog drained by {count} {kind} consumers, 100 B",
                "consumers",
                "fsync",
                some(keys, consumers=count, messages=200_000, kind=kind),
                series=kind,
                x=count,
                quick=False,
            )
    for count in (1, 2, 4, 8):
        yield Case(
            f"subscriptions {count}",
            f"one topic, {count} subscriptions, 1 KiB, delivered in all",
            "subscriptions",
            "fsync",
            some(flow, messages=100_000, size=1024, subscriptions=count),
            series="delivered in all",
            x=count,
            quick=False,
        )
    for count in (10_000, 100_000, 1_000_000, 10_000_000):
        yield Case(
            f"backlog {count}",
            f"a backlog of {count:,} messages of 100 B, read from its beginning",
            "backlog",
            "fsync",
            some(backlog, messages=count),
            series="read from the beginning",
            x=count,
            quick=False,
        )


CASES: Final = tuple(_cases())


def chosen(full: bool, only: str | None) -> list[Case]:
    """Return the cases of a run; `only` are groups or parts of names, with commas between."""
    cases = [case for case in CASES if full or only or case.quick]
    if only is None:
        return cases
    words = [word.strip() for word in only.split(",")]
    found = [case for case in cases if any(word == case.group or word in case.name for word in words)]
    if not found:
        groups = ", ".join(dict.fromkeys(case.group for case in CASES))
        raise SystemExit(f"no workload is called {only!r}; there are the groups {groups}")
    return found


def entry(case: Case, rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the rounds of a case as an entry of a file of results."""
    figures = [
        {name: each[name] for name in FIGURES if name in each}
        | {f"cpu_{role}_us": value for role, value in each.get("cpu_us", {}).items()}
        for each in rounds
    ]
    raw: dict[str, list[int]] = {}
    for each in rounds:
        for name, took in each.get("raw", {}).items():
            raw.setdefault(name, []).extend(took)
    return result(
        case.name,
        case.what,
        figures,
        group=case.group,
        durability=case.durability,
        series=case.series,
        x=case.x,
        curves={name: curve_of(took) for name, took in raw.items()},
        seconds=[seconds_of(each) for each in rounds],
    )


def measured(
    cases: Sequence[Case],
    rounds: int,
    scale: float,
    data: str,
    out_of_time: Callable[[], bool],
    say: Callable[[str], None],
) -> dict[Case, list[dict[str, Any]]]:
    """Run every case once a round, until there is no time left; a case that fails is left out, visibly."""
    found: dict[Case, list[dict[str, Any]]] = {case: [] for case in cases}
    failed: set[Case] = set()
    for number in range(rounds):
        for case in cases if number % 2 == 0 else reversed(cases):
            if case in failed or out_of_time():
                continue
            say(f"round {number + 1} of {rounds}: {case.name}")
            try:
                found[case].append(case.run(scale, data))
            except Exception as error:  # noqa: BLE001  (one workload must not take the results of an hour with it)
                failed.add(case)
                print(f"FAILED: {case.name}: {error or repr(error)}", file=sys.stderr, flush=True)
    return {case: each for case, each in found.items() if each and case not in failed}


def lines_of(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the table and the plots for a terminal."""
    wide = 2 + max((len(f"{each['what']} ({each['durability']})") for each in entries), default=0)
    lines = [f"{'workload':<{wide}}{'figure':<22}{'median':>12}   {'rounds':<26}{'us of a worker':>14}"]
    for each in entries:
        cpu = each["figures"].get("cpu_worker_us")
        cost = "" if cpu is None else f"{statistics.median(cpu['rounds']):,.3g}"
        for name, figure in each["figures"].items():
            if name.startswith("cpu_"):
                continue
            values = figure["rounds"]
            spread = f"{min(values):,.0f} to {max(values):,.0f}"
            what = f"{each['what']} ({each['durability']})"
            lines.append(
                f"{what:<{wide}}{name:<22}{statistics.median(values):>12,.0f}   {spread:<26}{cost:>14}"
            )
            cost = ""
    rates = [
        (each["name"], statistics.median(figure["rounds"]))
        for each in entries
        if each["group"] == "throughput" and (figure := each["figures"].get("messages_per_second"))
    ]
    if rates:
        lines += ["", "messages a second"]
        lines += bars([(name, rate, f"{rate:,.0f}") for name, rate in rates])
    for curve, words in (("receipt", "receipt"), ("delivered", "delivery")):
        drawn = [each for each in entries if each["curves"].get(curve)]
        if drawn:
            lines += ["", f"us from when a message was due until its {words}, by percentile"]
            for each in drawn:
                points = [point for point in each["curves"][curve] if point[0] in (50, 90, 99, 99.9)]
                lines.append(f"  {each['name']}")
                lines += bars([(f"  {percent:g} %", us, f"{us:,.0f} us") for percent, us in points])
    return lines


def left_out(cases: Sequence[Case], found: Mapping[Case, Sequence[Any]], rounds: int) -> list[str]:
    """Return which workloads were not measured, and which not as often as they should be."""
    lines = []
    for words, names in (
        ("not measured", [case.name for case in cases if not found.get(case)]),
        (
            f"fewer than {rounds} rounds",
            [case.name for case in cases if 0 < len(found.get(case, ())) < rounds],
        ),
    ):
        if names:
            lines.append(f"{words}, for want of time (--minutes) or by a failure: {', '.join(names)}")
    return lines


def main() -> int:
    """Run the suite, print it, and write results and page."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--full", action="store_true", help="all workloads, five rounds")
    parse.add_argument("--only", help="groups or parts of names, with commas between")
    parse.add_argument("--rounds", type=whole, help="default: 1, or 5 with --full")
    parse.add_argument(
        "--minutes", type=above_zero, help="begin nothing after them; default: 2, or 45 with --full"
    )
    parse.add_argument("--scale", type=above_zero, default=1.0, help="of the numbers of messages")
    parse.add_argument(
        "--data", type=made_folder, default=".", help="where folders of brokers are made: a real disk"
    )
    parse.add_argument(
        "--out", type=output, default="build/bench/quick", help="results go to OUT.json, the page to OUT.html"
    )
    given = parse.parse_args()
    cases = chosen(given.full, given.only)
    rounds = given.rounds or (5 if given.full else 1)
    minutes = given.minutes or (45.0 if given.full else 2.0)
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    began = time.monotonic()
    warm_memory()
    told = about(file_system_of(given.data), rounds=rounds, scale=given.scale)
    print(in_words(told), flush=True)
    terminal = sys.stderr.isatty()

    def say(text: str) -> None:
        if terminal:
            print(f"\r\x1b[K{text}", file=sys.stderr, end="", flush=True)

    found = measured(
        cases, rounds, given.scale, given.data, lambda: time.monotonic() - began > minutes * 60, say
    )
    say("")
    entries = [entry(case, each) for case, each in found.items()]
    print("\n".join(lines_of(entries)))
    if lines := left_out(cases, found, rounds):
        print("\n" + "\n".join(lines))
    made = document(told, entries)
    out = Path(given.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    out.with_suffix(".html").write_text(page(made), encoding="utf-8")
    print(f"\n{out.with_suffix('.json')}, {out.with_suffix('.html')}; {time.monotonic() - began:.0f} s")
    return 0 if entries else 1


if __name__ == "__main__":
    sys.exit(main())
