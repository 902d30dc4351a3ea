"""Changes of an endpoint that lives: its port, while the VM runs.

The order is always: journal that it is being changed, then the kernel, then journal what it is now, then answer. Whoever dies in
between leaves an endpoint that the next start brings back to what it was.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import msgspec

from vifd.endpoints import negotiation
from vifd.endpoints.addresses import Settled
from vifd.endpoints.engine import Engine
from vifd.endpoints.journal import Entry, Journal
from vifd.endpoints.networks import Networks
from vifd.endpoints.registry import Registry
from vifd.endpoints.views import Views
from vifd.errors import InvalidRequest, NotAllowed, TryAgain, Unsupported, VifdError, Violation, WrongState
from vifd.kernel import names, ops
from vifd.kernel.room import Room
from vifd.model import Caller, Endpoint, EndpointSpec, Kind, Port, RateLimit


class Change(NamedTuple):
    """What is to be changed.

    Args:
        endpoint_id: of what.
        port: the new values; what is empty goes back to vifd's choice.
        fields: which of them count.
    """

    endpoint_id: str
    port: Port
    fields: Collection[str]


class Changes:
    """Changes ports.

    Args:
        journal: where everything is noted first.
        room: the kernel.
        registry: the endpoints.
        networks: the networks and the policy.
        engine: who makes and takes down; nothing happens to one endpoint twice at once.
    """

    def __init__(self, journal: Journal, room: Room, registry: Registry, networks: Networks, engine: Engine) -> None:
        self._journal, self._room, self._registry, self._networks = journal, room, registry, networks
        self._engine, self._views = engine, Views(registry, networks)

    async def update(self, caller: Caller, change: Change) -> Endpoint:
        """Change a port: all that is named, or nothing.

        Args:
            caller: who asks.
            change: what.

        Returns:
            The endpoint as it is then.

        Raises:
            UnknownEndpoint: there is none that the caller may see.
            NotAllowed: it is somebody else's, or the guard may not be switched off, or it may not be trusted.
            Unsupported: its kind can't have it.
            AddressInUse, NetworkFull: the addresses are another's, or there are none.
            VifdError: nothing has changed.
        """
        self._find(caller, change.endpoint_id)
        await self._engine.busy.wait([change.endpoint_id])
        endpoint = self._find(caller, change.endpoint_id)
        if not endpoint.state.is_live:
            raise WrongState(f"endpoint {change.endpoint_id} is {endpoint.state}; there is nothing to change")
        self._engine.busy.check_running()
        port = self._wanted(caller, endpoint, change)
        if port == endpoint.port:
            return endpoint
        if endpoint.location is not None and endpoint.location.kind is Kind.VDPA and endpoint.function:
            raise Unsupported("a vDPA device stays as it was made; release the endpoint and request it again")
        changed: Endpoint = await self._engine.busy.start([endpoint], self._change(endpoint, port))
        return changed

    def _find(self, caller: Caller, endpoint_id: str) -> Endpoint:
        endpoint = self._views.get(caller, endpoint_id)
        if not self._networks.policy.may_change(caller, endpoint.owner, endpoint.network):
            raise NotAllowed(f"endpoint {endpoint_id} belongs to another user, and so do its changes")
        return endpoint

    def _wanted(self, caller: Caller, endpoint: Endpoint, change: Change) -> Port:
        """Give the port as it is to be, checked as that of a request is."""
        driver = self._networks.drivers.get(endpoint.network)
        if driver is None:
            raise WrongState(f"network {endpoint.network} is not configured any more; release the endpoint")
        fields = {field: getattr(change.port, field) for field in change.fields}
        port = msgspec.structs.replace(endpoint.port, **fields)
        if "guard_enabled" in fields:
            port = self._networks.policy.check_guard(caller, port, endpoint.network)
        if "trusted" in fields:
            self._networks.policy.check_trust(caller, port, endpoint.network)
        kind = endpoint.location.kind if endpoint.location is not None else None
        changed = EndpointSpec(endpoint.network, (), endpoint.owner, Port(**fields))
        offer = next((offer for offer in driver.offers(changed) if offer.kind is kind), None)
        if offer is None:
            raise Unsupported(f"network {endpoint.network} has no {kind} endpoints any more; release the endpoint")
        missing = [option for feature, option in negotiation.features_of(port).items() if feature not in offer.features]
        if missing:
            raise Unsupported(f"{kind} on network {endpoint.network} can't do {', '.join(missing)}. Ask without it")
        if offer.unavailable:
            raise WrongState(f"endpoint {change.endpoint_id} can't be changed so: {offer.unavailable}")
        _check_bursts(port)
        return driver.complete(negotiation.settle_port(port, offer))

    async def _change(self, endpoint: Endpoint, port: Port) -> Endpoint:
        with self._registry.addresses.draft() as draft:
            return await self._change_to(endpoint, draft.settle(endpoint.endpoint_id, endpoint.network, port))

    async def _change_to(self, endpoint: Endpoint, settled: Settled) -> Endpoint:
        plan = self._registry.plan_of(endpoint.endpoint_id)
        before, after = Entry(endpoint, plan, changing=True), with_port(Entry(endpoint, plan), settled.port)
        after = Entry(msgspec.structs.replace(after.endpoint, ip_config=settled.ip_config), after.plan)
        self._journal.write([_at_rest(before)])
        steps = change_plan(before, after)
        try:
            made = await self._apply(steps) if steps else ops.Made()
        except VifdError:
            self._journal.write([_at_rest(Entry(endpoint, plan))])
            raise
        after = _with_mtu(after, made)
        try:
            self._journal.write([_at_rest(after)])
        except TryAgain:
            if steps:
                await self._apply(change_plan(after, before))
            raise
        now = self._registry.find(endpoint.endpoint_id) or endpoint
        changed = msgspec.structs.replace(now, port=after.endpoint.port, ip_config=settled.ip_config)
        self._registry.update(changed, after.plan)
        return changed

    async def _apply(self, plan: ops.Plan) -> ops.Made:
        (made,) = await self._room.change([(plan,)])
        if isinstance(made, VifdError):
            raise made
        return made[0]


def with_port(entry: Entry, port: Port) -> Entry:
    """Give an endpoint and its plan with another port."""
    replace = msgspec.structs.replace
    of_vf = ops.below_macvtap(port) if _is_macvtap(entry) else port
    ports = {ops.ConfigurePort: port, ops.ClaimFunction: of_vf}
    plan = tuple(
        replace(op, port=ports[type(op)]) if isinstance(op, ops.ConfigurePort | ops.ClaimFunction) else op for op in entry.plan
    )
    return Entry(replace(entry.endpoint, port=port), plan)


def change_plan(before: Entry | None, after: Entry) -> ops.Plan:
    """Give the plan that brings an endpoint's device from one state to another.

    Args:
        before: as it is; None: that isn't known.
        after: as it is to be.

    Returns:
        The plan; empty where the kernel has no device of it.
    """
    if bound := tuple(op for op in after.plan if isinstance(op, ops.BindVdpa)):
        return bound  # all else of a vDPA device stays as it was made
    claimed, configured = _claim(after), _configuration(after)
    of_vf: ops.Plan = ()
    if claimed is not None:
        was = None if before is None else _claim(before)
        port = None if was is None else was.port
        of_vf = (ops.ChangeFunction(claimed.endpoint_id, claimed.network, claimed.address, port, claimed.port),)
        if configured is not None and not _is_macvtap(after):
            change = ops.ChangePort(claimed.endpoint_id, configured.ifname, claimed.network, "", port, claimed.port)
            return (ops.EnsureBridge(claimed.network), change, *of_vf)
    if configured is None:
        return of_vf
    known = None if before is None else _configuration(before)
    mac = configured.port.mac if _is_macvtap(after) else names.host_mac(configured.port.mac)
    change = ops.ChangePort(
        configured.endpoint_id, configured.ifname, configured.network, mac, known.port if known else None, configured.port
    )
    ensured = (op for op in after.plan if isinstance(op, ops.EnsureBridge | ops.EnsureVlan | ops.EnsureNode))
    return (*ensured, change, *of_vf)


def _is_macvtap(entry: Entry) -> bool:
    return any(isinstance(op, ops.CreateMacvtap) for op in entry.plan)


def _configuration(entry: Entry) -> ops.ConfigurePort | None:
    return next((op for op in entry.plan if isinstance(op, ops.ConfigurePort)), None)


def _claim(entry: Entry) -> ops.ClaimFunction | None:
    return next((op for op in entry.plan if isinstance(op, ops.ClaimFunction)), None)


def _with_mtu(entry: Entry, made: ops.Made) -> Entry:
    port = entry.endpoint.port
    if port.mtu_bytes or not made.mtu_bytes:
        return entry
    known = msgspec.structs.replace(port, mtu_bytes=made.mtu_bytes)
    return Entry(msgspec.structs.replace(entry.endpoint, port=known), entry.plan)


def _at_rest(entry: Entry) -> Entry:
    """Give what the journal keeps: who has a device open is the kernel's to say, not the journal's."""
    state = entry.endpoint.state.at_rest
    return Entry(msgspec.structs.replace(entry.endpoint, state=state, drifts=()), entry.plan, entry.changing)


def _check_bursts(port: Port) -> None:
    def is_small(limit: RateLimit) -> bool:
        return 0 < limit.burst_bytes < port.mtu_bytes

    limits = port.limits
    if limits is not None and (is_small(limits.from_vm) or is_small(limits.to_vm)):
        raise InvalidRequest([Violation("port.limits", f"a burst is less than the MTU of {port.mtu_bytes}: nothing could pass")])
