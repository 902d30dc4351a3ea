"""Macvtaps on VFs, as plans have them: a macvtap stands on the plan's own VF, has it for itself, and is the same port."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from vifd.kernel import ops
from vifd.model import MacvtapMode, PciHostDriver, Port

T = TypeVar("T", bound=ops.Operation)


def find_problem(plan: ops.Plan) -> str:
    """Say what is wrong with what a plan with a VF does beside that; empty: nothing.

    Args:
        plan: its operations are each there at most once; those with VFs are of one endpoint and network.
    """
    return next(_problems(plan), "")


def _problems(plan: ops.Plan) -> Iterator[str]:
    for operation in plan:
        match operation:
            case ops.CreateMacvtap():
                yield from _problems_of_new(plan, operation)
            case ops.ConfigurePort(_, ifname, _, port):
                claim = _find(plan, ops.ClaimFunction)
                if claim is None or _find(plan, ops.CreateMacvtap) is None:
                    yield f"{ifname!r} is no device of this plan"
                else:
                    yield from _differences(port, claim.port)
            case ops.ChangePort():
                yield from _problems_of_change(plan, operation)
            case _:
                pass


def _problems_of_new(plan: ops.Plan, create: ops.CreateMacvtap) -> Iterator[str]:
    claim, bind = _find(plan, ops.ClaimFunction), _find(plan, ops.BindFunction)
    if claim is None or bind is None or bind.host_driver is not PciHostDriver.KERNEL:
        yield "a macvtap on a VF that this plan doesn't give to the kernel's driver"
    elif create.mode is not MacvtapMode.PASSTHRU or create.mac != claim.port.mac:
        yield f"a macvtap in mode {create.mode} with MAC {create.mac} on a VF with MAC {claim.port.mac}"


def _problems_of_change(plan: ops.Plan, change: ops.ChangePort) -> Iterator[str]:
    of_vf = _find(plan, ops.ChangeFunction)
    if of_vf is None or (change.before is None) != (of_vf.before is None):
        yield "a macvtap that changes without its VF"
        return
    if change.mac != change.port.mac:
        yield f"MAC {change.mac!r}"
    yield from _differences(change.port, of_vf.port)
    if change.before is not None and of_vf.before is not None:
        yield from _differences(change.before, of_vf.before)


def _differences(port: Port, of_vf: Port) -> Iterator[str]:
    if ops.below_macvtap(port) != of_vf:
        yield "a macvtap and its VF that differ"
    if port.isolated or port.public_addresses:
        yield "a macvtap with isolation or public addresses"


def _find(plan: ops.Plan, kind: type[T]) -> T | None:
    return next((operation for operation in plan if isinstance(operation, kind)), None)
