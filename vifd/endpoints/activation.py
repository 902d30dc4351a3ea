"""Where VMs run: vifd notices that one runs here, or is told; then it tells the network system, and who is behind the uplink.

A VM that is about to come from another host has its endpoint here before; until it is here, nothing is said in its name.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from logging import getLogger

import msgspec

from vifd.endpoints.busy import Busy
from vifd.endpoints.journal import Entry, Journal
from vifd.endpoints.networks import Networks
from vifd.endpoints.registry import Change, Registry
from vifd.endpoints.systems import bugs_told
from vifd.endpoints.views import Views
from vifd.errors import NotAllowed, TryAgain, VifdError, WrongState
from vifd.kernel.ops import Plan
from vifd.kernel.room import Room
from vifd.model import Caller, Endpoint, PciDevice, State, TapDevice

_log = getLogger(__name__)
_RETRY_SECONDS = 10.0


class Activation:
    """Makes endpoints ACTIVE.

    Args:
        journal: notes it, so that a restart doesn't forget it.
        room: the kernel.
        registry: the endpoints.
        networks: the networks and the policy.
        busy: what is happening to endpoints.
    """

    def __init__(self, journal: Journal, room: Room, registry: Registry, networks: Networks, busy: Busy) -> None:
        self._journal, self._room, self._registry, self._networks, self._busy = journal, room, registry, networks, busy
        self._views = Views(registry, networks)
        self._telling: dict[tuple[str, int], asyncio.Task[None]] = {}  # by endpoint and generation
        self._closing = asyncio.Event()
        self._awaited: set[str] = set()
        self._noted: set[str] = set()  # of which the journal says that their VM runs here
        self._noting: set[asyncio.Task[None]] = set()
        self._wanted: Callable[[bool], None] = lambda _wanted: None
        registry.listen(self._note)

    async def activate(self, caller: Caller, endpoint_id: str) -> Endpoint:
        """Take a caller's word that a VM runs here now. What is active already stays so, and nobody is told again.

        Args:
            caller: who says so.
            endpoint_id: the VM's endpoint.

        Returns:
            The endpoint, ACTIVE.

        Raises:
            UnknownEndpoint: there is none that the caller may see.
            NotAllowed: it is somebody else's.
            WrongState: it is being taken down, or nobody has its tap open.
            VifdError: the network system can't be told, or vifd is stopping; nothing has changed.
        """
        endpoint = self._views.get(caller, endpoint_id)
        if not self._networks.policy.may_change(caller, endpoint.owner, endpoint.network):
            raise NotAllowed(f"endpoint {endpoint_id} belongs to another user, and so does its VM")
        await self._busy.wait([endpoint_id])
        endpoint = self._views.get(caller, endpoint_id)
        if not endpoint.state.is_live:
            raise WrongState(f"endpoint {endpoint_id} is being taken down")
        self._busy.check_running()
        if endpoint.state is not State.ACTIVE:
            await self._busy.start([endpoint], self._activate(endpoint))
        return self._views.get(caller, endpoint_id)

    def follow(self, wanted: Callable[[bool], None]) -> None:
        """Let a function be told whether there is anybody whose first frame is waited for, now and whenever that changes."""
        self._wanted = wanted
        wanted(bool(self._awaited))

    def on_learned(self, ifindex: int) -> None:
        """Note that a bridge has seen a frame from an endpoint's device: its VM runs."""
        endpoint = self._registry.find_by_ifindex(ifindex)
        if endpoint is None or not endpoint.state.is_live or endpoint.state is State.ACTIVE or self._busy.refuses:
            return  # what a vifd that stops doesn't see, its next start does
        self._registry.update(msgspec.structs.replace(endpoint, state=State.ACTIVE))
        life = endpoint.endpoint_id, endpoint.generation
        if life not in self._telling:  # however often somebody opens and closes it meanwhile
            self._telling[life] = asyncio.get_running_loop().create_task(self._tell(*life))

    async def close(self) -> None:
        """Finish telling; what couldn't be told is the next start's."""
        self._closing.set()
        while tasks := [*self._telling.values(), *self._noting]:
            await asyncio.wait(tasks)

    def _note(self, change: Change, endpoint: Endpoint) -> None:
        if change is Change.ADDED and endpoint.state is State.ACTIVE:
            self._noted.add(endpoint.endpoint_id)
        elif change is Change.REMOVED:
            self._noted.discard(endpoint.endpoint_id)
        elif endpoint.state is State.READY and endpoint.endpoint_id in self._noted:
            self._noted.discard(endpoint.endpoint_id)
            task = asyncio.get_running_loop().create_task(self._note_absence(endpoint))
            self._noting.add(task)
            task.add_done_callback(self._noting.discard)
        before = bool(self._awaited)
        if change is not Change.REMOVED and self._is_awaited(endpoint):
            self._awaited.add(endpoint.endpoint_id)
        else:
            self._awaited.discard(endpoint.endpoint_id)
        if bool(self._awaited) is not before:
            self._wanted(not before)

    def _is_awaited(self, endpoint: Endpoint) -> bool:
        if endpoint.state not in (State.PENDING, State.READY, State.ATTACHED):
            return False
        location = endpoint.location
        is_represented = isinstance(location, PciDevice) and location.representor_ifindex != 0
        return (location is None or isinstance(location, TapDevice) or is_represented) and bool(self._plan_of(endpoint))

    async def _activate(self, endpoint: Endpoint) -> None:
        await self._check_open(endpoint)
        await self._say_so(endpoint)
        await self._check_open(self._registry.find(endpoint.endpoint_id))  # whoever had it open may have closed it meanwhile
        now = self._registry.find(endpoint.endpoint_id)
        if now is not None:
            self._note_presence(now)
            self._registry.update(msgspec.structs.replace(now, state=State.ACTIVE))

    async def _check_open(self, endpoint: Endpoint | None) -> None:
        """Check that somebody has a tap open; of one that was opened just now, the event may not be there yet."""
        if endpoint is None or endpoint.state is not State.READY or not isinstance(endpoint.location, TapDevice):
            return
        if self._plan_of(endpoint):
            devices = await self._room.inspect([endpoint.endpoint_id])
            if not any(device.carrier for device in devices):
                if endpoint.port.link_up is False:
                    raise WrongState(
                        f"the link of endpoint {endpoint.endpoint_id} is set down: nobody can tell whether its VM runs"
                    )
                raise WrongState(f"nobody has the tap of endpoint {endpoint.endpoint_id} open; start its VM first")

    async def _tell(self, endpoint_id: str, generation: int) -> None:
        """Tell of what was noticed; nobody waits for it, so what goes wrong is logged, and tried again."""
        try:
            while (now := await self._find_active(endpoint_id, generation)) is not None and not await self._is_told(now):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), _RETRY_SECONDS)
        finally:
            del self._telling[endpoint_id, generation]

    async def _is_told(self, endpoint: Endpoint) -> bool:
        try:
            await self._busy.start([endpoint], self._say_what_was_noticed(endpoint))
        except VifdError as error:
            about = {"endpoint_id": endpoint.endpoint_id, "error": str(error)}
            _log.error("the network system can't be told where a VM runs", extra=about)
            return self._closing.is_set()  # then it is the next start's to tell
        return True

    async def _say_what_was_noticed(self, endpoint: Endpoint) -> None:
        await self._say_so(endpoint)
        now = self._registry.find(endpoint.endpoint_id)
        if now is not None and now.state is State.ACTIVE:
            self._note_presence(now)

    async def _find_active(self, endpoint_id: str, generation: int) -> Endpoint | None:
        """Give an endpoint once nothing is happening to it, if its VM runs here still."""
        await self._busy.wait([endpoint_id])
        now = self._registry.find(endpoint_id)
        is_active = now is not None and now.generation == generation and now.state is State.ACTIVE
        return now if is_active and not self._busy.refuses else None

    def _note_presence(self, endpoint: Endpoint) -> None:
        active = msgspec.structs.replace(endpoint, state=State.ACTIVE, drifts=())
        self._journal.write([Entry(active, self._plan_of(endpoint))])
        self._noted.add(endpoint.endpoint_id)

    async def _note_absence(self, endpoint: Endpoint) -> None:
        """Note that a VM has left, or a restart would take the next to open its tap for it, which may be about to come only."""
        await self._busy.wait([endpoint.endpoint_id])
        now = self._registry.find(endpoint.endpoint_id)
        if now is None or now.generation != endpoint.generation:
            return
        if now.state is State.ACTIVE:  # it is back already
            self._noted.add(endpoint.endpoint_id)
        elif now.state.is_live:
            with contextlib.suppress(TryAgain):  # which the journal has logged
                self._journal.write([Entry(msgspec.structs.replace(now, state=State.READY, drifts=()), self._plan_of(now))])

    async def _say_so(self, endpoint: Endpoint) -> None:
        plan = self._plan_of(endpoint)
        driver = self._networks.drivers.get(endpoint.network)
        if driver is not None:
            with bugs_told(driver.name):
                await driver.activate(endpoint)
        for problem in await self._room.announce([plan]) if plan else ():
            if problem:
                about = {"endpoint_id": endpoint.endpoint_id, "error": problem}
                _log.warning("a VM that runs here can't be announced", extra=about)

    def _plan_of(self, endpoint: Endpoint) -> Plan:
        return self._registry.plan_of(endpoint.endpoint_id)
