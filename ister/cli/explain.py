"""`ister explain`: why messages of a subscription flow, or why they do not, in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import click

from ister.cli.command import Command
from ister.cli.options import client_options, connected, json_option, subscription_argument, topic_argument
from ister.show import moment, print_json, shown

# Advice for reasons whose text does not say what to do on the command line.
_COMMANDS: Final = {
    "paused": "ister subscription resume {topic} {subscription}",
    "poison-block": "ister subscription unblock {topic} {subscription} retry|drop|dead-letter",
    "damage": "ister topic repair {topic} --skip-damaged",
    "no-consumer": "ister consume {topic} --subscription {subscription} --follow",
}
_STATES: Final = {
    "flowing": "is flowing",
    "caught-up": "is caught up",
    "waiting": "is waiting",
    "stopped": "is not flowing",
}
_SHOWN: Final = {
    "consumers": "consumers",
    "ready": "of them with room",
    "in_flight": "delivered, not acknowledged",
    "unacknowledged": "not acknowledged in all",
    "due": "to be delivered now",  # also messages that were returned without a failure, or are in a buffer
    "backoff": "failed, waiting",
    "delayed": "waiting for their time",
    "keyed": "waiting for their key",
    "burying": "on their way to the dead-letter topic",
    "cursor": "acknowledged up to offset",
    "position": "delivered up to offset",
    "durable_end": "durable up to offset",
    "last_delivered_ms": "last delivery",
}

_ALWAYS: Final = frozenset(
    {"consumers", "unacknowledged", "cursor", "position", "durable_end"}
)  # shown also when 0

_HELP_END = """\b
Examples:
  ister explain orders billing
  ister explain orders billing --json | jq -r '.reasons[].code'"""


@click.command(cls=Command, epilog=_HELP_END)
@topic_argument
@subscription_argument
@client_options
@json_option
def explain(topic: str, subscription: str, endpoint: str, timeout: float, as_json: bool) -> None:
    """Say why messages of a subscription flow or do not flow: reasons in the order in which to look at them."""
    with connected(endpoint, timeout) as client:
        found = client.explain(topic, subscription)
    if as_json:
        print_json(found)
        return
    for line in in_words(topic, subscription, found):
        print(line)


def in_words(topic: str, subscription: str, found: Mapping[str, Any]) -> list[str]:
    """Return the broker's answer as lines for people."""
    stands = _STATES[found.get("state") or ("flowing" if found["flowing"] else "stopped")]
    lines = [f"subscription {subscription} of {topic} {stands}{':' if found['reasons'] else ''}"]
    for reason in found["reasons"]:
        lines.append(f"  - {reason['text']} ({reason['code']})")
        command = _COMMANDS.get(reason["code"])
        if command is not None:
            lines.append(f"    {command.format(topic=topic, subscription=subscription)}")
    numbers = found["numbers"].get("subscription", {})
    known = [
        (words, name, numbers[name])
        for name, words in _SHOWN.items()
        if numbers.get(name) or (name in _ALWAYS and numbers.get(name) == 0)
    ]
    if known:
        lines.append("")
        width = max(len(words) for words, _name, _value in known)
        lines += [
            f"  {words:<{width}}  {moment(value) if name.endswith('_ms') else shown(value)}"
            for words, name, value in known
        ]
    return lines
