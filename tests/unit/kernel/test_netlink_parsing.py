import errno
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.links import link
from vifd.kernel import netlink
from vifd.kernel.netlink import Ifla, TunInfo

ACK_TLVS, CAPPED = 0x200, 0x100


def error(code: int, flags: int = 0, echoed: bytes = bytes(16), attributes: bytes = b"", sequence: int = 1) -> bytes:
    body = struct.pack("=i", -code) + echoed + attributes
    return struct.pack("=IHHII", 16 + len(body), netlink.NLMSG_ERROR, flags, sequence, 0) + body


def test_a_link_is_read_as_pyroute2_writes_it() -> None:
    found = netlink.parse_link(
        link(("IFLA_MTU", 1400), ("IFLA_MASTER", 5), ("IFLA_IFALIAS", "vifd:ä"), ("IFLA_ADDRESS", "fe:54:00:12:34:56"))
    )
    assert (found.ifindex, found.flags & netlink.IFF_UP, found.flags & netlink.IFF_LOWER_UP) == (7, 1, 0x10000)
    assert (found.text(Ifla.IFNAME), found.text(Ifla.IFALIAS)) == ("vdtx", "vifd:ä")
    assert (found.number(Ifla.MTU), found.number(Ifla.MASTER)) == (1400, 5)
    assert found.attributes[Ifla.ADDRESS].hex(":") == "fe:54:00:12:34:56"


def test_what_a_link_has_not_is_zero_and_empty() -> None:
    found = netlink.parse_link(link())
    assert (found.number(Ifla.MASTER), found.text(Ifla.IFALIAS), found.kind) == (0, "", "")
    assert not found.tun_flag(TunInfo.MULTI_QUEUE)


@pytest.mark.parametrize("multi_queue", [0, 1])
@pytest.mark.parametrize("vnet_hdr", [0, 1])
def test_the_kind_and_flags_of_a_tap_are_read(multi_queue: int, vnet_hdr: int) -> None:
    data = {"attrs": [("IFLA_TUN_VNET_HDR", vnet_hdr), ("IFLA_TUN_MULTI_QUEUE", multi_queue)]}
    found = netlink.parse_link(link(("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "tun"), ("IFLA_INFO_DATA", data)]})))
    assert found.kind == "tun"
    assert (found.tun_flag(TunInfo.MULTI_QUEUE), found.tun_flag(TunInfo.VNET_HDR)) == (bool(multi_queue), bool(vnet_hdr))


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reading_of_attributes(data: bytes) -> None:
    assert sum(map(len, netlink.parse_attributes(data).values())) <= len(data)


@given(st.dictionaries(st.integers(0, 0x3FFF), st.binary(max_size=30), max_size=8))
def test_attributes_are_read_as_they_were_packed(attributes: dict[int, bytes]) -> None:
    packed = b"".join(netlink.attribute(kind, payload) for kind, payload in attributes.items())
    assert netlink.parse_attributes(packed) == attributes


def test_an_attribute_that_holds_attributes_is_read_by_its_number() -> None:
    assert list(netlink.parse_attributes(netlink.nested(Ifla.LINKINFO, b""))) == [Ifla.LINKINFO]


def test_an_answer_that_all_is_well_is_read() -> None:
    assert netlink._parse_replies(error(0, CAPPED)) == [(1, netlink.Reply(0))]


def test_a_refusal_is_read_with_the_systems_words() -> None:
    assert netlink._parse_replies(error(errno.EBUSY, CAPPED)) == [(1, netlink.Reply(errno.EBUSY, os.strerror(errno.EBUSY)))]


def test_a_refusal_is_read_with_the_kernels_own_words() -> None:
    words = netlink.text(1, "Device is already enslaved")
    ((_, reply),) = netlink._parse_replies(error(errno.EBUSY, CAPPED | ACK_TLVS, attributes=words))
    assert (reply.errno, reply.message) == (errno.EBUSY, "Device is already enslaved")


def test_the_kernels_own_words_are_found_behind_the_refused_message() -> None:
    refused = link(("IFLA_MTU", 1))
    ((_, reply),) = netlink._parse_replies(error(errno.EINVAL, ACK_TLVS, refused, netlink.text(1, "mtu too small")))
    assert reply.message == "mtu too small"


def test_a_refusal_without_words_of_the_kernel_has_the_systems() -> None:
    ((_, reply),) = netlink._parse_replies(error(errno.EINVAL, CAPPED | ACK_TLVS, attributes=netlink.number(2, 4)))
    assert reply.message == os.strerror(errno.EINVAL)


def test_answers_of_one_packet_are_read_in_order() -> None:
    packet = error(0, CAPPED, sequence=5) + error(errno.ENODEV, CAPPED, sequence=6)
    assert [(sequence, reply.errno) for sequence, reply in netlink._parse_replies(packet)] == [(5, 0), (6, errno.ENODEV)]


def test_the_kernel_answers_each_message_that_is_asked_of_it() -> None:
    rtnl = netlink.RtnlSocket()
    try:
        lo, none, _ = rtnl.exchange([netlink.get_link(ifname=name) for name in ("lo", "vdt-none", "lo")])
    finally:
        rtnl.close()
    assert lo.link is not None
    assert (lo.errno, lo.link.ifindex, lo.link.text(Ifla.IFNAME)) == (0, 1, "lo")
    assert (none.errno, none.link) == (errno.ENODEV, None)


def test_the_kernel_answers_more_messages_than_go_in_a_send() -> None:
    rtnl = netlink.RtnlSocket()
    try:
        replies = rtnl.exchange([netlink.get_link(ifindex=1 if number % 2 else 2**31 - 1) for number in range(200)])
    finally:
        rtnl.close()
    assert [reply.link is not None for reply in replies] == [bool(number % 2) for number in range(200)]
