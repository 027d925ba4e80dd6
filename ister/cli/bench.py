"""`ister bench`: measure throughput and latency; the work is in `ister/bench`."""

from __future__ import annotations

from typing import Any

import click

from ister.cli.command import Command
from ister.cli.options import json_option
from ister.show import print_json, stage
from ister.subscriptions import SUBSCRIPTION_TYPES, TRAITS

_HELP_END = """\b
Examples:
  ister bench                                              reliable, fsync, 1 KiB, its own broker
  ister bench --message-bytes 100 --api batch
  ister bench --strategy non-reliable --rate 10000         latency at 10,000 messages a second
  ister bench --endpoint tcp://127.0.0.1:5555 --json | jq .messages_per_second

\b
Producer and consumers are processes of their own, on this machine. The same load runs once unmeasured first.
Latency is from send to receipt by the consumer, sampled once a batch; without --rate it is that of full queues.
Its own broker gives a non-reliable subscription a buffer for the whole run: the transfer is measured, not the drops.

Exit codes: 0 measured; 1 messages missing or a process failed; 2 wrong usage; 69 no broker there; 130 Ctrl-C."""


@click.command(cls=Command, epilog=_HELP_END)
@click.option(
    "--strategy", type=click.Choice(["reliable", "non-reliable"]), default="reliable", show_default=True
)
@click.option(
    "--durability",
    type=click.Choice(["fsync", "os", "cloud"]),
    default="fsync",
    show_default=True,
    help="What a receipt of a reliable topic promises.",
)
@click.option(
    "--message-bytes", type=click.IntRange(min=0), default=1024, show_default=True, help="Size of a payload."
)
@click.option(
    "--messages",
    type=click.IntRange(min=1),
    help="Number of measured messages.  [default: 200 MB of them; with --rate, 5 s]",
)
@click.option(
    "--warm-up",
    type=click.IntRange(min=0),
    metavar="MESSAGES",
    help="Number of messages before that.  [default: the same number]",
)
@click.option(
    "--batch-bytes",
    type=click.IntRange(min=1),
    default=64 * 1024,
    show_default=True,
    help="The largest batch of the producer.",
)
@click.option(
    "--linger-ms",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="How long the producer gathers a batch, at most.",
)
@click.option(
    "--subscriptions",
    type=click.IntRange(min=1, max=64),
    default=1,
    show_default=True,
    help="Number of subscriptions, each with its own consumer process.",
)
@click.option(
    "--type",
    "type_",
    type=click.Choice([name for name in SUBSCRIPTION_TYPES if not TRAITS[name].by_key]),
    default="exclusive",
    show_default=True,
    help="The type of the subscriptions.",
)
@click.option(
    "--api",
    type=click.Choice(["message", "batch"]),
    default="message",
    show_default=True,
    help="One call of the client library per message, or per batch.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="PER_SECOND",
    help="Send at this pace, to measure latency.",
)
@click.option(
    "--endpoint",
    "-e",
    metavar="ADDRESS",
    help="A running broker.  [default: one of its own, on this machine]",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1, max=256),
    help="Workers of its own broker.  [default: half the cores; the clients need the others]",
)
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="Where the folder of its own broker is created.  [default: the folder for temporary files]",
)
@json_option
def bench(
    as_json: bool,
    type_: Any,
    messages: int | None,
    endpoint: str | None,
    workers: int | None,
    warm_up: int | None,
    data: str | None,
    **given: Any,
) -> None:
    """Measure throughput, latency and CPU time, with a producer and consumers as processes of their own."""
    from ister.bench.load import Load, messages_by_default
    from ister.bench.report import describe, lines_of
    from ister.bench.run import measure

    messages = messages or messages_by_default(given["message_bytes"], given["rate"])
    load = Load(type=type_, messages=messages, **given)
    with stage() as say:
        report = describe(
            measure(load, endpoint=endpoint, workers=workers or 0, warm_up=warm_up, data=data, say=say)
        )
    if as_json:
        print_json(report)
    else:
        print("\n".join(lines_of(report)))
