import socket
import struct

import pytest
from pyroute2.netlink.rtnl import RTM_DELLINK, RTM_NEWADDR, RTM_NEWLINK
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from tests.support import bpf
from tests.support.messages import ID
from vifd.kernel import linkfilter, names, tc
from vifd.kernel.netlink import OWN_PORTS, RtnlSocket

UP, RUNNING, LOWER_UP = 0x1, 0x40, 0x10000
AF_BRIDGE = 7


def passes(
    *,
    name: str = "vdtz5geomx5ho",
    kind: int = RTM_NEWLINK,
    flags: int = UP | RUNNING | LOWER_UP,
    change: int = 0,
    family: int = 0,
    alias: str = "",
    info: str = "",
) -> bool:
    message = ifinfmsg()
    message["index"], message["flags"], message["change"], message["family"] = 7, flags, change, family
    message["attrs"] = [("IFLA_IFNAME", name), ("IFLA_TXQLEN", 1000)]
    message["attrs"] += [("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", info)]})] if info else []
    message["attrs"] += [("IFLA_IFALIAS", alias)] if alias else []
    message["attrs"] += [("IFLA_GROUP", 0)]
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
def test_an_endpoints_device_passes_whatever_its_name_is_now(kind: int) -> None:
    assert passes(name="eth7", kind=kind, alias=names.mark(ID))
    assert not passes(name="eth7", flags=0, alias=names.mark(ID))


OTHERS = [
    "",
    "v",
    "vifd",
    "vifd:",
    "somebody's",
    names.network_mark("blue"),
    names.network_mark("b" * 28),
    names.ifb_mark(ID),
    names.vlan_mark("lan", 5),
]


@pytest.mark.parametrize("alias", OTHERS)
@pytest.mark.parametrize("info", ["", "veth", "brid", "dummy"])
def test_a_device_with_another_mark_doesnt_pass(alias: str, info: str) -> None:
    assert not passes(name="eth7", alias=alias)
    assert not passes(name="eth7", kind=RTM_DELLINK, alias=alias, info="" if info == "brid" else info)


@pytest.mark.parametrize("alias", OTHERS)
def test_the_end_of_any_bridge_passes_and_nothing_else_of_it(alias: str) -> None:
    assert passes(name="br0", kind=RTM_DELLINK, flags=0, change=0xFFFFFFFF, alias=alias, info="bridge")
    assert not passes(name="br0", alias=alias, info="bridge")


def test_what_a_bridge_tells_of_a_port_passes_when_it_is_set_up() -> None:
    assert passes(family=AF_BRIDGE)
    assert passes(flags=UP, family=AF_BRIDGE)
    assert not passes(flags=UP | RUNNING, family=AF_BRIDGE)
    assert not passes(flags=0, family=AF_BRIDGE)
    assert not passes(kind=RTM_DELLINK, family=AF_BRIDGE)
    assert not passes(name="eth7", family=AF_BRIDGE)


@pytest.mark.parametrize("kind", tc.EVENTS)
def test_a_change_of_traffic_control_passes_unless_it_is_vifds_own(kind: int) -> None:
    def passes_by(port: int) -> bool:
        return bpf.run(linkfilter._assemble(), struct.pack("=IHHIIBxxxiIII", 36, kind, 0, 0, port, 0, 7, 0, 0, 0)) != 0

    assert all(map(passes_by, [0, 1, 4711, 0x76000000, 0x7667FFFF, 0x00007666, 0x6676, 0xFFFFF000]))
    assert not any(map(passes_by, [0x76660000, 0x76661234, 0x7666FFFF]))


def test_vifds_sockets_have_numbers_of_their_own() -> None:
    sockets = [RtnlSocket() for _ in range(8)]
    ports = {one._socket.getsockname()[0] for one in sockets}
    for one in sockets:
        one.close()
    assert len(ports) == 8
    assert {port >> 16 for port in ports} == {OWN_PORTS}


def test_what_is_no_link_message_doesnt_pass() -> None:
    assert not passes(kind=RTM_NEWADDR)


@pytest.mark.parametrize("length", [0, 16, 35, 37])
def test_a_message_that_is_too_short_doesnt_pass(length: int) -> None:
    assert bpf.run(linkfilter._assemble(), bytes(length)) == 0


def test_the_kernel_takes_the_filter_from_anybody() -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as connection:
        linkfilter.attach(connection)
