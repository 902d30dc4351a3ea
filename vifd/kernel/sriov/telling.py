"""Tells PFs of VFs, and reads each setting back: a driver that silently ignores one doesn't keep VMs apart."""

from __future__ import annotations

import errno

import msgspec

from vifd.kernel import names, ops
from vifd.kernel.sriov.hardware import FunctionError, Hardware, wait_for
from vifd.kernel.sriov.inventory import Function
from vifd.kernel.sriov.marks import Mark
from vifd.kernel.sriov.nic import Netdev, Nic
from vifd.kernel.sriov.settings import NO_MAC, Setting, VfSettings, wanted
from vifd.model import Port

_REASONS = {
    (Setting.VLAN, errno.EPROTONOSUPPORT): "its NIC tags 802.1q alone",
    (Setting.RATE, errno.EINVAL): "it is more than its link's speed, or it keeps no least rates",
}


class Teller:
    """Tells PFs of VFs.

    Args:
        hardware: what there is to work with.
        nic: rtnetlink.
    """

    def __init__(self, hardware: Hardware, nic: Nic) -> None:
        self._hardware, self._nic = hardware, nic

    def get_pf(self, function: Function) -> Netdev:
        """Find the netdev of a VF's PF, by which that is told of the VF.

        Raises:
            FunctionError: it isn't in this network namespace.
        """
        pf = self._nic.find_netdev(function.pf_ifname)
        if pf is None or not self._hardware.inventory.shows(pf.ifname, pf.ifindex):
            words = f"PF {function.pf_address} has no netdev in vifd's network namespace; move it there, or give it its driver"
            raise FunctionError(words, ops.NOT_READY)
        return pf

    def read(self, pf: Netdev, function: Function) -> VfSettings:
        """Give what a PF knows of a VF.

        Raises:
            OSError: it doesn't say.
        """
        return self._nic.read_vf(pf, function.vf_index)

    def tell(self, pf: Netdev, function: Function, wanted: VfSettings, *, link_s: float | None = None) -> None:
        """Bring what a PF knows of a VF to what it is to be.

        Args:
            pf: the PF.
            function: the VF.
            wanted: what it is to be.
            link_s: how long a rate waits for the PF's link, in seconds; None: as long as a request does.

        Raises:
            FunctionError: the PF refuses, or doesn't keep to it.
            OSError: it doesn't say.
        """
        for setting in self.read(pf, function).differences(wanted):
            if setting is Setting.RATE:
                self._wait_for_carrier(pf, function, self._hardware.patience.carrier if link_s is None else link_s)
            self._tell_one(pf, function, setting, wanted)
        self.check(pf, function, wanted)

    def check(self, pf: Netdev, function: Function, wanted: VfSettings) -> None:
        """Check that a PF knows of a VF what it was told.

        Raises:
            FunctionError: it doesn't keep to it.
            OSError: it doesn't say.
        """
        found = self.read(pf, function)
        for setting in found.differences(wanted):
            words = f"PF {pf.ifname} takes the {setting} of a VF and doesn't keep it: it is {found.in_words(setting)}"
            raise FunctionError(f"{words} instead of {wanted.in_words(setting)}", ops.NOT_READY)

    def forget(self, pf: Netdev, function: Function, mark: Mark) -> None:
        """Bring what a PF knows of a VF to what it is for a VF that nobody has.

        Args:
            pf: the PF.
            function: the VF.
            mark: says what it knew before vifd had it. Where a driver has no spoof check at all, it is as it was.

        Raises:
            FunctionError: the PF refuses, or doesn't keep to it.
            OSError: it doesn't say.
        """
        found, before = self.read(pf, function), mark.settings
        blank = VfSettings(spoof_check=None if before.spoof_check is None else True)
        if mark.representor is not None:
            blank = msgspec.structs.replace(found, mac=NO_MAC)
        if Setting.MAC in found.differences(blank):
            reply = self._nic.set_vf(pf, function.vf_index, Setting.MAC, blank)
            if reply.errno or self.read(pf, function).mac != NO_MAC:
                # Some take no MAC of zeroes: then what it had, or one that is nobody's.
                mac = before.mac if before.mac != NO_MAC else names.derived_mac(f"VF {function.address}")
                blank = msgspec.structs.replace(blank, mac=mac)
        self.tell(pf, function, blank, link_s=0)  # without a link it is tried again later: nobody waits for a cable

    def _tell_one(self, pf: Netdev, function: Function, setting: Setting, wanted: VfSettings) -> None:
        reply = self._nic.set_vf(pf, function.vf_index, setting, wanted)
        if reply.errno:
            reason = "its driver can't" if reply.errno == errno.EOPNOTSUPP else _REASONS.get((setting, reply.errno), "")
            words = f"PF {pf.ifname} refuses the {setting} {wanted.in_words(setting)} of a VF: {reply.message}"
            raise FunctionError(f"{words} ({reason})" if reason else words, ops.NOT_READY, reply.errno)

    def _wait_for_carrier(self, pf: Netdev, function: Function, seconds: float) -> None:
        """Wait for a PF's link: without one, some refuse every rate (drivers/net/ethernet/intel/igb, igb_ndo_set_vf_bw)."""

        def has_carrier() -> bool:
            found = self._hardware.inventory.find_pf(function.pf_address)
            return found is not None and found.carrier

        if not wait_for(has_carrier, seconds):
            words = f"PF {pf.ifname} has no link, without which it takes no rate for a VF and forgets none; see to its cable"
            raise FunctionError(words, ops.NOT_READY)


def told(mark: Mark, found: VfSettings, port: Port) -> VfSettings:
    """Give what a PF is to know of a VF that is an endpoint's.

    Args:
        mark: the VF's. Of one with a representor it is told the MAC alone: the rest is the representor's to keep, and drivers
            refuse it.
        found: what it knows.
        port: what the VF is to be like.
    """
    return wanted(port) if mark.representor is None else msgspec.structs.replace(found, mac=port.mac)
