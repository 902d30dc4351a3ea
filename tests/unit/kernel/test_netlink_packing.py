"""What vifd packs by hand, against pyroute2's encoder and decoder."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink import NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST
from pyroute2.netlink.rtnl import RTM_DELLINK, RTM_GETLINK, RTM_NEWLINK, RTM_NEWLINKPROP, RTM_SETLINK
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg, protinfo_bridge

from vifd.kernel import netlink
from vifd.kernel.netlink import BridgePort, Ifla, MulticastRouter

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


def theirs(kind: int, flags: int, index: int, attributes: list[Any], *, up: bool = False) -> bytes:
    message = ifinfmsg()
    message["index"], message["flags"], message["change"], message["attrs"] = index, int(up), int(up), attributes
    message["header"]["type"], message["header"]["flags"] = kind, flags | NLM_F_REQUEST
    message.encode()
    return bytes(message.data)


def decoded(data: bytes) -> Any:
    message = ifinfmsg(data)
    message.decode()
    return message


def test_the_numbers_are_pyroute2s() -> None:
    ours = (netlink.RTM_NEWLINK, netlink.RTM_DELLINK, netlink.RTM_GETLINK, netlink.RTM_SETLINK, netlink.RTM_NEWLINKPROP)
    assert ours == (RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK, RTM_NEWLINKPROP)


@pytest.mark.parametrize("member", list(Ifla))
def test_the_attributes_are_pyroute2s(member: Ifla) -> None:
    assert ifinfmsg.nla_map[member.value][0] == f"IFLA_{member.name}"


@given(st.integers(1, 2**31 - 1), st.integers(68, 65535), st.integers(1, 2**31 - 1), NAMES)
def test_a_device_is_marked_attached_and_set_up_by_the_same_bytes(index: int, mtu: int, master: int, alias: str) -> None:
    attributes = (
        netlink.attribute(Ifla.ADDRESS, bytes.fromhex("fe5400123456"))
        + netlink.text(Ifla.IFALIAS, alias)
        + netlink.number(Ifla.MTU, mtu)
        + netlink.number(Ifla.MASTER, master)
        + netlink.number(Ifla.GROUP, 77)
    )
    expected = [
        ("IFLA_ADDRESS", "fe:54:00:12:34:56"),
        ("IFLA_IFALIAS", alias),
        ("IFLA_MTU", mtu),
        ("IFLA_MASTER", master),
        ("IFLA_GROUP", 77),
    ]
    assert netlink.set_link(index, attributes, up=True) == theirs(RTM_SETLINK, NLM_F_ACK, index, expected, up=True)


def test_a_device_is_made_by_the_same_bytes() -> None:
    attributes = [("IFLA_IFNAME", "ifbx"), ("IFLA_MTU", 9000), ("IFLA_TXQLEN", 256)]
    info = ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "ifb")]})
    ours = netlink.text(Ifla.IFNAME, "ifbx") + netlink.number(Ifla.MTU, 9000) + netlink.number(Ifla.TXQLEN, 256)
    flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
    assert netlink.create_link("ifb", ours) == theirs(RTM_NEWLINK, flags, 0, [*attributes, info])


def test_a_device_that_isnt_to_be_set_up_stays_as_it_is() -> None:
    assert netlink.set_link(7, b"") == theirs(RTM_SETLINK, NLM_F_ACK, 7, [])


def test_a_device_is_asked_for_by_its_index_by_the_same_bytes() -> None:
    assert netlink.get_link(ifindex=7) == theirs(RTM_GETLINK, 0, 7, [("IFLA_EXT_MASK", 8)])


@given(NAMES.filter(bool))
def test_a_device_is_asked_for_by_its_names_by_the_same_bytes(name: str) -> None:
    mask = ("IFLA_EXT_MASK", 8)
    assert netlink.get_link(ifname=name) == theirs(RTM_GETLINK, 0, 0, [mask, ("IFLA_IFNAME", name)])
    assert netlink.get_link(altname=name) == theirs(RTM_GETLINK, 0, 0, [mask, ("IFLA_ALT_IFNAME", name)])


def test_a_device_is_deleted_by_the_same_bytes() -> None:
    assert netlink.delete_link(7) == theirs(RTM_DELLINK, NLM_F_ACK, 7, [])


@pytest.mark.parametrize("member", list(BridgePort))
def test_the_attributes_of_a_bridges_port_are_pyroute2s(member: BridgePort) -> None:
    assert protinfo_bridge.nla_map[member.value][0] == f"IFLA_BRPORT_{member.name}"


@pytest.mark.parametrize("forget", [False, True])
def test_a_bridge_is_told_of_its_port(forget: bool) -> None:
    router = MulticastRouter.NEVER
    message = netlink.set_bridge_port(7, isolated=True, group_forward_mask=0xFFFD, multicast_router=router, forget=forget)
    port = decoded(message).get_attr("IFLA_PROTINFO")
    assert (port.get_attr("IFLA_BRPORT_ISOLATED"), port.get_attr("IFLA_BRPORT_GROUP_FWD_MASK")) == (1, 0xFFFD)
    assert port.get_attr("IFLA_BRPORT_MULTICAST_ROUTER") == 0
    assert ("IFLA_BRPORT_FLUSH" in dict(port["attrs"])) is forget


def test_a_group_is_deleted_by_the_same_bytes() -> None:
    assert netlink.delete_group(2**31) == theirs(RTM_DELLINK, NLM_F_ACK, 0, [("IFLA_GROUP", 2**31)])


@given(NAMES)
def test_an_alternative_name_is_given_by_the_same_bytes(name: str) -> None:
    properties = [("IFLA_PROP_LIST", {"attrs": [("IFLA_ALT_IFNAME", name)]})]
    flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL | NLM_F_APPEND
    assert netlink.add_altname(7, name) == theirs(RTM_NEWLINKPROP, flags, 7, properties)


def test_the_attribute_against_link_local_addresses_reads_so() -> None:
    message = decoded(netlink.set_link(7, netlink.NO_IPV6_ADDRESS))
    inet6 = message.get_attr("IFLA_AF_SPEC").get_attr("AF_INET6")
    assert inet6.get_attr("IFLA_INET6_ADDR_GEN_MODE") == 1


@given(st.binary(max_size=20))
def test_every_attribute_is_padded_to_four_bytes(payload: bytes) -> None:
    packed = netlink.attribute(1, payload)
    assert len(packed) % 4 == 0
    assert int.from_bytes(packed[:2], "little" if packed[2] == 1 else "big") == 4 + len(payload)
