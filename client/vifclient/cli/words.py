"""The contract's messages in the few words that people read."""

from datetime import UTC, datetime
from decimal import Decimal

from google.protobuf.descriptor import EnumDescriptor

from vif.v1.endpoint_pb2 import Endpoint, EndpointKind
from vifclient.cli.quantities import show_duration, show_quantity
from vifclient.messages import (
    Drift,
    DriftKind,
    Instance,
    IpConfig,
    Lifetime,
    LimitsMechanism,
    RateLimit,
    VlanProtocol,
    VlanSpec,
)

# Attributes that name an endpoint's device, one in each kind of location.
_DEVICE_FIELDS = ("bridge_name", "address", "ifname", "socket_path", "device_path")
_SECONDS = (("d", 86400), ("h", 3600), ("m", 60))


def enum_word(enum: EnumDescriptor, number: int) -> str:
    """Name an enum's value, without the prefix that all its names have.

    Args:
        enum: The enum.
        number: The value.

    Returns:
        Its name in lower case; the number itself if a newer vifd has sent one that this vifctl doesn't know.
    """
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    value = enum.values_by_number.get(number)
    return value.name.removeprefix(prefix).lower() if value else str(number)


KINDS = [enum_word(EndpointKind.DESCRIPTOR, number) for number in EndpointKind.values() if number]


def device_name(endpoint: Endpoint) -> str:
    """Name what the hypervisor attaches.

    Args:
        endpoint: The endpoint.

    Returns:
        A device's name, a PCI address, a socket's path. Empty while it is being made.
    """
    kind = endpoint.WhichOneof("location")
    location = getattr(endpoint, kind) if kind else None
    return next((str(getattr(location, field)) for field in _DEVICE_FIELDS if hasattr(location, field)), "")


def age(endpoint: Endpoint, now: datetime | None = None) -> str:
    """Say how old an endpoint is.

    Args:
        endpoint: The endpoint.
        now: The time. None: the clock's.

    Returns:
        The age in one unit: "3m". Empty: it isn't made yet.
    """
    if not endpoint.HasField("create_time"):
        return ""
    seconds = ((now or datetime.now(UTC)) - endpoint.create_time.ToDatetime(UTC)).total_seconds()
    return next((f"{int(seconds // length)}{unit}" for unit, length in _SECONDS if seconds >= length), f"{max(0, int(seconds))}s")


def instance_name(endpoint: Endpoint) -> str:
    """Name the VM: by its name, else by its UUID."""
    return endpoint.instance.name or endpoint.instance.uuid


def instance_line(instance: Instance) -> str:
    """Say which VM it is, and where its memory is: "web1 6f9619ff-..., NUMA node 0"."""
    named = " ".join(filter(None, [instance.name, instance.uuid]))
    node = f"NUMA node {instance.numa_node}" if instance.HasField("numa_node") else ""
    return ", ".join(filter(None, [named, node]))


def drift_line(drift: Drift) -> str:
    """Say what differs."""
    kind = enum_word(DriftKind.DESCRIPTOR, drift.kind)
    return drift.message or f"{kind}: {drift.actual} instead of {drift.expected}"


def drift_kind(drift: Drift) -> str:
    """Name what differs: "tx queue length"."""
    return enum_word(DriftKind.DESCRIPTOR, drift.kind).replace("_", " ")


def addresses(endpoint: Endpoint) -> str:
    """Name an endpoint's first address, and how many there are beside it: "10.0.0.7 +1"."""
    first, *more = endpoint.port.addresses or [""]
    return f"{first} +{len(more)}" if more else first


def limit_line(limit: RateLimit) -> str:
    """Say what a limit is: "100 Mbit/s, burst 64 kB, 1000 frames/s"."""
    parts = {
        show_quantity(limit.rate_bps, "bit/s"): limit.rate_bps,
        f"burst {show_quantity(limit.burst_bytes, 'B')}": limit.burst_bytes,
        f"{limit.rate_pps} frames/s": limit.rate_pps,
        f"at least {show_quantity(limit.min_rate_bps, 'bit/s')}": limit.min_rate_bps,
    }
    return ", ".join(part for part, number in parts.items() if number)


def vlan_line(vlan: VlanSpec) -> str:
    """Say which VLANs a port is in: "7", "7, priority 3, 802.1ad", "trunk of 7, 8; untagged in 9"."""
    if vlan.vid:
        priority = f"priority {vlan.qos}" if vlan.qos else ""
        tag = "802.1ad" if vlan.protocol == VlanProtocol.VLAN_PROTOCOL_DOT1AD else ""
        return ", ".join(filter(None, [str(vlan.vid), priority, tag]))
    trunk = f"trunk of {', '.join(map(str, vlan.trunk_vids))}"
    return f"{trunk}; untagged in {vlan.native_vid}" if vlan.native_vid else trunk


def lifetime_line(lifetime: Lifetime) -> str:
    """Say how long an endpoint lives: "as long as process 4242", "30 s after the last call for it"."""
    match lifetime.WhichOneof("until"):
        case "process":
            return f"as long as process {lifetime.process.pid}"
        case "lease":
            ttl = lifetime.lease.ttl
            return f"{show_duration(ttl.seconds + Decimal(ttl.nanos) / 10**9)} after the last call for it"
        case _:
            return "until it is released"


def ip_config_line(config: IpConfig) -> str:
    """Say what a guest should have: "10.0.0.7/24 via 10.0.0.1, DNS 10.0.0.1, by DHCP"."""
    has = ", ".join(config.addresses) or "no address"
    has += f" via {', '.join(config.gateways)}" if config.gateways else ""
    dns = [f"DNS {', '.join(config.dns_servers)}"] if config.dns_servers else []
    return "; ".join([has, *dns, "by DHCP" if config.dhcp else "nobody tells the guest"])


_MECHANISMS = {
    "unspecified": "can't limit what VMs send",
    "police": "police: what a VM sends too much of is dropped",
    "ifb": "ifb: what a VM sends too much of waits",
    "nftables": "nftables: what a VM sends too much of is dropped",
}


def limits_mechanism(number: int) -> str:
    """Say how limits of what VMs send are kept."""
    word = enum_word(LimitsMechanism.DESCRIPTOR, number)
    return _MECHANISMS.get(word, word)
