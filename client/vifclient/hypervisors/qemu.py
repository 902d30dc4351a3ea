"""QEMU: an endpoint as command-line arguments, and as what a running QEMU is told to plug it (`vifclient.hypervisors.qmp`).

The options are those of qemu(1) and of QEMU's QMP reference, for QEMU 7.2 and later.

QEMU's memory has to be shared for a vhost-user socket (`shared_memory_argv`). Its command line has no word for a link
that is down: tell it once it runs (`set_link`). What a PCI function may have beside is in `vifclient.hypervisors.qemu_pci`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from vif.v1.endpoint_pb2 import Endpoint, VhostUserRole
from vif.v1.endpoint_service_pb2 import EndpointPreference
from vifclient.hypervisors import Kind, UnacceptableEndpoint, check_fds, count_queues, preferences, refuse

Option = str | int | bool

DEFAULT_MTU_BYTES = 1500
_ID = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")  # id_wellformed() of util/id.c
# What each kind needs of QEMU: a type of netdev, and a device. In the order of preference: first what can migrate and be guarded.
_NEEDS: Mapping[Kind, tuple[str, str]] = {
    "tap": ("tap", "virtio-net-pci"),
    "vhost_user": ("vhost-user", "virtio-net-pci"),
    "vdpa": ("vhost-vdpa", "virtio-net-pci"),
    "macvtap": ("tap", "virtio-net-pci"),
    "pci": ("", "vfio-pci"),
    "bridge": ("bridge", "virtio-net-pci"),
}


class Command(TypedDict):
    """A command of QMP."""

    execute: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a QEMU can do; `vifclient.hypervisors.qmp.probe` asks it.

    Attributes:
        version: Its version, (7, 2, 22).
        netdevs: The types of netdevs that it knows.
        devices: The devices that it has.
        iommufd: Whether it has the object iommufd.
    """

    version: tuple[int, int, int]
    netdevs: frozenset[str]
    devices: frozenset[str]
    iommufd: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plug:
    """What a running QEMU is told to plug an endpoint and to unplug it; `vifclient.hypervisors.qmp` says it.

    Attributes:
        device_id: The device's id.
        fd_names: The names that the open queues are handed over under (`getfd`), in queue order.
        backend: What comes before the device: a chardev, a netdev; each with what takes it down once the device is gone.
        device: Makes the device.
        link: What follows it: takes the guest's carrier where the port has no link.
    """

    device_id: str
    fd_names: tuple[str, ...]
    backend: tuple[tuple[Command, Command], ...]
    device: Command
    link: tuple[Command, ...]


def read_capabilities(version: Any, schema: Sequence[Any], types: Sequence[Any]) -> Capabilities:
    """Read what a QEMU can do from its answers.

    Args:
        version: The answer to `query-version`.
        schema: The answer to `query-qmp-schema`.
        types: The answer to `qom-list-types`, of devices that aren't abstract.

    Returns:
        What it can do.
    """
    entities = {entity["name"]: entity for entity in schema}

    def cases(command: str) -> frozenset[str]:
        return frozenset(variant["case"] for variant in entities[entities[command]["arg-type"]]["variants"])

    numbers = version["qemu"]
    return Capabilities(
        version=(numbers["major"], numbers["minor"], numbers["micro"]),
        netdevs=cases("netdev_add"),
        devices=frozenset(kind["name"] for kind in types),
        iommufd="iommufd" in cases("object-add"),
    )


def acceptable(
    *, queues: int = 1, shared_memory: bool = False, capabilities: Capabilities | None = None
) -> list[EndpointPreference]:
    """Say which kinds QEMU attaches, best first.

    Args:
        queues: How many queue pairs the VM shall have, 1 to 256.
        shared_memory: Whether the VM's memory is shared (`shared_memory_argv`), which a vhost-user socket needs.
        capabilities: What this QEMU can do. None: what QEMU 7.2 and later can.

    Returns:
        A tap; with shared memory a vhost-user socket; a vDPA device, a macvtap, a PCI function; with one queue also a bridge,
        whose tap `qemu-bridge-helper` makes, which knows no more than one.
    """
    unfit = set() if shared_memory else {"vhost_user"}
    unfit |= {"bridge"} if queues > 1 else set()
    return preferences((kind for kind in _NEEDS if kind not in unfit and _can(kind, capabilities)), queues=queues)


def argv(
    endpoint: Endpoint,
    *,
    netdev_id: str,
    fds: Sequence[int] | None = None,
    vhost: bool = False,
    device_options: Mapping[str, Option] | None = None,
) -> list[str]:
    """Turn an endpoint into QEMU's arguments.

    Args:
        endpoint: The endpoint, of a kind that `acceptable` has.
        netdev_id: The id of the netdev and of the device in QEMU: a letter, then letters, digits, '.', '_' and '-'.
        fds: The open queues of a tap or macvtap (`Client.acquire_fds`), as QEMU will inherit them. None: QEMU opens the tap by
            its name, for which /dev/net/tun must be open to it and the tap be in its network namespace; it can't open a macvtap.
        vhost: Whether the kernel moves the frames of a tap or macvtap (vhost-net), for which /dev/vhost-net must be open to QEMU.
        device_options: More options of the device: {"bus": "rp0", "romfile": ""}.

    Returns:
        `["-netdev", …, "-device", …]`, for a vhost-user socket `-chardev` before it, for a PCI function only `-device`.

    Raises:
        UnacceptableEndpoint: QEMU can't attach it.
        ValueError: `netdev_id` is malformed, or `fds` don't fit the endpoint.
    """
    _check_id(netdev_id)
    arguments: list[str] = []
    if endpoint.HasField("vhost_user"):
        socket = endpoint.vhost_user
        role: dict[str, Option] = {"server": True, "wait": False} if _listens(socket.hypervisor_role) else {}
        arguments += ["-chardev", _join("socket", {"id": f"{netdev_id}-chardev", "path": socket.socket_path, **role})]
    netdev = _netdev(endpoint, netdev_id, None if fds is None else [str(fd) for fd in fds], vhost=vhost)
    if netdev:
        arguments += ["-netdev", _join(str(netdev.pop("type")), netdev)]
    device = _device(endpoint, netdev_id, device_options or {})
    return [*arguments, "-device", _join(str(device.pop("driver")), device)]


def plug(
    endpoint: Endpoint,
    *,
    netdev_id: str,
    by_name: bool = False,
    vhost: bool = False,
    device_options: Mapping[str, Option] | None = None,
) -> Plug:
    """Say how an endpoint is plugged into a running QEMU, and unplugged.

    Args:
        endpoint: The endpoint, of a kind that `acceptable` has.
        netdev_id: As of `argv`.
        by_name: Let QEMU open the tap by its name. Else its open queues are handed over.
        vhost: As of `argv`.
        device_options: As of `argv`. A machine of type q35 needs a free root port: {"bus": "rp1"}.

    Returns:
        What to tell it.

    Raises:
        UnacceptableEndpoint: QEMU can't attach it.
        ValueError: `netdev_id` is malformed, or the kind can't be opened by its name.
    """
    _check_id(netdev_id)
    handed_over = endpoint.WhichOneof("location") in {"tap", "macvtap"} and not by_name
    names = tuple(f"{netdev_id}-{queue}" for queue in range(count_queues(endpoint))) if handed_over else ()
    netdev = _netdev(endpoint, netdev_id, names if handed_over else None, vhost=vhost)
    backend = [_chardev(endpoint, f"{netdev_id}-chardev")] if endpoint.HasField("vhost_user") else []
    if netdev:
        backend.append((_command("netdev_add", **netdev), _command("netdev_del", id=netdev_id)))
    down = endpoint.port.HasField("link_up") and not endpoint.port.link_up
    return Plug(
        device_id=netdev_id,
        fd_names=names,
        backend=tuple(backend),
        device=_command("device_add", **_device(endpoint, netdev_id, device_options or {})),
        link=(set_link(netdev_id, up=False),) if down and netdev else (),
    )


def set_link(netdev_id: str, *, up: bool) -> Command:
    """Say how a guest's carrier is taken and given back, as `port.link_up` has it.

    Args:
        netdev_id: The id that `argv` or `plug` had.
        up: Whether it has carrier.

    Returns:
        What to tell QEMU.
    """
    return _command("set_link", name=netdev_id, up=up)


def shared_memory_argv(size_mib: int) -> list[str]:
    """Say how QEMU shares the VM's memory, which vhost-user needs: the other side reads and writes it.

    Args:
        size_mib: The VM's memory in MiB, the same as of `-m`.

    Returns:
        QEMU's arguments.
    """
    memory: dict[str, Option] = {"id": "shared-memory", "size": f"{size_mib}M", "share": True}
    return ["-object", _join("memory-backend-memfd", memory), "-machine", "memory-backend=shared-memory"]


def escape(value: str) -> str:
    """Escape a value of an option list, in which a comma is doubled (qemu(1), "QemuOpts").

    Args:
        value: The value.

    Returns:
        The value as QEMU reads it.
    """
    return value.replace(",", ",,")


def _can(kind: Kind, capabilities: Capabilities | None) -> bool:
    netdev, device = _NEEDS[kind]
    return capabilities is None or ((not netdev or netdev in capabilities.netdevs) and device in capabilities.devices)


def _check_id(netdev_id: str) -> None:
    if not _ID.fullmatch(netdev_id):
        raise ValueError(f"netdev_id is a letter, then letters, digits, '.', '_' or '-': {netdev_id!r}")


def _netdev(endpoint: Endpoint, netdev_id: str, fds: Sequence[str] | None, *, vhost: bool) -> dict[str, Option]:
    """Make the arguments of netdev_add, which are those of -netdev too. Empty: the kind has none."""
    kind = endpoint.WhichOneof("location")
    if kind is None or kind not in _NEEDS:
        raise refuse(endpoint, "QEMU", _NEEDS)
    if fds is not None:
        check_fds(endpoint, fds)
    if kind == "pci":
        return {}
    return {"type": _NEEDS[kind][0], "id": netdev_id, **_backend(endpoint, netdev_id, fds), **_vhost(kind, on=vhost)}


def _backend(endpoint: Endpoint, netdev_id: str, fds: Sequence[str] | None) -> dict[str, Option]:
    match endpoint.WhichOneof("location"):
        case "tap" | "macvtap" if fds is not None:
            return {"fds": ":".join(fds)}
        case "tap":
            return _tap_by_name(endpoint)
        case "macvtap":
            raise ValueError(
                f"QEMU can't open the macvtap {endpoint.macvtap.ifname} by itself: give the fds of Client.acquire_fds"
            )
        case "vhost_user":
            return {"chardev": f"{netdev_id}-chardev", **_queues(endpoint)}
        case "vdpa":
            return {"vhostdev": endpoint.vdpa.device_path, **_queues(endpoint)}
    if endpoint.bridge.HasField("vlan"):
        raise UnacceptableEndpoint(
            f"the endpoint {endpoint.endpoint_id} belongs into a VLAN, which qemu-bridge-helper can't do: accept only a tap"
        )
    return {"br": endpoint.bridge.bridge_name}


def _tap_by_name(endpoint: Endpoint) -> dict[str, Option]:
    tap = endpoint.tap
    queues: dict[str, Option] = {"queues": tap.queues} if tap.multi_queue else {}
    vnet_hdr: dict[str, Option] = (
        {} if tap.vnet_hdr else {"vnet_hdr": False}
    )  # QEMU turns it on unless told; from a fd it reads it
    return {"ifname": tap.ifname, "script": "no", "downscript": "no", **queues, **vnet_hdr}


def _queues(endpoint: Endpoint) -> dict[str, Option]:
    return {"queues": count_queues(endpoint)} if count_queues(endpoint) > 1 else {}


def _vhost(kind: str, *, on: bool) -> dict[str, Option]:
    return {"vhost": True} if on and kind in {"tap", "macvtap"} else {}


def _chardev(endpoint: Endpoint, chardev_id: str) -> tuple[Command, Command]:
    address = {"type": "unix", "data": {"path": endpoint.vhost_user.socket_path}}
    data: dict[str, Any] = {"addr": address, "server": _listens(endpoint.vhost_user.hypervisor_role)}
    if data["server"]:
        data["wait"] = False  # the netdev waits for the other side itself
    return _command("chardev-add", id=chardev_id, backend={"type": "socket", "data": data}), _command(
        "chardev-remove", id=chardev_id
    )


def _listens(role: VhostUserRole.ValueType) -> bool:
    return role == VhostUserRole.VHOST_USER_ROLE_SERVER


def _device(endpoint: Endpoint, device_id: str, more: Mapping[str, Option]) -> dict[str, Option]:
    if endpoint.HasField("pci"):
        return {"driver": "vfio-pci", "id": device_id, "host": endpoint.pci.address, **more}
    options: dict[str, Option] = {"driver": "virtio-net-pci", "id": device_id, "netdev": device_id, "mac": endpoint.port.mac}
    queues = count_queues(endpoint)
    if queues > 1:
        # A vector for each queue's two directions, one for configuration, one for control (qemu(1); linux-kvm.org, Multiqueue).
        options |= {"mq": True, "vectors": 2 * queues + 2}
    if endpoint.port.mtu_bytes not in {0, DEFAULT_MTU_BYTES}:
        options["host_mtu"] = endpoint.port.mtu_bytes
    if endpoint.partner_endpoint_id:  # it stands in for a PCI function of the same VM
        options["failover"] = True
    return {**options, **more}


def _command(execute: str, **arguments: Any) -> Command:
    return {"execute": execute, "arguments": arguments}


def _join(kind: str, options: Mapping[str, Option]) -> str:
    return ",".join([kind, *(f"{name}={_write(value)}" for name, value in options.items())])


def _write(value: Option) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return escape(str(value))
