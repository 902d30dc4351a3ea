"""Gets the PFs of SR-IOV networks ready: their VFs made, and set up; or says what the administrator has to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from vifd.kernel import names, ops
from vifd.kernel.authority import Authority, FunctionGrant
from vifd.kernel.sriov.hardware import Hardware
from vifd.kernel.sriov.inventory import PhysicalFunction
from vifd.kernel.sriov.nic import Nic
from vifd.model import Kind


class _Problem(NamedTuple):
    """What is wrong with a PF.

    Args:
        text: a sentence.
        blocks: whether none of its VFs can be used.
    """

    text: str
    blocks: bool = True


class FunctionPreparer:
    """Gets PFs ready, and looks for VFs that are marked.

    Args:
        hardware: what there is to work with; or why there is nothing.
        nic: rtnetlink.
    """

    def __init__(self, hardware: Hardware | str, nic: Nic) -> None:
        self._prepared, self._nic = hardware, nic
        #: By network, what isn't as it was configured, though there are VFs that can be used.
        self.remarks: dict[str, str] = {}

    def prepare(self, network: str, grant: FunctionGrant) -> str:
        """Get the PFs of a network ready: VFs are made only where there are none.

        Returns:
            Why none of its VFs can be used, as sentences; empty: some can, see `remarks`.
        """
        self.remarks.pop(network, None)
        if isinstance(self._prepared, str):
            return self._prepared
        found = [list(self._prepare(self._prepared, network, name, grant)) for name in grant.pfs]
        words = "; ".join(problem.text for of_pf in found for problem in of_pf)
        if all(any(problem.blocks for problem in of_pf) for of_pf in found):
            return words
        if words:
            self.remarks[network] = words
        return ""

    def discard_stale_marks(self) -> None:
        """Forget marks of VFs that were taken away."""
        if isinstance(self._prepared, Hardware):
            for address, mark in self._prepared.marks.find_all().items():
                with self._prepared.locks.of(mark.pf_address):
                    _discard_if_gone(self._prepared, address)

    def find_marked(self, authority: Authority) -> list[ops.Device]:
        """Tell every marked VF that a network of the configuration may use: of others' VFs nothing is said."""
        if isinstance(self._prepared, str):
            return []
        inventory, marked = self._prepared.inventory, self._prepared.marks.find_all()
        grants = [grant for grant in authority.values() if isinstance(grant, FunctionGrant)]
        allowed = {function.address for grant in grants for function in inventory.allowed(grant)}
        return [_device(address, mark.endpoint_id) for address, mark in marked.items() if address in allowed]

    def _prepare(self, hardware: Hardware, network: str, name: str, grant: FunctionGrant) -> Iterator[_Problem]:
        pf = hardware.inventory.find_pf(name)
        if pf is None:
            yield _Problem(hardware.inventory.explain_pf(name))
            return
        netdev = self._nic.find_netdev(pf.ifname)
        if netdev is None or not hardware.inventory.shows(pf.ifname, netdev.ifindex):
            words = "it has no driver, or it is in another network namespace; networks of SR-IOV take a vifd in the host's own"
            yield _Problem(f"PF {name} has no netdev here: {words}")
            return
        # before it has VFs: their driver talks to their PF when it begins with them, and igb's may not try again if that is down
        if not netdev.up and (reply := self._nic.set_up(netdev)).errno:
            yield _Problem(f"can't set PF {name} up: {reply.message}")
        yield from _ensure_vfs(hardware, pf, grant)
        if grant.mtu_bytes > netdev.mtu_bytes:
            yield _Problem(f"MTU {grant.mtu_bytes} of network {network} is more than PF {name}'s {netdev.mtu_bytes}")


def _discard_if_gone(hardware: Hardware, address: str) -> None:
    try:
        hardware.bus.driver(address)
    except FileNotFoundError:
        hardware.marks.discard(address)


def _ensure_vfs(hardware: Hardware, pf: PhysicalFunction, grant: FunctionGrant) -> Iterator[_Problem]:
    """Make a PF's VFs, if it has none: a number can be changed only by way of 0, which would destroy those that are in use."""
    name = pf.ifname
    if pf.vf_count == 0 and grant.vfs:
        if grant.vfs > pf.total_vfs:
            yield _Problem(f"PF {name} can have {pf.total_vfs} VFs at most; vfs = {grant.vfs} asks for more")
            return
        try:
            with hardware.locks.of(pf.address):
                hardware.bus.set_vf_count(pf.address, grant.vfs)
        except OSError as error:
            yield _Problem(f"PF {name} makes no {grant.vfs} VFs: {os.strerror(error.errno or 0)}; the kernel's log has more")
    elif pf.vf_count == 0:
        yield _Problem(f"PF {name} has no VFs: say how many it is to have with vfs ({pf.total_vfs} at most)")
    elif grant.vfs and pf.vf_count != grant.vfs:
        how = f"release its endpoints and write 0 to /sys/bus/pci/devices/{pf.address}/sriov_numvfs, or set vfs = {pf.vf_count}"
        yield _Problem(f"PF {name} has {pf.vf_count} VFs, and vfs = {grant.vfs} says otherwise: {how}", blocks=False)


def _device(address: str, endpoint_id: str) -> ops.Device:
    """Tell of a marked VF in the words for devices; whether somebody has it open shows when it is released."""
    return ops.Device(
        ifname=address,
        ifindex=0,
        kind=Kind.PCI,
        endpoint_id=endpoint_id if names.is_endpoint_id(endpoint_id) else "",
        master=0,
        mtu_bytes=0,
        mac="",
        up=False,
        carrier=False,
    )
