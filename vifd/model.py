"""The words of vifd as frozen values: endpoints, what is asked for, and what comes of it. No I/O, no grpc.

They are msgspec structs, so that the journal and the way to the privileged helper encode and check them by their types.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import ClassVar

from msgspec import Struct, field


class Kind(StrEnum):
    """What a hypervisor attaches."""

    BRIDGE = "bridge"
    TAP = "tap"
    MACVTAP = "macvtap"
    PCI = "pci"
    OVS_PORT = "ovs_port"
    VHOST_USER = "vhost_user"
    VDPA = "vdpa"


class State(StrEnum):
    """Where an endpoint is in its life."""

    PENDING = "pending"
    READY = "ready"
    ATTACHED = "attached"
    ACTIVE = "active"
    RELEASING = "releasing"

    @property
    def is_live(self) -> bool:
        """Whether the endpoint is made and not about to go."""
        return self in (State.READY, State.ATTACHED, State.ACTIVE)

    @property
    def at_rest(self) -> State:
        """The state as a journal has it, that can't know who has a device open."""
        return State.READY if self is State.ATTACHED else self


class Feature(StrEnum):
    """What an endpoint of some kind can do on some network."""

    LIVE_MIGRATION = "live_migration"
    MULTI_QUEUE = "multi_queue"
    FD_HANDOFF = "fd_handoff"
    GUARD = "guard"
    LIMITS = "limits"
    VLAN = "vlan"
    ISOLATION = "isolation"
    LINK_STATE = "link_state"
    MTU = "mtu"
    ADDRESSES = "addresses"
    PORT_ID = "port_id"
    TX_QUEUE_LENGTH = "tx_queue_length"
    PUBLIC_ADDRESSES = "public_addresses"
    VLAN_QOS = "vlan_qos"
    MIN_RATE = "min_rate"
    TRUST = "trust"


class LimitsMechanism(StrEnum):
    """How the kernel keeps a rate limit of what comes in at a device, best first."""

    POLICE = "police"
    IFB = "ifb"
    NFTABLES = "nftables"


class Outcome(StrEnum):
    """What became of one preference."""

    CHOSEN = "chosen"
    NOT_NEEDED = "not_needed"
    KIND_NOT_OFFERED = "kind_not_offered"
    NOT_POSSIBLE_HERE = "not_possible_here"
    FORBIDDEN_BY_POLICY = "forbidden_by_policy"
    OPTION_UNSUPPORTED = "option_unsupported"
    REQUIREMENT_NOT_MET = "requirement_not_met"


class MacvtapMode(StrEnum):
    """How macvtaps on one uplink reach each other."""

    BRIDGE = "bridge"
    VEPA = "vepa"
    PRIVATE = "private"
    PASSTHRU = "passthru"


class PciHostDriver(StrEnum):
    """What a PCI function is bound to on the host."""

    VFIO = "vfio"
    KERNEL = "kernel"


class VlanProtocol(StrEnum):
    """What a VLAN's tag is of."""

    DOT1Q = "802.1q"
    DOT1AD = "802.1ad"


class VhostUserRole(StrEnum):
    """A side of a vhost-user socket."""

    CLIENT = "client"
    SERVER = "server"


class DriftKind(StrEnum):
    """What of an endpoint differs from its record."""

    DEVICE_MISSING = "device_missing"
    MASTER = "master"
    MTU = "mtu"
    MAC = "mac"
    OWNER = "owner"
    VLAN = "vlan"
    GUARD = "guard"
    LIMITS = "limits"
    LINK_STATE = "link_state"
    NETWORK_MISSING = "network_missing"
    BINDING = "binding"
    ISOLATION = "isolation"
    NAME = "name"
    TX_QUEUE_LENGTH = "tx_queue_length"


class BridgePreference(Struct, frozen=True, tag="bridge"):
    """Accepts a bridge's name."""

    kind: ClassVar = Kind.BRIDGE


class TapPreference(Struct, frozen=True, tag="tap"):
    """Accepts a tap."""

    kind: ClassVar = Kind.TAP
    queues: int = 1
    vnet_hdr: bool = True


class MacvtapPreference(Struct, frozen=True, tag="macvtap"):
    """Accepts a macvtap.

    Args:
        mode: None: the network's choice.
    """

    kind: ClassVar = Kind.MACVTAP
    mode: MacvtapMode | None = None
    queues: int = 1
    vnet_hdr: bool = True


class PciPreference(Struct, frozen=True, tag="pci"):
    """Accepts a PCI function."""

    kind: ClassVar = Kind.PCI
    host_driver: PciHostDriver = PciHostDriver.VFIO


class OvsPortPreference(Struct, frozen=True, tag="ovs_port"):
    """Accepts a port of Open vSwitch."""

    kind: ClassVar = Kind.OVS_PORT


class VhostUserPreference(Struct, frozen=True, tag="vhost_user"):
    """Accepts a vhost-user socket."""

    kind: ClassVar = Kind.VHOST_USER
    hypervisor_role: VhostUserRole = VhostUserRole.SERVER
    queues: int = 1


class VdpaPreference(Struct, frozen=True, tag="vdpa"):
    """Accepts a vDPA device."""

    kind: ClassVar = Kind.VDPA
    queues: int = 1


Preference = (
    BridgePreference
    | TapPreference
    | MacvtapPreference
    | PciPreference
    | OvsPortPreference
    | VhostUserPreference
    | VdpaPreference
)


class Vlan(Struct, frozen=True):
    """A port's VLAN; 0 and empty mean that it isn't set.

    Args:
        qos: the priority in the tags that the NIC puts on, 0 to 7.
        protocol: what kind of tag that is.
    """

    vid: int = 0
    trunk_vids: tuple[int, ...] = ()
    native_vid: int = 0
    qos: int = 0
    protocol: VlanProtocol = VlanProtocol.DOT1Q


class RateLimit(Struct, frozen=True):
    """A limit in one direction; 0 means without. `min_rate_bps` is what it is never denied."""

    rate_bps: int = 0
    burst_bytes: int = 0
    rate_pps: int = 0
    min_rate_bps: int = 0


class Limits(Struct, frozen=True):
    """How much a VM may send and receive."""

    from_vm: RateLimit = RateLimit()
    to_vm: RateLimit = RateLimit()


class Port(Struct, frozen=True):
    """What a port is like. `None`, 0 and empty mean that the caller left it to vifd."""

    mac: str = ""
    mtu_bytes: int = 0
    addresses: tuple[str, ...] = ()
    vlan: Vlan | None = None
    guard_enabled: bool | None = None
    limits: Limits | None = None
    isolated: bool | None = None
    link_up: bool | None = None
    tx_queue_length: int = 0
    public_addresses: tuple[str, ...] = ()
    trusted: bool | None = None


class Owner(Struct, frozen=True):
    """Who opens the device. Without a gid the kernel checks the uid alone."""

    uid: int
    gid: int | None = None


class IpConfig(Struct, frozen=True):
    """What a guest should have on a network that hands out addresses, see the API's IpConfig."""

    addresses: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    dns_servers: tuple[str, ...] = ()
    dhcp: bool = False


class Instance(Struct, frozen=True):
    """The VM that an endpoint is for, as the caller named it; and the NUMA node that its memory is on."""

    uuid: str = ""
    name: str = ""
    numa_node: int | None = None


class ProcessLifetime(Struct, frozen=True, tag="process"):
    """Until a process ends.

    Args:
        pid: its id, in vifd's pid namespace; 0 in a request: the caller's.
        inode: tells it from every other process of this boot, where the kernel can (Linux 6.9); else 0.
        start_ticks: when it started, in clock ticks since boot, where the inode is 0.
    """

    pid: int
    inode: int = 0
    start_ticks: int = 0


class LeaseLifetime(Struct, frozen=True, tag="lease"):
    """Until nobody has called for the endpoint for a time, in nanoseconds."""

    ttl_ns: int

    @property
    def ttl_s(self) -> float:
        """The time in seconds."""
        return self.ttl_ns / 1e9


Lifetime = ProcessLifetime | LeaseLifetime


class EndpointSpec(Struct, frozen=True):
    """What a caller asks for, checked and with the owner filled in.

    Args:
        function: the PCI function that vifd has picked for it, by address, or its place at a vDPA management device; a caller
            can't ask for one.
        partner_endpoint_id: the other part of a pair of a PCI function and what stands in for it; empty: it is alone.
    """

    network: str
    acceptable: tuple[Preference, ...]
    owner: Owner
    port: Port = Port()
    instance: Instance = Instance()
    labels: Mapping[str, str] = {}
    port_id: str = ""
    live_migratable: bool = False
    lifetime: Lifetime | None = None
    function: str = ""
    partner_endpoint_id: str = ""


class EndpointRequest(Struct, frozen=True):
    """A spec under the id that the caller chose, with the hash by which a repeated request is known."""

    endpoint_id: str
    spec: EndpointSpec
    spec_hash: str
    validate_only: bool = False


class BridgePort(Struct, frozen=True, tag="bridge"):
    """A bridge on which the hypervisor makes a port of its own."""

    kind: ClassVar = Kind.BRIDGE
    bridge_name: str
    suggested_ifname: str


class TapDevice(Struct, frozen=True, tag="tap"):
    """A persistent tap, already on its network."""

    kind: ClassVar = Kind.TAP
    ifname: str
    ifindex: int
    queues: int
    vnet_hdr: bool

    @property
    def multi_queue(self) -> bool:
        """Whether an opener has to say IFF_MULTI_QUEUE."""
        return self.queues > 1


class MacvtapDevice(Struct, frozen=True, tag="macvtap"):
    """A macvtap on an uplink, with a device node of its own."""

    kind: ClassVar = Kind.MACVTAP
    ifname: str
    ifindex: int
    device_path: str
    lower_ifname: str
    mode: MacvtapMode
    queues: int = 1
    vnet_hdr: bool = True


class PciDevice(Struct, frozen=True, tag="pci"):
    """A PCI function for pass-through.

    Args:
        vfio_device_path: its own node, for iommufd; empty: the kernel has none, or it isn't bound to vfio-pci.
        ifname: its netdev on the host; empty: it has none.
        numa_node: -1: the host doesn't say.
        representor: the port of its NIC's switch that is on the network's bridge; empty: the switch isn't the host's.
        representor_ifindex: its index, 0: it has none.
    """

    kind: ClassVar = Kind.PCI
    address: str
    pf_ifname: str
    vf_index: int
    host_driver: PciHostDriver
    iommu_group: int
    vfio_path: str
    vfio_device_path: str = ""
    ifname: str = ""
    numa_node: int = -1
    representor: str = ""
    representor_ifindex: int = 0


class OvsPort(Struct, frozen=True, tag="ovs_port"):
    """A port of Open vSwitch that the hypervisor creates."""

    kind: ClassVar = Kind.OVS_PORT
    bridge_name: str
    port_name: str
    interface_id: str
    datapath_type: str


class VhostUserSocket(Struct, frozen=True, tag="vhost_user"):
    """A vhost-user socket."""

    kind: ClassVar = Kind.VHOST_USER
    socket_path: str
    hypervisor_role: VhostUserRole
    queues: int


class VdpaDevice(Struct, frozen=True, tag="vdpa"):
    """A vhost-vDPA character device."""

    kind: ClassVar = Kind.VDPA
    device_path: str
    name: str
    queues: int


Location = BridgePort | TapDevice | MacvtapDevice | PciDevice | OvsPort | VhostUserSocket | VdpaDevice


class Drift(Struct, frozen=True):
    """One difference between an endpoint's record and what is there."""

    kind: DriftKind
    expected: str
    actual: str
    message: str


class Consideration(Struct, frozen=True):
    """The outcome for one preference, by its place in `acceptable`."""

    index: int
    kind: Kind
    outcome: Outcome
    message: str = ""


class Endpoint(Struct, frozen=True):
    """One attachment point: what was asked for, and what it is now.

    Args:
        generation: tells the lives of one id apart; 0 where nothing was made.
        create_time_ns: since the epoch, in nanoseconds.
        lifetime: None: until it is released.
        function: the PCI function that nobody else has meanwhile, by address, or the place at a vDPA management device; empty: it
            needs none.
        partner_endpoint_id: the other part of its pair; empty: it is alone.
    """

    endpoint_id: str
    generation: int
    spec_hash: str
    network: str
    network_driver: str
    state: State
    port: Port
    owner: Owner
    create_time_ns: int
    location: Location | None = None
    instance: Instance = Instance()
    labels: Mapping[str, str] = {}
    considered: tuple[Consideration, ...] = ()
    drifts: tuple[Drift, ...] = ()
    ip_config: IpConfig | None = None
    lifetime: Lifetime | None = None
    function: str = ""
    partner_endpoint_id: str = ""

    @property
    def ifindex(self) -> int:
        """The interface index of its device, or of the representor of that; 0 where it has none."""
        location = self.location
        if isinstance(location, (TapDevice, MacvtapDevice)):  # first, and no union: it is asked for nine times in a tap's life
            return location.ifindex
        return location.representor_ifindex if isinstance(location, PciDevice) else 0


class Offer(Struct, frozen=True):
    """One kind that a network driver knows: its features, or why it can't be made now."""

    kind: Kind
    features: frozenset[Feature] = frozenset()
    unavailable: str = ""


class Filter(Struct, frozen=True):
    """Which endpoints are meant; empty fields match all."""

    network: str = ""
    instance_uuid: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    def matches(self, endpoint: Endpoint) -> bool:
        """Tell whether an endpoint is meant."""
        return (
            self.network in ("", endpoint.network)
            and self.instance_uuid in ("", endpoint.instance.uuid)
            and self.labels.items() <= endpoint.labels.items()
        )


class Caller(Struct, frozen=True):
    """Who calls, as the kernel says (SO_PEERCRED, SO_PEERGROUPS, SO_PEERPIDFD).

    Args:
        uid: the user.
        gid: its primary group.
        groups: its supplementary groups.
        pid: the process; 0: it is in a pid namespace that vifd can't see.
        process_inode: tells the process from every other of this boot; 0: this kernel doesn't say.
    """

    uid: int
    gid: int
    groups: frozenset[int] = frozenset()
    pid: int = 0
    process_inode: int = 0
