"""A sysfs of plain files, as far as SR-IOV needs it: PFs, VFs, what they are bound to, IOMMU groups, netdevs.

It is for reading: nothing happens when somebody writes to it.
"""

from __future__ import annotations

import os
from pathlib import Path


class FakeSysfs:
    """A tree with the links that the kernel makes.

    Args:
        root: an empty directory.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("bus/pci/devices", "bus/pci/drivers", "class/net", "kernel/iommu_groups"):
            (root / folder).mkdir(parents=True)
        (root / "bus/pci/drivers_probe").touch()
        self._netdevs = 0

    def device(self, address: str) -> Path:
        """The directory of a PCI function."""
        return self.root / "devices/pci0000:00" / address

    def add_function(self, address: str, *, numa_node: int = -1, iommu_group: int | None = None, driver: str = "") -> Path:
        """Add a PCI function that is neither PF nor VF."""
        device = self.device(address)
        (device / "net").mkdir(parents=True)
        _link(self.root / "bus/pci/devices" / address, device)
        (device / "numa_node").write_text(f"{numa_node}\n")
        (device / "driver_override").write_text("(null)\n")
        (device / "reset").touch()
        (device / "class").write_text("0x020000\n")
        if iommu_group is not None:
            members = self.root / f"kernel/iommu_groups/{iommu_group}/devices"
            members.mkdir(parents=True, exist_ok=True)
            _link(members / address, device)
            _link(device / "iommu_group", members.parent)
        if driver:
            self.bind(address, driver)
        return device

    def add_pf(self, address: str, ifname: str = "", *, total_vfs: int = 7, numa_node: int = -1, up: bool = True) -> Path:
        """Add a PF without VFs."""
        device = self.add_function(address, numa_node=numa_node, driver="igb")
        (device / "sriov_totalvfs").write_text(f"{total_vfs}\n")
        (device / "sriov_numvfs").write_text("0\n")
        if ifname:
            self.add_netdev(address, ifname, up=up)
        return device

    def add_vf(
        self, pf: str, index: int, address: str, *, ifname: str = "", iommu_group: int | None = None, driver: str = "igbvf"
    ) -> Path:
        """Add a VF of a PF; it has the PF's NUMA node."""
        numa_node = int((self.device(pf) / "numa_node").read_text())
        device = self.add_function(address, numa_node=numa_node, iommu_group=iommu_group, driver=driver)
        _link(device / "physfn", self.device(pf))
        _link(self.device(pf) / f"virtfn{index}", device)
        count = len(list(self.device(pf).glob("virtfn*")))
        (self.device(pf) / "sriov_numvfs").write_text(f"{count}\n")
        if ifname:
            self.add_netdev(address, ifname, up=False)
        return device

    def add_driver(self, driver: str) -> Path:
        """Load a driver."""
        folder = self.root / "bus/pci/drivers" / driver
        folder.mkdir(exist_ok=True)
        for name in ("bind", "unbind"):
            (folder / name).touch()
        return folder

    def remove_driver(self, driver: str) -> None:
        """Unload a driver that nothing is bound to."""
        folder = self.root / "bus/pci/drivers" / driver
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()

    def add_netdev(self, address: str, ifname: str, *, up: bool, port_name: str = "", ifindex: int = 0) -> Path:
        """Give a function a netdev."""
        netdev = self.device(address) / "net" / ifname
        netdev.mkdir()
        self._netdevs += 1
        (netdev / "ifindex").write_text(f"{ifindex or self._netdevs}\n")
        (netdev / "flags").write_text("0x1003\n" if up else "0x1002\n")
        (netdev / "carrier").write_text("1\n" if up else "")
        if port_name:
            (netdev / "phys_port_name").write_text(f"{port_name}\n")
        _link(netdev / "device", self.device(address))
        _link(self.root / "class/net" / ifname, netdev)
        return netdev

    def remove_netdev(self, address: str) -> None:
        """Take a function's netdevs away."""
        for netdev in (self.device(address) / "net").iterdir():
            (self.root / "class/net" / netdev.name).unlink()
            for file in netdev.iterdir():
                file.unlink()
            netdev.rmdir()

    def bind(self, address: str, driver: str) -> None:
        """Bind a function to a driver, without the netdev that it may make."""
        folder = self.add_driver(driver)
        _link(folder / address, self.device(address))
        _link(self.device(address) / "driver", folder)

    def unbind(self, address: str) -> None:
        """Take a function from its driver, and its netdevs with it."""
        link = self.device(address) / "driver"
        if link.is_symlink():
            (link.resolve() / address).unlink()
            link.unlink()
        self.remove_netdev(address)

    def remove(self, address: str) -> None:
        """Take a VF away, as the hot unplug of one does."""
        self.unbind(address)
        device = self.device(address)
        pf = (device / "physfn").resolve()
        group = device / "iommu_group"
        if group.is_symlink():
            (group.resolve() / "devices" / address).unlink()
        for link in pf.glob("virtfn*"):
            if link.resolve() == device:
                link.unlink()
        (self.root / "bus/pci/devices" / address).unlink()
        (device / "net").rmdir()
        for file in device.iterdir():
            file.unlink()
        device.rmdir()


def _link(path: Path, target: Path) -> None:
    """Make a link that ends in its target's name, as the kernel does (fs/kernfs/symlink.c, kernfs_get_target_path)."""
    path.symlink_to(Path(os.path.relpath(target.parent, path.parent)) / target.name)
