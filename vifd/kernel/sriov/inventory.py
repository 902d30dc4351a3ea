"""PFs and VFs as sysfs shows them (Documentation/ABI/testing/sysfs-bus-pci). It only reads, so it runs in both processes.

A netdev is shown only to the network namespace that it is in: one of a VF that was moved to another is as if it weren't there.
"""

from __future__ import annotations

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
_IFF_UP = 1
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
        numa_node: -1: the host doesn't say.
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
        self._sysfs = sysfs

    def find_pf(self, name: str) -> PhysicalFunction | None:
        """Find a PF; None: there is none, see `explain_pf`.

        Args:
            name: its netdev's name, or its PCI address.
        """
        address = self._address_of(name)
        total_vfs = _read_number(self._device(address) / "sriov_totalvfs", 0) if address else 0
        if not total_vfs:
            return None
        device = self._device(address)
        ifname = _find_ifname(device)
        netdev = device / "net" / ifname
        return PhysicalFunction(
            address=address,
            ifname=ifname,
            numa_node=_read_number(device / "numa_node", -1),
            total_vfs=total_vfs,
            vf_count=_read_number(device / "sriov_numvfs", 0),
            up=bool(ifname) and bool(_read_number(netdev / "flags", 0) & _IFF_UP),
            carrier=bool(ifname) and _read_number(netdev / "carrier", 0) == 1,
            switchdev=any(_vf_of(one) is not None for one in _list(device / "net")),
        )

    def explain_pf(self, name: str) -> str:
        """Say why `find_pf` finds none, as a sentence."""
        address = self._address_of(name)
        if not address:
            is_there = names.is_ifname(name) and (self._sysfs / "class/net" / name).exists()
            return f"PF {name} is no PCI device" if is_there else f"PF {name} isn't there"
        if (pf := _target(self._device(address) / "physfn")) is not None:
            return f"{name} is a VF, of PF {pf.name}; name the PF"
        return f"{name} has no SR-IOV: its hardware, its firmware's settings or its driver don't offer any VF"

    def functions(self, pf: PhysicalFunction) -> list[Function]:
        """List the VFs of a PF, by their number."""
        found = [self._function(device, index, pf.ifname) for index, device in sorted(self._vfs(pf.address).items())]
        return [function for function in found if function is not None]

    def find(self, address: str) -> Function | None:
        """Find a VF by its PCI address; None: there is none."""
        if not is_address(address) or (pf := _target(self._device(address) / "physfn")) is None:
            return None
        # Which number a VF has on its PF, that alone says, in the names of its links.
        index = next((index for index, device in self._vfs(pf.name).items() if device.name == address), -1)
        return self._function(self._device(address), index, _find_ifname(self._device(pf.name))) if index >= 0 else None

    def find_representor(self, function: Function) -> str:
        """Find the netdev of the port that a VF has at its NIC's switch; empty: there is none in this namespace.

        By sysfs, which anybody may read: devlink tells it the mode of a switch to CAP_NET_ADMIN alone, and some drivers' switches
        have an id in every mode (net/devlink/port.c, devlink_compat_phys_port_name_get and devlink_compat_switch_id_get).
        """
        netdevs = self._device(function.pf_address) / "net"
        switch = _read(netdevs / function.pf_ifname / "phys_switch_id") if function.pf_ifname else ""
        found = (path for path in _list(netdevs) if _vf_of(path) == function.vf_index)
        return next((path.name for path in found if switch and _read(path / "phys_switch_id") == switch), "")

    def allowed(self, grant: FunctionGrant) -> list[Function]:
        """List the VFs that a network may use: those of its PFs that are here, but for the excluded ones."""
        found = dict[str, Function]()
        for name in grant.pfs:
            if (pf := self.find_pf(name)) is not None:
                found |= {one.address: one for one in self.functions(pf) if allows(grant, one.address)}
        return list(found.values())

    def shows(self, ifname: str, ifindex: int) -> bool:
        """Tell whether a netdev of this name has this index here: sysfs may show another network namespace than the process's."""
        return names.is_ifname(ifname) and _read_number(self._sysfs / "class/net" / ifname / "ifindex", 0) == ifindex

    def find_upper(self, ifname: str) -> str:
        """Name something that stands on a netdev, like a VLAN or a macvlan; empty: nothing does (net/core/dev.c,
        netdev_adjacent_sysfs_add).
        """
        links = [path.name for path in _list(self._sysfs / "class/net" / ifname) if path.name.startswith(_UPPER)]
        return links[0].removeprefix(_UPPER) if links else ""

    def _function(self, device: Path, index: int, pf_ifname: str) -> Function | None:
        """Read a VF; None: it went away meanwhile."""
        if (pf := _target(device / "physfn")) is None:
            return None
        group, driver = _target(device / "iommu_group"), _target(device / "driver")
        return Function(
            address=device.name,
            pf_address=pf.name,
            pf_ifname=pf_ifname,
            vf_index=index,
            iommu_group=int(group.name) if group is not None else -1,
            driver=driver.name if driver is not None else "",
            ifname=_find_ifname(device),
            numa_node=_read_number(device / "numa_node", -1),
        )

    def _vfs(self, pf_address: str) -> dict[int, Path]:
        """Give the VFs of a PF, by their number."""
        links = [path for path in _list(self._device(pf_address)) if path.name.startswith(_VF_LINK)]
        targets = {int(link.name.removeprefix(_VF_LINK)): _target(link) for link in links}
        return {index: self._device(target.name) for index, target in targets.items() if target is not None}

    def _address_of(self, name: str) -> str:
        """Give the PCI address of what a name means; empty: there is no such PCI device."""
        if not is_address(name):
            target = _target(self._sysfs / "class/net" / name / "device") if names.is_ifname(name) else None
            name = target.name if target is not None else ""
        return name if is_address(name) and self._device(name).exists() else ""

    def _device(self, address: str) -> Path:
        return self._sysfs / "bus/pci/devices" / address


def allows(grant: FunctionGrant, address: str) -> bool:
    """Tell whether a network may use a VF of one of its PFs."""
    return address not in grant.exclude and (not grant.addresses or address in grant.addresses)


def _find_ifname(device: Path) -> str:
    """Give the netdev of a PCI function. A PF whose switch is in mode switchdev has its VFs' representors beside its own."""
    return next((path.name for path in _list(device / "net") if not _is_representor(path)), "")


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


def _vf_of(netdev: Path) -> int | None:
    """Give the number of the VF whose representor a netdev is; None: it is no VF's of this host."""
    found = _OF_VF.fullmatch(_read(netdev / "phys_port_name"))
    return int(found[2]) if found is not None else None


def _is_representor(netdev: Path) -> bool:
    return _REPRESENTOR.fullmatch(_read(netdev / "phys_port_name")) is not None


def _list(directory: Path) -> Iterator[Path]:
    try:
        yield from sorted(directory.iterdir())
    except OSError:
        return


def _target(link: Path) -> Path | None:
    """Give where a link of sysfs leads; None: there is none."""
    try:
        return link.parent / link.readlink()
    except OSError:
        return None


def _read(path: Path) -> str:
    """Read an attribute; empty where it isn't there, or has nothing to say, as the carrier of what is down."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _read_number(path: Path, default: int) -> int:
    text = _read(path)
    try:
        return int(text, 0)
    except ValueError:
        return default
