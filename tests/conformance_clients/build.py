"""Build the drivers in clients/: python -m tests.conformance_clients.build [LANGUAGE] (or: make build-clients)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tests.conformance_clients import drivers


def main(arguments: Sequence[str]) -> int:
    """Build one language's driver, or all; return 0 if none failed."""
    names = [name for argument in arguments for name in argument.split(",")]
    kinds = [drivers.named(name) for name in names] or drivers.find()
    told = drivers.build(kinds)
    for line in told:
        print(line)
    return 1 if any(line.startswith("FAILED") for line in told) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
