"""What announces a VM, against the frames that tests pack by themselves."""

import pytest

from tests.support.frames import (
    ADVERTISEMENT,
    ARP,
    BROADCAST,
    REQUEST,
    REVERSE_REQUEST,
    TARGET_MAC,
    arp,
    checksum,
    discovery,
    ip_bytes,
    option,
    tagged,
)
from tests.support.frames import RARP as REVERSE
from vifd.kernel.announcing import frames
from vifd.model import Port, Vlan

MAC = "52:54:00:12:34:56"
_NOBODY = ("00:00:00:00:00:00", "10.0.0.7")
ANNOUNCED = arp(MAC, REVERSE_REQUEST, (MAC, "0.0.0.0"), (MAC, "0.0.0.0"), kind=REVERSE)


def sent(*addresses: str, vlan: Vlan | None = None, on_bridge: bool = True) -> list[bytes]:
    return list(frames(Port(mac=MAC, addresses=addresses, vlan=vlan), tagged=on_bridge))


def padded(frame: bytes) -> bytes:
    return frame.ljust(60, b"\0")


def test_a_vm_without_addresses_is_announced_as_qemu_does() -> None:
    assert sent() == [padded(ANNOUNCED)]


def test_an_ipv4_address_is_announced_by_arp() -> None:
    _, announcement = sent("10.0.0.7")
    assert announcement == padded(arp(MAC, REQUEST, (MAC, "10.0.0.7"), _NOBODY, kind=ARP))


def test_an_ipv6_address_is_advertised_with_a_right_checksum() -> None:
    _, advertisement = sent("2001:db8::7")
    whole = discovery(MAC, "2001:db8::7", ADVERTISEMENT, ip_bytes("2001:db8::7"), option(TARGET_MAC, MAC))
    override = 54 + 4  # behind the headers, type, code and checksum
    assert advertisement[:56] == whole[:56]
    assert advertisement[override:] == b"\x20" + whole[override + 1 :]
    pseudo = advertisement[22:54] + len(advertisement[54:]).to_bytes(4, "big") + (58).to_bytes(4, "big")
    assert checksum(pseudo + advertisement[54:]) == 0


def test_an_advertisement_goes_to_all_nodes_and_arp_to_everybody() -> None:
    assert [frame[:6].hex(":") for frame in sent("10.0.0.7", "2001:db8::7")] == [BROADCAST, BROADCAST, "33:33:00:00:00:01"]


def test_of_a_whole_prefix_nobody_knows_what_is_used() -> None:
    assert len(sent("10.0.0.0/28", "2001:db8::/64", "10.0.0.32/32")) == 2


@pytest.mark.parametrize(("vlan", "on_bridge", "tags"), [(Vlan(vid=7), True, [7]), (Vlan(vid=7), False, []), (None, True, [])])
def test_frames_of_a_vlan_are_tagged_where_they_leave_a_bridge(vlan: Vlan | None, on_bridge: bool, tags: list[int]) -> None:
    (frame,) = sent(vlan=vlan, on_bridge=on_bridge)
    assert frame == padded(tagged(ANNOUNCED, *((0x8100, vid) for vid in tags)))
