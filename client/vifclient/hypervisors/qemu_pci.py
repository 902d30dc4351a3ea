"""QEMU: what a PCI function may have beside its device, an object iommufd through which it is taken, and a partner.

QEMU takes a function by the node of its IOMMU group (`pci.vfio_path`), or by the function's own (`pci.vfio_device_path`), with an
object iommufd, since QEMU 8.2 (docs/devel/vfio-iommufd.rst). The second takes /dev/iommu, which the kernel makes for root alone:
the host's administrator gives it to QEMU's user or group, or who starts QEMU hands it over.
"""

from vif.v1.endpoint_pb2 import Endpoint
from vifclient.hypervisors import UnacceptableEndpoint
from vifclient.hypervisors.qemu import Capabilities, Command, Option


def can_iommufd(endpoint: Endpoint, capabilities: Capabilities) -> bool:
    """Tell whether an endpoint can be taken through an object iommufd; not whether QEMU may open /dev/iommu.

    Args:
        endpoint: The endpoint.
        capabilities: What this QEMU can do.

    Returns:
        Whether it is a PCI function with a node of its own, and this QEMU knows how.
    """
    return capabilities.iommufd and bool(endpoint.pci.vfio_device_path)


def iommufd_argv(object_id: str, fd: int | None = None) -> list[str]:
    """Say how QEMU gets an object iommufd: one for all functions of a VM, for each locks the VM's memory once.

    Args:
        object_id: Its id: a letter, then letters, digits, '.', '_' and '-'.
        fd: /dev/iommu, open, as QEMU will inherit it. None: QEMU opens it.

    Returns:
        QEMU's arguments.
    """
    return ["-object", f"iommufd,id={object_id}" if fd is None else f"iommufd,id={object_id},fd={fd}"]


def add_iommufd(object_id: str, fd_name: str = "") -> Command:
    """Say how a running QEMU gets an object iommufd.

    Args:
        object_id: As of `iommufd_argv`.
        fd_name: The name that /dev/iommu, open, was handed over under (`getfd`). Empty: QEMU opens it.

    Returns:
        What to tell QEMU.
    """
    fd = {"fd": fd_name} if fd_name else {}
    return {"execute": "object-add", "arguments": {"qom-type": "iommufd", "id": object_id, **fd}}


def device_options(endpoint: Endpoint, *, iommufd_id: str = "", standby_id: str = "") -> dict[str, Option]:
    """Give the options of a function's device, for `device_options` of `qemu.argv` and `qemu.plug`.

    Args:
        endpoint: A PCI function.
        iommufd_id: The id of the object iommufd through which it is taken. Empty: it is taken by its IOMMU group.
        standby_id: The `netdev_id` of the other part of its pair, which stands in for it while the VM moves. Empty: nothing does.

    Returns:
        The options.

    Raises:
        UnacceptableEndpoint: It has no node of its own, or is part of no pair.
    """
    options: dict[str, Option] = {}
    if iommufd_id and not endpoint.pci.vfio_device_path:
        raise UnacceptableEndpoint(f"the endpoint {endpoint.endpoint_id} has no node for iommufd: leave iommufd_id out")
    if standby_id and not (endpoint.HasField("pci") and endpoint.partner_endpoint_id):
        raise UnacceptableEndpoint(f"the endpoint {endpoint.endpoint_id} is no PCI function of a pair: leave standby_id out")
    if iommufd_id:
        options["iommufd"] = iommufd_id
    if standby_id:
        options["failover_pair_id"] = standby_id
    return options
