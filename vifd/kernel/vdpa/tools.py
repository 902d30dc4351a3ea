"""What the privileged helper works with on vDPA devices."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from vifd.kernel import netns, ops
from vifd.kernel.macvtap import Failure
from vifd.kernel.sriov.hardware import Locks, Patience, wait_for
from vifd.kernel.vdpa.inventory import VdpaInventory
from vifd.kernel.vdpa.marks import Marks
from vifd.kernel.vdpa.netlink import VdpaNetlink
from vifd.kernel.vdpa.nodes import VdpaNodes


class VdpaError(Exception):
    """A vDPA device, or what it is made on, isn't as it has to be.

    Args:
        message: a sentence.
        cause: of an ops.Refusal.
        number: the kernel's errno, 0 where vifd itself refused.
    """

    def __init__(self, message: str, cause: str = ops.KERNEL, number: int = 0) -> None:
        super().__init__(message)
        self.cause, self.errno = cause, number

    @property
    def failure(self) -> Failure:
        """The same as a value."""
        return Failure(self.cause, self.errno, str(self))


class Vdpa(NamedTuple):
    """What there is to work with.

    Args:
        netlink: what the kernel is told.
        inventory: what sysfs shows.
        nodes: the devices' nodes.
        marks: whose a device is.
        locks: one for each management device.
        netns: the inode of the network namespace that vifd works in.
        udev: where udev keeps what it knows.
        patience: how long to wait.
    """

    netlink: VdpaNetlink
    inventory: VdpaInventory
    nodes: VdpaNodes
    marks: Marks
    locks: Locks
    netns: int
    udev: Path = Path("/run/udev")
    patience: Patience = Patience()

    @classmethod
    def prepare(cls, netlink: VdpaNetlink, device_dir: Path) -> Vdpa:
        """Get ready. Call it as root.

        Args:
            netlink: what the kernel is told by.
            device_dir: where vifd keeps what goes with a new start of the host.

        Raises:
            MarksError: nothing can be marked.
        """
        inventory = VdpaInventory()
        return cls(netlink, inventory, VdpaNodes(inventory), Marks.prepare(device_dir), Locks(), netns.inode())

    def close(self) -> None:
        """Let go of it, in a process that must not have it."""
        self.netlink.close()
        self.marks.close()

    def is_there(self, name: str) -> bool:
        """Tell whether a device is there. Without the module of vDPA none is.

        Raises:
            OSError: the kernel doesn't say.
        """
        return self.inventory.has_bus() and self.netlink.find(name) is not None

    def wait_for_udev(self, name: str) -> None:
        """Wait until udev has seen a new device, whose owner it may set once; if it takes too long, a check finds what it did."""
        if (self.udev / "control").exists():
            wait_for((self.udev / "data" / self.nodes.udev_name(name)).exists, self.patience.udev)
