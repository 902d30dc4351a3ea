"""What vifd packs for traffic control, against what iproute2's tc 6.1 sent for the same (taken with strace)."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vifd.kernel import tc
from vifd.kernel.netlink import parse_attributes
from vifd.kernel.tc import Bucket, Shown

HEADER = 16  # struct nlmsghdr
REQUEST, ACK, ECHO, REPLACE, CREATE = 1, 4, 8, 0x100, 0x400

# tc qdisc add dev v0 ingress; v0 has the index 3
TC_INGRESS = "00000000030000000000fffff1ffffff000000000c000100696e677265737300"
# tc filter replace dev v0 parent ffff: handle 800::800 protocol all prio 1 u32 match u32 0 0
#   action mirred egress redirect dev ifb9, which has the index 4
TC_REDIRECT = (
    "0000000003000000000800800000ffff0003010008000100753332006000020038000700340001000b0001006d69727265640000"
    "2400028020000200000000000000000004000000000000000000000001000000040000002400050001000100" + "00" * 28
)
# tc qdisc replace dev v0 root tbf rate 20mbit burst 64kb limit 200000: up to tc_tbf_qopt's end
TC_TBF = (
    "000000000300000000000000ffffffff000000000800010074626600380402002800010003010000ffff0000a0252600"
    "000000000000000000000000400d0300f93f060000000000"
)
# tc filter replace ... action police rate 20mbit burst 128kb mtu 0xffff overhead 14 conform-exceed drop/pipe:
# struct tc_police, and what follows the table
TC_POLICE = (
    "000000000200000000000000f37f0c00ffff000008010e00ffff0000a0252600000000000000000000000000000000000000000000000000",
    "0800050003000000240005000100010000000000000000000000000000000000000000000000000000000000",
)
# ... action police pkts_rate 1000 pkts_burst 100 drop: the second action, after its kind
TC_POLICE_PACKETS = "580002803c0001000000000002000000" + "00" * 48 + "0c000a00e8030000000000000c000b0084d7170000000000"


def header(message: bytes) -> tuple[int, ...]:
    length, kind, flags, sequence, pid = struct.unpack_from("=IHHII", message)
    assert (length, sequence, pid) == (len(message), 0, 0)
    return kind, flags


def options(message: bytes) -> dict[int, bytes]:
    return parse_attributes(parse_attributes(message[HEADER + 20 :])[2])


def actions(message: bytes) -> list[tuple[bytes, bytes]]:
    parts = [parse_attributes(action) for action in parse_attributes(options(message)[7]).values()]
    return [(part[1], part[2]) for part in parts]


def test_every_message_asks_for_what_it_should() -> None:
    replace = REQUEST | ACK | CREATE | REPLACE
    assert header(tc.replace_tbf(3, 1000, 2000, 3000)) == (36, replace)
    assert header(tc.ensure_ingress(3)) == (36, replace)
    assert header(tc.replace_redirect(3, 4)) == header(tc.replace_police(3, (1, 1), (1, 1))) == (44, replace)
    assert header(tc.delete_tbf(3)) == header(tc.delete_ingress(3)) == (37, REQUEST | ACK)
    assert header(tc.get_root(3)) == (38, REQUEST | ECHO | ACK)
    assert header(tc.get_filter(3)) == (46, REQUEST | ECHO | ACK)


def test_the_ingress_qdisc_is_made_and_deleted_by_the_same_bytes() -> None:
    assert tc.ensure_ingress(3)[HEADER:].hex() == TC_INGRESS
    assert tc.delete_ingress(3)[HEADER:].hex() == TC_INGRESS


def test_a_redirection_is_the_same_bytes() -> None:
    assert tc.replace_redirect(3, 4)[HEADER:].hex() == TC_REDIRECT


def test_a_tbf_says_the_same_without_the_table() -> None:
    ours, theirs = tc.replace_tbf(3, 2_500_000, 65536, 200_000)[HEADER:], bytes.fromhex(TC_TBF)
    assert ours[:28] == theirs[:28]
    # tc_ratespec, the peak's, limit, buffer, mtu; cell_log and cell_align are the table's, and tc rounds to microseconds.
    our_numbers, their_numbers = (struct.unpack_from("=xBHxxHI12sIII", data, 36) for data in (ours, theirs))
    assert our_numbers[:6] == their_numbers[:6]
    assert our_numbers[6] == 65536 * 10**9 // 64 // 2_500_000 == 409_600
    assert 0 <= our_numbers[6] - their_numbers[6] < 16
    assert options(tc.replace_tbf(3, 2_500_000, 65536, 200_000))[6] == struct.pack("=I", 65536)


def test_a_rate_beyond_32_bits_has_64() -> None:
    below, beyond = options(tc.replace_tbf(3, 2**32 - 1, 1, 1)), options(tc.replace_tbf(3, 5 * 10**9, 1, 1))
    assert 4 not in below
    assert struct.unpack_from("=I", beyond[1], 8)[0] == 2**32 - 1
    assert struct.unpack("=Q", beyond[4])[0] == 5 * 10**9
    policed = parse_attributes(actions(tc.replace_police(3, (5 * 10**9, 1), (0, 0)))[0][1])
    assert struct.unpack("=Q", policed[8])[0] == 5 * 10**9


def test_a_police_of_bytes_says_the_same_without_the_table() -> None:
    message = tc.replace_police(3, (2_500_000, 131_072), (0, 0))
    [(kind, packed)] = actions(message)
    assert kind == b"police\0"
    ours, theirs = parse_attributes(packed), bytes.fromhex(TC_POLICE[0])
    our_numbers, their_numbers = (struct.unpack("=IiI4x4xBBHxxHI12siiI", data) for data in (ours[1], theirs))
    assert our_numbers == their_numbers
    burst, mtu = struct.unpack_from("=II", ours[1], 12)
    assert 0 <= burst - struct.unpack_from("=I", theirs, 12)[0] < 16
    assert mtu == 2**32 - 1
    assert len(ours[2]) == 1024
    assert message.hex().endswith(TC_POLICE[1])


def test_a_police_of_packets_is_the_same_bytes_after_the_frame_length() -> None:
    [(kind, packed)] = actions(tc.replace_police(3, (0, 0), (1000, 100)))
    assert kind == b"police\0"
    theirs = parse_attributes(bytes.fromhex(TC_POLICE_PACKETS)[4:])
    ours = parse_attributes(packed)
    assert ours[1][16:20] == b"\xff" * 4  # no frame is too long by itself
    assert ours[1][:16] + bytes(4) + ours[1][20:] == theirs[1]
    assert {kind: ours[kind] for kind in (10, 11)} == {kind: theirs[kind] for kind in (10, 11)}
    assert set(ours) == set(theirs)


def test_both_polices_stand_one_after_the_other() -> None:
    first, second = (parse_attributes(packed) for _, packed in actions(tc.replace_police(3, (1000, 2000), (10, 5))))
    assert first[5] == struct.pack("=I", 3)  # TC_ACT_PIPE: on to the next
    assert 10 in second


def test_a_tbf_is_deleted_by_its_kind_alone() -> None:
    expected = "000000000300000000000000ffffffff000000000800010074626600"  # tc's, and the kind: any other qdisc stays
    assert tc.delete_tbf(3)[HEADER:].hex() == expected


@given(st.integers(1, 2**40), st.integers(1, 2**32 - 1))
def test_ticks_and_units_belong_together(rate: int, units: int) -> None:
    ticks = tc.burst_ticks(rate, units)
    assert 0 <= ticks < 2**32
    if ticks < 2**32 - 1:
        assert abs(tc.burst(Bucket(rate, ticks)) - units) <= rate * 64 / 10**9 + 1


@pytest.mark.parametrize("rate", [1, 2_500_000, 2**32 - 1, 2**32, 10**11])
def test_what_is_packed_is_read_back(rate: int) -> None:
    bucket = Bucket(rate, tc.burst_ticks(rate, 1 << 17))
    assert tc.parse(tc.replace_tbf(3, rate, 1 << 17, 1)) == Shown("tbf", tbf=bucket)
    assert tc.parse(tc.replace_redirect(3, 9)) == Shown("u32", redirect=9)
    packets = Bucket(1000, tc.burst_ticks(1000, 50))
    policed = tc.parse(tc.replace_police(3, (rate, 1 << 17), (1000, 50)))
    assert policed == Shown("u32", police_bytes=bucket, police_packets=packets)


def test_an_unknown_qdisc_has_a_kind_alone() -> None:
    assert tc.parse(tc.ensure_ingress(3)) == Shown("ingress")


def event(kind: int, ifindex: int) -> bytes:
    return struct.pack("=IHHIIBxxxiIII", 36, kind, 0, 0, 0, 0, ifindex, 0, 0, 0)


def test_a_packet_tells_which_devices_have_changed() -> None:
    packet = b"".join(event(kind, 7 + place) for place, kind in enumerate(tc.EVENTS))
    assert tc.changed_devices(packet) == {7, 8, 9, 10}
    assert tc.changed_devices(event(16, 7) + event(tc.RTM_DELQDISC, 8)) == {8}


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reading_of_changes(data: bytes) -> None:
    assert isinstance(tc.changed_devices(data), set)
