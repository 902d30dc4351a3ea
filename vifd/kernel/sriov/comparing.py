"""Compares VFs with what was made of them: the half that only looks."""

from __future__ import annotations

import os
from collections.abc import Iterator

from vifd.kernel import names, ops
from vifd.kernel.sriov.hardware import FunctionError, Hardware
from vifd.kernel.sriov.inventory import Function
from vifd.kernel.sriov.marks import Mark
from vifd.kernel.sriov.nic import Netdev, Nic
from vifd.kernel.sriov.pci import VFIO
from vifd.kernel.sriov.settings import Setting
from vifd.kernel.sriov.telling import Teller, told
from vifd.kernel.sriov.vfio import is_vfio
from vifd.model import Drift, DriftKind, Kind, PciHostDriver, Port

_KINDS = {
    Setting.VLAN: DriftKind.VLAN,
    Setting.MAC: DriftKind.MAC,
    Setting.SPOOF_CHECK: DriftKind.GUARD,
    Setting.TRUST: DriftKind.GUARD,
    Setting.RATE: DriftKind.LIMITS,
    Setting.LINK_STATE: DriftKind.LINK_STATE,
}
_UP = ("down", "up")


class FunctionChecker:
    """Finds drifts of VFs.

    Args:
        hardware: what there is to look at; or why there is nothing.
        nic: rtnetlink.
    """

    def __init__(self, hardware: Hardware | str, nic: Nic) -> None:
        self._prepared, self._nic = hardware, nic

    def compare(self, claim: ops.ClaimFunction, bind: ops.BindFunction | None) -> list[Drift]:
        """Compare one VF.

        Args:
            claim: what took it, with the port as it is to be.
            bind: what bound it.
        """
        if isinstance(self._prepared, str):
            return [Drift(DriftKind.DEVICE_MISSING, claim.address, "", self._prepared)]
        try:
            return list(self._compare(self._prepared, claim, bind))
        except FunctionError as error:
            return [Drift(DriftKind.NETWORK_MISSING, "", "", str(error))]
        except OSError as error:
            # Not that it is missing, for which it would be made anew.
            words = f"VF {claim.address} can't be looked at: {os.strerror(error.errno or 0)}"
            return [Drift(DriftKind.BINDING, claim.address, "", words)]

    def _compare(self, hardware: Hardware, claim: ops.ClaimFunction, bind: ops.BindFunction | None) -> Iterator[Drift]:
        function = hardware.inventory.find(claim.address)
        mark = hardware.marks.find_of(claim.address, claim.endpoint_id)
        if function is None or mark is None:
            what = "was taken away" if function is None else "is not marked for this endpoint any more"
            words = f"VF {claim.address} {what}; repair the endpoint, or release it"
            yield Drift(DriftKind.DEVICE_MISSING, claim.address, "", words)
            return
        pf = Teller(hardware, self._nic).get_pf(function)
        if not pf.up:
            yield Drift(DriftKind.NETWORK_MISSING, "up", "down", f"PF {pf.ifname} is down; set it up")
        yield from self._compare_settings(pf, function, mark, claim.port)
        if mark.representor is not None:
            name, ifname = mark.representor.ifname, hardware.inventory.find_representor(function)
            if ifname not in ("", name):  # whether it is there, who compares ports says
                yield Drift(DriftKind.NAME, name, ifname, f"representor {name} was renamed to {ifname}")
        if bind is not None and bind.host_driver is PciHostDriver.VFIO:
            yield from _compare_vfio(hardware, function, bind)
        elif bind is not None:
            yield from self._compare_netdev(pf, function, claim)

    def _compare_settings(self, pf: Netdev, function: Function, mark: Mark, port: Port) -> Iterator[Drift]:
        found = self._nic.read_vf(pf, function.vf_index)
        expected = told(mark, found, port)
        for setting in found.differences(expected):
            actual = found.in_words(setting)
            yield Drift(_KINDS[setting], expected.in_words(setting), actual, f"the {setting} of the VF is {actual}")

    def _compare_netdev(self, pf: Netdev, function: Function, claim: ops.ClaimFunction) -> Iterator[Drift]:
        """Compare the netdev of a VF, unless its user has moved it into a network namespace, as containers do."""
        if not function.driver or is_vfio(function.driver):
            bound = function.driver or "no driver"
            yield Drift(DriftKind.BINDING, "the kernel's driver", bound, f"VF {function.address} is bound to {bound}")
        netdev, port = self._nic.find_netdev(function.ifname), claim.port
        if netdev is None:
            return
        name, mtu_bytes = names.device_name(Kind.PCI, claim.endpoint_id), port.mtu_bytes or pf.mtu_bytes
        if netdev.ifname != name:
            yield Drift(DriftKind.NAME, name, netdev.ifname, f"{name} was renamed to {netdev.ifname}")
        if netdev.mac != port.mac:
            yield Drift(DriftKind.MAC, port.mac, netdev.mac, f"its netdev has the MAC {netdev.mac}")
        if netdev.mtu_bytes != mtu_bytes:
            yield Drift(DriftKind.MTU, str(mtu_bytes), str(netdev.mtu_bytes), f"its MTU is {netdev.mtu_bytes}")
        if netdev.up != (port.link_up is not False):
            actual = _UP[netdev.up]
            yield Drift(DriftKind.LINK_STATE, _UP[not netdev.up], actual, f"its netdev is {actual}")


def _compare_vfio(hardware: Hardware, function: Function, bind: ops.BindFunction) -> Iterator[Drift]:
    if not is_vfio(function.driver):
        bound = function.driver or "no driver"
        yield Drift(DriftKind.BINDING, VFIO, bound, f"VF {function.address} is bound to {bound}")
        return
    owners = hardware.nodes.owners(function)
    if not owners:
        yield Drift(DriftKind.OWNER, f"uid {bind.owner_uid}", "", f"VF {function.address} has no VFIO node")
    for path, (uid, mode) in owners.items():
        if (uid, mode) != (bind.owner_uid, 0o600):
            actual = f"uid {uid}, mode {mode:o}"
            yield Drift(DriftKind.OWNER, f"uid {bind.owner_uid}, mode 600", actual, f"{path} is for {actual}")
