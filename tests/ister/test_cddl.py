"""Tests of `transport/protocol.cddl` against recorded traffic of every frame type, and against the codec's tables."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import cbor2
import pytest
from pycddl import Schema, ValidationError

from ister import bodies, wire
from ister.errors import CODES
from ister.wire import Key, Type
from tests.ister.test_protocol_document import worked_example
from tests.ister.test_vectors import messages_in_transcripts, read

TEXT = (Path(__file__).parents[2] / "ister" / "transport" / "protocol.cddl").read_text()
# It does not count pairs, accepts 2^64 as a uint, does not anchor regular expressions, and accepts keys of another
# type in a map whose keys may all be absent.
TAKEN_BY_THE_VALIDATOR = {
    "odd-ranges",
    "ref-over-64-bits",
    "start-time-not-a-number",
    "arguments-with-number-keys",
}
NAMES = {value: name.lower().replace("_", "-") for name, value in vars(Type).items() if name.isupper()}


@cache
def schema(rule: str) -> Schema:
    """Return a validator for one rule of the file: it uses the first rule."""
    return Schema(f"begin = {rule}\n{TEXT}")


def recorded() -> list[tuple[str, bytes]]:
    """Return (where, header) of every readable header in the transcripts and the worked example."""
    found = [
        (where, bytes.fromhex(step["frames"][0]))
        for where, step in messages_in_transcripts()
        if step["frame"] is not None
    ]
    return found + [(f"worked example, {name}", frames[0]) for _, name, frames in worked_example()]


def rule_of(name: str) -> str:
    """Return the text of a rule."""
    found = re.search(rf"^{name} = \{{(.*?)\}}", TEXT, re.M | re.S)
    assert found is not None, name
    return re.sub(r";.*", "", found[1])


def keys_of(name: str) -> tuple[set[int], set[int]]:
    """Return the keys that a rule requires, and those it also allows."""
    required: set[int] = set()
    optional: set[int] = set()
    for mark, key in re.findall(r"(?:^|,)\s*(\?\s*)?(\d+):", rule_of(name)):
        (optional if mark else required).add(int(key))
    return required, optional


def test_recorded_traffic_is_what_the_cddl_says() -> None:
    """Each header in the transcripts matches the rule of its type; flat lists of pairs have an even length."""
    seen, wrong = set(), []
    for where, data in recorded():
        header = cbor2.loads(data)
        if header[Key.TYPE] not in NAMES or 4000 in header:
            continue  # deliberately of a later version
        if "malformed" in where and header[Key.TYPE] not in (Type.ERROR, Type.PONG, Type.PING):
            continue
        seen.add(header[Key.TYPE])
        try:
            schema(NAMES[header[Key.TYPE]]).validate_cbor(data)
        except ValidationError as error:
            wrong.append(f"{where}: {error}")
        for key in (Key.RANGES, Key.RECEIPTS, Key.TIMESTAMPS):  # the validator does not count pairs
            assert len(header.get(key, ())) % 2 == 0, where
    assert wrong == []
    assert wrong == []
    assert seen == NAMES.keys()


def test_bodies_are_what_the_cddl_says() -> None:
    """Every RESULT and every message's attributes in the transcripts are valid."""
    for where, step in messages_in_transcripts():
        if step["frame"] == "RESULT":
            schema("result-value").validate_cbor(bytes.fromhex(step["frames"][1]))
        for message in step.get("messages", ()):
            if "attributes" in message:
                schema("attributes").validate_cbor(bodies.encode_attributes(message["attributes"])), where


@pytest.mark.parametrize("kind", sorted(NAMES), ids=NAMES.get)
def test_a_header_without_a_required_key_is_not_valid(kind: int) -> None:
    """The validator is effective: each recorded header fails without one of its keys, or with a fraction in it."""
    headers = [cbor2.loads(data) for _, data in recorded()]
    header: dict[int, Any] = next(
        found for found in headers if found[Key.TYPE] == kind and wire.REQUIRED[kind] <= found.keys()
    )
    side = "producer" if Key.BYTES in header else "consumer"
    rule = f"opened-{side}" if kind == Type.OPENED else NAMES[kind]
    validates = schema(rule).validate_cbor
    validates(cbor2.dumps(header))
    for key in {Key.TYPE} | wire.REQUIRED[kind]:
        with pytest.raises(ValidationError):
            validates(cbor2.dumps({other: value for other, value in header.items() if other != key}))
        with pytest.raises(ValidationError):
            validates(cbor2.dumps(header | {key: 1.5}))
    with pytest.raises(ValidationError):
        validates(cbor2.dumps(header | {Key.CLIENT if Key.CLIENT not in header else Key.BOOT: "x"}))


@pytest.mark.parametrize("kind", sorted(set(NAMES) - {Type.OPENED}), ids=NAMES.get)
def test_the_cddl_requires_what_the_codec_requires(kind: int) -> None:
    """For each rule, the keys without `?` are the type and the keys that the decoder requires."""
    required, _ = keys_of(NAMES[kind])
    assert required == {Key.TYPE} | wire.REQUIRED[kind]


def test_the_cddl_knows_the_keys_that_the_document_lists() -> None:
    """The table of frames in PROTOCOL.md and the rules name the same keys for each frame."""
    document = Path(__file__).parents[2] / "ister" / "transport" / "PROTOCOL.md"
    text = document.read_text().split("## 4 Frames", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| (\d+) \| [A-Z_]+ \|([^|]*)\|", text, re.M)
    assert {int(number) for number, _ in rows} == NAMES.keys()
    for number, listed in rows:
        names = [NAMES[int(number)]] if int(number) != Type.OPENED else ["opened-producer", "opened-consumer"]
        ruled = set[int]().union(*(keys for name in names for keys in keys_of(name))) - {Key.TYPE}
        assert ruled == {getattr(Key, name) for name in re.findall(r"[A-Z_]{3,}", listed)}, number


@pytest.mark.parametrize("vector", read("headers-to-broker"), ids=lambda vector: vector["name"])
def test_what_the_cddl_takes_is_read_by_the_broker(vector: dict[str, Any]) -> None:
    """A header that is valid and strictly encoded is never malformed to the broker."""
    data = bytes.fromhex(vector["frames"][0])
    try:
        header = cbor2.loads(data)
        strict = cbor2.dumps(header) == data and type(header) is dict and header.get(Key.TYPE) in NAMES
    except (cbor2.CBORDecodeError, ValueError):
        return
    if strict and len(data) <= wire.HEADER_BYTES_MAX and vector["name"] not in TAKEN_BY_THE_VALIDATOR:
        try:
            schema(NAMES[header[Key.TYPE]]).validate_cbor(data)
        except ValidationError:
            return
        assert vector.get("error") is None


def test_codes_have_the_form_that_the_cddl_says() -> None:
    """Every error code matches the rule `code`."""
    for code in CODES:
        schema("code").validate_cbor(cbor2.dumps(code))
