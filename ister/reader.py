"""The reader that programs hold: the messages of a topic from some place on, without a subscription.

It has no cursor and acknowledges nothing; over lost connections and restarts of the broker it goes on with the message
behind the last one it handed out. What is said to the broker is in `attachment.py`.
"""

from __future__ import annotations

from ister.receiver import Receiver


class Reader(Receiver):
    """Yields the messages of one topic; made by `Client.reader`, closed by `close` or a `with` block."""

    def __repr__(self) -> str:
        return f"<Reader topic={self.topic!r} {self.attachment.phase}>"

    @property
    def what(self) -> str:
        """What it is, in words."""
        return f"the reader of topic {self.topic!r}"
