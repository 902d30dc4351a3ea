"""Binds VFs to what VMs are attached through: vfio-pci and its nodes, or the kernel's own driver and its netdev."""

from __future__ import annotations

from vifd.kernel import names, ops
from vifd.kernel.sriov.hardware import FunctionError, Hardware, wait_for
from vifd.kernel.sriov.inventory import Function
from vifd.kernel.sriov.marks import Mark
from vifd.kernel.sriov.nic import Nic
from vifd.kernel.sriov.pci import VFIO
from vifd.kernel.sriov.vfio import is_vfio
from vifd.model import Kind, PciHostDriver


class Binder:
    """Binds one VF.

    Args:
        hardware: what there is to work with.
        nic: rtnetlink.
        mark: the VF's.
    """

    def __init__(self, hardware: Hardware, nic: Nic, mark: Mark) -> None:
        self._hardware, self._nic, self._mark = hardware, nic, mark

    def bind(self, function: Function, op: ops.BindFunction) -> ops.FunctionMade:
        """Bind a VF, if it isn't bound already, and give its nodes to its owner.

        Raises:
            FunctionError: it can't be.
            OSError: what the kernel says.
        """
        if op.host_driver is PciHostDriver.VFIO:
            self._bind_vfio(function, op)
        else:
            self._bind_kernel(function, op.endpoint_id)
        found = self._hardware.inventory.find(function.address)
        if found is None:
            raise FunctionError(f"VF {function.address} went away", ops.GONE)
        to_vm = op.host_driver is PciHostDriver.VFIO
        return ops.FunctionMade(
            pf_ifname=found.pf_ifname,
            vf_index=found.vf_index,
            iommu_group=found.iommu_group,
            numa_node=found.numa_node,
            vfio_path=self._hardware.nodes.group_path(found) if to_vm else "",
            vfio_device_path=self._hardware.nodes.device_path(found) if to_vm else "",
            ifname=found.ifname,
            address=found.address,
        )

    def _bind_vfio(self, function: Function, op: ops.BindFunction) -> None:
        self._check_vfio(function, op)
        bus, nodes = self._hardware.bus, self._hardware.nodes
        if not is_vfio(function.driver):
            bus.unbind(function.address)
            bus.probe(function.address, VFIO)
        if not wait_for(lambda: bool(nodes.paths(function)), self._hardware.patience.device):
            bound = bus.driver(function.address)
            what = f"{bound} has it and makes no node" if bound else "it doesn't take it; the kernel's log has more"
            raise FunctionError(f"VF {function.address} can't be bound to vfio-pci: {what}", ops.NOT_READY)
        for name in nodes.udev_names(function):
            self._hardware.wait_for_udev(name)
        nodes.give(function, op.owner_uid)

    def _check_vfio(self, function: Function, op: ops.BindFunction) -> None:
        if op.owner_gid is not None:
            raise FunctionError("owner.gid: a VFIO node is opened by a user, whatever the group; leave it out", ops.NOT_READY)
        if function.iommu_group < 0:
            words = "this host has no IOMMU, without which no device is handed to a VM: switch it on in the firmware's settings"
            raise FunctionError(f"{words}, and with intel_iommu=on (Intel) for the kernel", ops.NOT_READY)
        if not self._hardware.bus.has_driver(VFIO):
            raise FunctionError(
                'this kernel has no vfio-pci now; load it ("modprobe vfio-pci"), and at each start', ops.NOT_READY
            )
        if others := self._hardware.nodes.neighbours(function):
            shared = f"VF {function.address} shares IOMMU group {function.iommu_group} with {', '.join(others[:3])}"
            words = "whoever has one could reach the others. A slot with ACS keeps them apart"
            raise FunctionError(f"{shared}: {words}", ops.NOT_READY)

    def _bind_kernel(self, function: Function, endpoint_id: str) -> None:
        hardware, address = self._hardware, function.address
        driver = "" if is_vfio(self._mark.driver) else self._mark.driver
        if is_vfio(function.driver):
            hardware.bus.unbind(address)
        if not hardware.bus.driver(address):
            hardware.bus.probe(address, driver)
        if not wait_for(lambda: bool(self._ifname(address)), hardware.patience.device):
            bound = hardware.bus.driver(address)
            none = "no driver takes it: load its driver, and let sriov_drivers_autoprobe of its PF be 1"
            what = f"{bound} has it and makes no netdev in vifd's network namespace" if bound else none
            raise FunctionError(f"VF {address} has no netdev: {what}", ops.NOT_READY)
        hardware.bus.set_override(address, "")
        self._name(address, endpoint_id)

    def _name(self, address: str, endpoint_id: str) -> None:
        """Give a VF's netdev the name and the mark of its endpoint."""
        ifname, mark = names.device_name(Kind.PCI, endpoint_id), names.mark(endpoint_id)
        netdev = self._nic.find_netdev(self._ifname(address))
        if netdev is None:
            raise FunctionError(f"the netdev of VF {address} went away")
        self._hardware.wait_for_udev(f"n{netdev.ifindex}")  # it may give it a name as well
        netdev = self._nic.find_netdev(self._ifname(address))
        if netdev is None or (netdev.ifname, netdev.alias) == (ifname, mark):
            return
        reply = self._nic.name(netdev, ifname, mark)
        if reply.errno:
            raise FunctionError(f"netdev {netdev.ifname} can't be named {ifname}: {reply.message}", ops.KERNEL, reply.errno)

    def _ifname(self, address: str) -> str:
        found = self._hardware.inventory.find(address)
        return found.ifname if found is not None else ""
