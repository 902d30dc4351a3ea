"""dnsmasq's command line, its capabilities, and what its last words mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from vifd.dhcp import dnsmasq
from vifd.dhcp.dnsmasq import Files
from vifd.dhcp.network import DhcpNetwork
from vifd.privileges import Capability

FILES = Files.below(Path("/run/vifd/vifd.sock.dhcp"))
BOTH = DhcpNetwork("br-blue", ("10.0.0.1/24", "fd00::1/64"), 1400, ("192.0.2.53", "2001:db8::53"), "vms.example.org")


def argv(network: DhcpNetwork) -> list[str]:
    return dnsmasq.argv("/usr/sbin/dnsmasq", "blue", network, FILES)


def test_the_command_line_of_a_network_with_everything() -> None:
    assert argv(BOTH) == [
        "/usr/sbin/dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--log-facility=-",
        "--interface=br-blue",
        "--except-interface=lo",
        "--bind-dynamic",
        "--dhcp-authoritative",
        "--no-ping",
        "--dhcp-ignore-clid",
        "--dhcp-ignore-names",
        "--quiet-dhcp",
        "--quiet-dhcp6",
        "--quiet-ra",
        "--dhcp-lease-max=4096",
        "--dhcp-leasefile=/run/vifd/vifd.sock.dhcp/leases/blue",
        "--dhcp-hostsfile=/run/vifd/vifd.sock.dhcp/hosts/blue.hosts",
        "--enable-ra",
        "--dhcp-range=10.0.0.0,static,255.255.255.0,3600",
        "--dhcp-range=fd00::,static,64,3600",
        "--dhcp-option=option:mtu,1400",
        "--dhcp-option=option:dns-server,192.0.2.53",
        "--dhcp-option=option6:dns-server,[2001:db8::53]",
        "--dhcp-option=option6:domain-search,vms.example.org",
        "--no-hosts",
        "--addn-hosts=/run/vifd/vifd.sock.dhcp/hosts/blue.names",
        "--domain-needed",
        "--bogus-priv",
        "--domain=vms.example.org",
        "--local=/vms.example.org/",
        "--expand-hosts",
        "--no-resolv",
        "--server=192.0.2.53",
        "--server=2001:db8::53",
    ]


def test_a_network_without_ipv6_has_no_advertisements_and_no_raw_socket() -> None:
    network = DhcpNetwork("br-blue", ("10.0.0.1/24",))
    assert "--enable-ra" not in argv(network)
    assert dnsmasq.capabilities(network) == {Capability.NET_BIND_SERVICE, Capability.NET_ADMIN}
    assert dnsmasq.capabilities(BOTH) == {Capability.NET_BIND_SERVICE, Capability.NET_ADMIN, Capability.NET_RAW}


def test_a_network_without_dns_asks_the_hosts_resolvers() -> None:
    options = argv(DhcpNetwork("br-blue", ("10.0.0.1/24",)))
    assert not [option for option in options if "resolv" in option or option.startswith(("--server", "--domain=", "--local"))]


def test_a_prefix_with_two_addresses_of_the_hosts_is_served_once() -> None:
    ranges = [
        option for option in argv(DhcpNetwork("br-blue", ("10.0.0.1/24", "10.0.0.2/24", "10.0.1.1/25"))) if "range" in option
    ]
    assert ranges == ["--dhcp-range=10.0.0.0,static,255.255.255.0,3600", "--dhcp-range=10.0.1.0,static,255.255.255.128,3600"]


@pytest.mark.parametrize(
    ("lines", "status", "reason"),
    [
        (["", "dnsmasq: failed to bind DHCP server socket: Address already in use"], 2, "another DHCP server has the port"),
        (["dnsmasq: failed to create listening socket for 10.0.0.1: Address already in use"], 2, "port 53 of 10.0.0.1"),
        (["", "dnsmasq: process is missing required capability NET_ADMIN"], 5, "dnsmasq ended: process is missing"),
        (["dnsmasq[1]: started, version 2.90", "dnsmasq[1]: using nameserver 192.0.2.53#53"], -9, "was killed by signal 9"),
        ([], 3, "dnsmasq ended with status 3"),
    ],
)
def test_its_last_words_are_explained(lines: list[str], status: int, reason: str) -> None:
    assert reason in dnsmasq.explain(lines, status, "br-blue")
