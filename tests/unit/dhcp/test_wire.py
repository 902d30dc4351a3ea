"""What the two processes say to each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vifd.dhcp import wire
from vifd.dhcp.wire import HostsChanged, Reload, Status


@pytest.mark.parametrize("request_", [HostsChanged("blue"), HostsChanged("a" * 63), HostsChanged("a.b_c-9"), Reload()])
def test_each_request_arrives(request_: wire.Request) -> None:
    assert wire.decode_request(wire.encode_request(request_)) == request_


@pytest.mark.parametrize(
    "packet", [b"", b"H", b"HBlue", b"H/etc", b"H..", b"Hblue\n", b"H" + b"a" * 64, b"RR", b"Xblue", b"H\xff"]
)
def test_what_no_vifd_says_is_nothing(packet: bytes) -> None:
    assert wire.decode_request(packet) is None


@given(st.binary(max_size=200))
def test_whatever_arrives_is_a_known_word_or_nothing(packet: bytes) -> None:
    request = wire.decode_request(packet)
    assert request is None or wire.encode_request(request) == packet


def test_a_status_arrives_shortened() -> None:
    status = wire.decode_status(wire.encode_status(Status("blue", "é" * 10_000)))
    assert status == Status("blue", "é" * 500)
