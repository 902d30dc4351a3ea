"""Follows what the kernel tells of the devices: who has one open, and which went away behind vifd's back."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from vifd.endpoints.networks import Networks
from vifd.endpoints.registry import Registry
from vifd.kernel import ports
from vifd.kernel.linkevents import PortState, parse_port
from vifd.kernel.room import Room
from vifd.model import Drift, DriftKind, PciDevice, State, TapDevice


class Follower:
    """Keeps the registry's states as the kernel's events have them.

    Args:
        registry: the endpoints.
        networks: says which bridge is whose.
        room: the kernel, to look afresh when events were lost.
        suspect: called with an endpoint that may differ from its record.
    """

    def __init__(
        self, registry: Registry, networks: Networks, room: Room, suspect: Callable[[str], None] = lambda _endpoint_id: None
    ) -> None:
        self._registry, self._networks, self._room, self._suspect = registry, networks, room, suspect
        self._is_stale = self._is_resyncing = False
        self._heard: set[int] = set()  # of which devices something was heard while all are looked at

    def on_carrier(self, ifindex: int, carrier: bool) -> None:
        """Note that somebody has opened a tap, or has closed it, or that it was set down, when nobody can tell who has it open.

        A macvtap's carrier is its uplink's, and tells neither.
        """
        if self._is_resyncing:
            self._heard.add(ifindex)
        self._set_carrier(ifindex, carrier)

    def _set_carrier(self, ifindex: int, carrier: bool) -> None:
        endpoint = self._registry.find_by_ifindex(ifindex)
        if endpoint is None or not endpoint.state.is_live or not isinstance(endpoint.location, TapDevice):
            return
        state = State.READY
        if carrier:
            state = State.ACTIVE if endpoint.state is State.ACTIVE else State.ATTACHED
        if state is not endpoint.state:
            self._registry.update(msgspec.structs.replace(endpoint, state=state))

    def on_change(self, ifindex: int) -> None:
        """Note that something of a device was changed, nobody knows by whom."""
        endpoint = self._registry.find_by_ifindex(ifindex)
        if endpoint is not None and endpoint.state.is_live:
            self._suspect(endpoint.endpoint_id)

    def on_port(self, ifindex: int, told: bytes) -> None:
        """Note what a bridge tells of a port: whenever something of it changes, by itself as well.

        It doesn't say in which VLANs it is. Of most ports it tells while they are made, and while they go: that isn't read.
        """
        endpoint = self._registry.find_by_ifindex(ifindex)
        if endpoint is not None:
            port = parse_port(told)
            router = None if port.multicast_router is None else ports.multicast_router(endpoint.port)
            wanted = PortState(bool(endpoint.port.isolated), ports.group_forward_mask(endpoint.port), router)
            if port != wanted or endpoint.port.vlan is not None:
                self.on_change(ifindex)

    def on_gone(self, ifindex: int, ifname: str = "") -> None:
        """Note that a device went away behind vifd's back, or a bridge, with which all of its networks' endpoints differ."""
        lost = {network for network, driver in self._networks.drivers.items() if ifname and driver.bridge_name == ifname}
        for one in self._registry if lost else ():
            if one.network in lost and one.state.is_live:
                self._suspect(one.endpoint_id)
        endpoint = self._registry.find_by_ifindex(ifindex)
        if endpoint is None or not endpoint.state.is_live:
            return
        if isinstance(endpoint.location, PciDevice):  # a representor is gone, and not the device
            self._suspect(endpoint.endpoint_id)
            return
        name = getattr(endpoint.location, "ifname", "")
        drift = Drift(
            DriftKind.DEVICE_MISSING, name, "", f"{name} was deleted by somebody else; release the endpoint and request it again"
        )
        self._registry.update(msgspec.structs.replace(endpoint, state=State.READY, drifts=(drift,)))
        self._suspect(endpoint.endpoint_id)

    async def resync(self) -> None:
        """Look at every device afresh, for events were lost; if more are lost meanwhile, once more after that."""
        self._is_stale = True
        if self._is_resyncing:
            return
        self._is_resyncing = True
        try:
            while self._is_stale:
                self._is_stale = False
                self._heard.clear()
                await self._look_afresh()
        finally:
            self._is_resyncing = False

    async def _look_afresh(self) -> None:
        find = self._registry.find_by_ifindex
        before = {e.endpoint_id: e for e in self._registry if e.state.is_live and find(e.ifindex) is e}
        if not before:
            return
        found = {device.endpoint_id: device for device in await self._room.inspect(list(before))}
        for endpoint_id, endpoint in before.items():
            device = found.get(endpoint_id)
            if device is None:
                self.on_gone(endpoint.ifindex)
            else:
                if endpoint.ifindex not in self._heard:  # which is later news than the answer, or will be followed by some
                    self._set_carrier(endpoint.ifindex, device.carrier)
                self._suspect(endpoint_id)
