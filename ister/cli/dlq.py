"""`ister dlq`: list and show dead letters, redrive them, delete them.

Invariant: nothing is deleted without `--yes` or a confirmation.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import click

from ister.cli.command import CONTEXT, Command, Group
from ister.cli.consume import text_or_base64
from ister.cli.options import (
    client_options,
    confirm,
    connected,
    json_option,
    subscription_argument,
    topic_argument,
    topic_option,
    yes_option,
)
from ister.cli.outcome import FAILED
from ister.show import moment, print_fields, print_json, print_table, shares
from ister.words import counted

if TYPE_CHECKING:
    from ister.deadletters import DeadLetter

PAYLOAD_SHOWN: Final = 40  # characters of a payload in a table

_HELP_END = """\b
Examples:
  ister dlq list orders billing
  ister dlq show orders billing 17
  ister dlq redrive orders billing --limit 10         back to topic orders, ten letters first
  ister dlq redrive orders billing --to orders-fixed
  ister dlq purge orders billing --yes

A message becomes a dead letter when it has failed max_deliveries times: see `ister subscription update`."""


@click.group(cls=Group, context_settings=CONTEXT, epilog=_HELP_END)
def dlq() -> None:
    """List, show, redrive and purge the dead letters of a subscription."""


@dlq.command("list", cls=Command)
@topic_argument
@subscription_argument
@click.option(
    "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most this many."
)
@click.option(
    "--after", type=click.IntRange(min=0), help="Only those behind this offset, the last of an earlier list."
)
@client_options
@json_option
def list_(
    topic: str,
    subscription: str,
    limit: int,
    after: int | None,
    endpoint: str,
    timeout: float,
    as_json: bool,
) -> None:
    """List dead letters that wait, oldest first; none is removed."""
    with connected(endpoint, timeout) as client:
        letters = client.dead_letters(topic, subscription)
        found = letters.list(limit, after=after)
        waiting = letters.count()
    if as_json:
        print_json([describe(letter) for letter in found])
    elif not found:
        print(f"subscription {subscription} of {topic} has no dead letters")
    else:
        rows = [
            [
                each.offset,
                each.origin_offset,
                moment(each.dead_lettered_at),
                each.attempts,
                each.reason or None,
                _short(each.key),
                _short(each.payload),
            ]
            for each in found
        ]
        print_table(["offset", "was at", "died", "attempts", "reason", "key", "payload"], rows)
        if waiting > len(found):
            more = f"--limit shows more, --after {found[-1].offset} what follows"
            print(f"... of {waiting:,}; {more}", file=sys.stderr)


@dlq.command(cls=Command)
@topic_argument
@subscription_argument
@click.argument("offset", type=click.IntRange(min=0))
@client_options
@json_option
def show(topic: str, subscription: str, offset: int, endpoint: str, timeout: float, as_json: bool) -> None:
    """Show one dead letter, by its offset in the dead-letter topic."""
    with connected(endpoint, timeout) as client:
        letter = client.dead_letters(topic, subscription).show(offset)
    if as_json:
        print_json(describe(letter))
        return
    print_fields(
        {
            "offset": letter.offset,
            "topic": letter.topic,
            "subscription": letter.subscription,
            "was at offset": letter.origin_offset,
            "producer": letter.producer,
            "published": moment(letter.timestamp),
            "died": moment(letter.dead_lettered_at),
            "attempts": letter.attempts,
            "reason": letter.reason or None,
            "key": _short(letter.key),
            "attributes": letter.attributes,
            "bytes": len(letter.payload),
        }
    )
    print()
    print(letter.payload.decode(errors="backslashreplace"))


@dlq.command(cls=Command)
@topic_argument
@subscription_argument
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="At most this many letters, oldest first."
)
@click.option(
    "--offset",
    "offsets",
    type=click.IntRange(min=0),
    multiple=True,
    metavar="OFFSET",
    help="Only the letter at this offset of the dead-letter topic; may be given several times.",
)
@topic_option("--to", help="Send them to this topic instead of their own.")
@client_options
@json_option
def redrive(
    topic: str,
    subscription: str,
    limit: int | None,
    offsets: tuple[int, ...],
    to: str | None,
    endpoint: str,
    timeout: float,
    as_json: bool,
) -> None:
    """Publish dead letters to their original topic again; letters that fail again meanwhile wait for the next call.

    A letter is removed from the dead-letter topic once the other topic has it. If interrupted, run it again; a few
    letters may then be sent twice.
    """
    with connected(endpoint, timeout) as client, shares(f"redriving {subscription}") as on_progress:
        done = client.dead_letters(topic, subscription).redrive(
            limit, offsets=offsets or None, to=to, on_progress=on_progress
        )
    if as_json:
        print_json({"redriven": done, "to": to or topic})
    else:
        print(f"{counted(done, 'dead letter')} of {subscription} went to topic {to or topic}")
    if offsets and done < len(set(offsets)):
        missing = f"{len(set(offsets)) - done} of the offsets given are not among the letters that wait"
        print(f"ister: {missing}", file=sys.stderr)
        raise SystemExit(FAILED)


@dlq.command(cls=Command)
@topic_argument
@subscription_argument
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="At most this many letters, oldest first."
)
@yes_option
@client_options
@json_option
def purge(
    topic: str, subscription: str, limit: int | None, yes: bool, endpoint: str, timeout: float, as_json: bool
) -> None:
    """Delete dead letters, permanently; asks first."""
    confirm(f"throw the dead letters of {subscription} of {topic} away?", yes)
    with connected(endpoint, timeout) as client, shares(f"purging {subscription}") as on_progress:
        done = client.dead_letters(topic, subscription).purge(limit, on_progress=on_progress)
    if as_json:
        print_json({"purged": done})
    else:
        print(f"{counted(done, 'dead letter')} of {subscription} of {topic} deleted")


def describe(letter: DeadLetter) -> dict[str, Any]:
    """Return a dead letter as a plain map for JSON."""
    body: dict[str, Any] = {
        "offset": letter.offset,
        "topic": letter.topic,
        "subscription": letter.subscription,
        "origin_offset": letter.origin_offset,
        "producer": letter.producer,
        "timestamp": letter.timestamp,
        "dead_lettered_at": letter.dead_lettered_at,
        "attempts": letter.attempts,
        "reason": letter.reason,
        "attributes": letter.attributes,
    }
    if letter.key is not None:
        body |= text_or_base64("key", letter.key)
    return body | text_or_base64("payload", letter.payload)


def _short(data: bytes | None) -> str | None:
    if data is None:
        return None
    text = data[: 4 * PAYLOAD_SHOWN].decode(errors="backslashreplace")
    text = "".join(each if each.isprintable() else "·" for each in text)
    return text if len(text) <= PAYLOAD_SHOWN else text[: PAYLOAD_SHOWN - 1] + "…"
