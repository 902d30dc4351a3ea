"""NICs with SR-IOV, made up: in a sysfs of plain files, and a driver that looks at that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.lives import FakeTime
from tests.support.sysfs import FakeSysfs
from vifd.drivers.sriov import SriovDriver, SriovOptions
from vifd.kernel.sriov.inventory import Inventory

#: Two PFs, on a NUMA node each.
PFS = {"ens1f0": "0000:01:00.0", "ens2f0": "0000:81:00.0"}


def vf(pf: int, index: int) -> str:
    """Give the address of a VF by the place of its PF and its number."""
    return f"0000:{(0x01, 0x81)[pf]:02x}:10.{index * 2}"


def two_nics(root: Path, vfs: int = 3) -> FakeSysfs:
    """Make a sysfs with two PFs and their VFs, each in an IOMMU group of its own."""
    sysfs = FakeSysfs(root)
    for place, (ifname, address) in enumerate(PFS.items()):
        sysfs.add_pf(address, ifname, numa_node=place)
        for index in range(vfs):
            sysfs.add_vf(address, index, vf(place, index), iommu_group=place * 10 + index)
    return sysfs


def sriov_driver(sysfs: FakeSysfs, time: FakeTime | None = None, **options: Any) -> SriovDriver:
    """Give the driver of network fast, which looks at a made-up sysfs and clock."""
    wanted = SriovOptions(**{"pfs": tuple(PFS)} | options)
    return SriovDriver("fast", wanted, Inventory(sysfs.root), (time or FakeTime()).now)
