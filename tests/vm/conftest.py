"""The emulated machine's hardware. Elsewhere these tests are skipped."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.switchdev import Card, switchdev_card
from tests.vm.machine import CARDS

_NETWORK = Path("/sys/class/net")


class PhysicalFunction(NamedTuple):
    """A network card that can have virtual functions; both are on one wire.

    Args:
        ifname: Its name in the host's namespace.
        address: On the PCI bus, `0000:01:00.0`.
    """

    ifname: str
    address: str

    @property
    def device(self) -> Path:
        """Its directory in sysfs."""
        return Path("/sys/bus/pci/devices", self.address)


def _find(mac: str) -> PhysicalFunction | None:
    for entry in _NETWORK.iterdir():
        if (entry / "address").read_text().strip() == mac and (entry / "device/sriov_totalvfs").exists():
            return PhysicalFunction(entry.name, (entry / "device").resolve().name)
    return None


@pytest.fixture(scope="session")
def physical_functions() -> Sequence[PhysicalFunction]:
    """The machine's network cards."""
    found = [_find(mac) for mac in CARDS]
    if None in found:
        pytest.skip("this isn't the emulated machine: run 'make test-vm'")
    return [one for one in found if one is not None]


@pytest.fixture(scope="module")
def card(physical_functions: Sequence[PhysicalFunction]) -> Iterator[Card]:
    """A card with two VFs whose switch is in mode switchdev, beside the machine's own."""
    assert physical_functions
    subprocess.run(["modprobe", "netdevsim"], check=True)
    with switchdev_card() as one:
        yield one
