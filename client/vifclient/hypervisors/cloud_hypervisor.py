"""Cloud Hypervisor: an endpoint as command-line arguments, and as requests to its API socket (`vifclient.hypervisors.rest`).

Sources: its OpenAPI description (vmm/src/api/openapi/cloud-hypervisor.yaml) and docs/device_model.md, for version 27 and later.

Its queues are counted in both directions: two for each pair, at most a pair for each of the VM's processors. It tells the guest
the MTU that it finds on the tap; to be told one it would need CAP_NET_ADMIN, so it isn't. It has no word for a link that is
down: no frame passes all the same, for vifd sets the device down.

The VM's memory has to be shared for a vhost-user socket: `--memory size=…,shared=on`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from vif.v1.endpoint_pb2 import Endpoint, VhostUserRole
from vif.v1.endpoint_service_pb2 import EndpointPreference
from vifclient.hypervisors import Kind, UnacceptableEndpoint, check_fds, preferences, refuse
from vifclient.hypervisors.rest import Request

API = "/api/v1"
# In the order of preference: first what can migrate and be guarded.
_KINDS: tuple[Kind, ...] = ("tap", "vhost_user", "vdpa", "macvtap", "pci")
_SPECIAL = frozenset('",[]')  # option_parser/src/lib.rs


class NetConfig(TypedDict, total=False):
    """A `NetConfig` of the API. Open queues aren't in it, they go with it."""

    id: str
    mac: str
    num_queues: int
    tap: str
    mtu: int
    vhost_user: bool
    vhost_socket: str
    vhost_mode: str


class VdpaConfig(TypedDict):
    """A `VdpaConfig` of the API."""

    id: str
    path: str
    num_queues: int


class DeviceConfig(TypedDict):
    """A `DeviceConfig` of the API."""

    id: str
    path: str


def acceptable(*, queues: int = 1, shared_memory: bool = False) -> list[EndpointPreference]:
    """Say which kinds Cloud Hypervisor attaches, best first.

    Args:
        queues: How many queue pairs the VM shall have, 1 to 256, and no more than it has processors.
        shared_memory: Whether the VM's memory is shared, which a vhost-user socket needs.

    Returns:
        A tap; with shared memory a vhost-user socket; a vDPA device, a macvtap, a PCI function.
    """
    return preferences((kind for kind in _KINDS if shared_memory or kind != "vhost_user"), queues=queues)


def argv(endpoint: Endpoint, *, device_id: str, fds: Sequence[int] | None = None) -> list[str]:
    """Turn an endpoint into Cloud Hypervisor's arguments.

    Args:
        endpoint: The endpoint, of a kind that `acceptable` has.
        device_id: The device's id in Cloud Hypervisor.
        fds: The open queues of a tap or macvtap (`Client.acquire_fds`), as Cloud Hypervisor will inherit them. None: it opens the
            tap by its name, for which /dev/net/tun must be open to it and the tap be in its network namespace; it can't open a
            macvtap.

    Returns:
        `["--net", …]`, for a vDPA device `["--vdpa", …]`, for a PCI function `["--device", …]`.

    Raises:
        UnacceptableEndpoint: Cloud Hypervisor can't attach it.
        ValueError: `fds` don't fit the endpoint, or a value has a character that can't be in an argument.
    """
    what, config = _config(endpoint, device_id, fds)
    names = {"vhost_socket": "socket"}
    options = [f"{names.get(name, name)}={_write(value)}" for name, value in config.items()]
    if fds:
        options.append(f"fd=[{','.join(map(str, fds))}]")
    return [f"--{what}", ",".join(options)]


def add(endpoint: Endpoint, *, device_id: str, fds: Sequence[int] | None = None) -> Request:
    """Say how an endpoint is plugged into a VM, before it boots or while it runs.

    Args:
        endpoint: The endpoint, of a kind that `acceptable` has.
        device_id: The device's id in Cloud Hypervisor.
        fds: The open queues of a tap or macvtap, which have to be sent with the request. None: as of `argv`.

    Returns:
        The request: `vm.add-net`, `vm.add-vdpa` or `vm.add-device`.

    Raises:
        UnacceptableEndpoint: Cloud Hypervisor can't attach it.
        ValueError: `fds` don't fit the endpoint.
    """
    what, config = _config(endpoint, device_id, fds)
    return Request("PUT", f"{API}/vm.add-{what}", config)


def remove(device_id: str) -> Request:
    """Say how an endpoint is unplugged from a running VM.

    Args:
        device_id: The device's id that `add` or `argv` had.

    Returns:
        The request. Its answer comes before the guest has let the device go.
    """
    return Request("PUT", f"{API}/vm.remove-device", {"id": device_id})


def info() -> Request:
    """Ask for the VM's configuration, in which `device_ids` finds what is plugged.

    Returns:
        The request.
    """
    return Request("GET", f"{API}/vm.info")


def device_ids(vm_info: Mapping[str, Any]) -> list[str]:
    """Find the devices that a VM has.

    Args:
        vm_info: The answer to `info()`.

    Returns:
        The ids of its network cards, vDPA devices and PCI functions.
    """
    config = vm_info["config"]
    return [device["id"] for what in ("net", "vdpa", "devices") for device in config.get(what) or () if device.get("id")]


def _config(endpoint: Endpoint, device_id: str, fds: Sequence[int] | None) -> tuple[str, Mapping[str, Any]]:
    """Make an endpoint's configuration, and say what it is one of."""
    kind = endpoint.WhichOneof("location")
    if kind not in _KINDS:
        raise refuse(endpoint, "Cloud Hypervisor", _KINDS)
    if fds is not None:
        check_fds(endpoint, fds)
    if kind == "vdpa":
        vdpa = endpoint.vdpa
        return "vdpa", VdpaConfig(id=device_id, path=vdpa.device_path, num_queues=2 * vdpa.queues)
    if kind == "pci":
        return "device", DeviceConfig(id=device_id, path=f"/sys/bus/pci/devices/{endpoint.pci.address}/")
    return "net", _net(endpoint, device_id, by_name=fds is None)


def _net(endpoint: Endpoint, device_id: str, *, by_name: bool) -> NetConfig:
    net = NetConfig(id=device_id, mac=endpoint.port.mac)
    if endpoint.HasField("vhost_user"):
        return net | _vhost_user(endpoint)
    if not by_name:
        device = endpoint.macvtap if endpoint.HasField("macvtap") else endpoint.tap
        if not device.vnet_hdr:
            raise UnacceptableEndpoint(f"frames of {device.ifname} carry no virtio-net header, which Cloud Hypervisor wants")
        return net | NetConfig(num_queues=2 * device.queues)
    if endpoint.HasField("macvtap"):
        ifname = endpoint.macvtap.ifname
        raise ValueError(f"Cloud Hypervisor can't open the macvtap {ifname} by itself: give the fds of Client.acquire_fds")
    if endpoint.port.HasField("link_up") and not endpoint.port.link_up:
        raise ValueError(
            f"the tap {endpoint.tap.ifname} is down, and Cloud Hypervisor would set it up: give the fds of Client.acquire_fds"
        )
    return net | NetConfig(tap=endpoint.tap.ifname, num_queues=2 * endpoint.tap.queues)


def _vhost_user(endpoint: Endpoint) -> NetConfig:
    socket = endpoint.vhost_user
    # It names Cloud Hypervisor's own role, as vifd does.
    mode = "Server" if socket.hypervisor_role == VhostUserRole.VHOST_USER_ROLE_SERVER else "Client"
    config = NetConfig(vhost_user=True, vhost_socket=socket.socket_path, vhost_mode=mode, num_queues=2 * socket.queues)
    return config | NetConfig(mtu=endpoint.port.mtu_bytes) if endpoint.port.mtu_bytes else config


def _write(value: str | int | bool) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    text = str(value)
    if not _SPECIAL.isdisjoint(text):
        raise ValueError(f"an argument of Cloud Hypervisor can't have any of {' '.join(sorted(_SPECIAL))} in it: {text!r}")
    return text
