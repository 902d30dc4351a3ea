"""What VFs can do, by how a VM has them, and what of a request they can't. No I/O."""

from __future__ import annotations

from collections.abc import Iterator

from vifd.model import EndpointSpec, Feature, MacvtapMode, MacvtapPreference, Port, RateLimit

_MBIT = 1_000_000
_WHOLE_RATES = "a NIC takes rates in whole Mbit/s; let {} be a multiple of 1000000"
#: Of a VF that its VM drives, or that has a netdev on the host: what NICs can.
FUNCTION = frozenset(
    {
        Feature.MTU,
        Feature.LIMITS,
        Feature.MIN_RATE,
        Feature.VLAN,
        Feature.VLAN_QOS,
        Feature.LINK_STATE,
        Feature.TRUST,
    }
)
#: Of a macvtap on a VF: what the kernel can too.
MACVTAP = FUNCTION | {
    Feature.LIVE_MIGRATION,
    Feature.MULTI_QUEUE,
    Feature.FD_HANDOFF,
    Feature.GUARD,
    Feature.ADDRESSES,
    Feature.TX_QUEUE_LENGTH,
}
#: Of a VF whose representor is on a bridge: what that can.
REPRESENTED = frozenset(
    {
        Feature.MTU,
        Feature.LIMITS,
        Feature.VLAN,
        Feature.LINK_STATE,
        Feature.GUARD,
        Feature.ADDRESSES,
        Feature.ISOLATION,
    }
)


def refusals_of_promise(limit: RateLimit) -> Iterator[str]:
    """Say what of a promised rate no NIC can keep."""
    if limit.min_rate_bps % _MBIT:
        yield _WHOLE_RATES.format("min_rate_bps")


def refusals_of_nic(port: Port) -> Iterator[str]:
    """Say what of a port's limits no NIC can keep."""
    limits = port.limits
    if limits is None:
        return
    if limits.to_vm != RateLimit():
        yield "a VF's limit is for what its VM sends; leave port.limits.to_vm out"
    if limits.from_vm.burst_bytes:
        yield "a NIC sets the burst by itself; leave burst_bytes out"
    if limits.from_vm.rate_pps:
        yield "a NIC counts bits and not frames; leave rate_pps out"
    if limits.from_vm.rate_bps % _MBIT:
        yield _WHOLE_RATES.format("rate_bps")


def refusals_of_macvtap(spec: EndpointSpec) -> Iterator[str]:
    """Say what of a request no macvtap on a VF can be."""
    wanted = [one.mode for one in spec.acceptable if isinstance(one, MacvtapPreference)]
    if any(mode not in (None, MacvtapMode.PASSTHRU) for mode in wanted):
        yield "a macvtap on a VF has that for itself; let its mode be passthru, or leave it out"
