"""Gives taps back to their owners: whoever has a queue of a tap open may give the tap away, for which it takes no capability.

The kernel takes a new owner through an open queue alone. What opening one does (drivers/net/tun.c, tun_set_iff, tun_attach,
__tun_detach):

- A tap with one queue that somebody has open refuses with EBUSY, whoever asks: it can't be given back then.
- Of a tap that nobody has open, the frames' form is set anew (TUN_FEATURES), so it is asked for as it is; and its carrier, which
  IFF_NO_CARRIER leaves off (since Linux 6.1; an older kernel shows the tap as open for that moment).
- A tap with several queues gets one more. Frames that the kernel sorts into it in the moment until it is closed, some tenths of
  a millisecond, are lost; the other queues stay as they are.
- If the tap has gone meanwhile, a new one is made, down and mortal: it goes with the descriptor. If another device has its name
  by then, nothing is set: the tap is looked at again by the name that the open queue gives.
- It persists or not as it did before. An owner can be exchanged; a group can be exchanged, and never taken off.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from vifd.kernel import netlink, ops, tap
from vifd.kernel.macvtap import Failure
from vifd.kernel.marks import is_tap_of, look_up
from vifd.kernel.netlink import Ifla, Link, RtnlSocket, TunInfo

NOBODY = (1 << 32) - 1
_ABSENT = b"\xff" * 4


def owner_of(link: Link) -> tuple[int, int]:
    """Give the uid and gid that a tap is for, NOBODY where there is none."""
    data: Mapping[int, bytes] = link.data
    uid, gid = (int.from_bytes(data.get(kind, _ABSENT), "little") for kind in (TunInfo.OWNER, TunInfo.GROUP))
    return uid, gid


def is_ours_alone(rtnl: RtnlSocket, ifindex: int) -> bool:
    """Tell whether nobody has a queue of a new tap but its maker.

    Until a tap has an owner, anybody may open it who knows its name (drivers/net/tun.c, tun_not_capable). One with a single queue
    is its maker's; one with several has to be looked at once it has its owner.
    """
    link = rtnl.ask(netlink.get_link(ifindex=ifindex)).link
    data = {} if link is None else link.data
    counts = [int.from_bytes(data.get(kind, b""), "little") for kind in (TunInfo.NUM_QUEUES, TunInfo.NUM_DISABLED_QUEUES)]
    return counts == [1, 0]


def ensure(rtnl: RtnlSocket, op: ops.EnsureOwner) -> Failure | None:
    """Let an endpoint's tap be for its owner again. Needs CAP_NET_ADMIN: who opens it here isn't who it was given to.

    Args:
        rtnl: the socket to ask through.
        op: whose; it is checked.

    Returns:
        None, or why it is as it was.
    """
    link = look_up(rtnl, [op.endpoint_id])[0].link
    if not is_tap_of(link, op.endpoint_id):
        return _gone(op)
    return give_back(rtnl, link, op)


def give_back(rtnl: RtnlSocket, link: Link, op: ops.EnsureOwner) -> Failure | None:
    """Give a tap back that was just found; see `ensure`."""
    wanted, (uid, gid) = (op.owner_uid, NOBODY if op.owner_gid is None else op.owner_gid), owner_of(link)
    if wanted == (uid, gid):
        return None
    flags = {"multi_queue": link.tun_flag(TunInfo.MULTI_QUEUE), "vnet_hdr": link.tun_flag(TunInfo.VNET_HDR)}
    try:
        fd = tap.open_queue(link.text(Ifla.IFNAME), **flags, packet_info=link.tun_flag(TunInfo.PI), carrier=False)
    except OSError as error:
        held = "its only queue is held by somebody; it is given back when that is let go"
        message = held if error.errno == errno.EBUSY else f"it can't be opened: {os.strerror(error.errno or 0)}"
        return Failure(ops.NOT_READY, error.errno or 0, message)
    try:
        now = rtnl.ask(netlink.get_link(ifname=tap.name_of(fd))).link
        if not is_tap_of(now, op.endpoint_id) or now.ifindex != link.ifindex:
            return _gone(op)
        tap.set_owner(fd, uid=op.owner_uid, gid=op.owner_gid)
    except OSError as error:
        return Failure(ops.KERNEL, error.errno or 0, f"it can't be given back: {os.strerror(error.errno or 0)}")
    finally:
        os.close(fd)
    if op.owner_gid is None and gid != NOBODY:
        words = "the kernel takes no group off a tap; delete the device when nobody needs it, and a repair makes it anew"
        return Failure(ops.NOT_READY, 0, words)
    return None


def _gone(op: ops.EnsureOwner) -> Failure:
    return Failure(ops.GONE, errno.ENODEV, f"the tap of endpoint {op.endpoint_id} is gone")
