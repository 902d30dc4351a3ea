"""What the kernel tells of bridges' learning, packed by another library."""

import pytest
from pyroute2.netlink.rtnl import RTM_DELNEIGH, RTM_NEWNEIGH
from pyroute2.netlink.rtnl.ndmsg import ndmsg

from tests.support import bpf
from vifd.kernel import learning, linkfilter

AF_BRIDGE, AF_INET = 7, 2
REACHABLE, NOARP, PERMANENT, STALE = 0x02, 0x40, 0x80, 0x04
MULTI = 2


def message(*, kind: int = RTM_NEWNEIGH, family: int = AF_BRIDGE, state: int = REACHABLE, flags: int = 0) -> bytes:
    one = ndmsg()
    one["family"], one["ifindex"], one["state"] = family, 7, state
    one["attrs"] = [("NDA_LLADDR", "52:54:00:12:34:56"), ("NDA_MASTER", 3)]
    one["header"]["type"], one["header"]["flags"] = kind, flags
    one.encode()
    return bytes(one.data)


def passes(data: bytes) -> bool:
    return bpf.run(linkfilter._assemble(), data) != 0


@pytest.mark.parametrize("state", [REACHABLE, STALE])
def test_an_address_that_a_bridge_learned_is_told(state: int) -> None:
    data = message(state=state)
    assert passes(data)
    assert learning.ports_that_learned(data + data) == [7, 7]


NOT_LEARNED = {
    "a device's own address": {"state": PERMANENT},
    "a static entry": {"state": NOARP},
    "a neighbour of the host": {"family": AF_INET},
    "an address that was forgotten": {"kind": RTM_DELNEIGH},
}


@pytest.mark.parametrize("case", NOT_LEARNED)
def test_what_no_bridge_learned_is_not_told(case: str) -> None:
    data = message(**NOT_LEARNED[case])
    assert not passes(data)
    assert learning.ports_that_learned(data) == []


def test_an_answer_passes_whatever_comes_first_in_it() -> None:
    data = message(state=PERMANENT, flags=MULTI) + message(flags=MULTI)
    assert passes(data)
    assert learning.ports_that_learned(data) == [7]


@pytest.mark.parametrize("length", [0, 3, 16, 27])
def test_what_is_cut_short_is_left_out(length: int) -> None:
    assert learning.ports_that_learned(message()[:length]) == []
