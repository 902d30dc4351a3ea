"""The machine's network cards with SR-IOV: set up for a test, read back with `ip` and sysfs, and opened as a hypervisor does."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.asking import make
from vifclient import Client
from vifclient.messages import Endpoint, EndpointPreference, PciHostDriver, PciPreference

PCI = Path("/sys/bus/pci/devices")
FIRST_PF, SECOND_PF = "eth0", "eth1"
VFIO = [EndpointPreference(pci=PciPreference(host_driver=PciHostDriver.PCI_HOST_DRIVER_VFIO))]
KERNEL = [EndpointPreference(pci=PciPreference(host_driver=PciHostDriver.PCI_HOST_DRIVER_KERNEL))]
#: Takes a VF's IOMMU group as a hypervisor does (linux/vfio.h), as a user and group without anything; prints "open", and keeps it
#: open until its input ends.
_OPENER = """
import ctypes, fcntl, os, struct, sys
group, address, uid = sys.argv[1], sys.argv[2], int(sys.argv[3])
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
container, node = os.open("/dev/vfio/vfio", os.O_RDWR), os.open(group, os.O_RDWR)
status = bytearray(struct.pack("II", 8, 0))
fcntl.ioctl(node, 0x3B67, status)
assert struct.unpack("II", status)[1] & 1, "the group isn't viable"
fcntl.ioctl(node, 0x3B68, struct.pack("i", container))
fcntl.ioctl(container, 0x3B66, 1)
device = fcntl.ioctl(node, 0x3B6A, address.encode() + b"\\0")
print("open", flush=True)
sys.stdin.read()
"""


def make_vf(client: Client, endpoint_id: str = "", *, acceptable: Any = VFIO, **fields: Any) -> Endpoint:
    """Request a VF of the network "fast"."""
    return make(client, endpoint_id, network="fast", acceptable=acceptable, **fields)


def pfs() -> list[str]:
    """The netdevs of the machine's PFs."""
    return sorted(path.parents[1].name for path in Path("/sys/class/net").glob("*/device/sriov_totalvfs"))


def pf_address(pf: str) -> str:
    """The PCI address of a PF."""
    return Path(f"/sys/class/net/{pf}/device").readlink().name


def set_count(pf: str, count: int) -> None:
    """Give a PF another number of VFs; those that it has go first."""
    path = PCI / pf_address(pf) / "sriov_numvfs"
    path.write_text("0")
    if count:
        path.write_text(str(count))


def count(pf: str) -> int:
    """How many VFs a PF has."""
    return int((PCI / pf_address(pf) / "sriov_numvfs").read_text())


def addresses(pf: str) -> list[str]:
    """The VFs of a PF, by their number."""
    links = sorted((PCI / pf_address(pf)).glob("virtfn*"), key=lambda path: int(path.name[6:]))
    return [link.readlink().name for link in links]


def driver(address: str) -> str:
    """What a VF is bound to."""
    try:
        return (PCI / address / "driver").readlink().name
    except FileNotFoundError:
        return ""


def ifname(address: str) -> str:
    """The netdev of a VF; empty: it has none here."""
    return next((path.name for path in (PCI / address).glob("net/*")), "")


def told(pf: str, index: int) -> dict[str, Any]:
    """What `ip` says that a PF knows of a VF."""
    done = subprocess.run(["ip", "-d", "-j", "link", "show", "dev", pf], check=True, capture_output=True, text=True)
    return next(vf for vf in json.loads(done.stdout)[0]["vfinfo_list"] if vf["vf"] == index)


def state(pf: str) -> list[Any]:
    """All that vifd could have changed of a PF's VFs, but for MACs: igbvf chooses one at random."""
    found = []
    for index, address in enumerate(addresses(pf)):
        known = {key: value for key, value in told(pf, index).items() if key not in ("mac", "address", "broadcast")}
        override = (PCI / address / "driver_override").read_text()
        found.append((address, driver(address), override, bool(ifname(address)), known))
    return found


def node(address: str) -> Path:
    """The node of a VF's IOMMU group."""
    return Path("/dev/vfio", (PCI / address / "iommu_group").readlink().name)


@contextlib.contextmanager
def opened(address: str, uid: int) -> Iterator[subprocess.Popen[str]]:
    """Have a user's process open a VF for the time of a block.

    Raises:
        AssertionError: it can't; the text says why.
    """
    argv = [sys.executable, "-I", "-S", "-c", _OPENER, str(node(address)), address, str(uid)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        said = process.stdout.readline()
        assert said == "open\n", process.stderr.read()
        yield process
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()
        process.stderr.close()
