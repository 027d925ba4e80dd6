"""The options that commands share, and the client made from them.

May touch: the client library, imported when a command runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from ister.cli.ending import ending_in_order
from ister.cli.times import Position
from ister.errors import UsageError
from ister.names import check_subscription_name, check_topic_name, is_pattern, topic_pattern
from ister.subscriptions import SUBSCRIPTION_TYPES

if TYPE_CHECKING:
    from ister.client import Client

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

ENDPOINT_DEFAULT: Final = "tcp://127.0.0.1:5555"
TIMEOUT_S_DEFAULT: Final = 10.0


def _topic_name(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    """Check a topic's name before anything is sent."""
    try:
        return check_topic_name(value)
    except UsageError as error:
        raise click.BadParameter(error.text) from error


def _topic_or_pattern(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Check a topic's name, or a pattern of names, before anything is sent."""
    if not is_pattern(value):
        return _topic_name(ctx, param, value)
    try:
        topic_pattern(value)
    except UsageError as error:
        raise click.BadParameter(error.text) from error
    return value


def topic_option(*names: str, help: str) -> Callable[[Decorated], Decorated]:
    """Return an option that takes a topic's name."""

    def checked(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
        return None if value is None else _topic_name(ctx, param, value)

    return click.option(*names, metavar="TOPIC", callback=checked, help=help)


def _subscription_name(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    """Check a subscription's name before anything is sent."""
    try:
        return None if value is None else check_subscription_name(value)
    except UsageError as error:
        raise click.BadParameter(error.text) from error


topic_or_pattern_argument: Final = click.argument("topic", callback=_topic_or_pattern)
topic_argument: Final = click.argument("topic", callback=_topic_name)
subscription_argument: Final = click.argument("subscription", callback=_subscription_name)
optional_subscription_argument: Final = click.argument(
    "subscription", callback=_subscription_name, required=False
)
subscription_option: Final = click.option(
    "--subscription",
    "-s",
    callback=_subscription_name,
    metavar="NAME",
    help="The subscription; it is created if it does not exist. Without one, nothing is acknowledged.",
)
POSITION_SHOWN: Final = "earliest|latest|OFFSET|TIME"
start_option: Final = click.option(
    "--start",
    type=Position(),
    default="latest",
    show_default=True,
    metavar=POSITION_SHOWN,
    help="Where it starts to read; a time is like 2026-03-01T08:00:00Z, or -15m.",
)
json_option: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON, for a script to read.")
type_option: Final = click.option(
    "--type",
    "type_",
    type=click.Choice(SUBSCRIPTION_TYPES),
    default="shared",
    show_default=True,
    help="How the subscription's consumers share its messages.",
)

yes_option: Final = click.option(
    "--yes", is_flag=True, help="Do not ask for confirmation; required in scripts."
)


def confirm(question: str, yes: bool) -> None:
    """Ask for confirmation of something that is not easily undone; scripts pass `--yes`."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question} this is not a terminal: confirm with --yes")
    click.confirm(question, abort=True, err=True)


def client_options(command: Decorated) -> Decorated:
    """Add --endpoint and --timeout, which every command that is a client takes."""
    command = click.option(
        "--timeout",
        type=click.FloatRange(min=0.1),
        default=TIMEOUT_S_DEFAULT,
        show_default=True,
        metavar="SECONDS",
        help="How long to wait for the broker's answer.",
    )(command)
    return click.option(
        "--endpoint",
        "-e",
        envvar="ISTER_ENDPOINT",
        default=ENDPOINT_DEFAULT,
        show_default=True,
        show_envvar=True,
        metavar="ADDRESS",
        help="Any worker of the broker; it directs clients to the others.",
    )(command)


@contextmanager
def connected(endpoint: str, timeout: float) -> Iterator[Client]:
    """Open a client of the broker at `endpoint`; raises `ConnectionLostError` if none answers within `timeout` s."""
    import ister

    with ending_in_order(), ister.connect(endpoint, timeout=timeout) as client:
        yield client
