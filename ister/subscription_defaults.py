"""Default options of subscriptions, for the broker and for `ister.testing`.

`ister/defaults.py` makes settings of them, with units, limits and reasons; that needs msgspec, which a client lacks.
"""

from typing import Final

ACK_TIMEOUT_MS: Final = 300_000
BACKOFF_MS_MIN: Final = 1_000
BACKOFF_MS_MAX: Final = 60_000
MAX_DELIVERIES: Final = 20
BUFFER_MESSAGES_MAX: Final = 100_000
BUFFER_BYTES_MAX: Final = 16 * 1024 * 1024
DROP: Final = "oldest"
