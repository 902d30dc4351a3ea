"""PFs and VFs as sysfs shows them (Documentation/ABI/testing/sysfs-bus-pci). It only reads, so it runs in both processes.

A netdev is shown only to the network namespace that it is in: one of a VF that was moved to another is as if it weren't there.

The front reads in its event loop, with hundreds of VFs while somebody waits: so what is read of each VF is read without pathlib,
which takes ten times as long as the kernel.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from vifd.kernel import names
from vifd.kernel.authority import FunctionGrant

#: What a switch calls the port of a VF or of a scalable function (Documentation/networking/devlink/devlink-port.rst): no PF's.
_REPRESENTOR = re.compile(r"(c\d+)?(pf\d+)?(vf|sf)\d+")
#: The same of a VF of this host: one with a controller's number is of another host's, that the card is in as well.
_OF_VF = re.compile(r"(pf\d+)?vf(\d+)")
_IFF_UP, _PAGE_BYTES = 1, 4096
_VF_LINK, _UPPER = "virtfn", "upper_"


class PhysicalFunction(Struct, frozen=True):
    """A NIC's PF.

    Args:
        address: its PCI address.
        ifname: its netdev; empty: it has none in this namespace.
        numa_node: -1: the host doesn't say.
        total_vfs: how many VFs it can have.
        vf_count: how many it has.
        up: whether its netdev is set up.
        carrier: whether that has a link.
        switchdev: whether its switch is in mode switchdev: the host has a representor for a VF. Without VFs nobody can tell.
    """

    address: str
    ifname: str
    numa_node: int
    total_vfs: int
    vf_count: int
    up: bool
    carrier: bool
    switchdev: bool = False


class Slot(Struct, frozen=True):
    """A VF as its PF tells of it: no look was taken at the VF itself.

    Args:
        address: its PCI address.
        pf_address: that of its PF.
        vf_index: its number on its PF.
        numa_node: the PF's; -1: the host doesn't say.
    """

    address: str
    pf_address: str
    vf_index: int
    numa_node: int


class Function(Struct, frozen=True):
    """A VF.

    Args:
        address: its PCI address.
        pf_address: that of its PF.
        pf_ifname: its PF's netdev; empty: that has none in this namespace.
        vf_index: its number on its PF.
        iommu_group: -1: none.
        driver: what it is bound to; empty: nothing.
        ifname: its netdev; empty: it has none in this namespace.
        numa_node: the PF's; -1: the host doesn't say.
    """

    address: str
    pf_address: str
    pf_ifname: str
    vf_index: int
    iommu_group: int
    driver: str
    ifname: str
    numa_node: int


def is_address(text: str) -> bool:
    """Tell whether a text is the address of a PCI function; see `names.is_pci_address`."""
    return names.is_pci_address(text)


class Inventory:
    """The PFs and VFs of this host.

    Args:
        sysfs: where it is mounted.
    """

    def __init__(self, sysfs: Path = Path("/sys")) -> None:
        self._sysfs, self._devices = sysfs, sysfs / "bus/pci/devices"

    def find_pf(self, name: str) -> PhysicalFunction | None:
        """Find a PF; None: there is none, see `explain_pf`.

        Args:
            name: its netdev's name, or its PCI address.
        """
        address = self._address_of(name)
        device = f"{self._devices}/{address}"
        total_vfs = _read_number(f"{device}/sriov_totalvfs", 0) if address else 0
        if not total_vfs:
            return None
        ifname = _find_ifname(device)
        netdev = f"{device}/net/{ifname}"
        return PhysicalFunction(
            address=address,
            ifname=ifname,
            numa_node=_read_number(f"{device}/numa_node", -1),
            total_vfs=total_vfs,
            vf_count=_read_number(f"{device}/sriov_numvfs", 0),
            up=bool(ifname) and bool(_read_number(f"{netdev}/flags", 0) & _IFF_UP),
            carrier=bool(ifname) and _read_number(f"{netdev}/carrier", 0) == 1,
            switchdev=any(_vf_of(f"{device}/net/{one}") is not None for one in _names(f"{device}/net")),
        )

    def find_pfs(self, grant: FunctionGrant) -> list[PhysicalFunction]:
        """Find the PFs of a network that are here, each once."""
        return list({pf.address: pf for name in grant.pfs if (pf := self.find_pf(name)) is not None}.values())

    def explain_pf(self, name: str) -> str:
        """Say why `find_pf` finds none, as a sentence."""
        address = self._address_of(name)
        if not address:
            is_there = names.is_ifname(name) and (self._sysfs / "class/net" / name).exists()
            return f"PF {name} is no PCI device" if is_there else f"PF {name} isn't there"
        if pf := self.find_pf_address(address):
            return f"{name} is a VF, of PF {pf}; name the PF"
        return f"{name} has no SR-IOV: its hardware, its firmware's settings or its driver don't offer any VF"

    def functions(self, pf: PhysicalFunction) -> list[Function]:
        """List the VFs of a PF, by their number."""
        return [one for slot in self.slots(pf) if (one := self._function(slot, pf.ifname)) is not None]

    def slots(self, pf: PhysicalFunction) -> list[Slot]:
        """List the VFs of a PF, by their number, without a look at each."""
        return [Slot(address, pf.address, index, pf.numa_node) for index, address in sorted(self._vfs(pf.address))]

    def find(self, address: str) -> Function | None:
        """Find a VF by its PCI address; None: there is none."""
        if not (pf := self.find_pf_address(address)):
            return None
        # Which number a VF has on its PF, that alone says, in the names of its links.
        index = next((index for index, one in self._vfs(pf) if one == address), -1)
        device = f"{self._devices}/{pf}"
        slot = Slot(address, pf, index, _read_number(f"{device}/numa_node", -1))
        return self._function(slot, _find_ifname(device)) if index >= 0 else None

    def find_representor(self, function: Function) -> str:
        """Find the netdev of the port that a VF has at its NIC's switch; empty: there is none in this namespace.

        By sysfs, which anybody may read: devlink tells it the mode of a switch to CAP_NET_ADMIN alone, and some drivers' switches
        have an id in every mode (net/devlink/port.c, devlink_compat_phys_port_name_get and devlink_compat_switch_id_get).
        """
        netdevs = f"{self._devices}/{function.pf_address}/net"
        switch = _read(f"{netdevs}/{function.pf_ifname}/phys_switch_id") if function.pf_ifname else ""
        found = (name for name in _names(netdevs) if _vf_of(f"{netdevs}/{name}") == function.vf_index)
        return next((name for name in found if switch and _read(f"{netdevs}/{name}/phys_switch_id") == switch), "")

    def find_pf_address(self, address: str) -> str:
        """Give the address of a VF's PF; empty: there is no such VF."""
        return _target(self._device(address) / "physfn") if is_address(address) else ""

    def has_iommu(self, slot: Slot) -> bool:
        """Tell whether a VF is in an IOMMU group."""
        return bool(_target(self._device(slot.address) / "iommu_group"))

    def allowed(self, grant: FunctionGrant) -> list[Slot]:
        """List the VFs that a network may use: those of its PFs that are here, but for the excluded ones."""
        return [slot for pf in self.find_pfs(grant) for slot in self.slots(pf) if allows(grant, slot.address)]

    def shows(self, ifname: str, ifindex: int) -> bool:
        """Tell whether a netdev of this name has this index here: sysfs may show another network namespace than the process's."""
        return names.is_ifname(ifname) and _read_number(self._sysfs / "class/net" / ifname / "ifindex", 0) == ifindex

    def find_upper(self, ifname: str) -> str:
        """Name something that stands on a netdev, like a VLAN or a macvlan; empty: nothing does (net/core/dev.c,
        netdev_adjacent_sysfs_add).
        """
        links = [name for name in _names(self._sysfs / "class/net" / ifname) if name.startswith(_UPPER)]
        return links[0].removeprefix(_UPPER) if links else ""

    def _function(self, slot: Slot, pf_ifname: str) -> Function | None:
        """Read a VF; None: it went away meanwhile."""
        device = f"{self._devices}/{slot.address}"
        if not _target(f"{device}/physfn"):
            return None
        return Function(
            address=slot.address,
            pf_address=slot.pf_address,
            pf_ifname=pf_ifname,
            vf_index=slot.vf_index,
            iommu_group=int(_target(f"{device}/iommu_group") or -1),
            driver=_target(f"{device}/driver"),
            ifname=next(iter(_names(f"{device}/net")), ""),
            numa_node=slot.numa_node,
        )

    def _vfs(self, pf_address: str) -> Iterator[tuple[int, str]]:
        """Give the VFs of a PF: the number and the address of each."""
        device = f"{self._devices}/{pf_address}"
        for name in _names(device):
            if name.startswith(_VF_LINK) and (address := _target(f"{device}/{name}")):
                yield int(name.removeprefix(_VF_LINK)), address

    def _address_of(self, name: str) -> str:
        """Give the PCI address of what a name means; empty: there is no such PCI device."""
        if not is_address(name):
            name = _target(self._sysfs / "class/net" / name / "device") if names.is_ifname(name) else ""
        return name if is_address(name) and self._device(name).exists() else ""

    def _device(self, address: str) -> Path:
        return self._devices / address


def allows(grant: FunctionGrant, address: str) -> bool:
    """Tell whether a network may use a VF of one of its PFs."""
    return address not in grant.exclude and (not grant.addresses or address in grant.addresses)


def _find_ifname(device: str) -> str:
    """Give the netdev of a PCI function. A PF whose switch is in mode switchdev has its VFs' representors beside its own."""
    return next((name for name in _names(f"{device}/net") if not _is_representor(f"{device}/net/{name}")), "")


def explain_mode(name: str, pf: PhysicalFunction, bridge: str) -> str:
    """Say why the mode of a PF's switch isn't what a network needs; empty: it is, or the PF has no VFs yet.

    Args:
        name: what to call the PF.
        pf: the PF.
        bridge: the bridge that the network has for representors; empty: none.
    """
    if pf.switchdev and not bridge:
        return f"the switch of PF {name} is in mode switchdev: name the bridge that the representors of its VFs go to (bridge)"
    if bridge and pf.vf_count and not pf.switchdev:
        command = f"devlink dev eswitch set pci/{pf.address} mode switchdev"
        return f"the switch of PF {name} isn't in mode switchdev, so no representor can go to bridge {bridge}: {command}"
    return ""


def is_representor_name(port_name: str) -> bool:
    """Tell whether a switch calls the port of a VF of this host so."""
    return _OF_VF.fullmatch(port_name) is not None


def _vf_of(netdev: str) -> int | None:
    """Give the number of the VF whose representor a netdev is; None: it is no VF's of this host."""
    found = _OF_VF.fullmatch(_read(f"{netdev}/phys_port_name"))
    return int(found[2]) if found is not None else None


def _is_representor(netdev: str) -> bool:
    return _REPRESENTOR.fullmatch(_read(f"{netdev}/phys_port_name")) is not None


def _names(directory: Path | str) -> list[str]:
    """List a directory of sysfs; empty: there is none."""
    try:
        return sorted(os.listdir(directory))  # noqa: PTH208  see the module
    except OSError:
        return []


def _target(link: Path | str) -> str:
    """Give the name of what a link of sysfs leads to; empty: there is none."""
    try:
        return os.readlink(link).rpartition("/")[2]  # noqa: PTH115  see the module
    except OSError:
        return ""


def _read(path: Path | str) -> str:
    """Read an attribute; empty where it isn't there, or has nothing to say, as the carrier of what is down."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, _PAGE_BYTES).decode(errors="replace").strip()
    except OSError:
        return ""
    finally:
        os.close(fd)


def _read_number(path: Path | str, default: int) -> int:
    text = _read(path)
    try:
        return int(text, 0)
    except ValueError:
        return default
