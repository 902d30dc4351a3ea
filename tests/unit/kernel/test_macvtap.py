"""What macvtaps are packed as, against pyroute2; and what the kernel's refusals mean."""

import errno
from typing import Any

import pytest
from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST
from pyroute2.netlink.rtnl import RTM_NEWLINK
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from tests.support.messages import ID, endpoint_id
from vifd.kernel import macvtap, names, netlink, ops
from vifd.kernel.macvtap import Uplink
from vifd.kernel.netlink import IFF_UP, Ifla, Link, Reply
from vifd.model import Kind, MacvtapMode

NAME = names.device_name(Kind.MACVTAP, ID)
MAC = "52:54:00:12:34:56"
UPLINK = Uplink("eth0", 3, 1500, "52:54:00:00:00:01", up=True)


def decoded(data: bytes) -> Any:
    message = ifinfmsg(data)
    message.decode()
    return message


@pytest.mark.parametrize("mode", list(MacvtapMode))
def test_a_macvtap_is_made_as_pyroute2_reads_it(mode: MacvtapMode) -> None:
    message = decoded(macvtap.create(NAME, UPLINK, mode=mode, mac=MAC))
    assert message["header"]["type"] == RTM_NEWLINK
    assert message["header"]["flags"] == NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
    assert (message["index"], message["flags"], message["change"]) == (0, 0, 0)
    found = {name: message.get_attr(f"IFLA_{name}") for name in ("IFNAME", "LINK", "ADDRESS")}
    assert found == {"IFNAME": NAME, "LINK": 3, "ADDRESS": MAC}
    info = message.get_attr("IFLA_LINKINFO")
    assert info.get_attr("IFLA_INFO_KIND") == "macvtap"
    assert info.get_attr("IFLA_INFO_DATA").get_attr("IFLA_MACVTAP_MODE") == mode.value


def link(kind: str = "macvtap", *, mode: int = 4, name: str = NAME, alias: str = "", up: bool = False) -> Link:
    info = netlink.text(1, kind) + netlink.nested(2, netlink.number(1, mode))
    attributes = netlink.text(Ifla.IFNAME, name) + netlink.nested(Ifla.LINKINFO, info)
    attributes += netlink.text(Ifla.IFALIAS, alias) if alias else b""
    return Link(7, IFF_UP if up else 0, netlink.parse_attributes(attributes))


@pytest.mark.parametrize(("number", "mode"), [(1, "private"), (2, "vepa"), (4, "bridge"), (8, "passthru"), (16, ""), (0, "")])
def test_a_mode_is_read_back(number: int, mode: str) -> None:
    assert macvtap.mode_of(link(mode=number)) == mode


def test_what_is_no_macvtap_has_no_mode() -> None:
    assert macvtap.mode_of(link("macvlan")) == ""


@pytest.mark.parametrize(
    ("device", "own"),
    [
        (link(alias=names.mark(ID), up=True), True),
        (link(alias=names.mark(ID), name="renamed0"), True),
        (link(), True),  # a helper died before it marked it
        (link(up=True), False),
        (link(name="macvtap0"), False),
        (link(alias="somebody's"), False),
        (link(alias=names.mark(endpoint_id(1))), False),
        (link("macvlan", alias=names.mark(ID)), False),
        (link("tun", alias=names.mark(ID)), False),
    ],
)
def test_only_an_endpoints_own_macvtap_is_its(device: Link, *, own: bool) -> None:
    assert macvtap.is_of(device, ID) is own


@pytest.mark.parametrize(
    ("number", "cause", "words"),
    [
        (errno.ENODEV, ops.NOT_READY, "eth0 isn't there"),
        (errno.EOPNOTSUPP, ops.NOT_READY, "CONFIG_MACVTAP"),
        (errno.EBUSY, ops.NOT_READY, "belongs to a bridge"),
        (errno.EEXIST, ops.KERNEL, "there already"),
        (errno.ENOMEM, ops.KERNEL, "the kernel's words"),
    ],
)
def test_why_no_macvtap_is_made_is_told(number: int, cause: str, words: str) -> None:
    found = macvtap.explain_create(UPLINK, MacvtapMode.BRIDGE, Reply(number, "the kernel's words"))
    assert (found.cause, found.errno) == (cause, number)
    assert words in found.message


@pytest.mark.parametrize(
    ("number", "mac", "cause", "words"),
    [
        (errno.EADDRINUSE, MAC, ops.ADDRESS_TAKEN, "another macvtap's"),
        (errno.EBUSY, MAC, ops.ADDRESS_TAKEN, "another macvtap's"),  # what older kernels say
        (errno.EADDRINUSE, UPLINK.mac, ops.ADDRESS_TAKEN, "the uplink itself"),
        (errno.ENETDOWN, MAC, ops.NOT_READY, "eth0 is down"),
        (errno.ENOMEM, MAC, ops.KERNEL, "the kernel's words"),
    ],
)
def test_why_a_macvtap_isnt_set_up_is_told(number: int, mac: str, cause: str, words: str) -> None:
    found = macvtap.explain_up(UPLINK, mac, Reply(number, "the kernel's words"))
    assert (found.cause, found.errno) == (cause, number)
    assert words in found.message
