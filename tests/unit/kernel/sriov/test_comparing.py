"""What differs of a VF from what was made of it."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from tests.support.messages import ID, endpoint_id
from tests.support.sriov_host import FakeHost, FakeNic, no_guards, vf_address
from vifd.kernel import names
from vifd.kernel.authority import FunctionGrant
from vifd.kernel.ops import BindFunction, ClaimFunction, FunctionMade
from vifd.kernel.sriov.comparing import FunctionChecker
from vifd.kernel.sriov.functions import Functions
from vifd.kernel.sriov.settings import LinkState, VfSettings
from vifd.model import Drift, DriftKind, Kind, Limits, PciHostDriver, Port, RateLimit, Vlan

VF = vf_address("eth0", 0)
MAC = "52:54:00:12:34:56"
PORT = Port(MAC, vlan=Vlan(7), limits=Limits(from_vm=RateLimit(rate_bps=100_000_000)))
CLAIM = ClaimFunction(ID, "net", VF, PORT)
BIND = BindFunction(ID, "net", VF, PciHostDriver.VFIO, 1000, None)
TO_KERNEL = replace(BIND, host_driver=PciHostDriver.KERNEL)
NAME = names.device_name(Kind.PCI, ID)


def make(host: FakeHost, bind: BindFunction = BIND) -> None:
    own = Functions(host.open(), FakeNic(host), no_guards())
    assert own.claim(CLAIM, FunctionGrant(("eth0",))) == 1500
    assert isinstance(own.bind(bind, PORT), FunctionMade)


def drifts(host: FakeHost, bind: BindFunction = BIND) -> list[Drift]:
    return FunctionChecker(host.open(), FakeNic(host)).compare(CLAIM, bind)


def told(host: FakeHost, **fields: object) -> None:
    host.settings["eth0", 0] = replace(host.settings["eth0", 0], **fields)


def netdev(host: FakeHost, **fields: object) -> None:
    host.netdevs[NAME] = host.netdevs[NAME]._replace(**fields)


@pytest.mark.parametrize("bind", [BIND, TO_KERNEL])
def test_what_was_just_made_differs_in_nothing(host: FakeHost, bind: BindFunction) -> None:
    make(host, bind)
    assert drifts(host, bind) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda h: told(h, mac="02:00:00:00:00:02"), (DriftKind.MAC, MAC, "02:00:00:00:00:02")),
        (lambda h: told(h, vid=8), (DriftKind.VLAN, "7, priority 0, 802.1q", "8, priority 0, 802.1q")),
        (lambda h: told(h, vid=0), (DriftKind.VLAN, "7, priority 0, 802.1q", "none")),
        (lambda h: told(h, spoof_check=False), (DriftKind.GUARD, "on", "off")),
        (lambda h: told(h, trusted=True), (DriftKind.GUARD, "off", "on")),
        (lambda h: told(h, max_rate_mbps=0), (DriftKind.LIMITS, "0 to 100 Mbit/s", "0 to any Mbit/s")),
        (lambda h: told(h, link_state=LinkState.DOWN), (DriftKind.LINK_STATE, "auto", "down")),
        (lambda h: h.node_owners.update({10: (0, 0o600)}), (DriftKind.OWNER, "uid 1000, mode 600", "uid 0, mode 600")),
        (lambda h: h.node_owners.update({10: (1000, 0o666)}), (DriftKind.OWNER, "uid 1000, mode 600", "uid 1000, mode 666")),
        (lambda h: h.node_owners.clear(), (DriftKind.OWNER, "uid 1000", "")),
        (lambda h: h.unbind(VF), (DriftKind.BINDING, "vfio-pci", "no driver")),
        (lambda h: (h.unbind(VF), h.bind(VF, "igbvf")), (DriftKind.BINDING, "vfio-pci", "igbvf")),
        (lambda h: h.sysfs.remove(VF), (DriftKind.DEVICE_MISSING, VF, "")),
        (lambda h: h.open().marks.discard(VF), (DriftKind.DEVICE_MISSING, VF, "")),
        (lambda h: h.netdevs.update(eth0=h.netdevs["eth0"]._replace(up=False)), (DriftKind.NETWORK_MISSING, "up", "down")),
        (lambda h: h.netdevs.pop("eth0"), (DriftKind.NETWORK_MISSING, "", "")),
    ],
)
def test_what_somebody_changed_of_a_vf_is_told(host: FakeHost, change: Callable[[FakeHost], object], expected: object) -> None:
    make(host)
    change(host)
    (drift,) = drifts(host)
    assert (drift.kind, drift.expected, drift.actual) == expected
    assert drift.message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda h: netdev(h, mac="02:00:00:00:00:02"), (DriftKind.MAC, MAC, "02:00:00:00:00:02")),
        (lambda h: netdev(h, mtu_bytes=1400), (DriftKind.MTU, "1500", "1400")),
        (lambda h: netdev(h, up=False), (DriftKind.LINK_STATE, "up", "down")),
        (lambda h: h.rename(VF, h.netdevs[NAME]._replace(ifname="lan7")), (DriftKind.NAME, NAME, "lan7")),
        (lambda h: h.unbind(VF), (DriftKind.BINDING, "the kernel's driver", "no driver")),
    ],
)
def test_what_somebody_changed_of_its_netdev_is_told(
    host: FakeHost, change: Callable[[FakeHost], object], expected: object
) -> None:
    make(host, TO_KERNEL)
    change(host)
    (drift,) = drifts(host, TO_KERNEL)
    assert (drift.kind, drift.expected, drift.actual) == expected


def test_a_netdev_that_its_user_moved_elsewhere_is_no_drift(host: FakeHost) -> None:
    make(host, TO_KERNEL)
    host.sysfs.remove_netdev(VF)
    assert drifts(host, TO_KERNEL) == []


def test_a_vf_that_is_anothers_by_now_is_missing(host: FakeHost) -> None:
    own = Functions(host.open(), FakeNic(host), no_guards())
    own.claim(replace(CLAIM, endpoint_id=endpoint_id(1)), FunctionGrant(("eth0",)))
    (drift,) = drifts(host)
    assert drift.kind is DriftKind.DEVICE_MISSING


def test_what_cant_be_looked_at_is_told(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    make(host)

    def refuse(*_: object) -> VfSettings:
        raise OSError(errno.ENODEV, "no")

    monkeypatch.setattr(FakeNic, "read_vf", refuse)
    (drift,) = drifts(host)
    assert (drift.kind, drift.message) == (DriftKind.BINDING, f"VF {VF} can't be looked at: No such device")


def test_without_anything_to_work_with_every_vf_is_missing() -> None:
    checker = FunctionChecker("takes a restart", FakeNic(None))
    assert checker.compare(CLAIM, BIND) == [Drift(DriftKind.DEVICE_MISSING, VF, "", "takes a restart")]
