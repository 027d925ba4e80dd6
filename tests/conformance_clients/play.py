"""Type commands to a driver: python -m tests.conformance_clients.play LANGUAGE.

A line is a command's name and its arguments; those that are not text are JSON: `connect client=c
endpoints=["tcp://127.0.0.1:5555"]`.
"""

from __future__ import annotations

import json
import shlex
import sys
from typing import Any

from tests.conformance_clients import drivers
from tests.conformance_clients.drivers import AnsweredError, Driver


def read(line: str) -> tuple[str, dict[str, Any]]:
    """Parse a line into a command and its arguments."""
    name, *words = shlex.split(line.replace('"', '\\"'))
    arguments: dict[str, Any] = {}
    for word in words:
        key, _, value = word.partition("=")
        try:
            arguments[key] = json.loads(value)
        except ValueError:
            arguments[key] = value
    return name, arguments


def main(name: str) -> None:
    """Answer every line of standard input with the driver's answer."""
    with Driver(drivers.named(name)) as driver:
        print(f"{driver.client_text} can {', '.join(sorted(driver.capabilities))}", file=sys.stderr)
        for line in sys.stdin:
            if not line.strip():
                continue
            command, arguments = read(line)
            try:
                print(json.dumps(driver.ask(command, **arguments), ensure_ascii=False))
            except AnsweredError as error:
                print(error)


if __name__ == "__main__":
    main(sys.argv[1])
