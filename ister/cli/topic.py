"""`ister topic`: create, list, show and delete topics."""

from __future__ import annotations

import sys
from typing import Any, Literal, cast

import click

from ister.cli.command import CONTEXT, Command, Group
from ister.cli.options import client_options, connected, json_option, topic_argument
from ister.cli.show import print_fields, print_json, print_table

_HELP_END = """\b
Examples:
  ister topic create orders
  ister topic create ticks --dispatch non-reliable
  ister topic list --json | jq -r '.[].topic'"""


@click.group(cls=Group, context_settings=CONTEXT, epilog=_HELP_END)
def topic() -> None:
    """Create, list, show and delete topics."""


@topic.command(cls=Command)
@topic_argument
@click.option(
    "--dispatch",
    type=click.Choice(["reliable", "non-reliable"]),
    default="reliable",
    show_default=True,
    help="At least once from a log on disk, or from memory as fast as it goes.",
)
@click.option(
    "--durability",
    type=click.Choice(["fsync", "os", "cloud"]),
    help="What a receipt of a reliable topic promises: synced to disk (default), in the page cache, uploaded.",
)
@click.option("--exist-ok", is_flag=True, help="A topic of that name and dispatch is as good as a new one.")
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
) -> None:
    """Create a topic: 1 to 200 letters, digits, '.', '_', '-', with '/' between parts."""
    with connected(endpoint, timeout) as client:
        made = client.create_topic(
            topic,
            dispatch=cast("Literal['reliable', 'non-reliable']", dispatch),
            durability=cast("Literal['fsync', 'os'] | None", durability),
            exist_ok=exist_ok,
        )
    if as_json:
        print_json(made)
    else:
        print(f"topic {made['topic']}: {made['strategy']}, {_durability(made)}, lives in {made['node']}")


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
@click.option("--yes", is_flag=True, help="Do not ask, also on a terminal.")
@client_options
@json_option
def delete(topic: str, yes: bool, endpoint: str, timeout: float, as_json: bool) -> None:
    """Delete a topic with its messages and its subscriptions; on a terminal, asks first."""
    confirm(f"delete topic {topic} with all its messages?", yes)
    with connected(endpoint, timeout) as client:
        client.delete_topic(topic)
    if as_json:
        print_json({"deleted": topic})
    else:
        print(f"topic {topic} deleted")


def confirm(question: str, yes: bool) -> None:
    """Ask whether to go on where a person sits at the keyboard; a script means what it says."""
    if not yes and sys.stdin.isatty():
        click.confirm(question, abort=True, err=True)


def _durability(made: dict[str, Any]) -> str:
    return "memory only" if made["strategy"] == "non-reliable" else f"durability {made['durability']}"
