"""Representors: what the host has of VFs whose NIC's switch is in mode switchdev. What a VM sends by its VF comes in there.

A representor is the driver's, and is there as long as the switch is in that mode: vifd never makes or deletes one. It is found by
what sysfs says of the VF, whatever somebody has named it; it is marked before it is configured, like a port that vifd made
(`configuring`), and given back as it was.
"""

from __future__ import annotations

from vifd.kernel import names, ops
from vifd.kernel.authority import FunctionGrant
from vifd.kernel.netlink import Reply
from vifd.kernel.nft.devices import Guards
from vifd.kernel.nft.elements import NOTHING
from vifd.kernel.sriov import use
from vifd.kernel.sriov.hardware import FunctionError, Hardware
from vifd.kernel.sriov.inventory import Function, explain_mode
from vifd.kernel.sriov.marks import Mark
from vifd.kernel.sriov.nic import Netdev, Nic


class Representors:
    """The representors of VFs.

    Args:
        hardware: what there is to work with.
        nic: rtnetlink.
        guard: what keeps VMs from pretending to be others.
    """

    def __init__(self, hardware: Hardware, nic: Nic, guard: Guards) -> None:
        self._hardware, self._nic, self._guard = hardware, nic, guard

    def find_wanted(self, function: Function, grant: FunctionGrant) -> Netdev | None:
        """Find what a VF is to be attached through; None: nothing but itself.

        Raises:
            FunctionError: the PF's switch isn't in the mode that the network needs.
        """
        pf = self._hardware.inventory.find_pf(function.pf_address)
        bridge = grant.bridge.bridge if grant.bridge is not None else ""
        if pf is not None and (problem := explain_mode(pf.ifname or pf.address, pf, bridge)):
            raise FunctionError(problem, ops.NOT_READY)
        return self._get(function) if bridge else None

    def find_user(self, netdev: Netdev) -> str:
        """Say who has a representor; empty: nobody."""
        if other := names.marked_endpoint_id(netdev.alias):
            return f"its representor {netdev.ifname} is marked for endpoint {other}"
        return use.find_netdev_user(self._hardware, self._nic, netdev.ifname, "representor")

    def mark(self, netdev: Netdev, endpoint_id: str) -> None:
        """Say whose a representor is.

        Raises:
            FunctionError: the kernel refuses.
        """
        _check(netdev, "marked", self._nic.mark(netdev, endpoint_id))

    def get_own(self, function: Function, mark: Mark) -> Netdev:
        """Find the representor of an endpoint's VF, and mark it: the driver may have made it anew, if nobody has it since.

        Raises:
            FunctionError: there is none, or it is somebody else's.
        """
        if mark.representor is None:
            raise FunctionError(f"VF {function.address} isn't attached by a representor", ops.REJECTED)
        netdev = self._get(function)
        if netdev.alias != names.mark(mark.endpoint_id) and (reason := self.find_user(netdev)):
            raise FunctionError(f"VF {function.address} can't be attached: {reason}", ops.NOT_READY)
        self.mark(netdev, mark.endpoint_id)  # somebody may have taken one of its two names
        return netdev

    def give_back(self, function: Function, mark: Mark) -> None:
        """Bring the representor of a VF back to what it was. One that has no mark of the endpoint any more is left alone.

        Raises:
            FunctionError: the kernel refuses.
        """
        netdev = self._nic.find_netdev(self._hardware.inventory.find_representor(function))
        if mark.representor is None or netdev is None:
            return
        is_own = netdev.alias == names.mark(mark.endpoint_id)
        if is_own:
            _check(netdev, "taken off its bridge", self._nic.detach(netdev, mark.endpoint_id))
        self._guard.put({netdev.ifindex: NOTHING})  # nobody else has anything there: the VF is marked still
        if is_own:
            _check(netdev, "set back", self._nic.restore(netdev, mark.endpoint_id, mark.representor))

    def _get(self, function: Function) -> Netdev:
        netdev = self._nic.find_netdev(self._hardware.inventory.find_representor(function))
        if netdev is None or not self._hardware.inventory.shows(netdev.ifname, netdev.ifindex):
            words = f"VF {function.address} has no representor in vifd's network namespace: is its PF's switch in mode switchdev?"
            raise FunctionError(words, ops.NOT_READY)
        return netdev


def _check(netdev: Netdev, what: str, reply: Reply) -> None:
    if reply.errno:
        raise FunctionError(f"representor {netdev.ifname} can't be {what}: {reply.message}", ops.KERNEL, reply.errno)
