"""vDPA's part of sysfs, and nodes: whatever has a node's name, only the device's own is touched."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.support.vdpa_host import FIRST, SECOND, vdpa_sysfs
from vifd.kernel.vdpa.inventory import BUS_DRIVER, VdpaInventory
from vifd.kernel.vdpa.nodes import VdpaNodes

NAME = "vdvaaaaaaaaaa"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device nodes")


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """A device that is bound to vhost-vdpa; its character device has the number of /dev/null, 1:3."""
    root = vdpa_sysfs(tmp_path / "sys", FIRST)
    device = root / "bus/vdpa/devices" / NAME
    (device / "vhost-vdpa-3").mkdir(parents=True)
    (device / "vhost-vdpa-3/dev").write_text("1:3\n")
    (device / "driver").symlink_to(f"../../drivers/{BUS_DRIVER}")
    (tmp_path / "dev").mkdir()
    return root


def nodes(sysfs: Path) -> VdpaNodes:
    return VdpaNodes(VdpaInventory(sysfs), sysfs, sysfs.parent / "dev")


def test_a_device_is_read(sysfs: Path) -> None:
    inventory = VdpaInventory(sysfs)
    assert (inventory.driver(NAME), inventory.node(NAME)) == (BUS_DRIVER, ("vhost-vdpa-3", "1:3"))
    assert (inventory.driver("vdvbbbbbbbbbb"), inventory.node("vdvbbbbbbbbbb")) == ("", None)
    assert nodes(sysfs).udev_name(NAME) == "c1:3"
    assert (inventory.has(FIRST), inventory.has(SECOND), inventory.has("../bus")) == (True, False, False)


def test_a_part_of_a_card_is_on_the_cards_numa_node(sysfs: Path) -> None:
    part = sysfs / "devices/0000:03:00.0/mlx5_core.sf.4"
    part.mkdir(parents=True)
    (part.parent / "numa_node").write_text("1\n")
    link = sysfs / "bus/auxiliary/devices/mlx5_core.sf.4"
    link.parent.mkdir(parents=True)
    link.symlink_to(part)
    inventory = VdpaInventory(sysfs)
    assert [inventory.numa_node(name) for name in ("auxiliary/mlx5_core.sf.4", FIRST, SECOND)] == [1, -1, -1]


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "vdpa0", f"{NAME}/..", f"{NAME}\n"])
def test_no_other_name_is_looked_for(sysfs: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is no name of vifd's"):
        VdpaInventory(sysfs).node(name)


def test_without_a_node_there_is_nothing_to_give(sysfs: Path) -> None:
    one = nodes(sysfs)
    assert (one.path(NAME), one.owner(NAME), one.is_open(NAME)) == ("", None, False)
    with pytest.raises(OSError, match="has no node"):
        one.give(NAME, 1000)


@needs_root
def test_a_node_is_given_and_taken_back(sysfs: Path) -> None:
    path = sysfs.parent / "dev/vhost-vdpa-3"
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    one = nodes(sysfs)
    one.give(NAME, 1000)
    assert (one.path(NAME), one.owner(NAME)) == (str(path), (1000, 0o600))
    one.give(NAME, 0)
    assert one.owner(NAME) == (0, 0o600)


@needs_root
@pytest.mark.parametrize("what", ["another device", "a file", "a link"])
def test_what_only_has_its_name_is_left_alone(sysfs: Path, what: str) -> None:
    path = touched = sysfs.parent / "dev/vhost-vdpa-3"
    match what:
        case "another device":
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))
        case "a file":
            path.touch(0o600)
        case _:
            touched = sysfs.parent / "other"
            os.mknod(touched, stat.S_IFCHR | 0o600, os.makedev(1, 3))
            path.symlink_to(touched)
    one = nodes(sysfs)
    assert (one.path(NAME), one.owner(NAME), one.is_open(NAME)) == ("", None, False)
    with pytest.raises(OSError, match="has no node"):
        one.give(NAME, 1000)
    assert touched.stat().st_uid == 0


def test_what_is_bound_stays_bound(sysfs: Path) -> None:
    nodes(sysfs).bind(NAME)
    assert not (sysfs / "bus/vdpa/drivers_probe").exists()


def test_a_device_of_another_driver_is_unbound_and_probed_for_this_one_alone(sysfs: Path) -> None:
    device, other = sysfs / "bus/vdpa/devices" / NAME, sysfs / "bus/vdpa/drivers/virtio_vdpa"
    other.mkdir()
    (device / "driver").unlink()
    (device / "driver").symlink_to(other)
    nodes(sysfs).bind(NAME)
    assert (device / "driver_override").read_text() == BUS_DRIVER
    assert ((other / "unbind").read_text(), (sysfs / "bus/vdpa/drivers_probe").read_text()) == (NAME, NAME)
