"""Every limit of every setting: a broker with it starts and passes a message, or it is refused with an explanation."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

import ister
from ister.errors import SettingsError
from ister.ownbroker import OwnBroker
from ister.settings import known_settings, load_settings

Bounds = dict[str, int]

BOUNDS = [
    (info.key, value) for info in known_settings() for value in (info.low, info.high) if value is not None
]
# A process each, of some 35 MB: more than a test machine has room for.
TOO_MANY = ("server.workers", 256)


def _refusal(settings: Bounds) -> str:
    try:
        load_settings(None, {}, settings)
    except SettingsError as error:
        return str(error)
    return ""


def _together() -> list[Bounds]:
    """Return the allowed limits, a section's lower and upper ones together as far as they are compatible."""
    groups: dict[tuple[str, bool], list[Bounds]] = {}
    for at, (key, value) in enumerate(BOUNDS):
        if (key, value) == TOO_MANY or _refusal({key: value}):
            continue
        found = groups.setdefault((key.partition(".")[0], at % 2 == 0), [])
        for group in found:
            if key not in group and not _refusal({**group, key: value}):
                group[key] = value
                break
        else:
            found.append({key: value})
    return [group for found in groups.values() for group in found]


@pytest.mark.parametrize(("key", "value"), BOUNDS)
def test_a_bound_is_allowed_or_refused_by_name(key: str, value: int) -> None:
    """A value that contradicts other settings is refused with the setting's name, its value, and the reason."""
    refusal = _refusal({key: value})
    if refusal:
        assert key in refusal
        assert str(value) in refusal
        assert ": " in refusal


@pytest.mark.parametrize("bounds", _together(), ids=lambda bounds: " ".join(bounds))
def test_a_broker_passes_messages_at_the_bounds(bounds: Bounds, tmp_path: Path) -> None:
    """With settings at the ends of their ranges a broker starts, and a message of each strategy passes."""
    workers = bounds.get("server.workers", 1) or 1
    settings = {key: value for key, value in bounds.items() if key != "server.workers"}
    with OwnBroker(f"{tmp_path}/data", f"{tmp_path}/log", workers=workers, settings=settings) as broker:
        _pass_message(broker.endpoint, "reliable")
        _pass_message(broker.endpoint, "non-reliable")
    assert "Traceback" not in Path(broker.log).read_text()


def _pass_message(endpoint: str, dispatch: Literal["reliable", "non-reliable"]) -> None:
    """Pass a message of one byte, with one handle open at a time: there may be only one."""
    with ister.connect(endpoint) as client:
        client.create_topic(dispatch, dispatch=dispatch)
        with client.producer(dispatch) as producer:
            producer.send(b"x").result(timeout=30)
        if dispatch == "reliable":
            with client.consumer(dispatch, subscription="s", type="shared", start="earliest") as consumer:
                message = consumer.receive(timeout=30)
                assert message is not None
                assert message.payload == b"x"
                consumer.ack(message)
