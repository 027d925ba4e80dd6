"""`ister subscription`: create, update, list, show, move, pause, resume, unblock and delete subscriptions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import click

from ister.cli.command import CONTEXT, Command, Group
from ister.cli.options import (
    POSITION_SHOWN,
    Decorated,
    client_options,
    confirm,
    connected,
    json_option,
    start_option,
    subscription_argument,
    topic_argument,
    topic_option,
    type_option,
    yes_option,
)
from ister.cli.times import Duration, Position
from ister.errors import UsageError
from ister.show import print_fields, print_json, print_table
from ister.words import counted

if TYPE_CHECKING:
    from ister.consumer import Position as Start
    from ister.requests import SubscriptionOptions
    from ister.subscriptions import SubscriptionType

PENDING_SHOWN: Final = 10  # unacknowledged ranges; --json has all that the broker reports

_HELP_END = """\b
Examples:
  ister subscription create orders billing --type failover --start earliest
  ister subscription update orders billing --max-deliveries 5 --backoff-min 1s --ack-timeout 2m
  ister subscription seek orders billing --to -15m
  ister subscription pause orders billing
  ister subscription show orders billing --json | jq .unacknowledged"""


@click.group(cls=Group, context_settings=CONTEXT, epilog=_HELP_END)
def subscription() -> None:
    """Create, update, list, show, move, pause, resume, unblock and delete subscriptions."""


def setting_options(command: Decorated) -> Decorated:
    """Add the options of how a subscription treats its messages."""
    for option in reversed(_SETTINGS):
        command = option(command)
    return command


_SETTINGS: Final = (
    click.option(
        "--ack-timeout",
        type=Duration(),
        metavar="DURATION",
        help="Messages held longer (90, 15m) without an acknowledgment are redelivered; 5m by default.",
    ),
    click.option(
        "--backoff-min",
        type=Duration(),
        metavar="DURATION",
        help="How long a message waits after its first failure; doubles with each failure; 1s by default.",
    ),
    click.option(
        "--backoff-max",
        type=Duration(),
        metavar="DURATION",
        help="The longest wait after a failure; 1m by default.",
    ),
    click.option(
        "--max-deliveries",
        type=click.IntRange(min=0),
        metavar="N",
        help="A message that failed this often is poison; 20 by default; 0: no limit.",
    ),
    click.option(
        "--poison",
        type=click.Choice(["dead-letter", "drop", "block"]),
        help="What happens to poison messages: dead-letter topic (default), drop, or block the subscription.",
    ),
    topic_option("--dead-letter-topic", help="Where dead letters go, instead of TOPIC.SUBSCRIPTION.dlq."),
    click.option(
        "--drop",
        type=click.Choice(["oldest", "newest"]),
        help="Non-reliable: which messages are dropped when the buffer is full; the oldest by default.",
    ),
    click.option(
        "--buffer-messages",
        type=click.IntRange(min=1),
        metavar="N",
        help="Non-reliable: messages kept for slow consumers; 100,000 by default.",
    ),
    click.option(
        "--buffer-bytes",
        type=click.IntRange(min=1),
        metavar="BYTES",
        help="Non-reliable: bytes kept for slow consumers; 16 MiB by default.",
    ),
)


def _settings(given: dict[str, Any]) -> SubscriptionOptions:
    return {
        "ack_timeout": given["ack_timeout"],
        "backoff_min": given["backoff_min"],
        "backoff_max": given["backoff_max"],
        "max_deliveries": given["max_deliveries"],
        "poison": given["poison"],
        "dead_letter_topic": given["dead_letter_topic"],
        "drop": given["drop"],
        "buffer_messages_max": given["buffer_messages"],
        "buffer_bytes_max": given["buffer_bytes"],
    }


@subscription.command(cls=Command)
@topic_argument
@subscription_argument
@type_option
@start_option
@setting_options
@click.option("--paused", is_flag=True, help="Deliver nothing until `ister subscription resume`.")
@click.option(
    "--exist-ok", is_flag=True, help="Accept an existing subscription of that name, type and options."
)
@client_options
@json_option
def create(
    topic: str,
    subscription: str,
    type_: SubscriptionType,
    start: Start,
    paused: bool,
    exist_ok: bool,
    endpoint: str,
    timeout: float,
    as_json: bool,
    **settings: Any,
) -> None:
    """Create a subscription without consuming from it: it collects messages from now on."""
    options = _settings(settings)
    if paused:
        options["paused"] = True
    with connected(endpoint, timeout) as client:
        made = client.create_subscription(
            topic, subscription, type=type_, start=start, exist_ok=exist_ok, **options
        )
    if as_json:
        print_json(made)
    else:
        print(f"subscription {subscription} of {topic}: {made['type']}, lives in {made['node']}")


@subscription.command(cls=Command)
@topic_argument
@subscription_argument
@setting_options
@client_options
@json_option
def update(
    topic: str, subscription: str, endpoint: str, timeout: float, as_json: bool, **settings: Any
) -> None:
    """Change how a subscription treats its messages, also for its present consumers."""
    options = _settings(settings)
    if all(value is None for value in options.values()):
        raise UsageError("give at least one option to change")
    with connected(endpoint, timeout) as client:
        changed = client.update_subscription(topic, subscription, **options)
    if as_json:
        print_json(changed)
    else:
        print_fields(changed)


@subscription.command(cls=Command)
@topic_argument
@subscription_argument
@click.option(
    "--to",
    type=Position(),
    required=True,
    metavar=POSITION_SHOWN,
    help="The next message; a time is like 2026-03-01T08:00:00Z, or -15m.",
)
@yes_option
@client_options
@json_option
def seek(
    topic: str, subscription: str, to: Start, yes: bool, endpoint: str, timeout: float, as_json: bool
) -> None:
    """Move a subscription: everything before counts as acknowledged, nothing from there on does.

    Its consumers stay attached, and continue there. Asks first.
    """
    confirm(f"move subscription {subscription} of {topic} to {to}?", yes)
    with connected(endpoint, timeout) as client:
        position = client.seek(topic, subscription, to)
    if as_json:
        print_json({"topic": topic, "subscription": subscription, "position": position})
    else:
        print(f"subscription {subscription} of {topic} goes on at offset {position}")


def _pause(
    topic: str, subscription: str, endpoint: str, timeout: float, as_json: bool, *, paused: bool
) -> None:
    with connected(endpoint, timeout) as client:
        (client.pause if paused else client.resume)(topic, subscription)
    if as_json:
        print_json({"topic": topic, "subscription": subscription, "paused": paused})
    else:
        print(f"subscription {subscription} of {topic} {'is paused' if paused else 'delivers again'}")


@subscription.command(cls=Command)
@topic_argument
@subscription_argument
@client_options
@json_option
def pause(topic: str, subscription: str, endpoint: str, timeout: float, as_json: bool) -> None:
    """Stop delivery from a subscription; its consumers stay attached, and no message is lost."""
    _pause(topic, subscription, endpoint, timeout, as_json, paused=True)


@subscription.command(cls=Command)
@topic_argument
@subscription_argument
@client_options
@json_option
def resume(topic: str, subscription: str, endpoint: str, timeout: float, as_json: bool) -> None:
    """Have a paused subscription deliver again."""
    _pause(topic, subscription, endpoint, timeout, as_json, paused=False)


@subscription.command(cls=Command)
@topic_argument
@subscription_argument
@click.argument("action", type=click.Choice(["retry", "drop", "dead-letter"]))
@yes_option
@client_options
@json_option
def unblock(
    topic: str,
    subscription: str,
    action: Literal["retry", "drop", "dead-letter"],
    yes: bool,
    endpoint: str,
    timeout: float,
    as_json: bool,
) -> None:
    """Decide about a poison message that blocks a subscription: try again, drop it (asks first), or bury it."""
    if action == "drop":
        confirm(f"drop what blocks subscription {subscription} of {topic}?", yes)
    with connected(endpoint, timeout) as client:
        messages = client.unblock(topic, subscription, action)
    if as_json:
        print_json({"topic": topic, "subscription": subscription, "action": action, "messages": messages})
    elif messages:
        print(f"subscription {subscription} of {topic}: {action} for {counted(messages, 'message')}")
    else:
        print(f"subscription {subscription} of {topic} was not blocked")


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
    """Show a subscription: its consumers, its progress, and how many messages are left."""
    with connected(endpoint, timeout) as client:
        found = client.subscription(topic, subscription)
    if as_json:
        print_json(found)
    else:
        fields: dict[str, Any] = {**found}
        if "pending" in fields:
            fields["pending"] = [f"{first} to {end - 1}" for first, end in fields["pending"][:PENDING_SHOWN]]
        print_fields(fields)


@subscription.command(cls=Command)
@topic_argument
@subscription_argument
@yes_option
@client_options
@json_option
def delete(topic: str, subscription: str, yes: bool, endpoint: str, timeout: float, as_json: bool) -> None:
    """Delete a subscription and its acknowledgments; asks first."""
    confirm(f"delete subscription {subscription} of {topic}?", yes)
    with connected(endpoint, timeout) as client:
        client.delete_subscription(topic, subscription)
    if as_json:
        print_json({"deleted": subscription, "topic": topic})
    else:
        print(f"subscription {subscription} of {topic} deleted")
