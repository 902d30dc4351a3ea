"""QEMU: an endpoint as command-line arguments.

The options are those of qemu(1), `-netdev tap`, `-netdev bridge` and `-device virtio-net-pci`, for QEMU 7.2 and later.
"""

import re
from collections.abc import Mapping, Sequence

from vif.v1.endpoint_pb2 import Endpoint
from vif.v1.endpoint_service_pb2 import BridgePreference, EndpointPreference, MacvtapPreference, TapPreference
from vifclient.hypervisors import UnacceptableEndpoint, refuse

DEFAULT_MTU_BYTES = 1500
_ID = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")  # id_wellformed() of util/id.c


def acceptable(*, queues: int = 1) -> list[EndpointPreference]:
    """Say which kinds QEMU attaches, best first.

    Args:
        queues: How many queue pairs the VM shall have, 1 to 256.

    Returns:
        A tap, or a macvtap; with one queue also a bridge, whose tap `qemu-bridge-helper` makes, which knows no more than one.
    """
    tap = EndpointPreference(tap=TapPreference(queues=queues, vnet_hdr=True))
    macvtap = EndpointPreference(macvtap=MacvtapPreference(queues=queues, vnet_hdr=True))
    return [tap, macvtap, EndpointPreference(bridge=BridgePreference())] if queues <= 1 else [tap, macvtap]


def argv(
    endpoint: Endpoint,
    *,
    netdev_id: str,
    fds: Sequence[int] | None = None,
    vhost: bool = False,
    device_options: Mapping[str, str] | None = None,
) -> list[str]:
    """Turn an endpoint into QEMU's arguments.

    Args:
        endpoint: The endpoint, a tap, a macvtap or a bridge.
        netdev_id: The netdev's id in QEMU: a letter, then letters, digits, '.', '_' and '-'.
        fds: The open queues of a tap or macvtap (`Client.acquire_fds`), as QEMU will inherit them. None: QEMU opens the tap by
            its name, for which /dev/net/tun must be open to it and the tap be in its network namespace; it can't open a macvtap.
        vhost: Whether the kernel moves the device's frames (vhost-net), for which /dev/vhost-net must be open to QEMU.
        device_options: More options of the device: {"bus": "rp0", "romfile": ""}.

    Returns:
        `["-netdev", …, "-device", …]`.

    Raises:
        UnacceptableEndpoint: QEMU can't attach it.
        ValueError: `netdev_id` is malformed, or `fds` don't fit the endpoint.
    """
    if not _ID.fullmatch(netdev_id):
        raise ValueError(f"netdev_id is a letter, then letters, digits, '.', '_' or '-': {netdev_id!r}")
    queues = {"tap": endpoint.tap.queues, "macvtap": endpoint.macvtap.queues}.get(endpoint.WhichOneof("location") or "", 1)
    netdev = _netdev(endpoint, netdev_id, fds, vhost=vhost)
    return ["-netdev", netdev, "-device", _device(endpoint, netdev_id, queues, device_options or {})]


def escape(value: str) -> str:
    """Escape a value of an option list, in which a comma is doubled (qemu(1), "QemuOpts").

    Args:
        value: The value.

    Returns:
        The value as QEMU reads it.
    """
    return value.replace(",", ",,")


def _netdev(endpoint: Endpoint, netdev_id: str, fds: Sequence[int] | None, *, vhost: bool) -> str:
    match endpoint.WhichOneof("location"):
        case "tap":
            return _join("tap", {"id": netdev_id, **_tap(endpoint, fds), **({"vhost": "on"} if vhost else {})})
        case "macvtap":
            return _join("tap", {"id": netdev_id, **_macvtap(endpoint, fds), **({"vhost": "on"} if vhost else {})})
        case "bridge":
            return _join("bridge", {"id": netdev_id, **_bridge(endpoint, fds)})
        case _:
            raise refuse(endpoint, "QEMU", ("tap", "macvtap", "bridge"))


def _tap(endpoint: Endpoint, fds: Sequence[int] | None) -> dict[str, str]:
    tap = endpoint.tap
    if fds is None:
        queues = {"queues": str(tap.queues)} if tap.multi_queue else {}
        vnet_hdr = {} if tap.vnet_hdr else {"vnet_hdr": "off"}  # by name QEMU turns it on unless told; from a fd it reads it
        return {"ifname": tap.ifname, "script": "no", "downscript": "no", **queues, **vnet_hdr}
    return _fds(f"tap {tap.ifname}", tap.queues, fds)


def _macvtap(endpoint: Endpoint, fds: Sequence[int] | None) -> dict[str, str]:
    macvtap = endpoint.macvtap
    if fds is None:
        raise ValueError(f"QEMU can't open the macvtap {macvtap.ifname} by itself: give the fds of Client.acquire_fds")
    return _fds(f"macvtap {macvtap.ifname}", macvtap.queues, fds)


def _fds(device: str, queues: int, fds: Sequence[int]) -> dict[str, str]:
    if len(fds) != queues:
        raise ValueError(f"the {device} has {queues} queues, and {len(fds)} fds are given: QEMU needs one for each")
    return {"fds": ":".join(map(str, fds))}


def _bridge(endpoint: Endpoint, fds: Sequence[int] | None) -> dict[str, str]:
    if fds is not None:
        raise ValueError(f"the endpoint {endpoint.endpoint_id} is a bridge, which has no queues: leave fds out")
    if endpoint.bridge.HasField("vlan"):
        raise UnacceptableEndpoint(
            f"the endpoint {endpoint.endpoint_id} belongs into a VLAN, which qemu-bridge-helper can't do: accept only a tap"
        )
    return {"br": endpoint.bridge.bridge_name}


def _device(endpoint: Endpoint, netdev_id: str, queues: int, more: Mapping[str, str]) -> str:
    options = {"netdev": netdev_id, "mac": endpoint.port.mac}
    if queues > 1:
        # A vector for each queue's two directions, one for configuration, one for control (qemu(1); linux-kvm.org, Multiqueue).
        options |= {"mq": "on", "vectors": str(2 * queues + 2)}
    if endpoint.port.mtu_bytes not in {0, DEFAULT_MTU_BYTES}:
        options["host_mtu"] = str(endpoint.port.mtu_bytes)
    return _join("virtio-net-pci", {**options, **more})


def _join(kind: str, options: Mapping[str, str]) -> str:
    return ",".join([kind, *(f"{name}={escape(value)}" for name, value in options.items())])
