"""Tests of the codec of headers: it is strict, and raises only RemoteProtocolError whatever it reads."""

from __future__ import annotations

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ister import wire
from ister.errors import RemoteProtocolError
from ister.wire import Key, Type


def header_of(**keys: object) -> dict[int, object]:
    """Return a header from key names."""
    return {getattr(Key, name): value for name, value in keys.items()}


@given(st.binary(max_size=200))
def test_any_bytes_are_a_header_or_a_protocol_error(data: bytes) -> None:
    """Hostile bytes cause an error frame, never the end of the process."""
    try:
        header = wire.decode_header(data)
    except RemoteProtocolError:
        return
    assert header[Key.TYPE] in wire.REQUIRED


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.integers(0, 40) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.integers(0, 40), values, max_size=8))
def test_any_cbor_map_is_a_header_or_a_protocol_error(header: dict[int, object]) -> None:
    """Well-formed CBOR with invalid contents is refused in the same way."""
    try:
        wire.decode_header(cbor2.dumps(header))
    except RemoteProtocolError:
        pass


@given(values)
def test_any_cbor_value_is_a_result_or_a_protocol_error(value: object) -> None:
    """A result of any shape decodes to what was encoded, or is refused."""
    data = cbor2.dumps(value)
    try:
        assert cbor2.dumps(wire.decode_result(data)) == data
    except RemoteProtocolError:
        pass


@given(st.binary(max_size=60))
def test_any_bytes_are_a_result_or_a_protocol_error(data: bytes) -> None:
    """The same for bytes that are no CBOR."""
    try:
        wire.decode_result(data)
    except RemoteProtocolError:
        pass


@pytest.mark.parametrize("start", ["earliest", "latest", 0, (1 << 64) - 1, "time:0", "time:1767225600000"])
def test_a_start_is_a_name_an_offset_or_a_time(start: str | int) -> None:
    """The decoder accepts every form of start in the document."""
    header = {Key.TYPE: Type.PONG, Key.START: start}
    assert wire.decode_header(cbor2.dumps(header))[Key.START] == start


@pytest.mark.parametrize(
    "start", ["", "soon", "time:", "time:-1", "time:1.5", "time:٣", f"time:{1 << 64}", -1, True]
)
def test_another_start_is_refused(start: object) -> None:
    """Any other start is malformed."""
    with pytest.raises(RemoteProtocolError):
        wire.decode_header(cbor2.dumps({Key.TYPE: Type.PONG, Key.START: start}))


@pytest.mark.requirement("2.2-1", "2.2-4", "2.2-5", "2.2-6")
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xa1",  # cut short
        b"\xbf\x00\x01\xff",  # indefinite map
        b"\xa2\x00\x02\x00\x02",  # duplicate key
        b"\xa1\x00\x02\x00",  # something behind it
        b"\xa1\x00\xc1\x02",  # a tag
        b"\xa2\x00\x02\x18\x18\x5f\xff",  # indefinite bytes
        b"\x02",  # no map
        b"\xa1\x61\x61\x02",  # a text key
        b"\xa1\x00\x18\x63",  # an unknown type
        b"\xa1\x01\x02",  # no type
        b"\xa1\x00\x05",  # PUBLISH without handle and sequence
        b"\xa1\x00\x21",  # a negative type
        b"\xa1\x00\xf5",  # a bool is no number
        cbor2.dumps({Key.TYPE: Type.BYE, 99: "x" * 9000}),  # over 8 KiB
        cbor2.dumps({Key.TYPE: Type.BYE, 99: [[[[1]]]]}),  # too deep
        cbor2.dumps({Key.TYPE: Type.ACK, Key.HANDLE: 1, Key.RANGES: [1]}),  # half a range
        cbor2.dumps({Key.TYPE: Type.ACK, Key.HANDLE: 1 << 64, Key.RANGES: []}),
        cbor2.dumps({Key.TYPE: Type.HELLO, Key.VERSION: []}),
        cbor2.dumps({Key.TYPE: Type.HELLO, Key.VERSION: [1], Key.SESSION: b"short"}),
    ],
)
def test_what_is_not_strict_is_refused(data: bytes) -> None:
    """Everything that section 2 forbids is refused, so that two decoders never read a header differently."""
    with pytest.raises(RemoteProtocolError):
        wire.decode_header(data)


@pytest.mark.requirement("2.2-8")
def test_longer_encodings_of_numbers_are_accepted() -> None:
    """A CBOR library need not write the shortest form."""
    assert wire.decode_header(b"\xa1\x18\x00\x19\x00\x02") == {Key.TYPE: Type.BYE}


@pytest.mark.requirement("2.2-3")
def test_four_levels_are_accepted() -> None:
    """The documented depth is the real one: a map with a list in a list in a list."""
    header = {Key.TYPE: Type.BYE, 99: [[[1]]]}
    assert wire.decode_header(cbor2.dumps(header)) == header


@pytest.mark.requirement("2.2-12")
def test_unknown_keys_are_ignored() -> None:
    """A newer peer may send keys that this side does not know."""
    assert wire.decode_header(cbor2.dumps({Key.TYPE: Type.PING, 1000: "news"}))[Key.TYPE] == Type.PING


@pytest.mark.requirement("2.3-1", "12-2")
def test_a_result_over_its_limit_is_refused() -> None:
    """A broker cannot make a client decode without limit."""
    with pytest.raises(RemoteProtocolError):
        wire.decode_result(cbor2.dumps(b"x" * wire.RESULT_BYTES_MAX))
