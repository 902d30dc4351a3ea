"""A network card of this host: macvtaps on it, each VM with an own MAC on the card's network, beside the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from vifd.drivers.base import NetworkDriver, Planned
from vifd.errors import Violation
from vifd.kernel import names
from vifd.kernel.authority import UplinkGrant
from vifd.kernel.ops import ConfigurePort, CreateMacvtap, EnsureNode, EnsureVlan, Made
from vifd.model import EndpointSpec, Feature, Kind, Location, MacvtapDevice, MacvtapMode, MacvtapPreference, Offer, Preference

_FEATURES = frozenset(
    {
        Feature.LIVE_MIGRATION,
        Feature.MULTI_QUEUE,
        Feature.FD_HANDOFF,
        Feature.MTU,
        Feature.GUARD,
        Feature.ADDRESSES,
        Feature.LIMITS,
        Feature.VLAN,
        Feature.LINK_STATE,
        Feature.TX_QUEUE_LENGTH,
    }
)


class DirectOptions(Struct, frozen=True):
    """The keys of a network whose driver is `direct`.

    Args:
        uplink: the device that macvtaps are put on; the host keeps it for itself as well.
        mtu: bytes; 0: the uplink's.
        repair: whether what somebody else changed of an endpoint is mended, or only told.
    """

    uplink: str
    mtu: Annotated[int, Meta(ge=68, le=65535)] = 0
    repair: Literal["auto", "report"] = "auto"


class DirectDriver(NetworkDriver[DirectOptions]):
    """See the module."""

    name = "direct"
    options = DirectOptions

    @classmethod
    def check_options(cls, options: DirectOptions) -> list[Violation]:
        """See NetworkDriver."""
        if not names.is_ifname(options.uplink):
            rule = "1 to 15 letters, digits, '_', '-', '.', '+', first a letter or digit"
            return [Violation("uplink", f"{options.uplink!r} can't name an interface: {rule}")]
        if names.is_device_name(options.uplink):
            return [Violation("uplink", f"{options.uplink} is the name of an endpoint of vifd's; name a device of this host")]
        return []

    @classmethod
    def grant(cls, options: DirectOptions) -> UplinkGrant:
        """See NetworkDriver."""
        return UplinkGrant(options.uplink, options.mtu)

    @property
    def repairs(self) -> bool:
        """See NetworkDriver."""
        return self.config.repair == "auto"

    @property
    def mtu_bytes(self) -> int:
        """See NetworkDriver."""
        return self.config.mtu

    def offers(self, spec: EndpointSpec | None) -> Sequence[Offer]:
        """See NetworkDriver."""
        too_large = ""
        if spec is not None and self.config.mtu and spec.port.mtu_bytes > self.config.mtu:
            too_large = f"MTU {spec.port.mtu_bytes} is more than the {self.config.mtu} of network {self.network}"
        if spec is not None and spec.port.vlan is not None and not spec.port.vlan.vid:
            return (Offer(Kind.MACVTAP, _FEATURES, f"a macvtap is in one VLAN: network {self.network} has no trunks"),)
        return (Offer(Kind.MACVTAP, _FEATURES, too_large),)

    def plan(self, endpoint_id: str, spec: EndpointSpec, preference: Preference) -> Planned:
        """See NetworkDriver."""
        wanted = _macvtap(preference)
        mtu_bytes = spec.port.mtu_bytes or self.config.mtu
        port = msgspec.structs.replace(spec.port, mac=spec.port.mac or names.derived_mac(endpoint_id), mtu_bytes=mtu_bytes)
        ifname, mode = names.device_name(Kind.MACVTAP, endpoint_id), _mode(wanted)
        vlan = () if port.vlan is None else (EnsureVlan(self.network, port.vlan.vid),)
        return Planned(
            (
                *vlan,
                CreateMacvtap(endpoint_id, ifname, self.network, port.mac, mode),
                EnsureNode(endpoint_id, ifname, spec.owner.uid, spec.owner.gid),
                ConfigurePort(endpoint_id, ifname, self.network, port),
            ),
            port,
        )

    def locate(self, endpoint_id: str, preference: Preference, made: Made) -> Location:
        """See NetworkDriver."""
        wanted = _macvtap(preference)
        return MacvtapDevice(
            ifname=names.device_name(Kind.MACVTAP, endpoint_id),
            ifindex=made.ifindex,
            device_path=made.device_path,
            lower_ifname=made.bridge_name or self.config.uplink,
            mode=_mode(wanted),
            queues=wanted.queues,
            vnet_hdr=wanted.vnet_hdr,
        )


def _mode(wanted: MacvtapPreference) -> MacvtapMode:
    return wanted.mode or MacvtapMode.BRIDGE


def _macvtap(preference: Preference) -> MacvtapPreference:
    if not isinstance(preference, MacvtapPreference):
        raise TypeError(f"a direct network has no {preference.kind}")
    return preference
