"""What is written to sysfs, and that nothing else is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.sysfs import FakeSysfs
from vifd.kernel.sriov.inventory import Inventory
from vifd.kernel.sriov.pci import PciBus
from vifd.kernel.sriov.vfio import VfioNodes, is_vfio

PF, VF = "0000:01:00.0", "0000:01:10.0"
BAD = ["", ".", "..", "../../..", f"{VF}/..", f"{VF}\n", f"{VF}\0", "0000:01:10.8", "eth0"]


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeSysfs:
    sysfs = FakeSysfs(tmp_path / "sys")
    sysfs.add_pf(PF, "eth0")
    sysfs.add_vf(PF, 0, VF, iommu_group=10)
    sysfs.add_driver("vfio-pci")
    return sysfs


@pytest.fixture
def bus(sysfs: FakeSysfs) -> Iterator[PciBus]:
    with closing(PciBus(sysfs.root)) as one:
        yield one


def test_each_attribute_is_written_in_its_place(sysfs: FakeSysfs, bus: PciBus) -> None:
    bus.unbind(VF)
    bus.reset(VF)
    bus.set_vf_count(PF, 7)
    bus.probe(VF, "vfio-pci")
    device = sysfs.device(VF)
    written = [(sysfs.root / "bus/pci" / path).read_text() for path in ("drivers/igbvf/unbind", "drivers_probe")]
    written += [(device / "reset").read_text(), (device / "driver_override").read_text()[:8]]
    assert (written, (sysfs.device(PF) / "sriov_numvfs").read_text()[0]) == ([VF, VF, "1", "vfio-pci"], "7")


def test_what_has_no_driver_is_unbound_already(sysfs: FakeSysfs, bus: PciBus) -> None:
    sysfs.unbind(VF)
    bus.unbind(VF)
    assert bus.driver(VF) == ""


def test_what_a_function_is_bound_to_and_may_be(sysfs: FakeSysfs, bus: PciBus) -> None:
    assert (bus.driver(VF), bus.override(VF), bus.has_driver("igbvf"), bus.has_driver("e1000")) == ("igbvf", "", True, False)
    (sysfs.device(VF) / "driver_override").write_text("vfio-pci\n")
    assert bus.override(VF) == "vfio-pci"


@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_address_is_never_opened(bus: PciBus, bad: str) -> None:
    actions = [bus.unbind, bus.reset, bus.driver, bus.override, lambda a: bus.probe(a, "x"), lambda a: bus.set_vf_count(a, 1)]
    for action in actions:
        with pytest.raises(OSError, match="is no PCI address"):
            action(bad)


@pytest.mark.parametrize("bad", ["../x", "a b", "-x", "x\n", "x" * 65, "."])
def test_what_cant_name_a_driver_is_never_written(sysfs: FakeSysfs, bus: PciBus, bad: str) -> None:
    with pytest.raises(OSError, match="can't name a driver"):
        bus.set_override(VF, bad)
    assert not bus.has_driver(bad)
    assert (sysfs.device(VF) / "driver_override").read_text() == "(null)\n"


def test_a_link_is_never_written_to(sysfs: FakeSysfs, bus: PciBus, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (sysfs.device(VF) / "reset").unlink()
    (sysfs.device(VF) / "reset").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="symbolic link"):
        bus.reset(VF)
    assert (tmp_path / "mine").read_text() == "mine"


def test_what_is_gone_is_told(bus: PciBus) -> None:
    for action in (bus.unbind, bus.reset, bus.driver):
        with pytest.raises(FileNotFoundError):
            action("0000:01:10.2")


@pytest.mark.parametrize(("driver", "to_vm"), [("vfio-pci", True), ("mlx5_vfio_pci", True), ("igbvf", False), ("vfio", False)])
def test_drivers_that_hand_functions_to_vms(driver: str, to_vm: bool) -> None:
    assert is_vfio(driver) == to_vm


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device nodes")
def test_only_the_kernels_own_nodes_are_given_away(sysfs: FakeSysfs, tmp_path: Path) -> None:
    function = Inventory(sysfs.root).find(VF)
    assert function is not None
    nodes = VfioNodes(sysfs.root, tmp_path)
    (tmp_path / "vfio/devices").mkdir(parents=True)
    os.mknod(tmp_path / "vfio/10", 0o020666, os.makedev(1, 3))
    (tmp_path / "vfio/devices/vfio0").write_text("no node")
    (sysfs.device(VF) / "vfio-dev/vfio0").mkdir(parents=True)
    (sysfs.device(VF) / "vfio-dev/vfio0/dev").write_text("1:3\n")
    with pytest.raises(OSError, match="has no VFIO node"):
        nodes.give(function, 20001)
    (sysfs.root / "class/vfio/10").mkdir(parents=True)
    (sysfs.root / "class/vfio/10/dev").write_text("1:5\n")
    assert nodes.paths(function) == []
    (sysfs.root / "class/vfio/10/dev").write_text("1:3\n")
    nodes.give(function, 20001)
    assert nodes.owners(function) == {str(tmp_path / "vfio/10"): (20001, 0o600)}
    assert (nodes.device_path(function), nodes.udev_names(function)) == ("", ["c1:3"])
    nodes.take_back(function)
    assert nodes.owners(function) == {str(tmp_path / "vfio/10"): (0, 0o600)}
