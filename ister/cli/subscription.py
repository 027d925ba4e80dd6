"""`ister subscription`: create, list, show and delete subscriptions."""

from __future__ import annotations

from typing import Literal, cast

import click

from ister.cli.command import CONTEXT, Command, Group
from ister.cli.options import (
    client_options,
    connected,
    json_option,
    start_option,
    subscription_argument,
    topic_argument,
    type_option,
)
from ister.cli.show import print_fields, print_json, print_table
from ister.cli.topic import confirm

_HELP_END = """\b
Examples:
  ister subscription create orders billing --type failover --start earliest
  ister subscription list orders
  ister subscription show orders billing --json | jq .unacknowledged"""


@click.group(cls=Group, context_settings=CONTEXT, epilog=_HELP_END)
def subscription() -> None:
    """Create, list, show and delete subscriptions."""


@subscription.command(cls=Command)
@topic_argument
@subscription_argument
@type_option
@start_option
@click.option(
    "--drop",
    type=click.Choice(["oldest", "newest"]),
    help="Non-reliable: what goes when its buffer is full.",
)
@click.option(
    "--ack-timeout",
    type=click.FloatRange(min=0.01),
    metavar="SECONDS",
    help="Messages held longer without an acknowledgment are delivered again.",
)
@click.option(
    "--buffer-messages",
    type=click.IntRange(min=1),
    help="Non-reliable: messages kept for consumers that are slow.",
)
@client_options
@json_option
def create(
    topic: str,
    subscription: str,
    type_: str,
    start: str | int,
    drop: str | None,
    ack_timeout: float | None,
    buffer_messages: int | None,
    endpoint: str,
    timeout: float,
    as_json: bool,
) -> None:
    """Create a subscription without consuming from it: it gathers messages from now on."""
    with connected(endpoint, timeout) as client:
        made = client.create_subscription(
            topic,
            subscription,
            type=cast("Literal['exclusive', 'shared', 'failover']", type_),
            start=cast("Literal['earliest', 'latest'] | int", start),
            drop=cast("Literal['oldest', 'newest'] | None", drop),
            ack_timeout=ack_timeout,
            buffer_messages_max=buffer_messages,
        )
    if as_json:
        print_json(made)
    else:
        print(f"subscription {subscription} of {topic}: {made['type']}, lives in {made['node']}")


@subscription.command("list", cls=Command)
@topic_argument
@client_options
@json_option
def list_(topic: str, endpoint: str, timeout: float, as_json: bool) -> None:
    """List the subscriptions of a topic, by name."""
    with connected(endpoint, timeout) as client:
        found = client.subscriptions(topic)
    if as_json:
        print_json(found)
    elif not found:
        print(
            f"topic {topic} has no subscriptions yet: `ister consume {topic} --subscription NAME` makes one"
        )
    else:
        rows = [[each["subscription"], each["type"], each["start"], each["node"]] for each in found]
        print_table(["subscription", "type", "started at", "lives in"], rows)


@subscription.command(cls=Command)
@topic_argument
@subscription_argument
@client_options
@json_option
def show(topic: str, subscription: str, endpoint: str, timeout: float, as_json: bool) -> None:
    """Show a subscription: its consumers, how far it is, what is left."""
    with connected(endpoint, timeout) as client:
        found = client.subscription(topic, subscription)
    if as_json:
        print_json(found)
    else:
        print_fields(found)


@subscription.command(cls=Command)
@topic_argument
@subscription_argument
@click.option("--yes", is_flag=True, help="Do not ask, also on a terminal.")
@client_options
@json_option
def delete(topic: str, subscription: str, yes: bool, endpoint: str, timeout: float, as_json: bool) -> None:
    """Delete a subscription and what it has acknowledged; on a terminal, asks first."""
    confirm(f"delete subscription {subscription} of {topic}?", yes)
    with connected(endpoint, timeout) as client:
        client.delete_subscription(topic, subscription)
    if as_json:
        print_json({"deleted": subscription, "topic": topic})
    else:
        print(f"subscription {subscription} of {topic} deleted")
