"""The result of a measurement: a plain map for scripts, a table for people, an entry in a file of results. Pure."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

from ister.bench.load import Load
from ister.bench.results import curve_of, result
from ister.bench.run import MEMORY_FILE_SYSTEMS, Measured
from ister.words import counted

MEGABYTE: Final = 1e6
PERCENTILES: Final = {"p50": 0.5, "p99": 0.99, "p999": 0.999, "max": 1.0}


def percentile(ordered: Sequence[int], part: float) -> int:
    """Return the value that `part` (0 to 1) of the ordered values do not exceed (nearest rank)."""
    return ordered[max(0, min(len(ordered) - 1, -int(-len(ordered) * part // 1) - 1))]


def describe(measured: Measured) -> dict[str, Any]:
    """Return a measurement as one plain map.

    `messages_per_second` is end to end: from the first send to the last message of the slowest subscription.
    `produced` ends with the last receipt, `consumed` begins with the first message.
    """
    load, sent = measured.load, measured.sent
    seconds = (max(each.ended_ns for each in measured.received) - sent.began_ns) / 1e9
    least = min(each.messages for each in measured.received)
    rate = least / seconds
    latencies = _latencies(measured)
    return {
        "strategy": load.strategy,
        "durability": load.durability if load.strategy == "reliable" else "none",
        "message_bytes": load.message_bytes,
        "messages": load.messages,
        "api": load.api,
        "rate": load.rate,
        "batch_bytes": load.batch_bytes,
        "linger_ms": load.linger_ms,
        "subscriptions": load.subscriptions,
        "type": load.type,
        "messages_per_second": round(rate),
        "megabytes_per_second": round(rate * load.message_bytes / MEGABYTE, 1),
        "produced_per_second": round(load.messages / ((sent.ended_ns - sent.began_ns) / 1e9)),
        "consumed_per_second": round(
            min(
                each.messages / max(1e-9, (each.ended_ns - each.began_ns) / 1e9) for each in measured.received
            )
        ),
        "seconds": round(seconds, 3),
        "received": [each.messages for each in measured.received],
        "dropped": measured.dropped,
        "redelivered": measured.redelivered,
        "latency_us": _percentiles(latencies),
        "receipt_us": _percentiles(sorted(sent.receipts_ns)),
        "late_us": _percentiles(sorted(sent.late_ns)),
        "cpu_seconds": measured.cpu_seconds,
        "workers": measured.workers,
        "cores": os.cpu_count(),
        "file_system": measured.file_system,
    }


def _latencies(measured: Measured) -> list[int]:
    return sorted(each for received in measured.received for each in received.latencies_ns)


def _percentiles(ordered: Sequence[int]) -> dict[str, float | None]:
    values: dict[str, float | None] = {
        name: round(percentile(ordered, part) / 1e3, 1) if ordered else None
        for name, part in PERCENTILES.items()
    }
    return values | {"samples": len(ordered)}


def entry(rounds: Sequence[Measured]) -> dict[str, Any]:
    """Return the rounds of a measurement as one entry of a file of results (`results.py`)."""
    reports = [describe(each) for each in rounds]
    first = reports[0]
    load, plain = rounds[0].load, Load()
    pace = f"{load.rate:g}/s" if load.rate else f"{load.api} calls"
    name = f"{load.strategy} {first['durability']} {load.message_bytes} B {pace}"
    what = f"{load.message_bytes} B, {load.strategy}, {pace}"
    if load.subscriptions > 1 or load.type != plain.type:
        name += f" {load.subscriptions} {load.type}"
        what += f", {load.subscriptions} {load.type}"
    for words, value, usual in (
        ("batches of {} B", load.batch_bytes, plain.batch_bytes),
        ("linger {} ms", load.linger_ms, plain.linger_ms),
    ):
        if value != usual:
            name += f", {words.format(f'{value:g}')}"
            what += f", {words.format(f'{value:g}')}"
    figures = []
    for report in reports:
        one: dict[str, float] = {} if load.rate else {"messages_per_second": report["messages_per_second"]}
        for key, figure in (("receipt_us", "receipt"), ("latency_us", "delivered")):
            if load.rate and report[key]["p50"] is not None:
                one |= {f"{figure}_{part}_us": report[key][part] for part in ("p50", "p99")}
        cpu: dict[str, float] = {}
        for process, seconds in report["cpu_seconds"].items():
            role = process.partition("-")[0]
            cpu[role] = cpu.get(role, 0.0) + seconds
        one |= {f"cpu_{role}_us": round(used / load.messages * 1e6, 3) for role, used in cpu.items()}
        figures.append(one)
    curves = {}
    if load.rate:
        curves = {
            "receipt": curve_of([ns for each in rounds for ns in each.sent.receipts_ns]),
            "delivered": curve_of([ns for each in rounds for ns in _latencies(each)]),
        }
    group = "latency" if load.rate else "throughput"
    return result(
        name,
        what,
        figures,
        group=group,
        durability=first["durability"],
        curves=curves,
        seconds=[report["seconds"] for report in reports],
    )


def lines_of(report: dict[str, Any]) -> list[str]:
    """Return the lines of the report, the most important first."""
    size = report["message_bytes"]
    what = f"{counted(report['messages'], 'message')} of {counted(size, 'byte')}, {report['strategy']}"
    if report["strategy"] == "reliable":
        what += f", durability {report['durability']}"
    what += f", {report['subscriptions']} {report['type']} subscription{'s' if report['subscriptions'] > 1 else ''}"
    latency = report["latency_us"]
    shown = _shown(latency)
    samples = f"{latency['samples']:,} samples{'' if report['rate'] else ', queues full'}"
    cpu = ", ".join(f"{name} {seconds:.2f}" for name, seconds in report["cpu_seconds"].items())
    pace = (
        f"one call a {report['api']}" if report["rate"] is None else f"{report['rate']:,.0f} messages/s sent"
    )
    lines = [
        f"{what}, {pace}",
        f"  end to end   {report['messages_per_second']:>12,} messages/s   {report['megabytes_per_second']:,.1f} MB/s",
        f"  producer     {report['produced_per_second']:>12,} messages/s   (until the last receipt)",
        f"  consumer     {report['consumed_per_second']:>12,} messages/s   (from the first message on)",
        f"  latency      {shown or 'not measured'}   ({samples})",
        *_paced(report),
        f"  CPU s        {cpu}   (of {report['seconds']:.2f} s on {report['cores']} cores)",
    ]
    lines += [
        f"  {name:<12} {report[name]:>12,} messages" for name in ("dropped", "redelivered") if report[name]
    ]
    if report["strategy"] == "reliable" and report["file_system"] in MEMORY_FILE_SYSTEMS:
        lines.append(
            f"  the data lay on {report['file_system']}, where fsync costs nothing: say --data DIR on a disk"
        )
    return lines


def _paced(report: dict[str, Any]) -> list[str]:
    """Return the lines of a measurement at a given rate: receipts, and whether the generator kept up."""
    if report["rate"] is None:
        return []
    return [
        f"  receipts     {_shown(report['receipt_us']) or 'not measured'}",
        f"  sent late    {_shown(report['late_us'])}   (included in the latencies: they begin when a message was due)",
    ]


def _shown(values: dict[str, float | None]) -> str:
    return ", ".join(f"{name} {values[name]:,.0f} us" for name in PERCENTILES if values[name] is not None)
