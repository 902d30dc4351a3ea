"""Firecracker: an endpoint as a request to its API socket (`vifclient.hypervisors.rest`), or in its configuration file.

Source: its API description (src/firecracker/swagger/firecracker.yaml). It attaches taps with one queue, by name and before the VM
starts; nothing is plugged into a running one. So /dev/net/tun has to be open to it, and the tap be in its network namespace. Its
rate limiters aren't used: limits are vifd's. It has no word for a link that is down: no frame passes all the same, for vifd sets
the tap down.
"""

import re
from typing import Any, NotRequired, TypedDict

from vif.v1.endpoint_pb2 import Endpoint
from vif.v1.endpoint_service_pb2 import EndpointPreference
from vifclient.hypervisors import UnacceptableEndpoint, preferences, refuse
from vifclient.hypervisors.rest import Request

MTU_VERSION = (1, 16)
DEFAULT_MTU_BYTES = 1500
_ID = re.compile(r"\w+")  # checked_id() of src/firecracker/src/api_server/parsed_request.rs


class NetworkInterface(TypedDict):
    """A `NetworkInterface` of the API; the same is an entry of `network-interfaces` in a configuration file."""

    iface_id: str
    host_dev_name: str
    guest_mac: str
    mtu: NotRequired[int]


def acceptable() -> list[EndpointPreference]:
    """Say which kinds Firecracker attaches.

    Returns:
        A tap with one queue.
    """
    return preferences(["tap"])


def network_interface(endpoint: Endpoint, *, iface_id: str, version: tuple[int, ...] = MTU_VERSION) -> NetworkInterface:
    """Turn an endpoint into a network interface.

    Args:
        endpoint: The endpoint, a tap with one queue.
        iface_id: The interface's id in Firecracker: letters, digits and '_'.
        version: Firecracker's version (`read_version`). Before 1.16 it can't be told an MTU.

    Returns:
        The interface.

    Raises:
        UnacceptableEndpoint: Firecracker can't attach it.
        ValueError: `iface_id` is malformed.
    """
    if not endpoint.HasField("tap"):
        raise refuse(endpoint, "Firecracker", ["tap"])
    if endpoint.tap.multi_queue:
        raise UnacceptableEndpoint(f"the tap {endpoint.tap.ifname} has several queues, and Firecracker opens taps with one only")
    if not _ID.fullmatch(iface_id):
        raise ValueError(f"iface_id is of letters, digits and '_': {iface_id!r}")
    interface = NetworkInterface(iface_id=iface_id, host_dev_name=endpoint.tap.ifname, guest_mac=endpoint.port.mac)
    if endpoint.port.mtu_bytes not in {0, DEFAULT_MTU_BYTES}:
        if version < MTU_VERSION:
            raise UnacceptableEndpoint(
                f"the endpoint {endpoint.endpoint_id} has an MTU of {endpoint.port.mtu_bytes} bytes, "
                f"which Firecracker {'.'.join(map(str, version))} can't tell the guest: it takes 1.16"
            )
        interface["mtu"] = endpoint.port.mtu_bytes
    return interface


def add(endpoint: Endpoint, *, iface_id: str, version: tuple[int, ...] = MTU_VERSION) -> Request:
    """Say how an endpoint is given to a VM that hasn't started.

    Args:
        endpoint: As of `network_interface`.
        iface_id: As of `network_interface`.
        version: As of `network_interface`.

    Returns:
        The request.

    Raises:
        UnacceptableEndpoint: Firecracker can't attach it.
        ValueError: `iface_id` is malformed.
    """
    body = network_interface(endpoint, iface_id=iface_id, version=version)
    return Request("PUT", f"/network-interfaces/{iface_id}", dict(body))


def ask_version() -> Request:
    """Ask for Firecracker's version.

    Returns:
        The request, whose answer `read_version` reads.
    """
    return Request("GET", "/version")


def read_version(answer: Any) -> tuple[int, ...]:
    """Read Firecracker's version.

    Args:
        answer: The answer to `ask_version()`.

    Returns:
        The version: (1, 16, 0).
    """
    text: str = answer["firecracker_version"]
    return tuple(int(number) for number in text.split("-", maxsplit=1)[0].split("."))
