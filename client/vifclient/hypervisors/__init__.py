"""What hypervisors can attach, and how: each module says which kinds it accepts, and turns every such kind into configuration.

Guard, limits, VLANs and isolation are in no hypervisor's configuration: vifd keeps them on its side of the device.

The modules of hypervisors are pure: they start nothing and open nothing. What is to be said to a running hypervisor is data,
which `qmp` says to QEMU, and `rest` to Cloud Hypervisor and Firecracker.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

from vif.v1.endpoint_pb2 import Endpoint, PciHostDriver
from vif.v1.endpoint_service_pb2 import (
    BridgePreference,
    EndpointPreference,
    MacvtapPreference,
    OvsPortPreference,
    PciPreference,
    TapPreference,
    VdpaPreference,
    VhostUserPreference,
)

Kind = Literal["bridge", "tap", "macvtap", "pci", "ovs_port", "vhost_user", "vdpa"]


class UnacceptableEndpoint(ValueError):
    """The hypervisor can't attach this endpoint. Request it with the hypervisor's own `acceptable()`."""


def refuse(endpoint: Endpoint, hypervisor: str, accepted: Iterable[str]) -> UnacceptableEndpoint:
    """Make the error of an endpoint whose kind a hypervisor doesn't accept.

    Args:
        endpoint: The endpoint.
        hypervisor: The hypervisor's name.
        accepted: The kinds that it accepts.

    Returns:
        The error.
    """
    kind = endpoint.WhichOneof("location")
    what = f"is of kind {kind}" if kind else "has no location yet"
    return UnacceptableEndpoint(f"the endpoint {endpoint.endpoint_id} {what}: {hypervisor} attaches {' or '.join(accepted)}")


def preferences(kinds: Iterable[Kind], *, queues: int = 1) -> list[EndpointPreference]:
    """Make a request's `acceptable` of kinds.

    Args:
        kinds: The kinds, best first.
        queues: How many queue pairs the VM shall have, 1 to 256, for the kinds that know of queues.

    Returns:
        A preference for each.
    """
    every = {
        "bridge": EndpointPreference(bridge=BridgePreference()),
        "tap": EndpointPreference(tap=TapPreference(queues=queues, vnet_hdr=True)),
        "macvtap": EndpointPreference(macvtap=MacvtapPreference(queues=queues, vnet_hdr=True)),
        "pci": EndpointPreference(pci=PciPreference(host_driver=PciHostDriver.PCI_HOST_DRIVER_VFIO)),
        "ovs_port": EndpointPreference(ovs_port=OvsPortPreference()),
        "vhost_user": EndpointPreference(vhost_user=VhostUserPreference(queues=queues)),
        "vdpa": EndpointPreference(vdpa=VdpaPreference(queues=queues)),
    }
    return [every[kind] for kind in kinds]


def count_queues(endpoint: Endpoint) -> int:
    """Count an endpoint's queue pairs.

    Args:
        endpoint: The endpoint.

    Returns:
        How many it has, 1 or more. 0: its kind doesn't say, for the hypervisor makes the device.
    """
    location = getattr(endpoint, endpoint.WhichOneof("location") or "port")
    return getattr(location, "queues", 0)


def check_fds(endpoint: Endpoint, fds: Sequence[object]) -> None:
    """Check that open queues fit an endpoint.

    Args:
        endpoint: The endpoint.
        fds: Its open queues.

    Raises:
        ValueError: They don't.
    """
    kind = endpoint.WhichOneof("location") or "endpoint"
    if kind not in {"tap", "macvtap"}:
        raise ValueError(f"the endpoint {endpoint.endpoint_id} is a {kind}, which has no queues to hand over: leave fds out")
    if len(fds) != count_queues(endpoint):
        name = getattr(endpoint, kind).ifname
        raise ValueError(f"the {kind} {name} has {count_queues(endpoint)} queues, and {len(fds)} fds are given: one for each")
