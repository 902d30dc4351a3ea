"""Plans on their way through the helper: what each has made so far, and why it failed."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from vifd.kernel import macvtap, ops
from vifd.kernel.authority import Authority, BridgeGrant, PlanRejectedError, check_plan
from vifd.kernel.bridge import BridgeState
from vifd.kernel.macvtap import Failure, Uplink
from vifd.kernel.netlink import Ifla, Link, Reply
from vifd.model import Port

_EXFULL = 54  # net/bridge/br_if.c, find_portno: a bridge takes 1,023 ports


class Target(NamedTuple):
    """What a device is to be like: a new one's whole state, or what changes of a living one.

    Args:
        mac: of the host's side; empty: it stays, for the device is there without its endpoint too.
        before: what it is like; None: it is new, or that isn't known.
    """

    endpoint_id: str
    ifname: str
    mac: str
    port: Port
    before: Port | None


class Run:
    """One plan on its way: what it has made so far, what its device is to be like, and why it failed."""

    def __init__(self, plan: ops.Plan, index: int) -> None:
        self.plan, self.index = plan, index
        self.fd = -1
        self.link: Link | None = None
        self.created: ops.CreateTap | ops.CreateMacvtap | None = None
        self._target: Target | None = None
        self.bridge: BridgeState | None = None
        self.grant: BridgeGrant | None = None
        self.uplink: Uplink | None = None
        self.device_path = ""
        self.claimed: ops.ClaimFunction | None = None
        self.changed: ops.ChangeFunction | None = None
        self.function: ops.FunctionMade | None = None
        self.vdpa: ops.CreateVdpa | None = None
        self.made = ops.Made()
        self.refusal: ops.Refusal | None = None

    def check(self, authority: Authority) -> None:
        """Check the plan against the configuration; what is wrong is its refusal."""
        try:
            check_plan(self.plan, authority)
        except PlanRejectedError as error:
            self.refusal = ops.Refusal(self.index, "check", "", 0, f"the helper rejects the plan: {error}", ops.REJECTED)

    def fail(self, operation: ops.Operation, device: str, code: int, message: str, cause: str = ops.KERNEL) -> None:
        """Note why it failed; the first reason counts."""
        self.refusal = self.refusal or ops.Refusal(self.index, type(operation).__name__, device, code, message, cause)

    def fail_as(self, operation: ops.Operation, device: str, failure: Failure) -> None:
        """Note why it failed."""
        self.fail(operation, device, failure.errno, failure.message, failure.cause)

    def note(self, reply: Reply) -> None:
        """Note what the kernel says of the device's settings."""
        if reply.errno and self.uplink is not None:
            self.fail_as(self.last, self.target.endpoint_id, macvtap.explain_up(self.uplink, self.target.mac, reply))
        elif reply.errno == _EXFULL:
            message = f"bridge {self.made.bridge_name} has no free port (it takes 1,023)"
            self.fail(self.last, self.made.bridge_name, reply.errno, message, ops.FULL)
        elif reply.errno:
            self.fail(self.last, self.target.endpoint_id if self.has_target else "", reply.errno, reply.message)

    def close(self) -> None:
        """Let go of a tap; one that doesn't persist is deleted by the kernel."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    @property
    def has_target(self) -> bool:
        """Whether there is a device to be configured."""
        return self._target is not None

    @property
    def target(self) -> Target:
        """What its device is to be like."""
        if self._target is None:
            raise RuntimeError("a run without a device is not configured")
        return self._target

    @target.setter
    def target(self, target: Target) -> None:
        self._target = target

    @property
    def result(self) -> ops.Made:
        """What it came to."""
        return ops.Made(self.made.ifindex, self.made.mtu_bytes, self.made.bridge_name, self.device_path, self.function)

    @property
    def last(self) -> ops.Operation:
        """The last operation, which the device's settings are of."""
        return self.plan[-1]

    @property
    def is_new(self) -> bool:
        """Whether it makes its device."""
        return self.created is not None

    @property
    def is_renamed(self) -> bool:
        """Whether somebody has given its device another name."""
        return self.link is not None and self._target is not None and self.link.text(Ifla.IFNAME) != self._target.ifname


class Group:
    """Plans that are made all or none."""

    def __init__(self, plans: ops.Group) -> None:
        self.runs = [Run(plan, index) for index, plan in enumerate(plans)]

    @property
    def refusal(self) -> ops.Refusal | None:
        """Why it failed: the first reason of one of its plans."""
        return next((run.refusal for run in self.runs if run.refusal is not None), None)


def alive(groups: list[Group], stage: type[ops.Operation]) -> list[tuple[Run, Any]]:
    """Give the operations of one stage, of the groups that nothing has failed in so far."""
    return [(run, op) for g in groups if g.refusal is None for run in g.runs for op in run.plan if isinstance(op, stage)]
