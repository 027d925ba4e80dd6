"""`ister bench`: measure throughput and latency, compare results, draw them; the work is in `ister/bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ister.cli.command import Command, Group
from ister.cli.outcome import FAILED
from ister.cli.output import may_be_written, put
from ister.show import print_json, print_table, stage
from ister.subscriptions import SUBSCRIPTION_TYPES, TRAITS
from ister.words import counted

_HELP_END = """\b
Examples:
  ister bench                                              reliable, fsync, 1 KiB, its own broker
  ister bench --message-bytes 100 --api batch
  ister bench --strategy non-reliable --rate 10000         latency at 10,000 messages a second
  ister bench --endpoint tcp://127.0.0.1:5555 --json | jq .messages_per_second
  ister bench --rounds 5 --json before.json                a file of results, to compare and to draw
  ister bench compare before.json after.json               what got slower beyond noise
  ister bench page after.json --out bench.html

\b
Producer and consumers are processes of their own, on this machine. The same load runs once unmeasured first.
Latency is from send to receipt by the consumer, sampled once a batch; without --rate it is that of full queues.
With --rate it begins when a message was due, not when it was sent: what a slow broker holds up is counted.
Its own broker gives a non-reliable subscription a buffer for the whole run: the transfer is measured, not the drops.

Exit codes: 0 measured; 1 messages missing or a process failed; 2 wrong usage; 69 no broker there; 130 Ctrl-C."""


class _Bench(Command, Group):
    """A command that measures when no other is named."""


@click.group(cls=_Bench, epilog=_HELP_END, invoke_without_command=True)
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
    default=None,
    help="The largest batch of the producer.  [default: 64 KiB; the client sends larger ones while receipts lag]",
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
    help="Send at this pace, each message when it is due, to measure latency.",
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
@click.option(
    "--rounds",
    type=click.IntRange(min=1, max=100),
    default=1,
    show_default=True,
    help="How often it is measured; the spread of the rounds tells noise from change.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=False,
    flag_value="-",
    metavar="[FILE]",
    help="Print JSON, a line for each round; or write FILE, for compare and page.",
)
@click.option("--force", is_flag=True, help="Replace FILE also if it has no results.")
@click.pass_context
def bench(
    ctx: click.Context,
    /,
    as_json: str | None,
    rounds: int,
    type_: Any,
    messages: int | None,
    endpoint: str | None,
    workers: int | None,
    warm_up: int | None,
    data: str | None,
    force: bool,
    **given: Any,
) -> None:
    """Measure throughput, latency and CPU time, with a producer and consumers as processes of their own."""
    if ctx.invoked_subcommand is not None:
        return
    from ister.bench.load import Load, messages_by_default
    from ister.bench.report import describe, lines_of
    from ister.bench.run import measure

    if as_json not in (None, "-"):
        may_be_written(str(as_json), _has_results, "a file of results", force=force)
    messages = messages or messages_by_default(given["message_bytes"], given["rate"])
    load = Load(type=type_, messages=messages, **given)
    with stage() as say:
        found = measure(
            load, endpoint=endpoint, workers=workers or 0, warm_up=warm_up, data=data, rounds=rounds, say=say
        )
    for each in found:
        report = describe(each)
        if as_json == "-":
            print_json(report)
        else:
            print("\n".join(lines_of(report)))
    if as_json not in (None, "-"):
        from ister.bench.about import about, in_words
        from ister.bench.report import entry
        from ister.bench.results import document

        told = about(found[0].file_system, workers=found[0].workers)
        put(str(as_json), json.dumps(document(told, [entry(found)]), indent=1) + "\n")
        print(in_words(told))


@bench.command()
@click.argument("before", type=click.Path(exists=True, dir_okay=False))
@click.argument("after", type=click.Path(exists=True, dir_okay=False))
@click.option("--all", "everything", is_flag=True, help="List also what did not change.")
@click.pass_context
def compare(ctx: click.Context, before: str, after: str, everything: bool) -> None:
    """Name what got slower from one file of results to another, beyond noise.

    A figure has changed if its medians are more than 5 % apart, and further than the rounds of either file are (highest
    less lowest); where a file has one round only, more than 10 %. Rounds of less than half a second are named: do
    not rely on them. Exit codes: 0 nothing got slower; 1 something did, or nothing could be compared.
    """
    from ister.bench.compare import SECONDS_LEAST, changes, machines_differ, only_in, too_short
    from ister.bench.results import in_figures

    first, second = _read(before), _read(after)
    for difference in machines_differ(first, second):
        print(f"not the same machine or interpreter, {difference}")
    for name, one in ((before, first), (after, second)):
        for workload, seconds in too_short(one):
            print(
                f"too short to decide anything, {name}: {workload} has a round of {seconds:.2f} s; "
                f"measure at least {SECONDS_LEAST:g} s (more --messages)"
            )
    found = list(changes(first, second))
    columns = ("", "system", "workload", "figure", "before", "after", "ratio", "noise")
    rows = [
        (
            each.verdict,
            each.system,
            each.name,
            each.figure,
            in_figures(each.before),
            in_figures(each.after),
            "-" if each.ratio is None else f"{each.ratio:.2f}",
            "unknown" if each.noise is None else in_figures(each.noise),
        )
        for verdict in ("slower", "faster", "same")
        for each in found
        if each.verdict == verdict and (everything or verdict != "same")
    ]
    if rows:
        print_table(columns, rows)
    for name, one, other in ((before, first, second), (after, second, first)):
        for missing in only_in(one, other):
            print(f"only in {name}: {missing}")
    slower = sum(each.verdict == "slower" for each in found)
    print(f"{slower} of {counted(len(found), 'figure')} got slower beyond noise")
    if slower or not found:
        ctx.exit(FAILED)


@bench.command()
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False), metavar="FILE..."
)
@click.option("--out", type=click.Path(dir_okay=False), default="bench.html", show_default=True)
@click.option("--title", default="Ister, measured", show_default=True)
@click.option("--force", is_flag=True, help="Replace the file also if it is not such a page.")
def page(files: tuple[str, ...], out: str, title: str, force: bool) -> None:
    """Draw files of results as one page that needs no other file and no network.

    An earlier page of this command is replaced, and said to be. Any other file is kept, unless --force is given.
    """
    from ister.bench.page import MARK
    from ister.bench.page import page as drawn
    from ister.bench.results import document

    may_be_written(out, lambda text: MARK in text, "a page of `ister bench page`", force=force)
    read = [_read(name) for name in files]
    # machine and versions of the first; of two results with one name, the last
    results = {(each["system"], each["name"]): each for one in read for each in one["results"]}
    put(out, drawn(document(read[0]["about"], results.values()), title))
    print(out)


def _read(name: str) -> dict[str, Any]:
    from ister.bench.results import parse

    return parse(Path(name).read_text(encoding="utf-8", errors="replace"), name)


def _has_results(text: str) -> bool:
    from ister.bench.results import FORMAT

    return FORMAT in text[:1000]
