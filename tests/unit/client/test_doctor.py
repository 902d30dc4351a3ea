"""vifctl doctor: what it finds in a made-up sysfs, with a vifd and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.sysfs import FakeSysfs
from tests.unit.client.conftest import Vifctl
from tests.unit.client.fake_vifd import FakeVifd
from vifclient.messages import EndpointKind, KindOffer, Network, PhysicalFunction, VirtualFunction, VirtualFunctionState

PF, VFS = "0000:01:00.0", ("0000:01:10.0", "0000:01:10.2")


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeSysfs:
    """A host on which all is well."""
    made = FakeSysfs(tmp_path / "sys")
    made.add_pf(PF, "ens1f0")
    for index, address in enumerate(VFS):
        made.add_vf(PF, index, address, iommu_group=index + 5)
    (made.device(PF) / "sriov_drivers_autoprobe").write_text("1\n")
    (made.root / "bus/pci/drivers/vfio-pci").mkdir()
    return made


@pytest.fixture(autouse=True)
def fast(vifd: FakeVifd) -> Network:
    """A network of that host's PF."""
    pf = PhysicalFunction(ifname="ens1f0", address=PF, up=True, carrier=True, total_vfs=7)
    pf.virtual_functions.extend(VirtualFunction(address=address) for address in VFS)
    offer = KindOffer(kind=EndpointKind.ENDPOINT_KIND_PCI, available=True)
    network = Network(name="fast", network_driver="sriov", physical_functions=[pf], offers=[offer])
    vifd.more_networks = [network]
    return network


class Doctor:
    def __init__(self, vifctl: Vifctl, sysfs: FakeSysfs, modules: Path) -> None:
        self._vifctl, self._places = vifctl, ("--sysfs", str(sysfs.root), "--modules", str(modules))

    def __call__(self, *options: str) -> Any:
        return self._vifctl("doctor", *self._places, *options)

    def findings(self) -> list[tuple[str, str, str]]:
        answer = self("--json")
        found = [(one["subject"], one["problem"], one["advice"]) for one in answer.json["findings"]]
        assert answer.status == bool(found)
        return found


@pytest.fixture
def doctor(vifctl: Vifctl, sysfs: FakeSysfs, tmp_path: Path) -> Doctor:
    (tmp_path / "modules").mkdir()
    return Doctor(vifctl, sysfs, tmp_path / "modules")


def test_where_all_is_well_it_says_so(doctor: Doctor) -> None:
    assert doctor.findings() == []
    answer = doctor()
    assert answer.status == 0
    assert answer.out.startswith("Nothing is wrong")


def test_a_finding_is_told_with_what_to_do(doctor: Doctor, sysfs: FakeSysfs) -> None:
    (sysfs.device(PF) / "sriov_drivers_autoprobe").write_text("0\n")
    answer = doctor()
    assert answer.status == 1
    problem, advice = answer.out.splitlines()
    assert problem.startswith("PF ens1f0: the kernel binds no driver")
    assert advice == f"  echo 1 > {sysfs.root}/bus/pci/devices/{PF}/sriov_drivers_autoprobe, before its VFs are made"


def test_a_card_that_doesnt_fit_its_network_is_told(doctor: Doctor, fast: Network) -> None:
    fast.physical_functions[0].message = "the switch of PF ens1f0 is in mode switchdev: name the bridge"
    ((subject, problem, advice),) = doctor.findings()
    assert (subject, problem) == ("PF ens1f0", fast.physical_functions[0].message)
    assert "let network fast and the card say the same" in advice


def test_a_vdpa_network_that_has_no_devices(doctor: Doctor, vifd: FakeVifd) -> None:
    words = "this kernel has no vDPA now: load its module (modprobe vdpa), and at each start"
    offers = [KindOffer(kind=EndpointKind.ENDPOINT_KIND_VDPA, available=available, message=words) for available in (False, True)]
    broken, well = (Network(name=f"quick{i}", network_driver="vdpa", offers=[offer]) for i, offer in enumerate(offers))
    vifd.more_networks = [*vifd.more_networks, broken, well]
    ((subject, problem, advice),) = doctor.findings()
    assert (subject, problem) == ("network quick0", words)
    assert "vdpa mgmtdev show" in advice


def test_no_iommu(doctor: Doctor, sysfs: FakeSysfs) -> None:
    for address in VFS:
        sysfs.remove(address)
    for group in (sysfs.root / "kernel/iommu_groups").iterdir():
        (group / "devices").rmdir()
        group.rmdir()
    (subject, problem, advice), *_ = doctor.findings()
    assert (subject, problem) == ("IOMMU", "none is switched on, and without one no VM gets a PCI device")
    assert "intel_iommu=on" in advice


@pytest.mark.parametrize(
    ("file", "problem", "advice"),
    [
        ("modules.dep", "the driver isn't loaded", "modprobe vfio-pci"),
        ("modules.builtin", "the driver isn't loaded", "modprobe vfio-pci"),
        ("", "this kernel has no such driver", "CONFIG_VFIO_PCI"),
    ],
)
def test_no_vfio_driver(doctor: Doctor, sysfs: FakeSysfs, tmp_path: Path, file: str, problem: str, advice: str) -> None:
    (sysfs.root / "bus/pci/drivers/vfio-pci").rmdir()
    if file:
        (tmp_path / "modules" / file).write_text("kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/drivers/vfio/vfio.ko.xz\n")
    ((subject, found, what_to_do),) = doctor.findings()
    assert (subject, found) == ("vfio-pci", problem)
    assert advice in what_to_do


def test_no_pf_at_all(doctor: Doctor, sysfs: FakeSysfs, vifd: FakeVifd) -> None:
    (sysfs.device(PF) / "sriov_totalvfs").unlink()
    (missing,) = vifd.more_networks[0].physical_functions
    missing.CopyFrom(PhysicalFunction(ifname="ens1f0", message="ens1f0 has no SR-IOV"))
    assert [(subject, problem) for subject, problem, _ in doctor.findings()] == [
        ("NICs", "none has SR-IOV"),
        ("PF ens1f0", "ens1f0 has no SR-IOV"),
    ]


def test_a_pf_of_the_configuration_that_is_missing(doctor: Doctor, fast: Network) -> None:
    fast.physical_functions.add(ifname="ens9f0", message="PF ens9f0 isn't there")
    ((subject, problem, advice),) = doctor.findings()
    assert (subject, problem) == ("PF ens9f0", "PF ens9f0 isn't there")
    assert "pfs of network fast" in advice


def test_a_pf_without_vfs(doctor: Doctor, sysfs: FakeSysfs, fast: Network) -> None:
    (sysfs.device(PF) / "sriov_numvfs").write_text("0\n")
    fast.offers[0].available, fast.offers[0].message = False, "network fast has no VF: PF ens1f0 has no VFs"
    (subject, problem, advice), (network, unavailable, _) = doctor.findings()
    assert (subject, problem) == ("PF ens1f0", "it has no VFs")
    assert "vfs = N, N up to 7" in advice
    assert (network, unavailable) == ("network fast", "network fast has no VF: PF ens1f0 has no VFs")


@pytest.mark.parametrize(
    ("up", "problem", "advice"),
    [(False, "it is down, and with it its VFs", "ip link set ens1f0 up"), (True, "it has no carrier", "plug its cable in")],
)
def test_a_pf_that_carries_nothing(doctor: Doctor, fast: Network, up: bool, problem: str, advice: str) -> None:
    fast.physical_functions[0].up, fast.physical_functions[0].carrier = up, False
    ((subject, found, what_to_do),) = doctor.findings()
    assert (subject, what_to_do) == ("PF ens1f0", advice)
    assert found.startswith(problem)


def test_vfs_that_share_an_iommu_group(doctor: Doctor, sysfs: FakeSysfs) -> None:
    sysfs.add_function("0000:01:1f.0", iommu_group=5)
    ((subject, problem, advice),) = doctor.findings()
    assert (subject, problem) == ("PF ens1f0", "VFs share an IOMMU group with other devices: 0000:01:10.0")
    assert "ACS" in advice


def test_a_vf_in_quarantine(doctor: Doctor, fast: Network) -> None:
    one = fast.physical_functions[0].virtual_functions[1]
    one.state, one.message = VirtualFunctionState.VIRTUAL_FUNCTION_STATE_QUARANTINED, "it can't be reset: busy"
    ((subject, problem, advice),) = doctor.findings()
    assert (subject, problem) == (f"VF {VFS[1]}", "it can't be reset: busy")
    assert "tries again" in advice


def test_no_network_with_vfs(doctor: Doctor, vifd: FakeVifd) -> None:
    vifd.more_networks = []
    ((subject, problem, advice),) = doctor.findings()
    assert (subject, problem) == ("configuration", "no network that you may use has the driver sriov")
    assert 'driver = "sriov"' in advice


def test_without_vifd_it_looks_at_what_the_kernel_shows(
    vifctl: Vifctl, sysfs: FakeSysfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIFD_SOCKET", str(tmp_path / "none.sock"))
    sysfs.add_pf("0000:02:00.0", "ens2f0", up=False)
    sysfs.add_netdev("0000:02:00.0", "a0", up=True, port_name="pf0vf0")  # a port of the card's switch is not the card
    sysfs.add_vf("0000:02:00.0", 0, "0000:02:10.0", iommu_group=9)
    sysfs.add_pf("0000:03:00.0")
    found = Doctor(vifctl, sysfs, tmp_path).findings()
    assert [(subject, problem) for subject, problem, _ in found[1:]] == [
        ("PF ens2f0", "it is down, and with it its VFs"),
        ("PF 0000:03:00.0", "it has no VFs"),
        ("PF 0000:03:00.0", "it has no network device here"),
    ]
    assert found[0][0] == "vifd"
    assert "systemctl start vifd" in found[0][2]
