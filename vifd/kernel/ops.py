"""The plan operations: what to do in the kernel, as data that is described, journaled and checked before it runs.

A driver plans them, the privileged helper carries them out in order and undoes them in reverse. A plan names no bridge and no
uplink: it names a network, and the helper knows from its own reading of the configuration what that network may touch.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from vifd.model import Drift, Limits, MacvtapMode, PciHostDriver, Port, RateLimit


class EnsureBridge(Struct, frozen=True, tag="ensure_bridge", forbid_unknown_fields=True):
    """Make the network's bridge, with its address and its uplink or VLAN, if it is missing. Undone only if this call made it.

    Args:
        network: the network's name.
    """

    network: str

    def __str__(self) -> str:
        return f"make sure that the bridge of network {self.network} is there"


class CreateTap(Struct, frozen=True, tag="create_tap", forbid_unknown_fields=True):
    """Make a persistent tap that carries the endpoint's mark, down and on no bridge. Undone by deleting it.

    Args:
        endpoint_id: the endpoint.
        ifname: its name (`names.device_name`).
        mac: the MAC of the host's side (`names.host_mac`).
        owner_uid: who may open it.
        owner_gid: the group that the opener must be in as well; None: no matter.
        queues: how many queues may be opened, 1 to 256.
        vnet_hdr: whether frames carry a virtio-net header.
    """

    endpoint_id: str
    ifname: str
    mac: str
    owner_uid: int
    owner_gid: int | None
    queues: int
    vnet_hdr: bool

    def __str__(self) -> str:
        owner = _describe_owner(self.owner_uid, self.owner_gid)
        return f"make tap {self.ifname} for {owner}, {self.queues} queue(s), host-side MAC {self.mac}"


class EnsureVlan(Struct, frozen=True, tag="ensure_vlan", forbid_unknown_fields=True):
    """Make the 802.1Q device of a VLAN on a direct network's uplink, if it is missing. Undone with the last macvtap on it.

    Args:
        network: the network, whose uplink it stands on.
        vid: the VLAN, 1 to 4094.
    """

    network: str
    vid: int

    def __str__(self) -> str:
        return f"make sure that the uplink of network {self.network} has a device for VLAN {self.vid}"


class CreateMacvtap(Struct, frozen=True, tag="create_macvtap", forbid_unknown_fields=True):
    """Make a macvtap on the network's uplink, on the device of the plan's VLAN, or on the plan's VF, down. Undone by deleting it.

    Args:
        endpoint_id: the endpoint.
        ifname: its name (`names.device_name`).
        network: the network, whose uplink or VF it stands on.
        mac: its MAC, the VM's.
        mode: how it reaches its siblings.
    """

    endpoint_id: str
    ifname: str
    network: str
    mac: str
    mode: MacvtapMode

    def __str__(self) -> str:
        return f"make macvtap {self.ifname} on the uplink of network {self.network}, mode {self.mode}, MAC {self.mac}"


class _Owned(Struct, frozen=True, forbid_unknown_fields=True):
    """Whose an endpoint's device is to be.

    Args:
        endpoint_id: the endpoint.
        ifname: the device's name.
        owner_uid: who may open it.
        owner_gid: the group that the opener must be in as well; None: no matter.
    """

    endpoint_id: str
    ifname: str
    owner_uid: int
    owner_gid: int | None


class EnsureNode(_Owned, frozen=True, tag="ensure_node"):
    """Make the device node through which an endpoint's macvtap is opened, if it is missing. Undone with the macvtap."""

    def __str__(self) -> str:
        return f"make sure that {self.ifname} has a device node for {_describe_owner(self.owner_uid, self.owner_gid)}"


class EnsureOwner(_Owned, frozen=True, tag="ensure_owner"):
    """Give the tap of a living endpoint back to its owner, if its holder has given it to somebody else. It has no undo."""

    def __str__(self) -> str:
        return f"make sure that {self.ifname} is for {_describe_owner(self.owner_uid, self.owner_gid)}"


class ConfigurePort(Struct, frozen=True, tag="configure_port", forbid_unknown_fields=True):
    """Put a device that this plan made on its network as the port says: guard and limits first, up last. Undone with the device.

    Args:
        endpoint_id: the endpoint.
        ifname: the device; empty: the representor of the plan's VF, which the helper finds by itself.
        network: the network.
        port: what it is to be like; its MTU 0: the network's.
    """

    endpoint_id: str
    ifname: str
    network: str
    port: Port

    def __str__(self) -> str:
        return f"put {self.ifname or 'its representor'} on network {self.network} with {describe_port(self.port)}"


class ChangePort(Struct, frozen=True, tag="change_port", forbid_unknown_fields=True):
    """Bring the device of a living endpoint to what the port says. Undone by bringing it back to what it was.

    Args:
        endpoint_id: the endpoint.
        ifname: the device; empty: the representor of the plan's VF.
        network: the network.
        mac: the MAC of the host's side (`names.host_mac`); a macvtap's is the VM's, a representor's stays (empty).
        before: what it is like; None: that isn't known, for somebody has changed it.
        port: what it is to be like.
    """

    endpoint_id: str
    ifname: str
    network: str
    mac: str
    before: Port | None
    port: Port

    def __str__(self) -> str:
        return f"change {self.ifname or 'its representor'} on network {self.network} to {describe_port(self.port)}"


class ClaimFunction(Struct, frozen=True, tag="claim_function", forbid_unknown_fields=True):
    """Take a VF that nobody has, mark it, and set it up on its PF as the port says. Undone by making it as new and unmarking it.

    Args:
        endpoint_id: the endpoint.
        network: the network, one of whose PFs it is of.
        address: the VF, "0000:03:10.2".
        port: what it is to be like; its MTU 0: the PF's.
    """

    endpoint_id: str
    network: str
    address: str
    port: Port

    def __str__(self) -> str:
        return f"take VF {self.address} of network {self.network} with {describe_port(self.port)}"


class BindFunction(Struct, frozen=True, tag="bind_function", forbid_unknown_fields=True):
    """Bind the plan's VF to what it is attached through, and give that to its owner. Undone with the claim.

    Args:
        endpoint_id: the endpoint.
        network: the network.
        address: the VF.
        host_driver: vfio-pci, or the kernel's own driver of the VF.
        owner_uid: who may open its VFIO nodes.
        owner_gid: the group that the opener must be in as well; None: no matter.
    """

    endpoint_id: str
    network: str
    address: str
    host_driver: PciHostDriver
    owner_uid: int
    owner_gid: int | None

    def __str__(self) -> str:
        group = "" if self.owner_gid is None else f" and gid {self.owner_gid}"
        return f"bind VF {self.address} to its {self.host_driver} driver, for uid {self.owner_uid}{group}"


class ChangeFunction(Struct, frozen=True, tag="change_function", forbid_unknown_fields=True):
    """Bring the VF of a living endpoint to what the port says. Undone by bringing it back to what it was.

    Args:
        endpoint_id: the endpoint.
        network: the network.
        address: the VF.
        before: what it is like; None: that isn't known, for somebody has changed it.
        port: what it is to be like.
    """

    endpoint_id: str
    network: str
    address: str
    before: Port | None
    port: Port

    def __str__(self) -> str:
        return f"change VF {self.address} of network {self.network} to {describe_port(self.port)}"


class CreateVdpa(Struct, frozen=True, tag="create_vdpa", forbid_unknown_fields=True):
    """Mark a vDPA device and make it on a management device, as the port says. Undone by deleting and unmarking it.

    Args:
        endpoint_id: the endpoint.
        name: the device's name (`names.device_name`).
        network: the network, which may use the management device.
        place: the management device, and which of its devices this is (`names.place`).
        port: what it is to be like; its MTU 0: what the management device's driver gives.
        queues: how many queue pairs it has, 1 to 256.
    """

    endpoint_id: str
    name: str
    network: str
    place: str
    port: Port
    queues: int

    def __str__(self) -> str:
        words = f"{self.queues} queue pair(s), MAC {self.port.mac}, {describe_port(self.port)}"
        return f"make vDPA device {self.name} of network {self.network} at {self.place} with {words}"


class BindVdpa(Struct, frozen=True, tag="bind_vdpa", forbid_unknown_fields=True):
    """Bind the plan's vDPA device to vhost-vdpa, if it isn't, and give its node to its owner. Undone with the device.

    Args:
        endpoint_id: the endpoint.
        name: the device.
        network: the network.
        owner_uid: who may open its node.
    """

    endpoint_id: str
    name: str
    network: str
    owner_uid: int

    def __str__(self) -> str:
        return f"bind vDPA device {self.name} to vhost-vdpa, for uid {self.owner_uid}"


Operation = (
    EnsureBridge
    | EnsureVlan
    | ClaimFunction
    | BindFunction
    | CreateVdpa
    | BindVdpa
    | CreateTap
    | CreateMacvtap
    | EnsureNode
    | EnsureOwner
    | ConfigurePort
    | ChangePort
    | ChangeFunction
)

#: The order in which the helper runs the operations of a batch, and in which each plan has them.
STAGES: tuple[type[Operation], ...] = (
    EnsureBridge,
    EnsureVlan,
    ClaimFunction,
    BindFunction,
    CreateVdpa,
    BindVdpa,
    CreateTap,
    CreateMacvtap,
    EnsureNode,
    EnsureOwner,
    ConfigurePort,
    ChangePort,
    ChangeFunction,
)

Plan = tuple[Operation, ...]

#: Plans that are made all or none.
Group = tuple[Plan, ...]


class FunctionMade(Struct, frozen=True):
    """What the helper found and made of a VF; see PciDevice."""

    pf_ifname: str
    vf_index: int
    iommu_group: int
    numa_node: int = -1
    vfio_path: str = ""
    vfio_device_path: str = ""
    ifname: str = ""
    address: str = ""
    representor: str = ""


class Made(Struct, frozen=True):
    """What a plan came to; 0 and empty where there is none.

    Args:
        ifindex: the device's index; of a plan with a VF its representor's.
        mtu_bytes: the MTU in effect.
        bridge_name: the bridge's name; a macvtap's: that of what it stands on.
        device_path: the path of the device's node.
        function: of a plan with a VF.
    """

    ifindex: int = 0
    mtu_bytes: int = 0
    bridge_name: str = ""
    device_path: str = ""
    function: FunctionMade | None = None


class Refusal(Struct, frozen=True):
    """Why a group, or the revert of a plan, failed; what it had done is undone.

    Args:
        plan_index: which plan of the group.
        operation: the operation's name.
        device: the device that it was about.
        errno: the kernel's number, 0 where vifd itself refused.
        message: a sentence.
        cause: what the caller can conclude from it.
    """

    plan_index: int
    operation: str
    device: str
    errno: int
    message: str
    cause: str = "kernel"


#: The causes of a Refusal.
KERNEL, FULL, NOT_READY, REJECTED, GONE = "kernel", "full", "not_ready", "rejected", "gone"
ADDRESS_TAKEN, TAKEN = "address_taken", "taken"


class Device(Struct, frozen=True):
    """What the kernel says of one device (`inspect`).

    Args:
        endpoint_id: from its mark; empty where it has none.
        carrier: whether somebody has the tap open; of a macvtap nobody can tell, so False.
        device_path: where a macvtap's node is; empty where it has none.
    """

    ifname: str
    ifindex: int
    kind: str
    endpoint_id: str
    master: int
    mtu_bytes: int
    mac: str
    up: bool
    carrier: bool
    device_path: str = ""


class ApplyRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The argument of the helper's `apply`."""

    groups: tuple[Group, ...]


class CheckRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The argument of the helper's `check`."""

    plans: tuple[Plan, ...]


class AnnounceRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The argument of the helper's `announce`."""

    plans: tuple[Plan, ...]


class RevertRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The argument of the helper's `revert`."""

    plans: tuple[Plan, ...]


ApplyAnswer = list[list[Made] | Refusal]
RevertAnswer = list[Refusal | None]

encode = msgspec.msgpack.Encoder().encode
decode_apply = msgspec.msgpack.Decoder(ApplyRequest).decode
decode_apply_answer = msgspec.msgpack.Decoder(list[list[Made] | Refusal]).decode
decode_revert = msgspec.msgpack.Decoder(RevertRequest).decode
decode_revert_answer = msgspec.msgpack.Decoder(list[Refusal | None]).decode
decode_announce = msgspec.msgpack.Decoder(AnnounceRequest).decode
decode_check = msgspec.msgpack.Decoder(CheckRequest).decode
decode_check_answer = msgspec.msgpack.Decoder(list[list[Drift]]).decode
decode_devices = msgspec.msgpack.Decoder(list[Device]).decode


def describe(plan: Plan) -> tuple[str, ...]:
    """Give a line for people for each operation."""
    return tuple(str(operation) for operation in plan)


def below_macvtap(port: Port) -> Port:
    """Give what a VF is like whose macvtap has this port: what only the card can keep. The rest, the macvtap keeps."""
    promised = 0 if port.limits is None else port.limits.from_vm.min_rate_bps
    limits = Limits(from_vm=RateLimit(min_rate_bps=promised)) if promised else None
    return Port(mac=port.mac, mtu_bytes=port.mtu_bytes, vlan=port.vlan, limits=limits, trusted=port.trusted)


def describe_port(port: Port) -> str:
    """Give what a port is like as words for people."""
    words = [f"MTU {port.mtu_bytes}" if port.mtu_bytes else "the network's MTU"]
    if port.guard_enabled:
        words.append(f"a guard for {', '.join((port.mac, *port.addresses))}")
    words += [f"VLAN {port.vlan.vid or port.vlan.trunk_vids}"] if port.vlan is not None else []
    words += _describe_limits(port.limits) if port.limits is not None else []
    words += ["isolation"] if port.isolated else []
    words += [f"a queue of {port.tx_queue_length}"] if port.tx_queue_length else []
    words.append("link down" if port.link_up is False else "link up")
    return ", ".join(words)


def _describe_owner(uid: int, gid: int | None) -> str:
    return f"uid {uid}" if gid is None else f"uid {uid} and gid {gid}"


def _describe_limits(limits: Limits) -> list[str]:
    def one(direction: str, limit: RateLimit) -> list[str]:
        rates = [f"{limit.rate_bps} bit/s"] if limit.rate_bps else []
        rates += [f"{limit.rate_pps} frames/s"] if limit.rate_pps else []
        return [f"{' and '.join(rates)} {direction} the VM"] if rates else []

    return one("from", limits.from_vm) + one("to", limits.to_vm)
