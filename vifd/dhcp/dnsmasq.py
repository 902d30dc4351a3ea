"""One network's dnsmasq: its arguments, its capabilities, and what its last words mean. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from vifd.dhcp.network import DhcpNetwork
from vifd.privileges import Capability

#: Where it may be: not the caller's PATH.
SEARCH_PATH = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin"
#: In the line that it logs when every socket is open (dnsmasq.c, main).
STARTED = re.compile(r"dnsmasq\[\d+\]: started, version")

_LEASE_S = 3600
_LEASES = 4096  # a bridge takes 1,023 ports; one lease a port and family, and some that are about to end
_FAILED_TO_BIND = re.compile(r"failed to bind (DHCP|DHCPv6) server socket(?: on \S+)?: Address already in use")
_FAILED_TO_LISTEN = re.compile(r"failed to create listening socket for (\S+): Address already in use")
# What it dies of it says without its pid (log.c, die).
_LAST_WORDS = re.compile(r"^dnsmasq: (.+)$")


class Files(Struct, frozen=True):
    """Where a vifd's dnsmasqs have their files.

    Args:
        hosts: a directory that the unprivileged process writes and dnsmasq reads.
        leases: a directory that dnsmasq writes and the unprivileged process reads.
    """

    hosts: Path
    leases: Path

    @classmethod
    def below(cls, directory: Path) -> Files:
        """Lay them out in a directory."""
        return cls(directory / "hosts", directory / "leases")

    def dhcp_hosts(self, network: str) -> Path:
        """MAC and addresses, a host a line (dnsmasq's --dhcp-hostsfile)."""
        return self.hosts / f"{network}.hosts"

    def names(self, network: str) -> Path:
        """Address and name, one a line (dnsmasq's --addn-hosts)."""
        return self.hosts / f"{network}.names"

    def lease_file(self, network: str) -> Path:
        """What dnsmasq has given to whom."""
        return self.leases / network


def argv(program: str, network: str, serving: DhcpNetwork, files: Files) -> list[str]:
    """Build the command line from the configuration alone (dnsmasq(8)).

    Args:
        program: the path of dnsmasq.
        network: the network's name.
        serving: what the configuration says of it.
        files: where it has its files.
    """
    return [program, *_general(serving), *_dhcp(network, serving, files), *_dns(network, serving, files)]


def capabilities(serving: DhcpNetwork) -> frozenset[Capability]:
    """Give what it needs: to bind ports below 1024 and change neighbour entries, for router advertisements a raw socket too.

    dnsmasq ends when it lacks one of these (dnsmasq.c, "process is missing required capability").
    """
    needed = {Capability.NET_BIND_SERVICE, Capability.NET_ADMIN}
    return frozenset(needed | {Capability.NET_RAW} if _has_ipv6(serving) else needed)


def explain(lines: Sequence[str], status: int, bridge: str) -> str:
    """Say why dnsmasq ended.

    Args:
        lines: the last that it logged.
        status: its exit status, or a signal's number with a minus.
        bridge: what it served.
    """
    for line in reversed(lines):
        if _FAILED_TO_BIND.search(line):
            return another_server(bridge)
        if found := _FAILED_TO_LISTEN.search(line):
            return f"another DNS server has port 53 of {found[1]} already; let it leave bridge {bridge} out"
        if found := _LAST_WORDS.match(line):
            return f"dnsmasq ended: {found[1]}"
    return f"dnsmasq was killed by signal {-status}" if status < 0 else f"dnsmasq ended with status {status}"


def another_server(bridge: str) -> str:
    """Say that somebody else serves DHCP on a bridge."""
    return f"another DHCP server has the port on bridge {bridge} already; stop it there, or set dhcp = false"


def _has_ipv6(serving: DhcpNetwork) -> bool:
    return any(interface.version == 6 for interface in serving.interfaces)


def _general(serving: DhcpNetwork) -> list[str]:
    return [
        "--keep-in-foreground",
        "--conf-file=/dev/null",  # not the host's /etc/dnsmasq.conf
        "--log-facility=-",
        f"--interface={serving.bridge}",
        "--except-interface=lo",
        "--bind-dynamic",  # beside other networks' servers, and on a bridge that comes later
    ]


def _dhcp(network: str, serving: DhcpNetwork, files: Files) -> Iterator[str]:
    yield "--dhcp-authoritative"
    yield "--no-ping"  # that a free address is free, vifd knows; and it would take a raw socket
    # A guest is who its MAC says, and not the boot loader or the former system on its disk.
    yield "--dhcp-ignore-clid"
    # A guest must not give itself a name that others look up.
    yield "--dhcp-ignore-names"
    yield from ("--quiet-dhcp", "--quiet-dhcp6", "--quiet-ra")
    yield f"--dhcp-lease-max={_LEASES}"
    yield f"--dhcp-leasefile={files.lease_file(network)}"
    yield f"--dhcp-hostsfile={files.dhcp_hosts(network)}"
    if _has_ipv6(serving):
        yield "--enable-ra"
    prefixes = dict.fromkeys(interface.network for interface in serving.interfaces)
    for prefix in prefixes:
        mask = str(prefix.netmask) if prefix.version == 4 else str(prefix.prefixlen)
        yield f"--dhcp-range={prefix.network_address},static,{mask},{_LEASE_S}"
    yield f"--dhcp-option=option:mtu,{serving.mtu_bytes}"
    ipv4, ipv6 = (
        [server for server in serving.dns if ":" not in server],
        [f"[{server}]" for server in serving.dns if ":" in server],
    )
    if ipv4:
        yield f"--dhcp-option=option:dns-server,{','.join(ipv4)}"
    if ipv6:
        yield f"--dhcp-option=option6:dns-server,{','.join(ipv6)}"
    if serving.domain:
        yield f"--dhcp-option=option6:domain-search,{serving.domain}"


def _dns(network: str, serving: DhcpNetwork, files: Files) -> Iterator[str]:
    yield "--no-hosts"
    yield f"--addn-hosts={files.names(network)}"
    yield from ("--domain-needed", "--bogus-priv")
    if serving.domain:
        yield from (f"--domain={serving.domain}", f"--local=/{serving.domain}/", "--expand-hosts")
    if serving.dns:
        yield "--no-resolv"
        yield from (f"--server={server}" for server in serving.dns)
