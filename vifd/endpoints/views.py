"""What callers may see."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import msgspec

from vifd.drivers.base import NetworkDriver
from vifd.drivers.functions import FunctionState, FunctionStatus, PfStatus
from vifd.endpoints.networks import Networks
from vifd.endpoints.registry import Event, Registry
from vifd.errors import UnknownEndpoint
from vifd.model import Caller, Endpoint, Filter, Offer


class NetworkInfo(NamedTuple):
    """One network as a caller sees it."""

    name: str
    driver: NetworkDriver[Any]
    offers: Sequence[Offer]
    endpoint_count: int
    physical_functions: Sequence[PfStatus] = ()


class Views:
    """Shows the endpoints and networks that there are, to those who may see them.

    Args:
        registry: the endpoints.
        networks: the networks and the policy.
    """

    def __init__(self, registry: Registry, networks: Networks) -> None:
        self._registry, self._networks = registry, networks

    def get(self, caller: Caller, endpoint_id: str) -> Endpoint:
        """Give the endpoint that a call is about. If the caller may release it, that renews its lease.

        Raises:
            UnknownEndpoint: there is none, or none that the caller may see.
        """
        endpoint, policy = self._registry.find(endpoint_id), self._networks.policy
        if endpoint is None or not policy.may_see(caller, endpoint.owner, endpoint.network):
            raise UnknownEndpoint(f"there is no endpoint {endpoint_id} that this caller may see")
        if policy.may_change(caller, endpoint.owner, endpoint.network):
            self._registry.note_call(endpoint_id)
        return endpoint

    def page(self, caller: Caller, wanted: Filter, *, after: str, count: int) -> tuple[list[Endpoint], bool]:
        """Give endpoints by id, from the one after an id.

        Args:
            caller: who asks; what it may not see is left out.
            wanted: which are meant.
            after: the last id of the page before; empty: from the first.
            count: at most so many.

        Returns:
            The page, and whether there is more.
        """
        ids = sorted(e.endpoint_id for e in self._registry if e.endpoint_id > after and self._sees(caller, wanted, e))
        page = [endpoint for i in ids[:count] if (endpoint := self._registry.find(i))]
        return page, len(ids) > count

    def watch(self, caller: Caller, wanted: Filter) -> AsyncIterator[Event]:
        """Give every endpoint that the caller may see, then each change; see Registry.watch."""
        return self._registry.watch(lambda endpoint: self._sees(caller, wanted, endpoint), caller.uid)

    def networks(self, caller: Caller) -> list[NetworkInfo]:
        """Give the networks that a caller may know of, by name."""
        counts = Counter(endpoint.network for endpoint in self._registry)
        return [
            NetworkInfo(name, driver, self._offers(name, driver), counts[name], self._physical_functions(caller, driver))
            for name, driver in sorted(self._networks.drivers.items())
            if self._networks.policy.may_read(caller, name)
        ]

    def _offers(self, network: str, driver: NetworkDriver[Any]) -> Sequence[Offer]:
        problem = self._networks.problem_of(network)
        return [msgspec.structs.replace(offer, unavailable=offer.unavailable or problem) for offer in driver.offers(None)]

    def _physical_functions(self, caller: Caller, driver: NetworkDriver[Any]) -> Sequence[PfStatus]:
        return [
            msgspec.structs.replace(pf, functions=[self._with_holder(caller, one) for one in pf.functions])
            for pf in driver.physical_functions()
        ]

    def _with_holder(self, caller: Caller, status: FunctionStatus) -> FunctionStatus:
        """Put in which endpoint has a VF, of whichever network."""
        endpoint = self._registry.find_by_function(status.function.address)
        if endpoint is None:
            return status
        reason = self._registry.why_left(endpoint.endpoint_id)
        state = FunctionState.QUARANTINED if reason else FunctionState.IN_USE
        sees = self._networks.policy.may_see(caller, endpoint.owner, endpoint.network)
        return FunctionStatus(status.function, state, reason, endpoint.endpoint_id if sees else "")

    def _sees(self, caller: Caller, wanted: Filter, endpoint: Endpoint) -> bool:
        return wanted.matches(endpoint) and self._networks.policy.may_see(caller, endpoint.owner, endpoint.network)
