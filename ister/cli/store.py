"""`ister store`: read topics straight from a store, without a broker.

May touch: the store it is given, through `ister.store`; nothing is written to it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ister.cli.command import CONTEXT, Command, Group
from ister.cli.options import Decorated, json_option, topic_argument
from ister.cli.outcome import FAILED
from ister.cli.times import moment_of, now
from ister.errors import StorageError, UsageError
from ister.names import check_topic_name
from ister.show import print_json, print_table, progress, size_in_words
from ister.words import counted

if TYPE_CHECKING:
    from ister.message import Batch
    from ister.storage.history import History

NO_TOPICS = "no topics in this store (a broker's own is the folder `store` in its data folder)"
_HELP_END = """\b
Examples:
  ister store ls file:///var/lib/ister/store
  ister store ls gs://bucket/prefix orders
  ister store cat gs://bucket/prefix orders --from-time 2026-03-01T08:00:00Z --json
  ister store verify ./data/store"""


@click.group(cls=Group, context_settings=CONTEXT, epilog=_HELP_END)
def store() -> None:
    """Read topics straight from a store, without a broker: list, print, verify.

    URL is file:///folder, a folder's path, or gs://bucket/prefix.
    """


def _url(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    """Return the address for a folder's path."""
    return value if "://" in value or value.startswith("file:") else Path(value).absolute().as_uri()


def _topic(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    """Check a topic's name before anything is requested."""
    try:
        return None if value is None else check_topic_name(value)
    except UsageError as error:
        raise click.BadParameter(error.text) from error


def _time(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    """Return a time as unix milliseconds."""
    if value is None or (value.isascii() and value.isdecimal()):
        return None if value is None else int(value)
    moment = moment_of(value, now())
    if moment is None:
        raise click.BadParameter(
            f"{value!r} is neither a time like 2026-03-01T08:00:00Z or -15m nor unix milliseconds"
        )
    return round(moment.timestamp() * 1000)


url_argument = click.argument("url", callback=_url)
optional_topic = click.argument("topic", required=False, callback=_topic)


def incarnation_option(command: Decorated) -> Decorated:
    """Add --incarnation."""
    return click.option("--incarnation", metavar="HEX", help="Which of several topics of the same name.")(
        command
    )


@contextmanager
def _read_only() -> Iterator[None]:
    """End a command with exit code 1 when something cannot be read from a store."""
    try:
        yield
    except StorageError as error:
        error.exit_code = FAILED  # type: ignore[attr-defined]
        raise


@store.command(cls=Command)
@url_argument
@optional_topic
@incarnation_option
@json_option
def ls(url: str, topic: str | None, incarnation: str | None, as_json: bool) -> None:
    """List the topics of a store; with TOPIC, the segments that its history is read from."""
    import ister.store

    if topic is not None:
        history = ister.store.history(url, topic, incarnation=incarnation)
        _show_history(topic, history, as_json=as_json)
        return
    rows: list[dict[str, Any]] = []
    found = ister.store.topics(url)
    with progress("listing", len(found), unit="topics") as show:
        for number, each in enumerate(found):
            history = ister.store.history(url, each.name, incarnation=each.incarnation.hex())
            known = {"topic": each.name, "incarnation": each.incarnation.hex(), "dispatch": each.dispatch}
            rows.append(known | _summary(history))
            show(number + 1)
    if as_json:
        print_json(rows)
    elif not rows:
        print(NO_TOPICS)
    else:
        shown = [
            [
                *(row[name] for name in ("topic", "start_offset", "end_offset", "segments")),
                size_in_words(row["bytes"]),
                *(_moment(row[name]) for name in ("first_timestamp", "last_timestamp")),
                _complaints(row),
            ]
            for row in rows
        ]
        columns = [
            "topic",
            "from offset",
            "to before",
            "segments",
            "size",
            "first message",
            "last message",
            "",
        ]
        print_table(columns, shown)


def _summary(history: History) -> dict[str, Any]:
    segments = [piece.segment for piece in history.pieces]
    return {
        "start_offset": history.start,
        "end_offset": history.end,
        "segments": len({segment.name for segment in segments}),
        "bytes": sum({segment.name: segment.bytes for segment in segments}.values()),
        "first_timestamp": segments[0].first_timestamp_ms if segments else None,
        "last_timestamp": segments[-1].last_timestamp_ms if segments else None,
        "gaps": [list(gap) for gap in history.gaps],
        "unjoined": list(dict.fromkeys(piece.segment.name for piece in history.unjoined)),
        "unused": list(history.unused),
        "undecided_epoch": history.undecided,
    }


def _complaints(row: dict[str, Any]) -> str:
    told = [
        f"{counted(_count(row['gaps']), 'offset')} missing" if row["gaps"] else "",
        f"{len(row['unused'])} not used" if row["unused"] else "",
        f"epoch {row['undecided_epoch']} has not begun" if row["undecided_epoch"] is not None else "",
    ]
    return ", ".join(one for one in told if one)


def _count(ranges: list[list[int]]) -> int:
    return sum(end - first for first, end in ranges)


def _moment(unix_ms: int | None) -> str | None:
    return (
        None
        if unix_ms is None
        else datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    )


def _show_history(topic: str, history: History, *, as_json: bool) -> None:
    pieces: list[dict[str, Any]] = [
        {
            "first": piece.start,
            "end": piece.end,
            "epoch": piece.segment.epoch,
            "bytes": piece.segment.bytes,
            "first_timestamp": piece.segment.first_timestamp_ms,
            "last_timestamp": piece.segment.last_timestamp_ms,
            "object": piece.segment.name,
        }
        for piece in history.pieces
    ]
    if as_json:
        print_json({"topic": topic} | _summary(history) | {"pieces": pieces})
        return
    print(f"topic {topic}: offsets {history.start} to before {history.end}")
    if pieces:
        rows = [
            [piece["first"], piece["end"], piece["epoch"], size_in_words(piece["bytes"]),
             _moment(piece["first_timestamp"]), _moment(piece["last_timestamp"]), piece["object"]]
            for piece in pieces
        ]  # fmt: skip
        print_table(
            ["from offset", "to before", "epoch", "size", "first message", "last message", "object"], rows
        )
    for first, end in history.gaps:
        print(f"missing: offsets {first} to before {end}")
    for name in history.unused:
        print(f"not used: {name}")
    if history.undecided is not None:
        print(
            f"epoch {history.undecided} was claimed and has not said where it begins: the end is not certain yet"
        )


@store.command(cls=Command)
@url_argument
@topic_argument
@click.option(
    "--from-offset", type=click.IntRange(min=0), default=0, metavar="N", help="Start at this offset."
)
@click.option(
    "--from-time",
    callback=_time,
    metavar="TIME",
    help="Start at the first message of that time: 2026-03-01T08:00:00Z, -15m, or unix milliseconds.",
)
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after this many messages.")
@incarnation_option
@json_option
def cat(
    url: str,
    topic: str,
    from_offset: int,
    from_time: int | None,
    count: int | None,
    incarnation: str | None,
    as_json: bool,
) -> None:
    """Print the payloads of a topic's messages, a line each, in order of offsets.

    With --json, one object a line: topic, offset, key, attributes, timestamp, payload (payload_base64 and key_base64
    where they are no UTF-8 text).
    """
    import ister.store

    out = sys.stdout.fileno()
    with _read_only(), ister.store.Reader(url, topic, incarnation=incarnation) as reader:
        start = reader.seek(from_offset, from_time_ms=from_time)
        total = max(0, reader.history.end - start)
        left = total if count is None else min(count, total)
        done, wanted = 0, left
        with progress(f"from {topic}", wanted, wanted=not sys.stdout.isatty()) as show:
            batches = reader.batches(start)
            try:
                for batch in batches:
                    if count is not None and done + len(batch) > count:
                        _write(out, batch, count - done, as_json=as_json)
                        break
                    _write(out, batch, len(batch), as_json=as_json)
                    done += len(batch)
                    show(done)
                    if done == count:
                        break
            finally:
                batches.close()


def _write(out: int, batch: Batch, count: int, *, as_json: bool) -> None:
    """Write a batch to a file descriptor, whole; Python's own stdout, where it is unbuffered, may write half of it."""
    if as_json:
        from ister.cli.consume import describe

        lines = []
        for message in batch[:count]:
            body = describe(message)
            del body["attempt"]
            lines.append(json.dumps(body, ensure_ascii=False).encode())
    else:
        lines = batch.payloads[:count]
    left = memoryview(b"\n".join(lines) + b"\n")
    while left:
        left = left[os.write(out, left) :]


@store.command(cls=Command)
@url_argument
@optional_topic
@incarnation_option
@json_option
def verify(url: str, topic: str | None, incarnation: str | None, as_json: bool) -> None:
    """Check every byte of one or all topics' history; exit code 1 when something is damaged or missing."""
    import ister.store

    if topic is None:
        chosen: list[tuple[str, str | None]] = [
            (each.name, each.incarnation.hex()) for each in ister.store.topics(url)
        ]
    else:
        chosen = [(topic, incarnation)]
    reports = []
    sound = True
    for name, one in chosen:
        with _read_only(), progress(f"verifying {name}", None, unit="bytes") as show:
            report = ister.store.verify(url, name, incarnation=one, progress=show)
        sound = sound and report.sound
        history = report.history
        if as_json:
            told = {"topic": name, "incarnation": report.incarnation, "sound": report.sound} | _summary(
                history
            )
            told |= {"objects": report.objects, "records": report.records, "checked_bytes": report.bytes}
            damaged = [
                {"object": each.name, "first": each.first, "end": each.end, "reason": each.reason}
                for each in report.damaged
            ]
            reports.append(told | {"damaged": damaged})
            continue
        print(
            f"topic {name}: offsets {history.start} to before {history.end} in {counted(report.objects, 'segment')}, "
            f"{counted(report.bytes, 'byte')}: {'every byte is what was written' if report.sound else 'not sound'}"
        )
        for each in report.damaged:
            print(f"  offsets {each.first} to before {each.end}: {each.name}: {each.reason}")
        for first, end in history.gaps:
            print(f"  offsets {first} to before {end} are missing: no object holds them")
        if history.unused:
            print(
                f"  {counted(len(history.unused), 'object is', 'objects are')} not of the history: "
                "superseded, trimmed, or covered by others"
            )
    if as_json:
        print_json(reports)
    elif not chosen:
        print(NO_TOPICS)
    if not sound:
        raise SystemExit(FAILED)
