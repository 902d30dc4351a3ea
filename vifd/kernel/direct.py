"""Macvtaps on uplinks and on VFs, each with a device node of its own; runs in the privileged helper."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence

from vifd.kernel import macvtap, netlink, ops, vlans
from vifd.kernel.authority import UplinkGrant
from vifd.kernel.macvtap import Failure, Uplink, UplinkError
from vifd.kernel.marks import look_up
from vifd.kernel.netlink import Ifla, Link, RtnlSocket
from vifd.kernel.nodes import Nodes
from vifd.kernel.tap import SIOCGIFINDEX, device_number


class Macvtaps:
    """Makes macvtaps and their nodes, and takes them down.

    Args:
        rtnl: the socket to ask through.
        nodes: the nodes; or why none can be made.
    """

    def __init__(self, rtnl: RtnlSocket, nodes: Nodes | str) -> None:
        self._rtnl, self._nodes = rtnl, nodes
        self._uplinks: dict[str, Uplink] = {}

    @property
    def lack(self) -> str:
        """Why no macvtap can be made, whatever it stands on; empty: it can."""
        return self._nodes if isinstance(self._nodes, str) else ""

    def prepare(self, network: str, grant: UplinkGrant) -> None:
        """Check that macvtaps can be put on a network's uplink, and set that up.

        Raises:
            UplinkError: they can't.
        """
        if isinstance(self._nodes, str):
            raise UplinkError(self._nodes)
        uplink = macvtap.get_uplink(self._rtnl, grant.uplink)
        if not self._nodes.shows(uplink.name, uplink.ifindex, uplink.mac):
            raise UplinkError(
                "/sys shows another network namespace than vifd's; start vifd with CAP_SYS_ADMIN, and it uses a sysfs of its own"
            )
        if grant.mtu_bytes > uplink.mtu_bytes:
            raise UplinkError(
                f"MTU {grant.mtu_bytes} of network {network} is more than uplink {uplink.name}'s {uplink.mtu_bytes}"
            )
        if not uplink.up:
            reply = self._rtnl.ask(netlink.set_link(uplink.ifindex, b"", up=True))
            if reply.errno:
                raise UplinkError(f"can't set uplink {uplink.name} up: {reply.message}", reply.errno)

    def create(self, wanted: Sequence[tuple[ops.CreateMacvtap, Uplink]]) -> list[int | Failure]:
        """Make macvtaps, all in one send, down and without a mark.

        Args:
            wanted: checked, each with its uplink.

        Returns:
            For each, its index, or why there is none.
        """
        messages = [macvtap.create(op.ifname, uplink, mode=op.mode, mac=op.mac) for op, uplink in wanted]
        replies = self._rtnl.exchange(messages)
        return [
            macvtap.explain_create(uplink, op.mode, reply) if reply.errno else self._index_of(op.ifname)
            for (op, uplink), reply in zip(wanted, replies, strict=True)
        ]

    def ensure_vlan(self, parent: Uplink, vid: int) -> Uplink | Failure:
        """Give the 802.1Q device of a VLAN as what macvtaps stand on; see vlans.ensure."""
        link = vlans.ensure(self._rtnl, parent, vid)
        if isinstance(link, Failure):
            return link
        if link.number(Ifla.MASTER):
            words = f"VLAN {vid} of uplink {parent.name} is on the bridge of another network; request the endpoint there"
            return Failure(ops.NOT_READY, errno.EBUSY, words)
        return Uplink(link.text(Ifla.IFNAME), link.ifindex, link.number(Ifla.MTU), parent.mac, up=True)

    def ensure_node(self, op: ops.EnsureNode, ifindex: int) -> str | Failure:
        """Make the node of a macvtap.

        Args:
            op: checked.
            ifindex: of the macvtap that the plan made; 0: it was made before.

        Returns:
            The node's path, or why there is none.
        """
        if isinstance(self._nodes, str):
            return Failure(ops.NOT_READY, 0, self._nodes)
        ifname = op.ifname
        if not ifindex:
            link = look_up(self._rtnl, [op.endpoint_id])[0].link  # somebody may have renamed it
            if link is None or not macvtap.is_of(link, op.endpoint_id):
                return Failure(ops.KERNEL, errno.ENODEV, f"macvtap {ifname} isn't there")
            ifname, ifindex = link.text(Ifla.IFNAME), link.ifindex
        try:
            return self._nodes.ensure(self._nodes.number(ifname, ifindex), op.owner_uid, op.owner_gid)
        except OSError as error:
            return Failure(ops.KERNEL, error.errno or 0, f"its device node can't be made: {os.strerror(error.errno or 0)}")

    def delete(self, made: Iterable[tuple[str, int]]) -> None:
        """Undo what was made: names and indexes."""
        devices = list(made)
        for ifname, ifindex in devices:
            self.discard_node(ifname, ifindex)
        self._rtnl.exchange([netlink.delete_link(ifindex) for _, ifindex in devices])

    def discard_node(self, ifname: str, ifindex: int) -> None:
        """Delete the node of a macvtap before that is deleted: as long as it is there, its number is nobody else's."""
        if isinstance(self._nodes, Nodes):
            try:
                number = self._nodes.number(ifname, ifindex)
            except OSError:
                return  # it went away by itself, and its node with `discard_stale_nodes`
            self._nodes.discard(number)

    def discard_stale_nodes(self) -> None:
        """Delete the nodes of macvtaps that are gone."""
        if isinstance(self._nodes, Nodes):
            self._nodes.discard_stale()

    def find_node(self, link: Link) -> str:
        """Give the path of a macvtap's node; empty where it has none."""
        if link.kind != macvtap.KIND or isinstance(self._nodes, str):
            return ""
        try:
            return self._nodes.find(self._nodes.number(link.text(Ifla.IFNAME), link.ifindex))
        except OSError:
            return ""

    def compare_node(self, link: Link, uid: int, gid: int | None) -> str | None:
        """Say what is wrong with a macvtap's node; None: nothing."""
        if isinstance(self._nodes, str):
            return self._nodes
        try:
            owned = self._nodes.is_owned(self._nodes.number(link.text(Ifla.IFNAME), link.ifindex), uid, gid)
        except OSError:
            return None  # it goes away just now
        return None if owned else "its device node is missing, or somebody else's"

    def open_queues(self, link: Link, count: int, *, vnet_hdr: bool) -> list[int]:
        """Open queues of a macvtap.

        Raises:
            OSError: what the kernel says; none is open then.
        """
        if isinstance(self._nodes, str):
            raise OSError(errno.EPERM, self._nodes)
        ifname, fds = link.text(Ifla.IFNAME), []
        try:
            for _ in range(count):
                fds.append(self._nodes.open_queue(ifname, link.ifindex, multi_queue=count > 1, vnet_hdr=vnet_hdr))  # noqa: PERF401  what is open is closed
        except OSError:
            for fd in fds:
                os.close(fd)
            raise
        return fds

    def find_uplink(self, grant: UplinkGrant) -> Uplink | Failure:
        """Give an uplink, from memory if that still holds: no two devices of a namespace ever have the same index."""
        if isinstance(self._nodes, str):
            return Failure(ops.NOT_READY, 0, self._nodes)
        known = self._uplinks.get(grant.uplink)
        if known is not None and macvtap.is_unchanged(self._rtnl, known):
            return known
        try:
            found = self._uplinks[grant.uplink] = macvtap.get_uplink(self._rtnl, grant.uplink)
        except UplinkError as error:
            self.discard_stale_nodes()  # an uplink that went away took its macvtaps with it
            return Failure(ops.NOT_READY, error.errno, str(error))
        return found

    def _index_of(self, ifname: str) -> int | Failure:
        try:
            return device_number(self._rtnl.fileno(), SIOCGIFINDEX, ifname)
        except OSError as error:
            return Failure(ops.KERNEL, error.errno or 0, f"{ifname} went away as it was made")
