"""The Linux bridge: taps on a bridge of this host, or the bridge's name for hypervisors that make their own ports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from vifd.dhcp import network as dhcp_network
from vifd.dhcp.network import DhcpNetwork
from vifd.drivers import addressing
from vifd.drivers.addressing import Addressing
from vifd.drivers.base import NetworkDriver, Planned
from vifd.errors import Violation
from vifd.kernel import names
from vifd.kernel.authority import BridgeGrant
from vifd.kernel.ops import ConfigurePort, CreateTap, EnsureBridge, Made
from vifd.model import BridgePort, EndpointSpec, Feature, Kind, Location, Offer, Preference, TapDevice, TapPreference

_OF_VFS = {Feature.VLAN_QOS, Feature.MIN_RATE, Feature.TRUST}
_TAP_FEATURES = frozenset(Feature) - {Feature.PORT_ID, Feature.PUBLIC_ADDRESSES} - _OF_VFS
_BRIDGE_FEATURES = frozenset({Feature.LIVE_MIGRATION})
_DEFAULT_MTU_BYTES = 1500


class BridgeOptions(Struct, frozen=True):
    """The keys of a network whose driver is `bridge`.

    Args:
        bridge: the bridge; made if it is missing, used as it is if it exists.
        uplink: a device that is put on it; empty: none.
        vlan: the VLAN of the uplink that is put there in its stead, by an 802.1Q device; 0: none.
        uplink_force: whether the uplink is put there although the host's default route leads over it.
        mtu: bytes; 0: 1500 for a bridge that vifd makes, the bridge's own otherwise.
        addresses: the host's addresses on a bridge that vifd makes, with prefix lengths.
        pool: what endpoints that ask for no address get one of, of each family: ranges, prefixes, addresses.
        repair: whether what somebody else changed of an endpoint is mended, or only told.
        dhcp: whether guests get their addresses, routes and DNS servers by DHCP and router advertisements, from vifd.
        dns: the DNS servers that guests are told; empty: the host, which asks its own and knows the guests' names.
        domain: what the guests' names end with.
        nat: whether guests reach what is outside under an address of the host's.
        nat_uplink: the only device that they get out by then; empty: any.
        public_pool: the public addresses that endpoints may ask for then: ranges, prefixes, addresses.
    """

    bridge: str
    uplink: str = ""
    mtu: Annotated[int, Meta(ge=68, le=65535)] = 0
    addresses: tuple[str, ...] = ()
    pool: tuple[str, ...] = ()
    repair: Literal["auto", "report"] = "auto"
    dhcp: bool = False
    dns: tuple[str, ...] = ()
    domain: str = ""
    uplink_force: bool = False
    nat: bool = False
    nat_uplink: str = ""
    public_pool: tuple[str, ...] = ()
    vlan: Annotated[int, Meta(ge=1, le=4094)] = 0


class BridgeDriver(NetworkDriver[BridgeOptions]):
    """See the module."""

    name = "bridge"
    options = BridgeOptions

    @classmethod
    def check_options(cls, options: BridgeOptions) -> list[Violation]:
        """See NetworkDriver."""
        problems = [
            Violation(
                key, f"{value!r} can't name an interface: 1 to 15 letters, digits, '_', '-', '.', '+', first a letter or digit"
            )
            for key, value in (("bridge", options.bridge), ("uplink", options.uplink), ("nat_uplink", options.nat_uplink))
            if (value or key == "bridge") and not names.is_ifname(value)
        ]
        if options.bridge and options.bridge == options.uplink:
            problems.append(Violation("uplink", "is the bridge itself"))
        if options.vlan and not options.uplink:
            problems.append(Violation("vlan", "needs uplink: the device whose VLAN it is"))
        if options.vlan and options.uplink_force:
            problems.append(Violation("uplink_force", "is of no use with vlan: the uplink itself stays the host's"))
        problems += addressing.check(cls.addressing(options))
        problems += _check_nat(options)
        problems += dhcp_network.check(_dhcp_network(options), served=options.dhcp)
        return problems

    @classmethod
    def dhcp(cls, options: BridgeOptions) -> DhcpNetwork | None:
        """See NetworkDriver."""
        return _dhcp_network(options) if options.dhcp else None

    @classmethod
    def grant(cls, options: BridgeOptions) -> BridgeGrant:
        """See NetworkDriver."""
        return BridgeGrant(
            bridge=options.bridge,
            uplink=options.uplink,
            uplink_force=options.uplink_force,
            vlan=options.vlan,
            mtu_bytes=options.mtu or _DEFAULT_MTU_BYTES,
            addresses=options.addresses,
            nat=options.nat,
            nat_uplink=options.nat_uplink,
            public_pool=tuple(map(_borders, options.public_pool)),
        )

    @classmethod
    def addressing(cls, options: BridgeOptions) -> Addressing:
        """See NetworkDriver."""
        return Addressing(options.bridge, options.addresses, options.pool, options.dns, options.dhcp, options.public_pool)

    @property
    def repairs(self) -> bool:
        """See NetworkDriver."""
        return self.config.repair == "auto"

    @property
    def bridge_name(self) -> str:
        """See NetworkDriver."""
        return self.config.bridge

    @property
    def mtu_bytes(self) -> int:
        """See NetworkDriver."""
        return self.config.mtu

    def offers(self, spec: EndpointSpec | None) -> Sequence[Offer]:
        """See NetworkDriver."""
        problem = ""
        features = _TAP_FEATURES | {Feature.PUBLIC_ADDRESSES} if self.config.public_pool else _TAP_FEATURES
        if spec is not None and self.config.mtu and spec.port.mtu_bytes > self.config.mtu:
            problem = f"MTU {spec.port.mtu_bytes} is more than the {self.config.mtu} of network {self.network}"
        if spec is not None and self.config.vlan and spec.port.vlan is not None:
            problem = (
                f"network {self.network} is VLAN {self.config.vlan} itself, and its ports are in no other; leave port.vlan out"
            )
        if spec is None and self.config.vlan:
            features -= {Feature.VLAN}
        return (Offer(Kind.TAP, features, problem), Offer(Kind.BRIDGE, _BRIDGE_FEATURES))

    def plan(self, endpoint_id: str, spec: EndpointSpec, preference: Preference) -> Planned:
        """See NetworkDriver."""
        mtu_bytes = spec.port.mtu_bytes or self.config.mtu
        port = msgspec.structs.replace(spec.port, mac=spec.port.mac or names.derived_mac(endpoint_id), mtu_bytes=mtu_bytes)
        ensure = EnsureBridge(self.network)
        if not isinstance(preference, TapPreference):
            return Planned((ensure,), port)
        ifname = names.device_name(Kind.TAP, endpoint_id)
        create = CreateTap(
            endpoint_id=endpoint_id,
            ifname=ifname,
            mac=names.host_mac(port.mac),
            owner_uid=spec.owner.uid,
            owner_gid=spec.owner.gid,
            queues=preference.queues,
            vnet_hdr=preference.vnet_hdr,
        )
        return Planned((ensure, create, ConfigurePort(endpoint_id, ifname, self.network, port)), port)

    def locate(self, endpoint_id: str, preference: Preference, made: Made) -> Location:
        """See NetworkDriver."""
        if not isinstance(preference, TapPreference):
            return BridgePort(made.bridge_name, names.device_name(Kind.BRIDGE, endpoint_id))
        ifname = names.device_name(Kind.TAP, endpoint_id)
        return TapDevice(ifname, made.ifindex, preference.queues, preference.vnet_hdr)


def _check_nat(options: BridgeOptions) -> Iterator[Violation]:
    if options.nat and not options.addresses:
        yield Violation("nat", "needs addresses: the guests' gateway, and with it their subnet")
    if options.nat_uplink and not options.nat:
        yield Violation("nat_uplink", "is of use with nat = true alone")
    # With a VLAN the guests aren't on the uplink itself, and may get out by it.
    if options.nat_uplink and options.nat_uplink in {options.bridge, "" if options.vlan else options.uplink}:
        yield Violation("nat_uplink", f"{options.nat_uplink} is on the guests' side; name a device that leads outside")

    if options.public_pool and not (options.nat and options.nat_uplink):
        yield Violation("public_pool", "needs nat = true, and nat_uplink: the device that answers for public addresses")
    yield from addressing.check_public_pool(options.public_pool, options.addresses)


def _borders(text: str) -> tuple[str, str]:
    found = addressing.parse_range(text)
    kind = IPv4Address if found.version == 4 else IPv6Address
    return str(kind(found.first)), str(kind(found.last))


def _dhcp_network(options: BridgeOptions) -> DhcpNetwork:
    return DhcpNetwork(options.bridge, options.addresses, options.mtu or _DEFAULT_MTU_BYTES, options.dns, options.domain)
