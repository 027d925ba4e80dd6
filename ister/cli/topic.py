"""`ister topic`: create, update, list, show, verify, repair, take over, forget and delete topics."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, cast

import click

from ister.cli.command import CONTEXT, Command, Group
from ister.cli.options import (
    Decorated,
    client_options,
    confirm,
    connected,
    json_option,
    topic_argument,
    yes_option,
)
from ister.cli.outcome import FAILED
from ister.cli.times import Duration
from ister.errors import UsageError
from ister.requests import TopicOptions
from ister.show import print_fields, print_json, print_table, progress
from ister.words import counted

WAITS_TOLD_AT: Final = 4  # questions, some two seconds

_HELP_END = """\b
Examples:
  ister topic create orders
  ister topic create ticks --dispatch non-reliable
  ister topic update orders --retention-bytes 1073741824 --message-ttl 7d
  ister topic verify orders
  ister topic list --json | jq -r '.[].topic'"""


@click.group(cls=Group, context_settings=CONTEXT, epilog=_HELP_END)
def topic() -> None:
    """Create, update, list, show, verify, repair, take over, forget and delete topics."""


def retention_options(command: Decorated) -> Decorated:
    """Add the options that say what a reliable topic keeps at most, and delivers."""
    command = click.option(
        "--message-ttl",
        type=Duration(),
        metavar="DURATION",
        help="Older messages (90, 15m, 2h, 7d) are not delivered any more; 0: no limit.",
    )(command)
    command = click.option(
        "--retention-acknowledged/--no-retention-acknowledged",
        default=None,
        help="Drop messages that every subscription has acknowledged.",
    )(command)
    command = click.option(
        "--retention-bytes",
        type=click.IntRange(min=0),
        metavar="BYTES",
        help="Keep at most this many bytes; 0: no limit.",
    )(command)
    command = click.option("--retention-ms", type=click.IntRange(min=0), hidden=True)(command)
    return click.option(
        "--retention",
        type=Duration(),
        metavar="DURATION",
        help="Keep messages at most this long (90, 15m, 2h, 7d); 0: no limit.",
    )(command)


_GIVEN: Final = ("retention", "retention_ms", "retention_bytes", "retention_acknowledged", "message_ttl")


def _options(given: dict[str, Any]) -> TopicOptions:
    return cast("TopicOptions", {name: given[name] for name in _GIVEN})


@topic.command(cls=Command)
@topic_argument
@click.option(
    "--dispatch",
    type=click.Choice(["reliable", "non-reliable"]),
    default="reliable",
    show_default=True,
    help="Reliable: at least once, from a log on disk. Non-reliable: from memory, with the lowest latency.",
)
@click.option(
    "--durability",
    type=click.Choice(["fsync", "os", "cloud"]),
    help="What a receipt of a reliable topic promises: synced to disk (default), in the page cache, uploaded.",
)
@retention_options
@click.option("--exist-ok", is_flag=True, help="Accept an existing topic of that name and dispatch.")
@client_options
@json_option
def create(
    topic: str,
    dispatch: str,
    durability: str | None,
    exist_ok: bool,
    endpoint: str,
    timeout: float,
    as_json: bool,
    **options: Any,
) -> None:
    """Create a topic: 1 to 200 letters, digits, '.', '_', '-', with '/' between parts."""
    with connected(endpoint, timeout) as client:
        made = client.create_topic(
            topic,
            dispatch=cast("Literal['reliable', 'non-reliable']", dispatch),
            durability=cast("Literal['fsync', 'os', 'cloud'] | None", durability),
            exist_ok=exist_ok,
            **_options(options),
        )
    if as_json:
        print_json(made)
    else:
        print(f"topic {made['topic']}: {made['strategy']}, {_durability(made)}, lives in {made['node']}")


@topic.command(cls=Command)
@topic_argument
@retention_options
@client_options
@json_option
def update(topic: str, endpoint: str, timeout: float, as_json: bool, **options: Any) -> None:
    """Change what a reliable topic keeps; what is not in the store yet is kept in any case."""
    if all(options[name] is None for name in _GIVEN if name in options):
        raise UsageError("give at least one option to change, as --retention 7d")
    with connected(endpoint, timeout) as client:
        changed = client.update_topic(topic, **_options(options))
    if as_json:
        print_json(changed)
    else:
        print_fields(changed)
        if not changed.get("settings_stored", True):
            print(
                f"the store does not have these settings yet: look again with `ister topic show {topic}`",
                file=sys.stderr,
            )


@topic.command(cls=Command)
@topic_argument
@client_options
@json_option
def verify(topic: str, endpoint: str, timeout: float, as_json: bool) -> None:
    """Check every byte of a reliable topic's log; exit code 1 when something is damaged."""
    with (
        connected(endpoint, timeout) as client,
        progress(f"verifying {topic}", 100, unit="%") as show_done,
    ):
        report = client.verify_topic(
            topic,
            progress=lambda done, total: show_done(100 * done // total if total else 100),
            waiting=_waits(topic),
        )
    if as_json:
        print_json(report)
    else:
        print(
            f"topic {topic}: offsets {report['start_offset']} to before {report['end_offset']}, "
            f"{counted(report['messages'], 'message')} in {counted(report['segments'], 'segment')}, "
            f"{counted(report['bytes'], 'byte')}: "
            f"{'damaged' if report['damaged'] else 'every byte is what was written'}"
        )
        for one in report["damaged"]:
            where = f"{one['path']}: " if one["path"] else ""
            print(f"  offsets {one['first']} to before {one['end']}: {where}{one['reason']}")
    if report["damaged"]:
        raise SystemExit(FAILED)


@topic.command(cls=Command)
@topic_argument
@click.option(
    "--skip-damaged",
    is_flag=True,
    required=True,
    help="Let every subscription continue after damage; their consumers are told which messages are skipped.",
)
@yes_option
@client_options
@json_option
def repair(topic: str, skip_damaged: bool, yes: bool, endpoint: str, timeout: float, as_json: bool) -> None:
    """Decide about damage that `ister topic verify` found; the damaged files are kept. Asks first."""
    confirm(f"let subscriptions of {topic} skip what is damaged?", yes)
    with connected(endpoint, timeout) as client:
        repaired = client.repair_topic(topic, skip_damaged=skip_damaged)
    if as_json:
        print_json(repaired)
    elif not repaired["skipped"]:
        print(f"topic {topic} has no damage")
    else:
        print(f"topic {topic}: {repaired['messages']:,} damaged messages are skipped from now on:")
        for first, end in repaired["skipped"]:
            print(f"  offsets {first} to before {end}")


@topic.command("list", cls=Command)
@client_options
@json_option
def list_(endpoint: str, timeout: float, as_json: bool) -> None:
    """List every topic, by name."""
    with connected(endpoint, timeout) as client:
        topics = client.topics()
    if as_json:
        print_json(topics)
    elif not topics:
        print("no topics yet: `ister topic create NAME` makes one")
    else:
        rows = [[each["topic"], each["strategy"], each["durability"], each["node"]] for each in topics]
        print_table(["topic", "strategy", "durability", "lives in"], rows)


@topic.command(cls=Command)
@topic_argument
@client_options
@json_option
def show(topic: str, endpoint: str, timeout: float, as_json: bool) -> None:
    """Show a topic: its settings, where it lives, how much it holds."""
    with connected(endpoint, timeout) as client:
        found = client.topic(topic)
    if as_json:
        print_json(found)
    else:
        print_fields(found)


@topic.command(cls=Command)
@topic_argument
@yes_option
@client_options
@json_option
def delete(topic: str, yes: bool, endpoint: str, timeout: float, as_json: bool) -> None:
    """Delete a topic with its messages and its subscriptions; asks first."""
    confirm(f"delete topic {topic} with all its messages?", yes)
    with connected(endpoint, timeout) as client:
        client.delete_topic(topic)
    if as_json:
        print_json({"deleted": topic})
    else:
        print(f"topic {topic} deleted")


@topic.command(cls=Command)
@topic_argument
@yes_option
@client_options
@json_option
def forget(topic: str, yes: bool, endpoint: str, timeout: float, as_json: bool) -> None:
    """Drop what is here of a topic that another broker has taken over; the store is left alone. Asks first."""
    confirm(f"drop what is here of topic {topic}, also messages that the store has not?", yes)
    with connected(endpoint, timeout) as client:
        client.forget_topic(topic)
    if as_json:
        print_json({"forgotten": topic})
    else:
        print(f"topic {topic} forgotten; `ister topic takeover {topic}` brings it back from the store")


@topic.command(cls=Command)
@topic_argument
@yes_option
@client_options
@json_option
def takeover(topic: str, yes: bool, endpoint: str, timeout: float, as_json: bool) -> None:
    """Claim a topic in the store for this broker, and continue from there; whoever has it now is fenced. Asks first."""
    confirm(
        f"take topic {topic} over, fence the broker that has it, and drop what is here and not in the store?",
        yes,
    )
    with connected(endpoint, timeout) as client:
        taken = client.takeover_topic(topic)
    if as_json:
        print_json(taken)
    else:
        print(
            f"topic {topic} is this broker's now, and goes on from the store's end; lives in {taken['node']}"
        )


def _waits(topic: str) -> Callable[[], None]:
    """Return what tells, once, that a check waits for others; the first answers may come before it has begun."""
    told = 0

    def waits() -> None:
        nonlocal told
        told += 1
        if told == WAITS_TOLD_AT:
            print(f"topic {topic} waits: the broker is checking another log, one at a time", file=sys.stderr)

    return waits


def _durability(made: Mapping[str, Any]) -> str:
    return "memory only" if made["strategy"] == "non-reliable" else f"durability {made['durability']}"
