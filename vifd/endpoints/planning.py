"""What an endpoint is going to be: which kind, which port, which PCI function, and the plan that makes it. Nothing is changed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from vifd.drivers.functions import Taken
from vifd.endpoints import negotiation
from vifd.endpoints.addresses import Draft
from vifd.endpoints.networks import Networks
from vifd.endpoints.registry import Registry
from vifd.endpoints.works import Job
from vifd.errors import InvalidRequest
from vifd.model import Caller, Endpoint, EndpointRequest, State


class Held(NamedTuple):
    """What endpoints have already, and those that are decided on together with this one.

    Args:
        addresses: holds addresses.
        functions: by PCI address, the state of the endpoint that has the function.
    """

    addresses: Draft
    functions: dict[str, State]


class Planner:
    """Decides.

    Args:
        registry: the endpoints.
        networks: the networks and the policy.
        next_generation: gives the generation of a new life.
    """

    def __init__(self, registry: Registry, networks: Networks, next_generation: Callable[[], int]) -> None:
        self._registry, self._networks, self._next_generation = registry, networks, next_generation

    @contextlib.contextmanager
    def holding(self) -> Iterator[Held]:
        """Hold for a block, in which nobody may wait, what is decided on in it."""
        with self._registry.addresses.draft() as draft:
            yield Held(draft, self._registry.functions())

    def decide(self, caller: Caller, request: EndpointRequest, held: Held, generation: int | None = None) -> Job:
        """Plan for one of several requests: what is wrong with its fields is told with its id.

        Args:
            caller: who asks.
            request: what for.
            held: what is held already; what this one gets is added.
            generation: 0: nothing is going to be made; None: the next.

        Raises:
            VifdError: it can't be made.
        """
        try:
            return self._plan(caller, request, held, generation)
        except InvalidRequest as error:
            raise InvalidRequest(error.violations, request.endpoint_id) from error

    def _plan(self, caller: Caller, request: EndpointRequest, held: Held, generation: int | None) -> Job:
        spec, driver, policy = request.spec, self._networks.drivers[request.spec.network], self._networks.policy
        policy.check_trust(caller, spec.port, spec.network)
        spec = msgspec.structs.replace(spec, port=policy.check_guard(caller, spec.port, spec.network))
        offers = driver.offers(spec)
        preference, considered = negotiation.choose(spec, offers, policy.forbidden(caller, spec.network, offers))
        offer = next(offer for offer in offers if offer.kind is preference.kind)
        port = negotiation.settle_port(spec.port, offer)
        settled = held.addresses.settle(request.endpoint_id, spec.network, port)
        own = self._registry.find(request.endpoint_id)  # a preview of what is there already
        function = (own.function if own else "") or driver.pick(spec, held.functions)
        if function:
            held.functions[function] = State.PENDING
        spec = msgspec.structs.replace(spec, port=settled.port, function=function)
        planned = driver.plan(request.endpoint_id, spec, preference)
        if generation is None:
            generation = self._next_generation()
        endpoint = Endpoint(
            endpoint_id=request.endpoint_id,
            generation=generation,
            spec_hash=request.spec_hash,
            network=spec.network,
            network_driver=driver.name,
            state=State.PENDING,
            port=planned.port,
            owner=spec.owner,
            create_time_ns=time.time_ns() if generation else 0,
            instance=spec.instance,
            labels=spec.labels,
            considered=considered,
            ip_config=settled.ip_config,
            lifetime=spec.lifetime,
            function=function,
            partner_endpoint_id=spec.partner_endpoint_id,
        )
        return Job(endpoint, planned.plan, driver, preference, spec)


def with_another_function(job: Job, taken: Taken) -> Job:
    """Plan an endpoint with another PCI function than it was planned with.

    Args:
        job: the endpoint.
        taken: the functions that endpoints have.

    Raises:
        NetworkFull: there is none.
    """
    function = job.driver.pick(job.spec, taken)
    spec = msgspec.structs.replace(job.spec, function=function)
    planned = job.driver.plan(job.endpoint.endpoint_id, spec, job.preference)
    endpoint = msgspec.structs.replace(job.endpoint, function=function, port=planned.port)
    return msgspec.structs.replace(job, endpoint=endpoint, plan=planned.plan, spec=spec)
