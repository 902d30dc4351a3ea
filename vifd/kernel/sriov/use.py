"""Whether somebody else has a VF: then it isn't vifd's to hand out."""

from __future__ import annotations

import errno
import os

from vifd.kernel import ops
from vifd.kernel.sriov.hardware import FunctionError, Hardware
from vifd.kernel.sriov.inventory import Function
from vifd.kernel.sriov.nic import Nic
from vifd.kernel.sriov.vfio import is_vfio

NOT_PERMITTED = "vifd may not open VFIO nodes: its unit takes DeviceAllow=char-vfio* rw (systemd/sriov.conf)"


def find_user(hardware: Hardware, nic: Nic, function: Function) -> str:
    """Say who else has a VF that has no mark of vifd's; empty: nobody.

    Raises:
        FunctionError: nobody can tell.
    """
    state = hardware.libvirt / f"{function.pf_ifname}_vf{function.vf_index}"
    if state.exists():
        return f"libvirt has it ({state})"
    if not function.driver:
        return ""
    if is_vfio(function.driver):
        return _find_vfio_user(hardware, function)
    if not function.ifname:
        return f"it is bound to {function.driver} and has no netdev here: another network namespace or a program has it"
    return find_netdev_user(hardware, nic, function.ifname)


def find_netdev_user(hardware: Hardware, nic: Nic, ifname: str, what: str = "netdev") -> str:
    """Say what somebody does with a netdev that isn't vifd's; empty: nothing.

    Args:
        hardware: what there is to look at.
        nic: rtnetlink.
        ifname: the netdev.
        what: what to call it.
    """
    netdev = nic.find_netdev(ifname)
    if netdev is None:
        return f"its {what} {ifname} goes away just now"
    if netdev.up:
        return f"its {what} {ifname} is up"
    if netdev.master:
        return f"its {what} {ifname} belongs to a bridge, a bond or another such device"
    if upper := hardware.inventory.find_upper(ifname):
        return f"{upper} stands on its {what} {ifname}"
    return f"its {what} {ifname} has an address" if nic.has_addresses(netdev.ifindex) else ""


def _find_vfio_user(hardware: Hardware, function: Function) -> str:
    for path, (uid, _) in hardware.nodes.owners(function).items():
        if uid != 0:
            return f"{path} belongs to uid {uid}"
    try:
        return "a program has it open" if hardware.nodes.is_open(function) else ""
    except OSError as error:
        words = NOT_PERMITTED if error.errno == errno.EPERM else f"it can't be opened: {os.strerror(error.errno or 0)}"
        raise FunctionError(words, ops.NOT_READY, error.errno or 0) from error
