"""What plans with a VF have beside it: a macvtap that stands on it and is the same port, or its representor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from vifd.kernel import names, ops
from vifd.model import Kind, MacvtapMode, PciHostDriver, Port

T = TypeVar("T", bound=ops.Operation)
FunctionOperation = ops.ClaimFunction | ops.BindFunction | ops.ChangeFunction
_StandingOperation = ops.CreateMacvtap | ops.EnsureNode | ops.ConfigurePort | ops.ChangePort


def find_problem(plan: ops.Plan, of_vf: Sequence[FunctionOperation], *, bridged: bool) -> str:
    """Say what is wrong with what a plan with a VF does beside that; empty: nothing.

    Args:
        plan: its operations are each there at most once.
        of_vf: those with the VF; they are of one endpoint and network.
        bridged: whether the network has a bridge for representors of its VFs.
    """
    others = [operation for operation in plan if not isinstance(operation, FunctionOperation)]
    if bridged:
        return _problem_of_representor(others, of_vf)
    return next(_problems_of_identity(others, of_vf[0]), "") or next(_problems(plan), "")


def _problem_of_representor(others: Sequence[ops.Operation], of_vf: Sequence[FunctionOperation]) -> str:
    """Say what a plan has beside its VF that isn't its representor on the network's bridge, as the VF is to be."""
    network, endpoint_id, first = of_vf[0].network, of_vf[0].endpoint_id, of_vf[0]
    if isinstance(first, ops.BindFunction):
        return "a VF with what its network has not" if others else ""
    expected: list[ops.Operation] = [ops.EnsureBridge(network), ops.ConfigurePort(endpoint_id, "", network, first.port)]
    if isinstance(first, ops.ChangeFunction):
        expected[1:] = [ops.ChangePort(endpoint_id, "", network, "", first.before, first.port)]
    return "" if list(others) == expected else "a VF with something else than its representor"


def _problems_of_identity(others: Sequence[ops.Operation], of_vf: FunctionOperation) -> Iterator[str]:
    """Say what is no macvtap of the VF's endpoint and network; whose the endpoint's id is, is checked already."""
    for operation in others:
        if not isinstance(operation, _StandingOperation) or operation.endpoint_id != of_vf.endpoint_id:
            yield "two devices in one plan"
        elif operation.ifname != names.device_name(Kind.MACVTAP, of_vf.endpoint_id):
            yield f"{operation.ifname!r} is not the name of {of_vf.endpoint_id}'s macvtap"
        elif not isinstance(operation, ops.EnsureNode) and operation.network != of_vf.network:
            yield "two networks in one plan"


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
