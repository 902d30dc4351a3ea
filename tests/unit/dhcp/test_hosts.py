"""Hosts' lines, whatever strangers call their VMs."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vifd.dhcp import hosts
from vifd.dhcp.hosts import Host, entry, label

MAC, OTHER_MAC = "52:54:00:00:00:0a", "52:54:00:00:00:0b"
LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def written(*given_hosts: Host) -> tuple[str, str]:
    return hosts.files(map(entry, given_hosts))


def test_a_host_has_a_line_of_dhcp_and_a_line_a_name_and_address() -> None:
    dhcp, names = written(Host(MAC.upper(), ("10.0.0.5", "fd00:0::5"), "web"))
    assert dhcp == f"{MAC},10.0.0.5,[fd00::5]\n"
    assert names == "10.0.0.5 web\nfd00::5 web\n"


def test_a_host_with_two_ipv4_addresses_is_given_the_first_and_found_by_both() -> None:
    dhcp, names = written(Host(MAC, ("10.0.0.5", "10.0.1.5"), "web"))
    assert dhcp == f"{MAC},10.0.0.5\n"  # dnsmasq takes one a line
    assert names == "10.0.0.5 web\n10.0.1.5 web\n"


def test_a_host_without_a_name_has_no_line_of_names() -> None:
    assert written(Host(MAC, ("10.0.0.5",))) == (f"{MAC},10.0.0.5\n", "")


def test_a_host_without_an_address_has_no_line_at_all() -> None:
    assert written(Host(MAC, (), "web")) == ("", "")


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("web", "web"),
        ("Web_01.example.org", "web-01-example-org"),
        ("-web-", "web"),
        ("web\n10.0.0.1 bank", "web-10-0-0-1-bank"),
        ("web,ignore", "web-ignore"),
        ("#web", "web"),
        ("x" * 70, "x" * 63),
        ("x" * 62 + ".y", "x" * 62),
        ("größe", "gr-e"),
        ("", ""),
        ("\0", ""),
        ("\uff15", ""),
        ("10.0.0.1", ""),
        ("7", ""),
        ("wpad", ""),
        ("WPAD.", ""),
        ("localhost", ""),
    ],
)
def test_a_label_is_made_of_a_name(name: str, made: str) -> None:
    assert label(name) == made


@given(st.text())
def test_whatever_a_vm_is_called_no_line_is_other_than_it_should_be(name: str) -> None:
    dhcp, names = written(Host(MAC, ("10.0.0.5",), name))
    assert dhcp == f"{MAC},10.0.0.5\n"
    assert not names or (names.startswith("10.0.0.5 ") and LABEL.fullmatch(names[9:-1]) and names.endswith("\n"))


@pytest.mark.parametrize("mac", ["", "52:54:00:00:00", MAC + ":00", MAC + "\n", MAC + ",ignore", "id:*", "gg:54:00:00:00:0a"])
def test_what_is_no_mac_is_refused(mac: str) -> None:
    with pytest.raises(ValueError, match="no MAC"):
        entry(Host(mac, ("10.0.0.5",)))


@pytest.mark.parametrize(
    "address", ["", "10.0.0", "10.0.0.5\n", "10.0.0.5,ignore", "10.0.0.0/24", "fe80::1%eth0", "ff02::1", "::", "127.0.0.1"]
)
def test_what_is_no_guests_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="address"):
        entry(Host(MAC, (address,)))


def test_the_first_of_two_with_one_name_has_it() -> None:
    dhcp, names = written(Host(MAC, ("10.0.0.5",), "web"), Host(OTHER_MAC, ("10.0.0.6",), "WEB"))
    assert dhcp == f"{MAC},10.0.0.5\n{OTHER_MAC},10.0.0.6\n"
    assert names == "10.0.0.5 web\n"


@pytest.mark.parametrize("second", [Host(MAC, ("10.0.0.6",)), Host(OTHER_MAC, ("10.0.0.6", "10.0.0.5"))])
def test_the_first_of_two_with_one_mac_or_address_has_it(second: Host) -> None:
    assert written(Host(MAC, ("10.0.0.5",)), second)[0] == f"{MAC},10.0.0.5\n"
