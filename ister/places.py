"""Checks of the endpoints that a program names, so that a wrong one is an error at once, not a timeout later.

May touch: this machine's name resolver, in `check_hosts`.

Invariants
- a name that the resolver does not know is an error; when the resolver cannot answer, connecting is tried for as long
  as it takes
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any, Final

from ister.errors import UsageError

_ENDPOINT: Final = re.compile(r"tcp://(?P<host>[^\s/:\[\]]+|\[[0-9A-Fa-f:.%\w]+\]):(?P<port>[0-9]{1,5})")
_UNKNOWN: Final = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})


def endpoints(value: Any) -> list[str]:
    """Return endpoints as a list, or raise `UsageError`."""
    listed = [value] if isinstance(value, str) else list(value)
    if not listed:
        raise UsageError("at least one endpoint is needed, for example tcp://127.0.0.1:5555")
    for endpoint in listed:
        _parts(endpoint)
    return listed


def _parts(endpoint: Any) -> tuple[str, int]:
    """Return host and port."""
    found = _ENDPOINT.fullmatch(endpoint) if isinstance(endpoint, str) else None
    if found is None:
        scheme = endpoint.partition("://")[0] if isinstance(endpoint, str) and "://" in endpoint else ""
        why = f": a broker is reached by tcp, not by {scheme}" if scheme not in ("", "tcp") else ""
        raise UsageError(f"an endpoint looks like tcp://127.0.0.1:5555, not {endpoint!r}{why}")
    host, port = found["host"].strip("[]"), int(found["port"])
    if not 1 <= port <= 65_535:
        raise UsageError(f"the port of endpoint {endpoint!r} is not from 1 to 65535")
    if host in ("*", "0.0.0.0", "::"):
        raise UsageError(f"{endpoint!r} is where a broker listens; connect to one of its addresses")
    return host, port


def need_a_resolver(listed: Iterable[str]) -> bool:
    """Return whether `check_hosts` would ask the resolver, which may take a while."""
    return any(not _is_address(_parts(endpoint)[0]) for endpoint in listed)


def check_hosts(listed: Iterable[str]) -> None:
    """Raise `UsageError` if none of the endpoints has a host that exists."""
    unknown: list[str] = []
    for endpoint in listed:
        host, port = _parts(endpoint)
        if _is_address(host):
            return
        try:
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            if error.errno not in _UNKNOWN:
                return
            unknown.append(host)
        except UnicodeError:  # a label is empty or too long
            unknown.append(host)
        else:
            return
    raise UsageError(
        f"there is no host {' or '.join(map(repr, unknown))}: its name cannot be resolved",
        code="unknown-host",
    )


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
