"""Tells who serves DHCP of the guests: which MAC has which addresses and which name."""

from __future__ import annotations

import ipaddress
from typing import Protocol

from vifd.dhcp.hosts import Host
from vifd.endpoints.registry import Change
from vifd.model import Endpoint, State


class DhcpServer(Protocol):
    """What serves networks, see `vifd.dhcp.servers.DhcpServers`."""

    def set_host(self, network: str, endpoint_id: str, host: Host) -> None:
        """Let an endpoint's guest have addresses and a name."""

    def remove_host(self, network: str, endpoint_id: str) -> None:
        """Let an endpoint's guest have nothing any more."""

    def end_leases(self, network: str, endpoint_id: str) -> None:
        """Let whatever starts next behind an endpoint have its addresses."""


class Guests:
    """Follows the endpoints of networks that have DHCP.

    Args:
        server: who serves them.
    """

    def __init__(self, server: DhcpServer) -> None:
        self._server = server
        self._attached: set[str] = set()

    def on_change(self, change: Change, endpoint: Endpoint) -> None:
        """Note what happened to an endpoint: one that is being made is known before its VM can ask."""
        if change is Change.REMOVED:
            self._attached.discard(endpoint.endpoint_id)
            self._server.remove_host(endpoint.network, endpoint.endpoint_id)
        else:
            self._note(endpoint)

    def _note(self, endpoint: Endpoint) -> None:
        if endpoint.ip_config is None or not endpoint.ip_config.dhcp:
            return
        addresses = tuple(a for a in endpoint.port.addresses if ipaddress.ip_network(a).num_addresses == 1)
        self._server.set_host(endpoint.network, endpoint.endpoint_id, Host(endpoint.port.mac, addresses, endpoint.instance.name))
        if endpoint.state in (State.ATTACHED, State.ACTIVE):
            self._attached.add(endpoint.endpoint_id)
        elif endpoint.endpoint_id in self._attached:
            self._attached.discard(endpoint.endpoint_id)
            self._server.end_leases(endpoint.network, endpoint.endpoint_id)
