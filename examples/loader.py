"""Load the lines of a file into a topic, each exactly once, however often this program is killed and started again.

    python examples/loader.py tcp://127.0.0.1:5555 rows lines.txt

The line with number n (from 0 on) is the message with number n of the producer called `loader`. The broker remembers by
that name the number of the last message it has stored, and a program that starts again continues after it.
"""

from __future__ import annotations

import sys
from collections import deque
from itertools import islice

import ister


def load(endpoint: str, topic: str, path: str) -> None:
    """Send the lines that are not stored yet; return once all of them are."""
    with ister.connect(endpoint) as client:
        client.create_topic(topic, exist_ok=True)
        with client.producer(topic, name="loader") as producer, open(path, "rb") as lines:
            start = producer.last_sequence + 1
            print(f"{start:,} lines are there already", file=sys.stderr)
            receipts: deque[ister.Receipt] = deque()
            for line in islice(lines, start, None):
                receipts.append(producer.send(line.rstrip(b"\n")))
                while receipts and receipts[0].done():
                    receipts.popleft().result()  # raises the error with which a line was refused
            for receipt in receipts:
                receipt.result(timeout=60)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(
            "usage: python examples/loader.py ENDPOINT TOPIC FILE, as in: tcp://127.0.0.1:5555 rows lines.txt"
        )
    load(*sys.argv[1:])
