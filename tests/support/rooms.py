"""A kernel in memory that behaves as the real room does, and breaks where a test wants it to."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from vifd.errors import HostNotReady, KernelRefused, NetworkFull, UnknownEndpoint, VifdError, WrongState
from vifd.kernel import helper, ops
from vifd.kernel.authority import (
    Authority,
    BridgeGrant,
    Grant,
    PlanRejectedError,
    bridge_grant,
    check_identity,
    check_plan,
)
from vifd.kernel.room import HelperLostError
from vifd.model import Drift, DriftKind, Port

#: What the helper takes at most.
PLANS_A_CALL = helper._PLANS_A_CALL
#: What the networks of tests may touch.
AUTHORITY: dict[str, Grant] = {"blue": BridgeGrant("br-blue"), "red": BridgeGrant("br-red")}


class FakeRoom:
    """Room in memory: the devices outlive engines and journals, as the kernel's do.

    Args:
        authority: what the configuration lets the helper touch; plans are checked against it as the helper does.
        ports_a_bridge: how many ports fit on one bridge.
    """

    def __init__(self, authority: Authority | None = None, *, ports_a_bridge: int = 1023) -> None:
        self.authority = AUTHORITY if authority is None else authority
        self.ports_a_bridge = ports_a_bridge
        self.devices: dict[str, ops.Device] = {}
        self.bridges: dict[str, int] = {}
        #: What each endpoint's port was last configured to.
        self.ports: dict[str, Port] = {}
        #: Whether somebody has changed the guard's table since it was last put back.
        self.flushed = False
        #: Taps that were given away, and whether their only queue is held.
        self.given_away: dict[str, bool] = {}
        #: Why no VM can be announced; empty: each can.
        self.announcing_fails = ""
        #: Every call with its number of plans or ids: ("apply", 3).
        self.calls: list[tuple[str, int]] = []
        self._failures: dict[int, VifdError] = {}
        self._stuck: dict[str, VifdError] = {}
        self._operations = 0
        self._next_ifindex = 10
        self._lost = False
        self._open_gate = asyncio.Event()
        self._open_gate.set()
        self._arrivals = asyncio.Semaphore(0)

    # --- what a test does to it

    def fail_operation(self, number: int, error: VifdError | None = None) -> None:
        """Refuse the operation with this number, counted from now, from 1."""
        self._failures[self._operations + number] = error or KernelRefused("CreateTap", "vdt", errno.ENOMEM, "no memory")

    def keep(self, endpoint_id: str) -> None:
        """Refuse to delete an endpoint's device, until `let_go`."""
        self._stuck[endpoint_id] = KernelRefused("DeleteTap", "vdt", errno.EBUSY, "busy")

    def let_go(self, endpoint_id: str) -> None:
        """Delete an endpoint's device again when it is asked for."""
        del self._stuck[endpoint_id]

    def hold(self) -> None:
        """Let calls come in and wait, until `go_on`."""
        self._open_gate.clear()

    def go_on(self) -> None:
        """Let the calls that wait, and those to come, pass."""
        self._open_gate.set()

    async def entered(self) -> None:
        """Wait until one more call has come in."""
        await self._arrivals.acquire()

    def lose(self) -> None:
        """Lose the helper: nothing can be said any more."""
        self._lost = True

    def open(self, endpoint_id: str) -> None:
        """Open an endpoint's tap as a hypervisor does."""
        self.devices[endpoint_id] = replace(self.devices[endpoint_id], carrier=True)

    def close(self, endpoint_id: str) -> None:
        """Close an endpoint's tap."""
        self.devices[endpoint_id] = replace(self.devices[endpoint_id], carrier=False)

    def delete(self, endpoint_id: str) -> None:
        """Delete an endpoint's device behind vifd's back."""
        del self.devices[endpoint_id]

    def change_mtu(self, endpoint_id: str, mtu_bytes: int) -> None:
        """Change a device behind vifd's back."""
        self.devices[endpoint_id] = replace(self.devices[endpoint_id], mtu_bytes=mtu_bytes)

    def give_away(self, endpoint_id: str, *, held: bool) -> None:
        """Give a tap to somebody else, as its holder may."""
        self.given_away[endpoint_id] = held

    def put(self, endpoint_id: str, *, carrier: bool = False) -> None:
        """Put a marked device there that nobody knows of."""
        ifindex = self._take_ifindex()
        self.devices[endpoint_id] = ops.Device(
            f"vdt{ifindex:010}", ifindex, "tun", endpoint_id, 0, 1500, "fe:00:00:00:00:01", up=True, carrier=carrier
        )

    # --- Room

    async def apply(self, groups: Sequence[ops.Group]) -> list[list[ops.Made] | VifdError]:
        await self._enter("apply", sum(map(len, groups)))
        return [self._apply(group) for group in groups]

    async def change(self, groups: Sequence[ops.Group]) -> list[list[ops.Made] | VifdError]:
        return await self.apply(groups)

    async def revert(self, plans: Sequence[ops.Plan]) -> list[VifdError | None]:
        await self._enter("revert", len(plans))
        return [self._revert(plan) for plan in plans]

    async def check(self, plans: Sequence[ops.Plan]) -> list[list[Drift]]:
        await self._enter("check", len(plans))
        return [self._check(plan) for plan in plans]

    async def announce(self, plans: Sequence[ops.Plan]) -> list[str]:
        await self._enter("announce", len(plans))
        for plan in plans:
            check_plan(plan, self.authority)
        return [self.announcing_fails for _ in plans]

    async def restore_guard(self) -> bool:
        await self._enter("restore_guard", 0)
        changed, self.flushed = self.flushed, False
        return changed

    async def inspect(self, endpoint_ids: Sequence[str]) -> list[ops.Device]:
        await self._enter("inspect", len(endpoint_ids))
        wanted = endpoint_ids or list(self.devices)
        return [self.devices[endpoint_id] for endpoint_id in wanted if endpoint_id in self.devices]

    async def open_queues(self, endpoint_id: str, count: int, *, vnet_hdr: bool) -> list[int]:
        await self._enter("open_queues", count)
        if endpoint_id not in self.devices:
            raise UnknownEndpoint(f"the tap of endpoint {endpoint_id} is gone")
        return [os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC) for _ in range(count)]

    # --- inside

    async def _enter(self, name: str, count: int) -> None:
        self.calls.append((name, count))
        self._arrivals.release()
        await self._open_gate.wait()
        if self._lost or (name in {"apply", "revert"} and count > PLANS_A_CALL):
            raise HelperLostError("the helper is gone")

    def _apply(self, group: ops.Group) -> list[ops.Made] | VifdError:
        before = dict(self.devices)
        try:
            for plan in group:
                check_plan(plan, self.authority)
            return [self._run(plan) for plan in group]
        except PlanRejectedError as error:
            return KernelRefused("check", "", 0, f"the helper rejects the plan: {error}")
        except VifdError as error:
            self.devices = before
            return error

    def _run(self, plan: ops.Plan) -> ops.Made:
        made = ops.Made()
        for operation in plan:
            self._operations += 1
            if (error := self._failures.pop(self._operations, None)) is not None:
                raise error
            match operation:
                case ops.EnsureBridge(network):
                    grant = bridge_grant(self.authority, network)
                    self.bridges.setdefault(grant.bridge, grant.mtu_bytes)
                    made = ops.Made(0, self.bridges[grant.bridge], grant.bridge)
                case ops.CreateTap():
                    made = replace(made, ifindex=self._create(operation))
                case ops.ConfigurePort():
                    made = replace(made, mtu_bytes=self._configure(operation))
                case ops.EnsureOwner():
                    if self.given_away.get(operation.endpoint_id):
                        raise HostNotReady("its only queue is held")
                    self.given_away.pop(operation.endpoint_id, None)
                case ops.ChangePort():
                    ifindex = self._living(operation.endpoint_id).ifindex
                    made = replace(made, ifindex=ifindex, mtu_bytes=self._configure(operation))
        return made

    def _check(self, plan: ops.Plan) -> list[Drift]:
        check_plan(plan, self.authority)
        drifts = []
        for operation in plan:
            match operation:
                case ops.CreateTap(endpoint_id, ifname) if endpoint_id not in self.devices:
                    return [Drift(DriftKind.DEVICE_MISSING, ifname, "", f"{ifname} is gone")]
                case ops.ConfigurePort(endpoint_id, _, _, port):
                    device, wanted = self.devices[endpoint_id], port.mtu_bytes or device_mtu(self, operation.network)
                    if device.mtu_bytes != wanted:
                        drifts.append(Drift(DriftKind.MTU, str(wanted), str(device.mtu_bytes), "its MTU differs"))
                    if self.ports.get(endpoint_id, port) != port:
                        drifts.append(Drift(DriftKind.GUARD, "", "", "its guard differs"))
                    if endpoint_id in self.given_away:
                        drifts.append(Drift(DriftKind.OWNER, "uid 1000", "uid 4242", "it belongs to uid 4242"))
                case _:
                    pass
        return drifts

    def _create(self, operation: ops.CreateTap) -> int:
        if operation.endpoint_id in self.devices:
            raise KernelRefused("CreateTap", operation.ifname, errno.EBUSY, "a device of that name is there already")
        ifindex = self._take_ifindex()
        self.devices[operation.endpoint_id] = ops.Device(
            operation.ifname, ifindex, "tun", operation.endpoint_id, 0, 1500, operation.mac, up=False, carrier=False
        )
        return ifindex

    def _living(self, endpoint_id: str) -> ops.Device:
        if endpoint_id not in self.devices:
            raise WrongState(f"the tap of endpoint {endpoint_id} is gone")
        return self.devices[endpoint_id]

    def _configure(self, operation: ops.ConfigurePort | ops.ChangePort) -> int:
        bridge, port = bridge_grant(self.authority, operation.network).bridge, operation.port
        device, master = self._living(operation.endpoint_id), 1 + sorted(self.bridges).index(bridge)
        others = sum(one.master == master for one in self.devices.values() if one is not device)
        if others >= self.ports_a_bridge:
            raise NetworkFull(f"bridge {bridge} has no free port")
        if port.mtu_bytes > self.bridges[bridge]:
            raise HostNotReady(f"MTU {port.mtu_bytes} is more than bridge {bridge}'s")
        mtu_bytes = port.mtu_bytes or self.bridges[bridge]
        up = port.link_up is not False
        self.devices[operation.endpoint_id] = replace(device, master=master, mtu_bytes=mtu_bytes, up=up)
        self.ports[operation.endpoint_id] = port
        return mtu_bytes

    def _revert(self, plan: ops.Plan) -> VifdError | None:
        for operation in _taps(plan):
            check_identity(operation.endpoint_id, operation.ifname)
            if operation.endpoint_id in self._stuck:
                return self._stuck[operation.endpoint_id]
            self.devices.pop(operation.endpoint_id, None)
        return None

    def _take_ifindex(self) -> int:
        self._next_ifindex += 1
        return self._next_ifindex


def device_mtu(room: FakeRoom, network: str) -> int:
    return room.bridges.get(bridge_grant(room.authority, network).bridge, 1500)


def _taps(plan: Iterable[ops.Operation]) -> list[ops.CreateTap]:
    return [operation for operation in plan if isinstance(operation, ops.CreateTap)]
