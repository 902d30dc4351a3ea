import socket

import pytest
from pyroute2.netlink.rtnl import RTM_DELLINK, RTM_NEWADDR, RTM_NEWLINK
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from tests.support import bpf
from vifd.kernel import linkfilter

UP, RUNNING, LOWER_UP = 0x1, 0x40, 0x10000
AF_BRIDGE = 7


def passes(
    *,
    name: str = "vdtz5geomx5ho",
    kind: int = RTM_NEWLINK,
    flags: int = UP | RUNNING | LOWER_UP,
    change: int = 0,
    family: int = 0,
) -> bool:
    message = ifinfmsg()
    message["index"], message["flags"], message["change"], message["family"] = 7, flags, change, family
    message["attrs"] = [("IFLA_IFNAME", name)]
    message["header"]["type"] = kind
    message.encode()
    return bpf.run(linkfilter._assemble(), bytes(message.data)) != 0


def test_the_end_of_a_device_passes() -> None:
    assert passes(kind=RTM_DELLINK, flags=0, change=0xFFFFFFFF)


@pytest.mark.parametrize("change", [0, UP, 0xFFFFFFFF])
def test_a_device_with_carrier_passes(change: int) -> None:
    assert passes(change=change)


def test_a_device_that_lost_carrier_passes() -> None:
    assert passes(flags=UP)


@pytest.mark.parametrize("change", [UP, 0xFFFFFFFF])
def test_a_device_that_is_being_set_up_doesnt_pass(change: int) -> None:
    assert not passes(flags=UP, change=change)


def test_a_device_that_is_running_without_carrier_yet_doesnt_pass() -> None:
    assert not passes(flags=UP | RUNNING)


def test_a_device_that_is_down_doesnt_pass() -> None:
    assert not passes(flags=0)


@pytest.mark.parametrize("name", ["eth0", "tap0", "vnet3", "xvdt", "v", "d", "Vdt", "virbr0"])
@pytest.mark.parametrize("kind", [RTM_NEWLINK, RTM_DELLINK])
def test_a_device_of_somebody_else_doesnt_pass(name: str, kind: int) -> None:
    assert not passes(name=name, kind=kind)


@pytest.mark.parametrize("kind", [RTM_NEWLINK, RTM_DELLINK])
def test_what_a_bridge_tells_of_its_port_doesnt_pass(kind: int) -> None:
    assert not passes(kind=kind, family=AF_BRIDGE)


def test_what_is_no_link_message_doesnt_pass() -> None:
    assert not passes(kind=RTM_NEWADDR)


@pytest.mark.parametrize("length", [0, 16, 35, 37])
def test_a_message_that_is_too_short_doesnt_pass(length: int) -> None:
    assert bpf.run(linkfilter._assemble(), bytes(length)) == 0


def test_the_kernel_takes_the_filter_from_anybody() -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as connection:
        linkfilter.attach(connection)
