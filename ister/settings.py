"""Reading the settings: defaults, then a TOML file, then the environment, then flags; the later wins.

In the file a setting is `name` in `[section]`; in the environment `ISTER_SECTION__NAME` (two underscores between, since
names hold single ones); as a flag `section.name`. The values themselves are in `ister/defaults.py`, and
`conf/ister.toml` is `settings_toml()`, word for word.

Invariants
- A `Settings` that `load_settings` returns is whole, in range and consistent; nothing checks it again.
- A setting nobody knows is an error that says where it came from and which known one is nearest.
- The environment and the file are handed in; only the caller at the top of a process knows the real ones.
"""

from __future__ import annotations

import difflib
import re
import textwrap
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

import msgspec
from msgspec import inspect as shapes

from ister.defaults import (
    RECORD_OVERHEAD_BYTES_MAX,
    LogSettings,
    ProtocolSettings,
    ServerSettings,
    Settings,
    SubscriptionSettings,
    SupervisionSettings,
    TierSettings,
)
from ister.errors import SettingsError

__all__ = [
    "LogSettings",
    "ProtocolSettings",
    "ServerSettings",
    "SettingInfo",
    "Settings",
    "SubscriptionSettings",
    "SupervisionSettings",
    "TierSettings",
    "known_settings",
    "load_settings",
    "settings_toml",
    "split_listen",
]

ENVIRONMENT_PREFIX: Final = "ISTER_"
PORT_MAX: Final = 65535

_LISTEN = re.compile(r"tcp://(?P<host>\*|[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})")
_HOST = re.compile(r"[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]")
_STORE = re.compile(r"file:///[^\x00-\x1f]*|gs://[a-z0-9][a-z0-9._-]+(/[^\x00-\x1f]*)?")


class SettingInfo(NamedTuple):
    """A setting and its documentation: `low` and `high` bound a number, `choices` lists the words."""

    section: str
    name: str
    default: int | str
    unit: str
    reason: str
    low: int | None
    high: int | None
    choices: tuple[str, ...]

    @property
    def key(self) -> str:
        """The name in errors and flags: `section.name`."""
        return f"{self.section}.{self.name}"

    @property
    def variable(self) -> str:
        """The name in the environment: `ISTER_SECTION__NAME`."""
        return f"{ENVIRONMENT_PREFIX}{self.section}__{self.name}".upper()


def _describe(section: str, field: shapes.Field) -> SettingInfo:
    assert isinstance(field.type, shapes.Metadata)
    shape, extra = field.type.type, field.type.extra or {}
    low, high = (shape.ge, shape.le) if isinstance(shape, shapes.IntType) else (None, None)
    choices = tuple(str(value) for value in shape.values) if isinstance(shape, shapes.LiteralType) else ()
    return SettingInfo(section, field.name, field.default, extra["unit"], extra["reason"], low, high, choices)


def _describe_all() -> dict[str, SettingInfo]:
    found: dict[str, SettingInfo] = {}
    for section in msgspec.structs.fields(Settings):
        shape = shapes.type_info(section.type)
        assert isinstance(shape, shapes.StructType)
        for field in shape.fields:
            info = _describe(section.name, field)
            found[info.key] = info
    return found


_KNOWN: Final = _describe_all()
_SECTIONS: Final = tuple(dict.fromkeys(info.section for info in _KNOWN.values()))


def known_settings() -> tuple[SettingInfo, ...]:
    """Return every setting there is, in the order of `conf/ister.toml`."""
    return tuple(_KNOWN.values())


def _read_file(path: str) -> bytes:
    return Path(path).read_bytes()


def load_settings(
    path: str | None,
    environ: Mapping[str, str],
    overrides: Mapping[str, object],
    read: Callable[[str], bytes] = _read_file,
) -> Settings:
    """Return the settings from defaults, the TOML file at `path`, `environ` and `overrides`, the later winning.

    `overrides` maps `section.name` to a value; None stands for a flag that was not given, a string is read as in the
    environment. `read` returns a file's bytes, or raises OSError.

    Raises SettingsError: a file that cannot be read or is not TOML, an unknown setting, a value of the wrong type, out
    of its range, or at odds with another; the text names the setting, where it came from, the value and the limit.
    """
    values: dict[str, int | str] = {}
    sources: dict[str, str] = {}
    given = [*_from_file(path, read), *_from_environ(environ), *_from_flags(overrides)]
    for info, value, source in given:
        values[info.key] = _checked(info, value, source)
        sources[info.key] = source
    tree: dict[str, dict[str, int | str]] = {section: {} for section in _SECTIONS}
    for key, value in values.items():
        tree[_KNOWN[key].section][_KNOWN[key].name] = value
    settings = msgspec.convert(tree, Settings)
    _check_together(settings, sources)
    return settings


class _Given(NamedTuple):
    """A value that was given, and its source."""

    info: SettingInfo
    value: object
    source: str


def _from_file(path: str | None, read: Callable[[str], bytes]) -> list[_Given]:
    if path is None:
        return []
    try:
        document = tomllib.loads(read(path).decode())
    except OSError as error:
        raise SettingsError(f"the settings file {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"the settings file {path} is not UTF-8: {error.reason} at byte {error.start}"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"the settings file {path} is not TOML: {error}") from error
    given: list[_Given] = []
    for section, table in document.items():
        if section not in _SECTIONS:
            _unknown(f"section [{section}]", section, {name: f"[{name}]" for name in _SECTIONS}, path)
        if not isinstance(table, dict):
            raise SettingsError(
                f"{section} in {path} must be a section: write [{section}], then its settings"
            )
        for name, value in table.items():
            info = _KNOWN.get(f"{section}.{name}")
            if info is None:
                _unknown(f"setting {section}.{name}", f"{section}.{name}", {key: key for key in _KNOWN}, path)
            given.append(_Given(info, value, path))
    return given


def _from_environ(environ: Mapping[str, str]) -> list[_Given]:
    """Return the settings in an environment.

    A name without two underscores is somebody else's: Kubernetes gives a service called ister ISTER_PORT and
    ISTER_SERVICE_HOST. Only where it is a known setting but for the second underscore, it is surely meant as one.
    """
    by_variable = {info.variable: info for info in _KNOWN.values()}
    nearly = {info.variable.replace("__", "_"): info.variable for info in _KNOWN.values()}
    given: list[_Given] = []
    for variable, text in environ.items():
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        info = by_variable.get(variable)
        if info is not None:
            given.append(_Given(info, _from_text(info, text), f"environment {variable}"))
        elif variable in nearly:
            raise SettingsError(
                f"unknown setting {variable} in the environment: write {nearly[variable]}, with two underscores"
            )
        elif "__" in variable:
            _unknown(f"setting {variable}", variable, {name: name for name in by_variable}, "the environment")
    return given


def _from_flags(overrides: Mapping[str, object]) -> list[_Given]:
    given: list[_Given] = []
    for key, value in overrides.items():
        if value is None:
            continue
        info = _KNOWN.get(key)
        if info is None:
            _unknown(f"setting {key}", key, {name: name for name in _KNOWN}, "a flag")
        given.append(
            _Given(info, _from_text(info, value) if isinstance(value, str) else value, f"flag {key}")
        )
    return given


def _from_text(info: SettingInfo, text: str) -> int | str:
    """Convert a value that was given as text; what is not a number is left for `_checked` to refuse."""
    if info.low is None or not re.fullmatch(r"-?[0-9]+(_[0-9]+)*", text, re.ASCII):
        return text
    return (
        int(text) if len(text) <= 30 else text
    )  # no setting is that long, and int() of a million digits is slow


def _unknown(what: str, written: str, known: Mapping[str, str], source: str) -> NoReturn:
    nearest = difflib.get_close_matches(written, list(known), n=1, cutoff=0.0)
    raise SettingsError(f"unknown {what} in {source}: did you mean {known[nearest[0]]}?")


def _checked(info: SettingInfo, value: object, source: str) -> int | str:
    """Return `value` if it is valid for the setting, or raise SettingsError with the limits."""
    if info.low is not None and info.high is not None:
        if not isinstance(value, int) or isinstance(value, bool):
            _refuse(info, value, source, f"must be an integer, from {info.low} to {info.high} {info.unit}")
        if value < info.low:
            _refuse(info, value, source, f"is under the least allowed, {_amount(info.low, info.unit)}")
        if value > info.high:
            _refuse(info, value, source, f"is over the most allowed, {_amount(info.high, info.unit)}")
        return value
    if not isinstance(value, str):
        _refuse(info, value, source, f"must be a string ({info.unit})")
    if info.choices and value not in info.choices:
        _refuse(info, value, source, f"must be one of {', '.join(info.choices)}")
    complaint = _TEXT_RULES[info.key](value) if info.key in _TEXT_RULES else None
    if complaint is not None:
        _refuse(info, value, source, complaint)
    return value


def _refuse(info: SettingInfo, value: object, source: str, complaint: str) -> NoReturn:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    raise SettingsError(f"{info.key} = {shown} ({source}) {complaint}")


def _amount(number: int, unit: str) -> str:
    for size, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if unit == "bytes" and number >= size and number % size == 0:
            return f"{number} bytes ({number // size} {name})"
    return f"{number} {unit}"


def split_listen(address: str) -> tuple[str, int]:
    """Return host and port of a `tcp://HOST:PORT` address; raises `SettingsError` for any other text."""
    match = _LISTEN.fullmatch(address)
    if match is None:
        raise SettingsError(f"{address!r} is not tcp://HOST:PORT")
    return match["host"], int(match["port"])


def _bad_listen(value: str) -> str | None:
    match = _LISTEN.fullmatch(value)
    if match is None:
        return "must be tcp://HOST:PORT, as in tcp://127.0.0.1:5555 (* or 0.0.0.0 for every interface)"
    if not 1 <= int(match["port"]) <= PORT_MAX:
        return f"must have a port from 1 to {PORT_MAX}: clients must know where to find the broker"
    return None


def _bad_advertise(value: str) -> str | None:
    return (
        None
        if value == "" or _HOST.fullmatch(value)
        else "must be a host name or address alone, without tcp:// or port"
    )


def _bad_store(value: str) -> str | None:
    return (
        None
        if value == "" or _STORE.fullmatch(value)
        else "must be file:///folder, gs://bucket/prefix, or empty"
    )


def _bad_data(value: str) -> str | None:
    return "must name a folder" if value == "" or "\0" in value else None


_TEXT_RULES: Final[dict[str, Callable[[str], str | None]]] = {
    "server.data": _bad_data,
    "server.listen": _bad_listen,
    "server.advertise": _bad_advertise,
    "server.store": _bad_store,
}

# (setting, times, plus, other setting, why): setting x times + plus must not exceed the other one
_RULES: Final[tuple[tuple[str, int, int, str, str], ...]] = (
    ("protocol.message_bytes_max", 1, 0, "protocol.batch_bytes_max", "a message is never cut"),
    (
        "protocol.message_bytes_max",
        1,
        0,
        "protocol.consumer_credit_bytes_max",
        "else it could never be delivered",
    ),
    ("protocol.batch_bytes_max", 1, 0, "protocol.producer_window_bytes", "else it could never be sent"),
    (
        "protocol.batch_bytes_max",
        1,
        RECORD_OVERHEAD_BYTES_MAX,
        "log.segment_bytes_max",
        "a batch is one record of one segment, with up to 1 MiB of header and lengths",
    ),
    (
        "protocol.heartbeat_ms",
        2,
        0,
        "protocol.session_timeout_ms",
        "one lost heartbeat may not end a session",
    ),
    (
        "supervision.restart_delay_ms_min",
        1,
        0,
        "supervision.restart_delay_ms_max",
        "it grows from one to the other",
    ),
    (
        "subscription.backoff_ms_min",
        1,
        0,
        "subscription.backoff_ms_max",
        "it grows from one to the other",
    ),
    ("tier.upload_retry_ms_min", 1, 0, "tier.upload_retry_ms_max", "it grows from one to the other"),
)


def _check_together(settings: Settings, sources: Mapping[str, str]) -> None:
    def value_of(key: str) -> Any:
        return getattr(getattr(settings, _KNOWN[key].section), _KNOWN[key].name)

    def shown(key: str) -> str:
        return f"{key} = {_amount(value_of(key), _KNOWN[key].unit)} ({sources.get(key, 'default')})"

    for small, times, plus, large, why in _RULES:
        if value_of(small) * times + plus > value_of(large):
            bound = f"{times} times " if times > 1 else ""
            more = f" and {_amount(plus, _KNOWN[small].unit)} more" if plus else ""
            raise SettingsError(f"{shown(large)} must be at least {bound}{shown(small)}{more}: {why}")
    listen = _LISTEN.fullmatch(settings.server.listen)
    if listen is not None and int(listen["port"]) + max(settings.server.workers, 1) - 1 > PORT_MAX:
        raise SettingsError(
            f"server.listen = {settings.server.listen!r} ({sources.get('server.listen', 'default')}) leaves no port "
            f"for the last of server.workers = {settings.server.workers}: each takes one, and {PORT_MAX} is the last"
        )


def settings_toml() -> str:
    """Return `conf/ister.toml`: every setting with its default, and its unit, limits and reason above it."""
    lines = [
        "# Every setting of Ister, with its default: `ister serve --config ister.toml`.",
        "# The environment wins over this file (ISTER_LOG__SEGMENT_BYTES_MAX=6291456), and flags over both.",
    ]
    section = ""
    for info in _KNOWN.values():
        if info.section != section:
            section = info.section
            lines += ["", f"[{section}]"]
        limits = f", {info.low:_} to {info.high:_}" if info.low is not None and info.high is not None else ""
        limits = f": {' | '.join(info.choices)}" if info.choices else limits
        lines += textwrap.wrap(
            f"({info.unit}{limits}) {info.reason}", 110, initial_indent="# ", subsequent_indent="# "
        )
        value = f"{info.default:_}" if isinstance(info.default, int) else f'"{info.default}"'
        lines.append(f"{info.name} = {value}")
    return "\n".join(lines) + "\n"
