"""The options that commands share, and the client they give.

May touch: the client library, imported when a command runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from ister.errors import UsageError
from ister.names import check_subscription_name, check_topic_name

if TYPE_CHECKING:
    from ister.client import Client

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

ENDPOINT_DEFAULT: Final = "tcp://127.0.0.1:5555"
TIMEOUT_S_DEFAULT: Final = 10.0


class TopicName(click.ParamType):
    """A topic's name, checked before anything is sent."""

    name = "topic"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name, or fail with what is wrong with it."""
        try:
            return check_topic_name(value)
        except UsageError as error:
            self.fail(error.text, param, ctx)


class SubscriptionName(click.ParamType):
    """A subscription's name, checked before anything is sent."""

    name = "subscription"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name, or fail with what is wrong with it."""
        try:
            return check_subscription_name(value)
        except UsageError as error:
            self.fail(error.text, param, ctx)


class Start(click.ParamType):
    """Where a new subscription begins: `earliest`, `latest`, or an offset."""

    name = "earliest|latest|OFFSET"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | int:
        """Return the word or the number, or fail."""
        if value in ("earliest", "latest") or isinstance(value, int):
            return value  # type: ignore[no-any-return]
        if isinstance(value, str) and value.isascii() and value.isdecimal():
            return int(value)
        self.fail(f"{value!r} is neither 'earliest' nor 'latest' nor an offset (0, 1, ...)", param, ctx)


topic_argument: Final = click.argument("topic", type=TopicName())
subscription_argument: Final = click.argument("subscription", type=SubscriptionName())
json_option: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON, for a script to read.")
type_option: Final = click.option(
    "--type",
    "type_",
    type=click.Choice(["exclusive", "shared", "failover"]),
    default="shared",
    show_default=True,
    help="How the subscription's consumers share its messages.",
)


def client_options(command: Decorated) -> Decorated:
    """Add --endpoint and --timeout, what every command that is a client takes."""
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
        help="Any worker of the broker; it says where to go from there.",
    )(command)


@contextmanager
def connected(endpoint: str, timeout: float) -> Iterator[Client]:
    """Give a client that is connected to `endpoint`; raises `ConnectionLostError` when nobody answers in `timeout` s."""
    import ister

    with ister.connect(endpoint, timeout=timeout) as client:
        yield client
