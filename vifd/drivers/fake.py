"""No kernel at all: every kind, as the caller's hypervisor driver would see it. For tests of hypervisor authors, and for `vifd
--fake`.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from vifd.drivers import addressing
from vifd.drivers.addressing import Addressing
from vifd.drivers.base import NetworkDriver, Planned
from vifd.errors import Violation
from vifd.kernel import names
from vifd.kernel.ops import Made
from vifd.model import (
    BridgePort,
    BridgePreference,
    Drift,
    Endpoint,
    EndpointSpec,
    Feature,
    Kind,
    Location,
    MacvtapDevice,
    MacvtapMode,
    MacvtapPreference,
    Offer,
    OvsPort,
    OvsPortPreference,
    PciDevice,
    PciHostDriver,
    PciPreference,
    Preference,
    TapDevice,
    TapPreference,
    VdpaDevice,
    VdpaPreference,
    VhostUserPreference,
    VhostUserSocket,
)

_FEATURES = frozenset(Feature) - {Feature.FD_HANDOFF}
_WIRES = (socket.AF_UNIX, socket.SOCK_SEQPACKET)


class FakeOptions(Struct, frozen=True):
    """The keys of a network whose driver is `fake`.

    Args:
        kinds: the kinds that it offers; empty: all.
        unavailable: kinds that it knows but "can't make now", to try out what a caller does then.
        mtu: bytes.
        addresses: "the host's", with prefix lengths.
        pool: what endpoints get an address of.
        dns: the DNS servers that guests are told.
    """

    kinds: tuple[str, ...] = ()
    unavailable: tuple[str, ...] = ()
    mtu: Annotated[int, Meta(ge=68, le=65535)] = 1500
    addresses: tuple[str, ...] = ()
    pool: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()


class FakeDriver(NetworkDriver[FakeOptions]):
    """See the module."""

    name = "fake"
    options = FakeOptions

    @classmethod
    def check_options(cls, options: FakeOptions) -> list[Violation]:
        """See NetworkDriver."""
        kinds = {"kinds": options.kinds, "unavailable": options.unavailable}
        problems = [
            Violation(key, f"there is no kind {kind!r}; there are {', '.join(Kind)}")
            for key, values in kinds.items()
            for kind in values
            if kind not in set(Kind)
        ]
        return problems + addressing.check(cls.addressing(options))

    @classmethod
    def addressing(cls, options: FakeOptions) -> Addressing:
        """See NetworkDriver."""
        return Addressing("", options.addresses, options.pool, options.dns)

    @property
    def mtu_bytes(self) -> int:
        """See NetworkDriver."""
        return self.config.mtu

    def offers(self, spec: EndpointSpec | None) -> Sequence[Offer]:
        """See NetworkDriver."""
        kinds = [Kind(kind) for kind in self.config.kinds] or list(Kind)
        return [Offer(kind, self._features(kind), self._unavailable(kind)) for kind in kinds]

    def plan(self, endpoint_id: str, spec: EndpointSpec, preference: Preference) -> Planned:
        """See NetworkDriver."""
        mac = spec.port.mac or names.derived_mac(endpoint_id)
        return Planned((), msgspec.structs.replace(spec.port, mac=mac, mtu_bytes=spec.port.mtu_bytes or self.config.mtu))

    def locate(self, endpoint_id: str, preference: Preference, made: Made) -> Location:
        """Give a location that nothing stands behind, the same one each time."""
        ifname = names.device_name(preference.kind, endpoint_id)
        number = int(ifname[3:], 36) % 10_000 + 1
        match preference:
            case BridgePreference():
                return BridgePort("br-fake", ifname)
            case TapPreference(queues, vnet_hdr):
                return TapDevice(ifname, number, queues, vnet_hdr)
            case MacvtapPreference(mode, queues, vnet_hdr):
                path = f"/nonexistent/{ifname}"
                return MacvtapDevice(ifname, number, path, "fake0", mode or MacvtapMode.BRIDGE, queues, vnet_hdr)
            case PciPreference(host_driver):
                address, is_netdev = f"0000:03:{number % 32:02x}.{number % 8}", host_driver is PciHostDriver.KERNEL
                node = "" if is_netdev else "/nonexistent/vfio"
                return PciDevice(address, "fake0", number % 64, host_driver, number, node, ifname=ifname if is_netdev else "")
            case OvsPortPreference():
                return OvsPort("br-int", ifname, endpoint_id, "system")
            case VhostUserPreference(role, queues):
                return VhostUserSocket(f"/nonexistent/{ifname}.sock", role, queues)
            case VdpaPreference(queues):
                return VdpaDevice(f"/nonexistent/{ifname}", ifname, queues)

    def __init__(self, network: str, options: FakeOptions) -> None:
        super().__init__(network, options)
        self._far_ends: dict[str, list[socket.socket]] = {}
        #: By endpoint, what a check finds (`vifd.testing`).
        self.drifts: dict[str, tuple[Drift, ...]] = {}

    def open_queues(self, endpoint: Endpoint, count: int) -> list[int]:
        """Open wires that lead nowhere: what is written stays unread, and nothing ever comes."""
        self._hang_up(endpoint.endpoint_id)
        pairs = [socket.socketpair(*_WIRES) for _ in range(count)]
        self._far_ends[endpoint.endpoint_id] = [far for _, far in pairs]
        return [near.detach() for near, _ in pairs]

    def close(self) -> None:
        """Hang up the wires of every endpoint."""
        for endpoint_id in list(self._far_ends):
            self._hang_up(endpoint_id)

    async def unbind(self, endpoint: Endpoint) -> None:
        """See NetworkDriver."""
        self._hang_up(endpoint.endpoint_id)

    async def bind(self, endpoint: Endpoint) -> None:
        """See NetworkDriver."""
        self.drifts.pop(endpoint.endpoint_id, None)

    async def check(self, endpoint: Endpoint) -> Sequence[Drift]:
        """See NetworkDriver."""
        return self.drifts.get(endpoint.endpoint_id, ())

    def _hang_up(self, endpoint_id: str) -> None:
        for far in self._far_ends.pop(endpoint_id, ()):
            far.close()

    def _features(self, kind: Kind) -> frozenset[Feature]:
        if kind in (Kind.TAP, Kind.MACVTAP):
            return _FEATURES | {Feature.FD_HANDOFF}
        return _FEATURES - {Feature.LIVE_MIGRATION} if kind is Kind.PCI else _FEATURES

    def _unavailable(self, kind: Kind) -> str:
        return f"the configuration of network {self.network} says so" if kind in self.config.unavailable else ""
