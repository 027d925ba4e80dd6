"""Tests of a segment's header and footer."""

from __future__ import annotations

import pytest

from ister.storage.record import parse_header, salt_of
from ister.storage.segment import (
    FOOTER_BYTES,
    SEGMENT_HEADER_BYTES,
    Footer,
    SegmentHeader,
    base_of,
    encode_footer,
    encode_segment_header,
    footer_at_end,
    parse_footer,
    parse_segment_header,
    segment_name,
    topic_crc,
)

HEADER = SegmentHeader(bytes(range(16)), 12345, 1_700_000_000_000, topic_crc("orders"))


def test_a_header_comes_back_as_it_was() -> None:
    """Parsing is the inverse of encoding."""
    encoded = encode_segment_header(HEADER)
    assert len(encoded) == SEGMENT_HEADER_BYTES
    assert parse_segment_header(encoded) == HEADER


def test_a_damaged_or_short_header_is_said_to_be_so() -> None:
    """Every flipped or missing byte gives a reason instead of a header."""
    encoded = encode_segment_header(HEADER)
    for position in range(SEGMENT_HEADER_BYTES):
        flipped = bytearray(encoded)
        flipped[position] ^= 4
        assert isinstance(parse_segment_header(flipped), str)
    assert parse_segment_header(encoded[:-1]) == "only 63 bytes"


def test_a_footer_is_found_only_at_the_end_of_a_file_of_its_length() -> None:
    """A sealed file ends in a footer with the file's length; a copy of a footer elsewhere does not count."""
    salt = salt_of(HEADER.incarnation, HEADER.base)
    footer = Footer(12400, 55, 3, 1, 2, 9000, 3, 0)
    encoded = encode_footer(salt, footer, 7)
    assert len(encoded) == FOOTER_BYTES
    assert footer_at_end(encoded, 9000, salt) == footer
    assert footer_at_end(encoded, 9001, salt) is None
    assert footer_at_end(encoded, 9000, salt + 1) is None
    assert footer_at_end(encoded[1:], 9000, salt) is None
    for position in range(FOOTER_BYTES):
        flipped = bytearray(encoded)
        flipped[position] ^= 1
        assert footer_at_end(flipped, 9000, salt) is None
    header = parse_header(encoded, 0, salt)
    assert header is not None
    assert parse_footer(encoded[:-1], 0, header, salt) is None


@pytest.mark.parametrize("base", [0, 7, 10**19])
def test_a_name_says_the_base_and_sorts_by_it(base: int) -> None:
    """All names have the same length."""
    assert base_of(segment_name(base)) == base
    assert len(segment_name(base)) == 24


@pytest.mark.parametrize(
    "name", ["spare.tmp", "1.seg", "0" * 19 + "x.seg", "0" * 20 + ".sag", "٣" * 20 + ".seg"]
)
def test_other_names_are_no_segments(name: str) -> None:
    """Other files in a log's folder are not taken for segments."""
    assert base_of(name) is None
