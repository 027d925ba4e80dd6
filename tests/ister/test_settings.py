"""Tests of ister/settings.py and ister/defaults.py: the sources of settings, and errors about them."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pytest

from ister.errors import SettingsError
from ister.settings import (
    ProtocolSettings,
    SettingInfo,
    Settings,
    known_settings,
    load_settings,
    settings_toml,
)

CONF = Path(__file__).parents[2] / "conf" / "ister.toml"
NUMBERS = [info for info in known_settings() if info.low is not None]
UNITS_IN_NAMES = {"bytes": "bytes", "ms": "ms", "s": "s", "messages": "messages"}


def holding(text: str) -> Callable[[str], bytes]:
    """Return a `read` function for which every file has `text`."""
    return lambda path: text.encode()


def load(
    text: str | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> Settings:
    """Load settings from a file holding `text`, an environment and flags."""
    path = None if text is None else "ister.toml"
    return load_settings(path, environ or {}, flags or {}, read=holding(text or ""))


def refusal(
    text: str | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> str:
    """Return the error for these settings."""
    with pytest.raises(SettingsError) as caught:
        load(text, environ, flags)
    assert (caught.value.code, caught.value.action) == ("invalid-setting", "fix")
    return caught.value.text


def test_with_nothing_given_the_defaults_are_the_settings() -> None:
    """Without a file, environment or flags a broker has the defaults, and these are consistent."""
    assert load() == Settings()


def test_conf_ister_toml_is_every_setting_with_its_default_unit_limits_and_reason() -> None:
    """The file that people copy is what `settings_toml()` writes."""
    assert CONF.read_text(encoding="utf-8") == settings_toml()


def test_conf_ister_toml_loads_as_the_defaults_and_leaves_no_setting_out() -> None:
    """Starting with the shipped file is the same as starting without one."""
    assert load_settings(str(CONF), {}, {}) == Settings()
    listed = {
        f"{section}.{name}" for section, table in tomllib.loads(CONF.read_text()).items() for name in table
    }
    assert listed == {info.key for info in known_settings()}


@pytest.mark.parametrize("info", known_settings(), ids=lambda info: info.key)
def test_every_setting_has_a_unit_and_a_reason(info: SettingInfo) -> None:
    """Nobody has to guess what a number counts, or why it has its value."""
    assert info.unit
    assert info.reason.endswith(".")
    assert len(info.reason) > 30
    for part, unit in UNITS_IN_NAMES.items():
        if part in info.name.split("_"):
            assert info.unit == unit


def test_flags_win_over_the_environment_and_that_over_the_file_and_that_over_the_defaults() -> None:
    """Each source overrides only the settings it names; the flags come last."""
    text = "[server]\nworkers = 1\ndata = 'file'\nadvertise = 'file'\n"
    environ = {"ISTER_SERVER__DATA": "environment", "ISTER_SERVER__ADVERTISE": "environment"}
    settings = load(text, environ, {"server.advertise": "flag", "server.store": None})
    assert settings.server.workers == 1
    assert settings.server.data == "environment"
    assert settings.server.advertise == "flag"
    assert settings.server.store == ""
    assert settings.log == Settings().log


@pytest.mark.parametrize("info", known_settings(), ids=lambda info: info.key)
def test_every_setting_can_be_given_in_the_file_the_environment_and_as_a_flag(info: SettingInfo) -> None:
    """A setting has one name in each source, and each accepts its default."""
    written = f'"{info.default}"' if isinstance(info.default, str) else str(info.default)
    assert load(f"[{info.section}]\n{info.name} = {written}\n") == Settings()
    assert load(environ={info.variable: str(info.default)}) == Settings()
    assert load(flags={info.key: info.default}) == Settings()


def test_numbers_in_the_environment_and_in_flags_may_be_written_with_underscores() -> None:
    """As in the file."""
    assert load(environ={"ISTER_LOG__SEGMENT_BYTES_MAX": "6_291_456"}).log.segment_bytes_max == 6_291_456
    assert load(flags={"server.workers": "3"}).server.workers == 3


@pytest.mark.parametrize(
    ("text", "environ", "flags", "says"),
    [
        ("[server]\nworker = 2", {}, {}, ["server.worker ", "ister.toml", "server.workers?"]),
        ("[serverr]\nworkers = 2", {}, {}, ["[serverr]", "ister.toml", "[server]?"]),
        ("workers = 2", {}, {}, ["[workers]", "ister.toml"]),
        (
            None,
            {"ISTER_PROTOCOL__HEARTBEATS_MS": "1"},
            {},
            ["ISTER_PROTOCOL__HEARTBEATS_MS", "environment", "ISTER_PROTOCOL__HEARTBEAT_MS?"],
        ),
        (None, {"ISTER_SERVER_WORKERS": "1"}, {}, ["ISTER_SERVER_WORKERS", "write ISTER_SERVER__WORKERS"]),
        (None, {}, {"tier.upload_paralel": 2}, ["tier.upload_paralel", "a flag", "tier.upload_parallel?"]),
    ],
)
def test_an_unknown_setting_is_refused_with_where_it_came_from_and_the_nearest_known_one(
    text: str | None, environ: dict[str, str], flags: dict[str, object], says: list[str]
) -> None:
    """A misspelt name is an error with the right one, and never silently the default."""
    sentence = refusal(text, environ, flags)
    assert "unknown" in sentence
    assert [part for part in says if part not in sentence] == []


def test_variables_that_are_nobodys_setting_are_left_alone() -> None:
    """Kubernetes describes a service called ister in variables with our prefix; the broker still starts."""
    service = {
        "ISTER_SERVICE_HOST": "10.0.0.1",
        "ISTER_PORT": "tcp://10.0.0.1:5555",
        "ISTER_PORT_5555_TCP": "x",
    }
    assert load(environ={**service, "PATH": "/bin", "ISTERIA__X": "1"}) == Settings()


@pytest.mark.parametrize("info", NUMBERS, ids=lambda info: info.key)
def test_a_number_over_or_under_its_limit_is_refused_with_setting_value_limit_and_unit(
    info: SettingInfo,
) -> None:
    """Wherever the value was given, the error is enough to correct it."""
    assert info.low is not None
    assert info.high is not None
    for value, limit in ((info.low - 1, info.low), (info.high + 1, info.high)):
        for sentence in (
            refusal(f"[{info.section}]\n{info.name} = {value}"),
            refusal(environ={info.variable: str(value)}),
            refusal(flags={info.key: value}),
        ):
            assert f"{info.key} = " in sentence
            assert str(value) in sentence
            assert f"{limit} {info.unit}" in sentence
            assert any(
                place in sentence for place in ("(ister.toml)", f"({info.variable}", "environment", "flag")
            )


@pytest.mark.parametrize("value", ["true", "1.5", '"12"', "[1]", "1979-05-27", "{}"])
def test_a_number_that_is_something_else_is_refused(value: str) -> None:
    """The file may have no boolean, fraction or text for an integer."""
    assert "server.workers" in refusal(f"[server]\nworkers = {value}")
    assert "must be an integer, from 0 to 256 processes" in refusal(f"[server]\nworkers = {value}")


@pytest.mark.parametrize("value", ["", "many", "1.5", "0x10", "1e3", " 1", "٣", "9" * 5000])
def test_a_number_in_the_environment_that_is_none_is_refused(value: str) -> None:
    """The error comes at once, and quotes at most the beginning of the text."""
    sentence = refusal(environ={"ISTER_SERVER__WORKERS": value})
    assert "server.workers" in sentence
    assert "ISTER_SERVER__WORKERS" in sentence
    assert len(sentence) < 300


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("server.listen", "localhost:5555", "tcp://HOST:PORT"),
        ("server.listen", "ipc:///tmp/x", "tcp://HOST:PORT"),
        ("server.listen", "tcp://127.0.0.1:0", "from 1 to 65535"),
        ("server.listen", "tcp://127.0.0.1:65536", "from 1 to 65535"),
        ("server.advertise", "tcp://host:5555", "host name"),
        ("server.advertise", "two hosts", "host name"),
        ("server.store", "s3://bucket", "gs://bucket/prefix"),
        ("server.store", "file://relative/x", "file:///folder"),
        ("server.data", "", "folder"),
        ("server.data", 5, "string"),
        ("server.log_level", "loud", "must be one of"),
        ("subscription.drop", "middle", "oldest"),
    ],
)
def test_a_word_that_a_setting_cannot_be_is_refused_with_what_it_may_be(
    key: str, value: object, says: str
) -> None:
    """Addresses and choices are checked at the start, not when first used."""
    sentence = refusal(flags={key: value})
    assert sentence.startswith(f"{key} = {value!r}")
    assert says in sentence


@pytest.mark.parametrize(
    "value", ["tcp://*:1", "tcp://0.0.0.0:5555", "tcp://[::1]:5555", "tcp://broker.example.com:65535"]
)
def test_an_address_to_listen_on_may_be_any_host_and_port(value: str) -> None:
    """All interfaces, IPv4, IPv6 and host names are accepted."""
    assert load(flags={"server.listen": value, "server.workers": 1}).server.listen == value


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            {"protocol.batch_bytes_max": 1000},
            ["protocol.batch_bytes_max = 1000 bytes (flag", "message_bytes_max"],
        ),
        (
            {"log.segment_bytes_max": 2 << 20},
            ["log.segment_bytes_max = 2097152 bytes (2 MiB)", "(default)", "1 MiB"],
        ),
        ({"protocol.producer_window_bytes": 1}, ["producer_window_bytes = 1 bytes", "batch_bytes_max"]),
        (
            {"protocol.consumer_credit_bytes_max": 9},
            ["consumer_credit_bytes_max = 9 bytes", "message_bytes_max"],
        ),
        (
            {"protocol.session_timeout_ms": 9999},
            ["session_timeout_ms = 9999 ms", "2 times", "heartbeat_ms = 5000 ms"],
        ),
        (
            {"supervision.restart_delay_ms_max": 99},
            ["restart_delay_ms_max = 99 ms", "restart_delay_ms_min = 100 ms"],
        ),
        ({"tier.upload_retry_ms_max": 99}, ["upload_retry_ms_max = 99 ms", "upload_retry_ms_min = 100 ms"]),
        ({"server.listen": "tcp://*:65535", "server.workers": 2}, ["tcp://*:65535", "workers = 2", "65535"]),
    ],
)
def test_settings_that_contradict_each_other_are_refused_with_both(
    flags: dict[str, object], says: list[str]
) -> None:
    """A broker does not start with limits under which something it allows could not be done."""
    sentence = refusal(flags=flags)
    assert [part for part in says if part not in sentence] == []


def test_a_segment_has_room_for_the_largest_batch_and_its_header_and_lengths() -> None:
    """A segment must be 1 MiB larger than the largest batch; the default of 8 MiB has room for the largest allowed."""
    assert load(flags={"log.segment_bytes_max": 5 << 20}).log.segment_bytes_max == 5 << 20
    assert "segment_bytes_max" in refusal(flags={"log.segment_bytes_max": (5 << 20) - 1})
    large = {"protocol.batch_bytes_max": 7 << 20, "protocol.message_bytes_max": 7 << 20}
    assert load(flags=large).protocol.batch_bytes_max == 7 << 20


def test_a_file_that_cannot_be_read_or_is_no_toml_is_refused_by_name(tmp_path: Path) -> None:
    """The error for a missing, broken or binary file has the file and the line."""
    missing = str(tmp_path / "none.toml")
    with pytest.raises(SettingsError, match=r"none\.toml cannot be read: No such file"):
        load_settings(missing, {}, {})
    assert "line 2" in refusal("[server]\nworkers = = 1")
    with pytest.raises(SettingsError, match=r"bin\.toml is not UTF-8"):
        load_settings("bin.toml", {}, {}, read=lambda path: b"\xff\xfe")


def test_settings_cannot_be_changed_or_given_fields_they_do_not_have() -> None:
    """Checked settings are immutable."""
    with pytest.raises(AttributeError):
        Settings().server.workers = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        ProtocolSettings(heartbeat=1)  # type: ignore[call-arg]
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"log": {"unknown": 1}}, Settings)
