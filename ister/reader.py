"""The reader that programs use: the messages of a topic from some position on, without a subscription.

It has no cursor and acknowledges nothing. After lost connections and restarts of the broker it continues after the last
message it handed out. `attachment.py` has its part of the protocol.
"""

from __future__ import annotations

from ister.receiver import Receiver


class Reader(Receiver):
    """Yields the messages of one topic; made by `Client.reader`, closed by `close` or a `with` block."""

    def __repr__(self) -> str:
        return f"<Reader topic={self.topic!r} {self.attachment.phase}>"

    @property
    def what(self) -> str:
        """What this is, for error texts."""
        return f"the reader of topic {self.topic!r}"
