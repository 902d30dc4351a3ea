from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.sysfs import FakeSysfs
from vifd.kernel.authority import FunctionGrant
from vifd.kernel.sriov.inventory import Function, Inventory, PhysicalFunction, Slot, explain_mode, is_address

PF, VF0, VF1 = "0000:01:00.0", "0000:01:10.0", "0000:01:10.2"


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeSysfs:
    """A PF with two VFs, one bound to vfio-pci."""
    sysfs = FakeSysfs(tmp_path)
    sysfs.add_pf(PF, "eth0", numa_node=1)
    sysfs.add_vf(PF, 0, VF0, ifname="eth0v0", iommu_group=11)
    sysfs.add_vf(PF, 1, VF1, iommu_group=12, driver="vfio-pci")
    return sysfs


@pytest.fixture
def inventory(sysfs: FakeSysfs) -> Inventory:
    return Inventory(sysfs.root)


@pytest.mark.parametrize("name", ["eth0", PF])
def test_a_pf_is_found_by_name_and_by_address(inventory: Inventory, name: str) -> None:
    assert inventory.find_pf(name) == PhysicalFunction(PF, "eth0", 1, total_vfs=7, vf_count=2, up=True, carrier=True)


def test_the_vfs_of_a_pf(inventory: Inventory) -> None:
    pf = inventory.find_pf("eth0")
    assert pf is not None
    assert inventory.functions(pf) == [
        Function(VF0, PF, "eth0", 0, iommu_group=11, driver="igbvf", ifname="eth0v0", numa_node=1),
        Function(VF1, PF, "eth0", 1, iommu_group=12, driver="vfio-pci", ifname="", numa_node=1),
    ]


def test_the_vfs_are_in_the_order_of_their_numbers(sysfs: FakeSysfs, inventory: Inventory) -> None:
    sysfs.add_vf(PF, 10, "0000:01:12.4")
    sysfs.add_vf(PF, 2, "0000:01:10.4")
    pf = inventory.find_pf("eth0")
    assert pf is not None
    assert [one.vf_index for one in inventory.functions(pf)] == [0, 1, 2, 10]


def test_which_vfs_there_are_takes_no_look_at_each(sysfs: FakeSysfs, inventory: Inventory) -> None:
    (sysfs.device(VF0) / "physfn").unlink()
    pf = inventory.find_pf("eth0")
    assert pf is not None
    slots = [Slot(VF0, PF, 0, numa_node=1), Slot(VF1, PF, 1, numa_node=1)]
    assert inventory.slots(pf) == inventory.allowed(FunctionGrant(("eth0",))) == slots
    assert [one.address for one in inventory.functions(pf)] == [VF1]


def test_the_pf_of_a_vf(inventory: Inventory) -> None:
    assert [inventory.find_pf_address(address) for address in (VF0, PF, "0000:09:00.0", "..")] == [PF, "", "", ""]


def test_a_vf_is_found_by_address(inventory: Inventory) -> None:
    assert inventory.find(VF1) == Function(VF1, PF, "eth0", 1, iommu_group=12, driver="vfio-pci", ifname="", numa_node=1)


@pytest.mark.parametrize("address", [PF, "0000:09:00.0", "", ".", f"../devices/{VF0}", f"{VF0}\n", VF0.upper() + "A"])
def test_what_is_no_vf_is_not_found(inventory: Inventory, address: str) -> None:
    assert inventory.find(address) is None


def test_a_vf_without_driver_iommu_and_netdev(sysfs: FakeSysfs, inventory: Inventory) -> None:
    sysfs.add_vf(PF, 2, "0000:01:10.4", driver="")
    assert inventory.find("0000:01:10.4") == Function("0000:01:10.4", PF, "eth0", 2, -1, "", "", 1)


def test_a_vf_that_is_taken_away_is_found_no_more(sysfs: FakeSysfs, inventory: Inventory) -> None:
    sysfs.remove(VF0)
    pf = inventory.find_pf("eth0")
    assert pf is not None
    assert ([one.address for one in inventory.functions(pf)], inventory.find(VF0)) == ([VF1], None)


def test_a_pf_without_carrier(sysfs: FakeSysfs, inventory: Inventory) -> None:
    sysfs.add_pf("0000:02:00.0", "eth1", up=False)
    assert inventory.find_pf("eth1") == PhysicalFunction("0000:02:00.0", "eth1", -1, 7, 0, up=False, carrier=False)


def test_a_pf_whose_netdev_is_elsewhere_is_found_by_address(sysfs: FakeSysfs, inventory: Inventory) -> None:
    sysfs.remove_netdev(PF)
    assert inventory.find_pf("eth0") is None
    found = inventory.find_pf(PF)
    assert found is not None
    assert (found.ifname, found.vf_count, found.carrier) == ("", 2, False)


def test_a_representor_is_no_netdev_of_the_pf(sysfs: FakeSysfs, inventory: Inventory) -> None:
    sysfs.add_netdev(PF, "a0", up=True, port_name="pf0vf0")
    sysfs.add_netdev(PF, "a1", up=True, port_name="vf1")
    found = inventory.find_pf(PF)
    assert found is not None
    assert found.ifname == "eth0"


def add_port(sysfs: FakeSysfs, ifname: str, port_name: str, switch: str = "5a", pf: str = PF) -> None:
    """Add a port of a card's switch."""
    netdev = sysfs.device(pf) / "net" / ifname
    if not netdev.exists():
        sysfs.add_netdev(pf, ifname, up=False)
    (netdev / "phys_port_name").write_text(f"{port_name}\n")
    (netdev / "phys_switch_id").write_text(f"{switch}\n")


def test_a_representor_is_found_by_its_pf_its_switch_and_its_number(sysfs: FakeSysfs, inventory: Inventory) -> None:
    for ifname, port_name in (("eth0", "p0"), ("a1", "pf0vf1"), ("a10", "pf0vf10"), ("b0", "c1pf0vf0"), ("c0", "pf0sf0")):
        add_port(sysfs, ifname, port_name)
    first, second = (inventory.find(address) for address in (VF0, VF1))
    assert first is not None
    assert second is not None
    assert (inventory.find_representor(first), inventory.find_representor(second)) == ("", "a1")
    add_port(sysfs, "d0", "pf0vf0", "other")
    assert inventory.find_representor(first) == ""
    add_port(sysfs, "d0", "pf0vf0")
    assert inventory.find_representor(first) == "d0"


def test_a_switch_that_has_an_id_but_no_representor_is_in_legacy_mode(sysfs: FakeSysfs, inventory: Inventory) -> None:
    add_port(sysfs, "eth0", "p0")
    add_port(sysfs, "b0", "c1pf0vf0")
    found = inventory.find_pf("eth0")
    assert found is not None
    assert (found.switchdev, explain_mode("eth0", found, "")) == (False, "")
    assert "isn't in mode switchdev" in explain_mode("eth0", found, "br0")
    add_port(sysfs, "a1", "pf0vf1")
    found = inventory.find_pf("eth0")
    assert found is not None
    assert (found.switchdev, explain_mode("eth0", found, "br0")) == (True, "")
    assert "name the bridge" in explain_mode("eth0", found, "")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("eth7", "PF eth7 isn't there"),
        ("0000:07:00.0", "PF 0000:07:00.0 isn't there"),
        ("..", "PF .. isn't there"),
        ("eth0v0", "eth0v0 is a VF, of PF 0000:01:00.0; name the PF"),
        (VF0, f"{VF0} is a VF, of PF {PF}; name the PF"),
        ("0000:00:03.0", "0000:00:03.0 has no SR-IOV: its hardware, its firmware's settings or its driver don't offer any VF"),
        ("lo", "PF lo is no PCI device"),
    ],
)
def test_why_a_pf_is_not_found(sysfs: FakeSysfs, inventory: Inventory, name: str, words: str) -> None:
    sysfs.add_function("0000:00:03.0")
    (sysfs.root / "class/net/lo").mkdir()
    assert (inventory.find_pf(name), inventory.explain_pf(name)) == (None, words)


@pytest.mark.parametrize(
    ("grant", "allowed"),
    [
        (FunctionGrant(("eth0",)), [VF0, VF1]),
        (FunctionGrant((PF, "eth0")), [VF0, VF1]),
        (FunctionGrant(("eth0",), addresses=(VF1, "0000:09:10.0")), [VF1]),
        (FunctionGrant(("eth0",), exclude=(VF1,)), [VF0]),
        (FunctionGrant(("eth0", "eth1")), [VF0, VF1, "0000:02:10.0"]),
        (FunctionGrant(("eth7",)), []),
    ],
)
def test_which_vfs_a_network_may_use(sysfs: FakeSysfs, inventory: Inventory, grant: FunctionGrant, allowed: list[str]) -> None:
    sysfs.add_pf("0000:02:00.0", "eth1")
    sysfs.add_vf("0000:02:00.0", 0, "0000:02:10.0")
    assert [one.address for one in inventory.allowed(grant)] == allowed


@pytest.mark.parametrize("text", ["0000:01:10.2", "10000:e1:00.0", "0000:ff:1f.7"])
def test_addresses(text: str) -> None:
    assert is_address(text)


@pytest.mark.parametrize(
    "text", ["", "01:10.2", "0000:01:20.0", "0000:01:10.8", "0000:01:1A.0", "0000:01:10.2\n", "x0000:01:10.2"]
)
def test_what_is_no_address(text: str) -> None:
    assert not is_address(text)
