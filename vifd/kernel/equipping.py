"""What the privileged helper is equipped with before it is forked, and no more than what is configured takes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from oslo_privsep import capabilities

from vifd.kernel.authority import Authority, FunctionGrant, UplinkGrant, VdpaGrant
from vifd.kernel.executor import Tools
from vifd.kernel.markfiles import MarksError
from vifd.kernel.nodes import Nodes, NodesError
from vifd.kernel.sriov.hardware import Hardware, HardwareError
from vifd.kernel.sriov.marks import Marks
from vifd.kernel.vdpa import marks as vdpa_marks
from vifd.kernel.vdpa.netlink import GenericSocket
from vifd.kernel.vdpa.tools import Vdpa

#: One for making, one for deleting, one for everything else, one for a reload, and one for the watchdog.
_THREADS = 5
#: For each PF and each vDPA management device one for making, one for taking down and one for everything else, for that may take
#: seconds: this many at most.
_CALLS_A_CARD, _MAX_CARD_CALLS = 3, 48

CAPABILITIES = (capabilities.Capabilities.CAP_NET_ADMIN,)
#: To make device nodes and to give them to their owners: kept only where networks are configured that have macvtaps.
_NODE_CAPABILITIES = (capabilities.Capabilities.CAP_MKNOD, capabilities.Capabilities.CAP_CHOWN)
#: To give VFIO nodes to their owners: kept only where SR-IOV networks are configured, or a VF is left of one that was.
_FUNCTION_CAPABILITIES = (capabilities.Capabilities.CAP_CHOWN,)
#: To give vhost-vdpa nodes to their owners: kept only where vDPA networks are configured, or a device is left of one that was.
_VDPA_CAPABILITIES = (capabilities.Capabilities.CAP_CHOWN,)


def needed_capabilities(tools: Tools) -> list[capabilities.Capabilities]:
    """Give what the helper keeps: no more than what is configured takes."""
    nodes = _NODE_CAPABILITIES if isinstance(tools.nodes, Nodes) else ()
    functions = _FUNCTION_CAPABILITIES if isinstance(tools.hardware, Hardware) else ()
    vdpa = _VDPA_CAPABILITIES if isinstance(tools.vdpa, Vdpa) else ()
    return list(dict.fromkeys((*CAPABILITIES, *nodes, *functions, *vdpa)))


def card_calls(authority: Authority) -> int:
    """Give how many calls about VFs and vDPA devices the helper works on at once: one also where no card is configured, for what
    is left of one that was.
    """
    cards = {name for grant in authority.values() if isinstance(grant, FunctionGrant) for name in grant.pfs}
    cards |= {name for grant in authority.values() if isinstance(grant, VdpaGrant) for name in grant.management_devices}
    return max(1, min(_CALLS_A_CARD * len(cards), _MAX_CARD_CALLS))


def needed_threads(authority: Authority) -> int:
    """Give how many calls the helper works on at once."""
    return _THREADS + card_calls(authority)


def prepare_hardware(device_dir: Path, authority: Authority) -> Hardware | str:
    """Get ready to work with VFs, while there is the capability to; or give why none can be used."""
    if not any(isinstance(grant, FunctionGrant) for grant in authority.values()) and not Marks.has_any(device_dir):
        return "the first network with driver sriov takes a restart of vifd: its helper has no capability to give VFs away"
    if lack := _find_lack("driver sriov", "sriov", _FUNCTION_CAPABILITIES):
        return lack
    try:
        return Hardware.prepare(device_dir)
    except HardwareError as error:
        return str(error)


def prepare_vdpa(socket: GenericSocket | None, device_dir: Path, authority: Authority) -> Vdpa | str:
    """Get ready to make vDPA devices, while there is the capability to; or give why none can be made.

    Args:
        socket: what the kernel is told by, opened where it listens; None: vifd began without vDPA.
        device_dir: where vifd keeps what goes with a new start of the host.
        authority: what is configured.
    """
    lack = _find_lack("driver vdpa", "vdpa", _VDPA_CAPABILITIES)
    if socket is None or not (has_managers(authority) or vdpa_marks.Marks.has_any(device_dir)):
        lack = "the first network with driver vdpa takes a restart of vifd: its helper has no capability to give devices away"
    if socket is not None and not lack:
        try:
            return Vdpa.prepare(socket, device_dir)
        except MarksError as error:
            lack = str(error)
    if socket is not None:
        socket.close()
    return lack


def prepare_nodes(device_dir: Path, authority: Authority) -> Nodes | str:
    """Get ready to make device nodes, while there is the capability to; or give why none can be made."""
    if not has_macvtaps(authority):
        return "the first network with macvtaps takes a restart of vifd: its helper has no capability to make device nodes"
    if lack := _find_lack("a macvtap", "direct", _NODE_CAPABILITIES):
        return lack
    try:
        return Nodes.prepare(device_dir)
    except NodesError as error:
        return str(error)


def has_macvtaps(authority: Authority) -> bool:
    """Tell whether there is a network that has macvtaps: on an uplink, or on VFs."""
    return any(
        isinstance(grant, UplinkGrant) or (isinstance(grant, FunctionGrant) and grant.bridge is None)
        for grant in authority.values()
    )


def has_managers(authority: Authority) -> bool:
    """Tell whether there is a vDPA network."""
    return any(isinstance(grant, VdpaGrant) for grant in authority.values())


def _find_lack(what: str, unit: str, needed: Iterable[capabilities.Capabilities]) -> str:
    """Say which capabilities that something takes vifd wasn't started with; empty: it has them all."""
    permitted = capabilities.get_caps()[1]
    missing = [capability.name for capability in needed if capability not in permitted]
    words = f"{what} takes {' and '.join(missing)}, which vifd wasn't started with (systemd/{unit}.conf)"
    return words if missing else ""
