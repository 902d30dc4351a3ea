"""What the helper's executors share of SR-IOV, and how they wait for the kernel."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from vifd.kernel import ops
from vifd.kernel.macvtap import Failure
from vifd.kernel.markfiles import MarksError
from vifd.kernel.sriov.inventory import Inventory
from vifd.kernel.sriov.marks import Marks
from vifd.kernel.sriov.pci import PciBus
from vifd.kernel.sriov.vfio import VfioNodes

_FIRST_POLL_S, _LAST_POLL_S, _POLL_FACTOR = 0.005, 0.1, 1.5
_WRITTEN = (Path("/sys/bus/pci"), Path("/sys/devices"))


class FunctionError(Exception):
    """A VF, or its PF, isn't as it has to be.

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


class HardwareError(Exception):
    """No VF can be used here; its text says what the administrator has to do."""


class Patience(NamedTuple):
    """How long something is waited for, in seconds.

    Args:
        carrier: a PF's link, without which some take no rate.
        device: nodes and netdevs of a driver that has taken a VF.
        close: a program that has a VF open still, as it ends.
        udev: udev, which may set owner or name of a new device once.
    """

    carrier: float = 5
    device: float = 5
    close: float = 2
    udev: float = 2


class Locks:
    """A lock for each PF."""

    def __init__(self) -> None:
        self._locks: dict[str, threading.Lock] = {}
        self._one = threading.Lock()

    def of(self, pf_address: str) -> threading.Lock:
        """Give the lock of a PF."""
        with self._one:
            return self._locks.setdefault(pf_address, threading.Lock())


class Hardware(NamedTuple):
    """What there is to work with.

    Args:
        inventory: what sysfs shows.
        bus: what is written to it.
        nodes: the VFIO nodes.
        marks: whose a VF is.
        locks: one for each PF.
        stranded: endpoints that failed and whose VF couldn't be given back: nobody else is going to ask for that again.
        libvirt: where libvirt keeps what it knows of VFs that it has (src/util/virnetdev.c, virNetDevSaveNetConfig).
        udev: where udev keeps what it knows.
        patience: how long to wait.
    """

    inventory: Inventory
    bus: PciBus
    nodes: VfioNodes
    marks: Marks
    locks: Locks
    stranded: set[str]
    libvirt: Path = Path("/run/libvirt/hostdevmgr")
    udev: Path = Path("/run/udev")
    patience: Patience = Patience()

    @classmethod
    def prepare(cls, device_dir: Path) -> Hardware:
        """Get ready. Call it as root, with what capabilities there are.

        Args:
            device_dir: where vifd keeps what goes with a new start of the host.

        Raises:
            HardwareError: no VF can be used.
        """
        for path in _WRITTEN:
            if path.exists() and os.statvfs(path).f_flag & os.ST_RDONLY:
                raise HardwareError(
                    f"driver sriov takes a {path} that vifd may write, and it is mounted read-only (systemd/sriov.conf)"
                )
        try:
            return cls(Inventory(), PciBus(), VfioNodes(), Marks.prepare(device_dir), Locks(), set())
        except MarksError as error:
            raise HardwareError(str(error)) from error

    def close(self) -> None:
        """Let go of it, in a process that must not have it."""
        self.bus.close()
        self.marks.close()

    def wait_for_udev(self, device: str) -> None:
        """Wait until udev has seen a new device, where there is udev; if it takes too long, a check finds what it did later.

        Args:
            device: as udev calls it: "n7" the netdev of index 7, "c10:200" a character device.
        """
        if (self.udev / "control").exists():
            wait_for((self.udev / "data" / device).exists, self.patience.udev)


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for what no event tells: sysfs has none for most of its attributes. What takes longer is asked for less often.

    Returns:
        Whether it came in time.
    """
    deadline, poll_s = time.monotonic() + seconds, _FIRST_POLL_S
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(poll_s)
        poll_s = min(poll_s * _POLL_FACTOR, _LAST_POLL_S)
    return True
