"""A process that uses vifd's DHCP as the daemon does: it forks the supervisor, drops its privileges and says who the hosts are.

`tests.support.dhcp` runs it: dhcp_front.py NETNS DIRECTORY DHCP_USER. In come commands, out go statuses, each a line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec

from vifd import logs, privileges
from vifd.config import DaemonConfig
from vifd.dhcp import supervisor
from vifd.dhcp.dnsmasq import Files
from vifd.dhcp.hosts import Host
from vifd.dhcp.network import DhcpNetwork
from vifd.dhcp.servers import DhcpServers
from vifd.errors import StartError
from vifd.kernel import netns as namespaces


def main(netns: str, directory: Path, user: str) -> None:
    """Start the supervisor, then do what the pipe says."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logs.setup("info", "text")
    namespaces.enter(netns)
    files, config = Files.below(directory), DaemonConfig(user="nobody", socket_group="nogroup", dhcp_user=user)
    identity, dhcp_user = privileges.resolve(config), privileges.find_dhcp_user(config)
    privileges.make_shared_directory(files.hosts, identity.uid, dhcp_user.gid if dhcp_user else identity.gid, 0o750)
    if dhcp_user is not None:
        privileges.make_shared_directory(files.leases, dhcp_user.uid, identity.gid, 0o750)
    path = directory / "networks.json"
    started = supervisor.start(lambda: read_networks(path), files, dhcp_user)
    privileges.drop(identity)
    asyncio.run(serve(started, files, path))
    started.stop()


def read_networks(config: Path) -> dict[str, DhcpNetwork]:
    """Read the configuration."""
    try:
        return msgspec.json.decode(config.read_bytes(), type=dict[str, DhcpNetwork])
    except msgspec.DecodeError as error:
        raise StartError(str(error)) from error


async def serve(started: supervisor.Supervisor, files: Files, config: Path) -> None:
    """Obey until there are no more commands."""
    servers = DhcpServers(started.channel, files, read_networks(config), lambda _reason: os._exit(3))
    servers.on_status(lambda network, problem: tell(network=network, problem=problem))
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    tell(supervisor=started.pid)
    while line := await reader.readline():
        match json.loads(line):
            case {"set": [network, endpoint_id, mac, addresses, name]}:
                servers.set_host(network, endpoint_id, Host(mac, tuple(addresses), name))
            case {"remove": [network, endpoint_id]}:
                servers.remove_host(network, endpoint_id)
            case {"stopped": [network, endpoint_id]}:
                servers.end_leases(network, endpoint_id)
            case {"start": _}:
                servers.start()
            case {"reload": _}:
                servers.configure(read_networks(config))
            case {"raw": packet}:
                await asyncio.get_running_loop().sock_sendall(started.channel, bytes.fromhex(packet))
    await servers.close()


def tell(**fields: Any) -> None:
    """Write one line."""
    print(json.dumps(fields), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
