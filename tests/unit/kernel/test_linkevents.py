from socket import AF_BRIDGE

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl import RTM_DELLINK, RTM_NEWLINK, RTM_NEWNEIGH

from tests.support.links import link, port_attributes
from vifd.kernel import netlink
from vifd.kernel.linkevents import LinkEvent, PortState, parse_events, parse_port


def test_events_of_a_packet_are_read_in_order() -> None:
    packet = link(index=1) + link(index=2, kind=RTM_DELLINK, flags=0) + link(index=3)
    assert parse_events(packet) == [
        LinkEvent(1, b"vdtx", 0x10043, deleted=False),
        LinkEvent(2, b"vdtx", 0, deleted=True),
        LinkEvent(3, b"vdtx", 0x10043, deleted=False),
    ]


@pytest.mark.parametrize("state", [PortState(True, 0xFFFD, 1), PortState(False, 0)])
def test_a_bridge_tells_of_its_port(state: PortState) -> None:
    told = port_attributes(state)
    message = netlink.request(RTM_NEWLINK, 0, link(family=AF_BRIDGE)[16:32] + told)
    assert parse_events(message + link()) == [
        LinkEvent(7, b"vdtx", 0x10043, deleted=False, port=told),
        LinkEvent(7, b"vdtx", 0x10043, deleted=False),
    ]
    assert parse_port(told) == state


def test_that_a_port_leaves_its_bridge_is_left_out() -> None:
    assert parse_events(link(family=AF_BRIDGE, kind=RTM_DELLINK)) == []


def test_events_of_other_things_are_left_out() -> None:
    assert parse_events(link(kind=RTM_NEWNEIGH)) == []


def test_an_event_is_read_whatever_comes_after_the_name() -> None:
    (event,) = parse_events(link(("IFLA_IFALIAS", "x" * 200)))
    assert event.ifname == b"vdtx"


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reading_of_events(data: bytes) -> None:
    assert all(isinstance(event, LinkEvent) for event in parse_events(data))


@given(st.data())
def test_no_damage_breaks_the_reading_of_events(data: st.DataObject) -> None:
    packet = bytearray(link(("IFLA_MTU", 1400)) + link(kind=RTM_DELLINK))
    for _ in range(data.draw(st.integers(1, 5))):
        packet[data.draw(st.integers(0, len(packet) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(packet)))
    assert len(parse_events(bytes(packet[:cut]))) <= 2


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reading_of_a_port(data: bytes) -> None:
    assert isinstance(parse_port(data), PortState)
