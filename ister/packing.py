"""Packing messages for the wire: the frames of a batch as a program gives it, and whether the broker takes the size.

Checks what programs give, and raises `UsageError`. When a batch is sent is decided in `producer.py` and
`publication.py`. Pure: no socket, clock or thread lives here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from ister import arguments, bodies
from ister.errors import UsageError
from ister.gathering import MESSAGE_ENTRY_BYTES
from ister.wire import Column, Limits
from ister.words import counted

_ALL_BYTES: Final = frozenset({bytes})

Attributes = Mapping[str, str] | None  # of one message


class Packed:
    """A batch that has no sequence yet; `size` is that of its body in bytes, `payloads_bytes` that of its payloads."""

    __slots__ = ("_more", "columns", "lengths", "payloads", "payloads_bytes", "size")

    def __init__(self, payloads: list[bytes], lengths: list[int], columns: int, more: list[bytes]) -> None:
        """`more` are the frames of its columns."""
        self.payloads = payloads
        self.lengths = lengths
        self.columns = columns
        self._more = more
        self.payloads_bytes = sum(lengths)
        self.size = self.payloads_bytes + MESSAGE_ENTRY_BYTES * len(lengths) + sum(map(len, more))

    def frames(self) -> list[bytes]:
        """Return its body frames: made when it is sent alone, because other batches may join it."""
        return [bodies.table_of(self.lengths), b"".join(self.payloads), *self._more]


def pack(
    topic: str,
    payloads: Sequence[bytes],
    keys: Sequence[bytes | None] | None,
    attributes: Sequence[Attributes] | None,
    times: Sequence[int] | None,
    limits: Limits | None,
) -> Packed:
    """Return a batch for a topic: at least one message, columns of the same length, or absent.

    What the program gave may change from then on. `times` are in unix milliseconds, 0 for at once. `limits` are the
    broker's, where they are known. Raises `UsageError`, also with the codes `message-too-large` and `batch-too-large`.
    """
    if not payloads:
        raise UsageError("a batch holds at least one message")
    same = list(payloads) if _ALL_BYTES.issuperset(map(type, payloads)) else list(map(_copied, payloads))
    lengths = list(map(len, same))
    columns, more = _columns_of(len(same), keys, attributes, times)
    packed = Packed(same, lengths, columns, more)
    if limits is not None:
        largest = max(lengths) if packed.payloads_bytes > limits.message_bytes_max else 0
        check_size(topic, len(same), largest, packed.payloads_bytes, packed.size, attributes, limits)
    return packed


def _copied(payload: bytes) -> bytes:
    copied = bytes(arguments.data(payload, "payload"))
    if len(copied) != len(payload):
        raise UsageError("payloads are bytes; a memoryview of larger items is not")
    return copied


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
