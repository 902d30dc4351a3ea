"""What the monitor tells of events, which a test sends in the kernel's place."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.links import link, port_attributes
from vifd.kernel import learning, netlink, tc
from vifd.kernel.linkevents import LinkEvent, PortState
from vifd.kernel.monitor import _PACKETS_A_TURN, LinkMonitor, Listener, open_events
from vifd.kernel.netlink import IFF_LOWER_UP

UP = 1


class Told(LinkMonitor):
    """A monitor that keeps what it tells."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

        def noting(name: str) -> Any:
            return lambda *what: self.told.append((name, *what))

        listener = Listener(*map(noting, ("carrier", "change", "port", "gone", "learned", "overflow")))
        super().__init__(listener, open_events())

    def hear(self, flags: int = UP, *, ifname: bytes = b"vdt", deleted: bool = False, port: bytes = b"") -> Any:
        """Hear of an event; give what is told of it."""
        self.told.clear()
        self._note(LinkEvent(7, ifname, flags, deleted, port))
        return list(self.told)


@pytest.fixture
def told() -> Iterator[Told]:
    one = Told()
    yield one
    one._socket.close()


def test_the_first_event_of_a_new_device_is_no_change(told: Told) -> None:
    assert told.hear() == [("carrier", 7, False)]
    assert told.hear() == [("change", 7)]


@pytest.mark.parametrize("flags", [UP, UP | IFF_LOWER_UP])
def test_what_changes_with_the_carrier_is_not_missed(told: Told, flags: int) -> None:
    told.hear(flags ^ IFF_LOWER_UP)
    assert told.hear(flags) == [("carrier", 7, bool(flags & IFF_LOWER_UP)), ("change", 7)]
    assert told.has_carrier(7) == bool(flags & IFF_LOWER_UP)


def test_a_port_says_nothing_of_carrier(told: Told) -> None:
    assert told.hear(UP | IFF_LOWER_UP, port=b"attributes") == [("port", 7, b"attributes")]
    assert not told.has_carrier(7)


def test_the_packets_that_are_there_are_told_in_one_turn_and_the_rest_in_the_next(told: Told) -> None:
    told._socket.close()
    told._socket, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    told._socket.setblocking(False)
    told_of = port_attributes(PortState(isolated=True, group_forward_mask=0))
    port = netlink.request(netlink.RTM_NEWLINK, 0, link(family=socket.AF_BRIDGE)[16:32] + told_of)
    neighbour = netlink.request(learning.RTM_NEWNEIGH, 0, learning._NDMSG.pack(socket.AF_BRIDGE, 0, 9, 2, 0, 0))
    change = netlink.request(tc.RTM_NEWQDISC, 0, tc._TCMSG.pack(0, 8, 0, 0, 0))
    with kernel:
        for packet in (link(), port, neighbour, change):
            kernel.send(packet)
        told._read()
        assert told.told == [("carrier", 7, True), ("change", 7), ("port", 7, told_of), ("learned", 9), ("change", 8)]
        for _ in range(_PACKETS_A_TURN + 1):
            kernel.send(change)
        for count in (_PACKETS_A_TURN, 1, 0):
            told.told.clear()
            told._read()
            assert told.told == [("change", 8)] * count


def test_an_end_is_told_with_the_name(told: Told) -> None:
    told.hear(UP | IFF_LOWER_UP)
    assert told.hear(0, ifname=b"br-blue", deleted=True) == [("gone", 7, "br-blue")]
    assert not told.has_carrier(7)


def test_after_a_loss_each_carrier_is_told_anew(told: Told) -> None:
    told.hear(UP | IFF_LOWER_UP)
    told._lose(OSError(errno.ENOBUFS, "No buffer space available"))  # with it, the news that it had none for a while
    assert told.told[-1] == ("overflow",)
    assert told.hear(UP | IFF_LOWER_UP) == [("carrier", 7, True), ("change", 7)]
