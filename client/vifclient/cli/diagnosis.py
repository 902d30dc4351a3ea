"""What keeps SR-IOV and vDPA from working on this host: found in sysfs, and in what vifd says of its networks."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vif.v1.endpoint_pb2 import ENDPOINT_KIND_PCI, ENDPOINT_KIND_VDPA
from vif.v1.host_service_pb2 import VIRTUAL_FUNCTION_STATE_QUARANTINED
from vifclient.messages import GetHostInfoResponse, Network, PhysicalFunction

_DRIVER, _VDPA_DRIVER = "sriov", "vdpa"
_PORT = re.compile(r"(c\d+)?(pf\d+)?(vf|sf)\d+")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong.

    Attributes:
        subject: What it is about: "IOMMU", a PF, a network.
        problem: What is wrong, a sentence.
        advice: What to do, a sentence.
    """

    subject: str
    problem: str
    advice: str


@dataclass(frozen=True, slots=True)
class Places:
    """Where the kernel tells of itself.

    Attributes:
        sysfs: Where sysfs is mounted.
        modules: The directory of the running kernel's modules.
    """

    sysfs: Path = Path("/sys")
    modules: Path = Path("/lib/modules") / os.uname().release


def find_problems(places: Places, info: GetHostInfoResponse | None) -> list[Finding]:
    """Find what keeps SR-IOV from working, and of vDPA what vifd says.

    Args:
        places: Where to look.
        info: What vifd says. None: it can't be asked, so that only what the kernel tells is looked at.

    Returns:
        What is wrong, what has to be done first at the beginning. Empty: nothing that is known.
    """
    findings = [*_check_iommu(places), *_check_vfio(places), *_check_any_pf(places)]
    if info is None:
        for address in _pf_addresses(places):
            findings += _check_pf(places, _name_of(places, address), address)
        return findings
    networks = [network for network in info.networks if network.network_driver == _DRIVER]
    if not networks:
        findings.append(
            Finding(
                "configuration",
                "no network that you may use has the driver sriov",
                'add one to /etc/vifd/vifd.toml, [networks.fast] with driver = "sriov" and pfs = ["..."], and reload vifd',
            )
        )
    for network in networks:
        findings += _check_network(places, network)
    for network in info.networks:
        findings += _check_vdpa(network)
    return findings


def _check_iommu(places: Places) -> Iterator[Finding]:
    if not any(_list(places.sysfs / "kernel/iommu_groups")):
        yield Finding(
            "IOMMU",
            "none is switched on, and without one no VM gets a PCI device",
            "switch VT-d or AMD-Vi on in the firmware's setup, and boot Linux with intel_iommu=on on an Intel host",
        )


def _check_vfio(places: Places) -> Iterator[Finding]:
    if (places.sysfs / "bus/pci/drivers/vfio-pci").exists():
        return
    known = any("/vfio-pci.ko" in _read(places.modules / name) for name in ("modules.dep", "modules.builtin"))
    if known:
        advice = "modprobe vfio-pci; for each boot, write a line vfio-pci into /etc/modules-load.d/vfio.conf"
        yield Finding("vfio-pci", "the driver isn't loaded", advice)
    else:
        yield Finding("vfio-pci", "this kernel has no such driver", "use a kernel with CONFIG_VFIO_PCI, as distributions' are")


def _check_any_pf(places: Places) -> Iterator[Finding]:
    if not _pf_addresses(places):
        yield Finding(
            "NICs",
            "none has SR-IOV",
            "switch SR-IOV on in the firmware's setup, and in the card's own if it has one; lspci -vv shows the capability",
        )


def _check_network(places: Places, network: Network) -> Iterator[Finding]:
    for pf in network.physical_functions:
        if not pf.address:
            advice = f"correct pfs of network {network.name}, or load the card's driver; ip link shows what there is"
            yield Finding(f"PF {pf.ifname}", pf.message or "it isn't there", advice)
            continue
        yield from _check_pf(places, pf.ifname or pf.address, pf.address, pf)
        if pf.message and pf.carrier and pf.virtual_functions:  # what else could be wrong with it, `_check_pf` says
            advice = f"let network {network.name} and the card say the same: vifd.toml, then systemctl reload vifd; or the card"
            yield Finding(f"PF {pf.ifname}", pf.message, advice)
        for function in pf.virtual_functions:
            if function.state == VIRTUAL_FUNCTION_STATE_QUARANTINED:
                advice = "end what has it open; vifd tries again by itself, and gives it to nobody before"
                yield Finding(f"VF {function.address}", function.message or "it can't be made as new", advice)
    unavailable = [offer for offer in network.offers if offer.kind == ENDPOINT_KIND_PCI and not offer.available]
    for offer in unavailable:
        yield Finding(f"network {network.name}", offer.message, "see above, then vifctl networks")


def _check_vdpa(network: Network) -> Iterator[Finding]:
    for offer in network.offers:
        if network.network_driver == _VDPA_DRIVER and offer.kind == ENDPOINT_KIND_VDPA and not offer.available:
            advice = "vdpa mgmtdev show lists what makes vDPA devices; correct management_devices, or load the card's driver"
            yield Finding(f"network {network.name}", offer.message, advice)


def _check_pf(places: Places, name: str, address: str, told: PhysicalFunction | None = None) -> Iterator[Finding]:
    """Check a PF that is there.

    Args:
        places: Where to look.
        name: What to call it.
        address: Its PCI address.
        told: What vifd says of it, which may be in another network namespace. None: what sysfs shows counts.
    """
    subject, device = f"PF {name}", places.sysfs / "bus/pci/devices" / address
    if _read(device / "sriov_numvfs") in ("", "0"):
        total = _read(device / "sriov_totalvfs") or "as many as it can have"
        advice = f"let its network say vfs = N, N up to {total}, and reload vifd; or echo N > {device / 'sriov_numvfs'}"
        yield Finding(subject, "it has no VFs", advice)
    if _read(device / "sriov_drivers_autoprobe") == "0":
        advice = f"echo 1 > {device / 'sriov_drivers_autoprobe'}, before its VFs are made"
        yield Finding(subject, "the kernel binds no driver to its VFs (sriov_drivers_autoprobe is 0)", advice)
    ifname = told.ifname if told is not None else _ifname(device)
    if not ifname:
        advice = "load the card's driver, or move the device back from the network namespace that it is in"
        yield Finding(subject, "it has no network device here", advice)
        return
    netdev = device / "net" / ifname
    up = told.up if told is not None else bool(int(_read(netdev / "flags") or "0", 16) & 1)
    carrier = told.carrier if told is not None else _read(netdev / "carrier") == "1"
    if not up:
        yield Finding(subject, "it is down, and with it its VFs", f"ip link set {ifname} up")
    elif not carrier:
        yield Finding(
            subject, "it has no carrier: its VFs reach nobody outside, and most cards limit no rates", "plug its cable in"
        )
    yield from _check_groups(places, subject, device)


def _check_groups(places: Places, subject: str, device: Path) -> Iterator[Finding]:
    """Find VFs that share an IOMMU group: then they can be passed through only together."""
    shared = []
    for link in sorted(device.glob("virtfn*")):
        group = link / "iommu_group"
        members = list(_list(places.sysfs / "kernel/iommu_groups" / group.resolve().name / "devices")) if group.exists() else []
        if len(members) > 1:
            shared.append(link.resolve().name)
    if shared:
        advice = "put the card into a slot whose PCIe port isolates what is behind it (ACS), or leave these VFs out (exclude)"
        yield Finding(subject, f"VFs share an IOMMU group with other devices: {', '.join(shared)}", advice)


def _pf_addresses(places: Places) -> Sequence[str]:
    devices = places.sysfs / "bus/pci/devices"
    return [name for name in _list(devices) if _read(devices / name / "sriov_totalvfs") not in ("", "0")]


def _name_of(places: Places, address: str) -> str:
    return _ifname(places.sysfs / "bus/pci/devices" / address) or address


def _ifname(device: Path) -> str:
    """Name the network device of a PF, beside which the ports of its switch may be (Documentation/networking/switchdev.rst)."""
    netdevs = [device / "net" / name for name in _list(device / "net")]
    return next((one.name for one in netdevs if not _PORT.fullmatch(_read(one / "phys_port_name"))), "")


def _list(directory: Path) -> Iterator[str]:
    """Name what is in a directory, in order; nothing where there is none."""
    try:
        names = sorted(path.name for path in directory.iterdir())
    except OSError:
        return
    yield from names


def _read(path: Path) -> str:
    """Read an attribute; empty where it isn't there, or the kernel has nothing to say (carrier of what is down)."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
