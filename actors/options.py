"""The options of topics and subscriptions, and the check of what clients give; pure.

Invariants
- a setting in the catalogue was checked here; readers of the catalogue need not check it again
- every refusal names the setting, its value, and what is allowed
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, Final

from ister.errors import IsterError, RemoteError, UsageError
from ister.names import NAME_CHARACTERS_MAX, check_topic_name
from ister.settings import SubscriptionSettings
from ister.storage.meta import SubscriptionMeta, TopicMeta
from ister.subscriptions import READER

OFFSET_DIGITS_MAX: Final = 19  # of the largest signed 64-bit number
POISON_DEFAULT: Final = "dead-letter"
DEAD_LETTER_SUFFIX: Final = ".dlq"  # the suffix of the dead-letter topic where none is named
DEAD_LETTERS: Final = "dead_letters"  # the setting that marks a dead-letter topic: patterns do not follow it
UNBLOCK_ACTIONS: Final = ("retry", "drop", "dead-letter")
_DAY_MS: Final = 86_400_000
_DEFAULTS: Final = SubscriptionSettings()

# (lowest, highest), the allowed words, or a function that checks the value
Allowed = tuple[int, int] | tuple[str, ...] | Callable[[object], object]

SUBSCRIPTION_OPTIONS: Final[dict[str, Allowed]] = {
    "ack_timeout_ms": (10, _DAY_MS),
    "backoff_ms_min": (0, _DAY_MS),
    "backoff_ms_max": (0, _DAY_MS),
    "max_deliveries": (0, 1_000_000),  # 0: no limit
    "poison": ("dead-letter", "drop", "block"),
    "dead_letter_topic": check_topic_name,
    "paused": (0, 1),
    "buffer_messages_max": (1, 100_000_000),
    "buffer_bytes_max": (1, 4 << 30),
    "drop": ("oldest", "newest"),
}
_BUFFER_OPTIONS: Final = ("buffer_messages_max", "buffer_bytes_max", "drop")
_RELIABLE_OPTIONS: Final = (
    "ack_timeout_ms",
    "backoff_ms_min",
    "backoff_ms_max",
    "max_deliveries",
    "poison",
    "dead_letter_topic",
    "paused",
)

# The settings a topic can have beside its strategy and durability; 0 and False: no limit.
TOPIC_OPTIONS: Final[dict[str, Allowed]] = {
    "retention_ms": (0, 100 * 365 * _DAY_MS),
    "retention_bytes": (0, 1 << 60),
    "retention_acknowledged": (0, 1),
    "message_ttl_ms": (0, 100 * 365 * _DAY_MS),
    DEAD_LETTERS: (0, 1),
}


FLAG: Final[tuple[int, int]] = (0, 1)  # no and yes; a client may say false and true


def check_options(options: dict[str, Any], known: Mapping[str, Allowed], what: str) -> None:
    """Check the settings of a topic or subscription; raises `UsageError` with the setting, its value and the limit.

    Flags in `options` become 0 or 1.
    """
    for name, value in options.items():
        allowed = known.get(name)
        if allowed is None:
            raise UsageError(f"a {what} has no setting {name!r:.40}; known are {', '.join(known)}")
        if callable(allowed):
            try:
                allowed(value)
            except IsterError as error:
                raise UsageError(f"{name}: {error.text}") from None
            continue
        if isinstance(allowed[0], str):
            good, words = value in allowed, " or ".join(map(str, allowed))
        else:
            low, high = allowed
            if allowed == FLAG and type(value) is bool:
                options[name] = int(value)  # one spelling in the catalogue, and in answers
                continue
            good, words = type(value) is int and int(low) <= value <= int(high), f"{low} to {high}"
        if not good:
            raise UsageError(f"{name} is {value!r:.40}, which is not {words}")


def check_subscription_options(options: dict[str, Any], meta: SubscriptionMeta, dispatch: str) -> None:
    """Check the options given to a subscription, also together with those that `meta` has already.

    Raises `UsageError`.
    """
    check_options(options, SUBSCRIPTION_OPTIONS, "subscription")
    _check_applies(options, meta, dispatch)
    together = meta.settings | options
    low, high = back_off_bounds(together)
    if low > high:
        raise UsageError(f"backoff_ms_min ({low}) is over backoff_ms_max ({high})")
    target = together.get("dead_letter_topic")
    if target == meta.topic:
        raise UsageError(f"dead_letter_topic is {target!r}, the topic itself")
    if (
        target is None
        and together.get("max_deliveries")
        and together.get("poison", POISON_DEFAULT) == POISON_DEFAULT
    ):
        # not shortened: it can be named where dead letters are listed
        name = f"{meta.topic}.{meta.name}{DEAD_LETTER_SUFFIX}"
        if len(name) > NAME_CHARACTERS_MAX:
            raise UsageError(
                f"the dead-letter topic would be called {name[:40]!r}..., which is longer than "
                f"{NAME_CHARACTERS_MAX} characters: give dead_letter_topic"
            )


def _check_applies(options: dict[str, Any], meta: SubscriptionMeta, dispatch: str) -> None:
    """Check that the options have an effect for a subscription of that type, of a topic of that strategy."""
    if meta.type == READER:
        known = _BUFFER_OPTIONS if dispatch == "non-reliable" else ()
        for name in options:
            if name not in known:
                raise UsageError(
                    f"{name} is for subscriptions: a reader of a {dispatch} topic has no such setting"
                )
    elif dispatch != "reliable":
        for name in options:
            if name in _RELIABLE_OPTIONS:
                raise UsageError(
                    f"{name} is for subscriptions of reliable topics: here nothing is delivered again"
                )
    else:
        for name in options:
            if name in _BUFFER_OPTIONS:
                raise UsageError(
                    f"{name} is for subscriptions of non-reliable topics: here everything is kept, and nothing dropped"
                )


def check_same_options(
    options: dict[str, Any],
    topic: TopicMeta,
    meta: SubscriptionMeta,
    defaults: SubscriptionSettings = _DEFAULTS,
) -> None:
    """Check that a client that opens an existing subscription asks for no other options than it has.

    Raises `RemoteError` subscription-options with both values, `UsageError`.
    """
    if not options:
        return
    check_options(options, SUBSCRIPTION_OPTIONS, "subscription")
    _check_applies(options, meta, topic.dispatch)
    has = effective_options(topic, meta, defaults)
    for name, value in options.items():
        if has.get(name) != value:
            raise RemoteError(
                "subscription-options",
                f"subscription {meta.name!r} of topic {meta.topic!r} has {name} {has.get(name)!r}, not {value!r:.100}: "
                "leave the option out, or change the subscription (subscription.update)",
            )


def dead_letter_topic(meta: SubscriptionMeta) -> str:
    """Return the name of a subscription's dead-letter topic, shortened if it would be too long."""
    named = meta.settings.get("dead_letter_topic")
    name = str(named or f"{meta.topic}.{meta.name}{DEAD_LETTER_SUFFIX}")
    if len(name) <= NAME_CHARACTERS_MAX:
        return name
    end = f".{sha256(name.encode()).hexdigest()[:16]}{DEAD_LETTER_SUFFIX}"
    return name[: NAME_CHARACTERS_MAX - len(end)].rstrip("/") + end


def is_dead_letter_topic(topic: TopicMeta) -> bool:
    """Return whether a topic takes dead letters: by its mark, or, if an older version made it, by its name."""
    return bool(topic.settings.get(DEAD_LETTERS)) or topic.name.endswith(DEAD_LETTER_SUFFIX)


def back_off_bounds(
    settings: Mapping[str, Any], defaults: SubscriptionSettings = _DEFAULTS
) -> tuple[int, int]:
    """Return `backoff_ms_min` and `backoff_ms_max`; if only one is given, the default of the other is adapted."""
    low, high = settings.get("backoff_ms_min"), settings.get("backoff_ms_max")
    if low is None:
        low = defaults.backoff_ms_min if high is None else min(defaults.backoff_ms_min, high)
    return low, max(defaults.backoff_ms_max, low) if high is None else high


def effective_options(
    topic: TopicMeta, meta: SubscriptionMeta, defaults: SubscriptionSettings = _DEFAULTS
) -> dict[str, Any]:
    """Return every option that applies to a subscription: its own, and the broker's defaults for the others.

    A subscription to a dead-letter topic gives nothing up by default: nobody would look for letters of letters.
    """
    given = meta.settings
    options: dict[str, Any] = {}
    if topic.dispatch == "reliable":
        low, high = back_off_bounds(given, defaults)
        options |= {
            "ack_timeout_ms": defaults.ack_timeout_ms,
            "backoff_ms_min": low,
            "backoff_ms_max": high,
            "max_deliveries": 0 if is_dead_letter_topic(topic) else defaults.max_deliveries,
            "poison": POISON_DEFAULT,
            "dead_letter_topic": dead_letter_topic(meta),
            "paused": 0,
        }
    else:
        options |= {name: getattr(defaults, name) for name in _BUFFER_OPTIONS}
    return options | given


def check_flag(value: object, what: str) -> bool:
    """Return the value of a flag, which is 0, 1, false or true; raises `UsageError`."""
    if type(value) not in (int, bool) or value not in FLAG:
        raise UsageError(f"{what} is {value!r:.40}, which is not 0 or 1, nor false or true")
    return value == 1


def check_position(position: object, what: str) -> str | int:
    """Return a position in the catalogue's form: "earliest", "latest", an offset, or "time:<unix ms>".

    It may come as text or number; raises `UsageError` for anything else.
    """
    if type(position) is int and 0 <= position < 10**OFFSET_DIGITS_MAX:
        return position
    if position in ("earliest", "latest"):
        return str(position)
    if isinstance(position, str):
        time, colon, digits = position.rpartition(":")
        # An offset has at most 19 digits; int() raises for thousands of them.
        if (time, colon) in (("", ""), ("time", ":")) and _is_number(digits):
            return f"time:{int(digits)}" if colon else int(digits)
    raise UsageError(
        f"{what} {position!r:.40} is neither 'earliest' nor 'latest' nor an offset nor 'time:' and unix milliseconds"
    )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= OFFSET_DIGITS_MAX
