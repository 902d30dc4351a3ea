"""Opens queues of endpoints for those who may have them."""

from __future__ import annotations

from vifd.endpoints.networks import Networks
from vifd.endpoints.registry import Registry
from vifd.endpoints.views import Views
from vifd.errors import NotAllowed, Unsupported, WrongState
from vifd.kernel.room import Room
from vifd.model import Caller, Endpoint, MacvtapDevice, TapDevice

_QUEUES_A_PACKET = 253  # SCM_MAX_FD, net/scm.h


class Queues:
    """Opens queues.

    Args:
        registry: the endpoints.
        networks: the policy.
        room: the kernel.
    """

    def __init__(self, registry: Registry, networks: Networks, room: Room) -> None:
        self._registry, self._networks, self._room = registry, networks, room
        self._views = Views(registry, networks)

    async def open(self, caller: Caller, endpoint_id: str, count: int) -> tuple[list[int], TapDevice | MacvtapDevice]:
        """Open queues of an endpoint for its owner.

        Args:
            caller: who asks.
            endpoint_id: the endpoint.
            count: how many; 0: all.

        Returns:
            The descriptors, which the caller of this closes, and the tap or macvtap.

        Raises:
            VifdError: nothing is open.
        """
        endpoint = self._views.get(caller, endpoint_id)
        if not self._networks.policy.may_change(caller, endpoint.owner, endpoint.network):
            raise NotAllowed(f"endpoint {endpoint_id} belongs to another user; only its owner may open it")
        if not endpoint.state.is_live:
            raise WrongState(f"endpoint {endpoint_id} is {endpoint.state}; wait until it is ready")
        tap = _device_of(endpoint)
        if count > tap.queues:
            raise WrongState(f"endpoint {endpoint_id} has {tap.queues} queue(s), not {count}; ask for fewer, or 0 for all")
        wanted = count or tap.queues
        if wanted > _QUEUES_A_PACKET:
            raise WrongState(
                f"endpoint {endpoint_id} has {wanted} queues, and a packet carries {_QUEUES_A_PACKET}; ask for some at a time"
            )
        driver = self._networks.drivers.get(endpoint.network)
        own = driver.open_queues(endpoint, wanted) if driver is not None else None
        return own or await self._room.open_queues(endpoint_id, wanted, vnet_hdr=tap.vnet_hdr), tap


def _device_of(endpoint: Endpoint) -> TapDevice | MacvtapDevice:
    if not isinstance(endpoint.location, TapDevice | MacvtapDevice):
        kind = endpoint.location.kind if endpoint.location else "nothing"
        raise Unsupported(f"endpoint {endpoint.endpoint_id} is a {kind} and has no queues that vifd could open")
    return endpoint.location
