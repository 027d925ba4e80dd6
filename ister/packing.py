"""Packing messages for the wire: the frames of a batch as a program gives it, and whether the broker takes the size.

Checks what programs give, and raises `UsageError`. When a batch is sent is decided in `producer.py` and
`publication.py`. Pure: no socket, clock or thread lives here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ister import arguments, bodies
from ister.errors import UsageError
from ister.wire import Column, Limits
from ister.words import counted

Attributes = Mapping[str, str] | None  # of one message


class Packed:
    """The frames of a batch that has no sequence yet; `size` is that of its body in bytes."""

    __slots__ = ("body", "columns", "payloads", "size")

    def __init__(self, payloads: Sequence[bytes], columns: int, body: list[bytes]) -> None:
        self.payloads = payloads
        self.columns = columns
        self.body = body
        self.size = sum(map(len, body))


def pack(
    topic: str,
    payloads: Sequence[bytes],
    keys: Sequence[bytes | None] | None,
    attributes: Sequence[Attributes] | None,
    times: Sequence[int] | None,
    limits: Limits | None,
) -> Packed:
    """Return the frames of a batch for a topic: at least one message, columns of the same length, or absent.

    `times` are in unix milliseconds, 0 for at once. `limits` are the broker's, where they are known. Raises
    `UsageError`, also with the codes `message-too-large` and `batch-too-large`.
    """
    if not payloads:
        raise UsageError("a batch holds at least one message")
    try:
        joined = b"".join(payloads)
        table = bodies.pack_lengths(payloads)
    except TypeError:
        for each in payloads:
            arguments.data(each, "payload")  # raises for the one that is wrong, and says what it is
        raise
    if bodies.sum_of_lengths(table) != len(joined):
        raise UsageError("payloads are bytes; a memoryview of larger items is not")
    columns, body = _columns_of(len(payloads), keys, attributes, times)
    packed = Packed(payloads, columns, [table, joined, *body])
    if limits is not None:
        largest = max(bodies.lengths_of(table)) if len(joined) > limits.message_bytes_max else 0
        check_size(topic, len(payloads), largest, len(joined), packed.size, attributes, limits)
    return packed


def check_size(
    topic: str,
    count: int,
    largest: int,
    payloads_bytes: int,
    size: int,
    attributes: Sequence[Attributes] | None,
    limits: Limits,
) -> None:
    """Raise `UsageError` (`message-too-large`, `batch-too-large`) for what the broker would refuse.

    `largest` is the largest payload, `size` the bytes of `count` messages with all that goes with them. What a dead
    letter or a redrive has more, beside what its producer sent, is not counted.
    """
    if largest > limits.message_bytes_max:
        mine, limit = arguments.compared(largest, limits.message_bytes_max)
        raise UsageError(
            f"message of {mine} is over message_bytes_max ({limit}) of topic {topic!r}",
            code="message-too-large",
        )
    most, around = limits.batch_bytes_max, size - payloads_bytes
    if bodies.batch_fits(count, payloads_bytes, around, most):
        return
    if attributes is not None and count == 1:
        around -= bodies.marked_bytes(arguments.attributes(attributes[0]))
    if not bodies.batch_fits(count, payloads_bytes, around, most):
        beside = arguments.in_words(bodies.around_bytes_max(most))
        mine, limit = arguments.compared(payloads_bytes + around, most)
        raise UsageError(
            f"batch of {mine} is over batch_bytes_max "
            f"({limit}) of topic {topic!r}: {arguments.in_words(around)} of it are "
            f"lengths, keys and attributes; a lone message may have {beside} of these beside a large payload",
            code="batch-too-large",
        )


def _columns_of(
    count: int,
    keys: Sequence[bytes | None] | None,
    attributes: Sequence[Attributes] | None,
    times: Sequence[int] | None,
) -> tuple[int, list[bytes]]:
    columns = 0
    body: list[bytes] = []
    if keys is not None:
        if len(keys) != count:
            raise UsageError(
                f"{counted(len(keys), 'key was', 'keys were')} given for {counted(count, 'payload')}"
            )
        columns |= Column.KEYS
        body.append(bodies.pack_column([arguments.data(key, "key") if key else b"" for key in keys]))
    if attributes is not None:
        if len(attributes) != count:
            raise UsageError(
                f"attributes were given {counted(len(attributes), 'time')} for {counted(count, 'payload')}"
            )
        columns |= Column.ATTRIBUTES
        body.append(bodies.pack_column([arguments.attributes(each) for each in attributes]))
    if times is not None and any(times):
        columns |= Column.DELIVER_AT
        body.append(bodies.pack_times(times))
    return columns, body
