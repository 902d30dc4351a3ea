"""dnsmasq's lease file, and which of its leases are over."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vifd.dhcp import leases
from vifd.dhcp.leases import Lease, Leases

MAC = "52:54:00:00:00:0a"
TEXT = f"""\
1732464000 {MAC} 10.0.0.5 web 01:52:54:00:00:00:0a
1732464000 52:54:00:00:00:0b 10.0.0.6 * *
duid 00:01:00:01:32:98:76:b6:4e:7e:f2:59:be:b2
1732464000 7 fd00::5 web 00:03:00:01:52:54:00:00:00:0a
"""
FOUND = Leases(
    (
        Lease(ipaddress.ip_address("10.0.0.5"), mac=MAC),
        Lease(ipaddress.ip_address("10.0.0.6"), mac="52:54:00:00:00:0b"),
        Lease(ipaddress.ip_address("fd00::5"), client=bytes.fromhex("00030001525400000" + "00a"), iaid=7),
    ),
    bytes.fromhex("0001000132987" + "6b64e7ef259beb2"),
)


def test_a_lease_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "blue").write_text(TEXT)
    assert leases.read(tmp_path / "blue") == FOUND


def test_a_file_that_is_being_written_is_read_as_far_as_it_goes() -> None:
    assert leases.parse(TEXT[:-5]).leases == FOUND.leases[:2]
    assert leases.parse(TEXT[:80]).leases == FOUND.leases[:1]


@pytest.mark.parametrize(
    "line", ["", "a b c d e", "1 T7 fd00::5 * 00:01", "1 -7 fd00::5 * 00:01", "1 99999999999 fd00::5 * 00:01", "1 7 fd00::5 * zz"]
)
def test_a_strange_line_is_none(line: str) -> None:
    assert leases.parse(f"{line}\n").leases == ()


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    leases.parse(text)


def test_no_file_and_no_regular_file_have_no_leases(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "fifo")
    for name in ("none", "link", "fifo"):
        assert leases.read(tmp_path / name) == Leases()
