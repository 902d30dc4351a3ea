"""The composition root: builds every object, in order, and stops them in reverse. No logic."""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import uvloop

from vifd import privileges
from vifd.config import Config, parse
from vifd.dhcp import supervisor
from vifd.dhcp.dnsmasq import Files
from vifd.dhcp.network import DhcpNetwork
from vifd.dhcp.servers import DhcpServers
from vifd.drivers import catalog
from vifd.endpoints.activation import Activation
from vifd.endpoints.changes import Changes
from vifd.endpoints.engine import Engine, Host
from vifd.endpoints.follower import Follower
from vifd.endpoints.garbage import Garbage
from vifd.endpoints.guests import Guests
from vifd.endpoints.journal import Journal
from vifd.endpoints.leftovers import Leftovers
from vifd.endpoints.lifetimes import Clock, Lifetimes
from vifd.endpoints.mending import Mender
from vifd.endpoints.networks import Networks
from vifd.endpoints.policy import Policy
from vifd.endpoints.queues import Queues
from vifd.endpoints.recovery import recover
from vifd.endpoints.registry import Registry
from vifd.endpoints.views import Views
from vifd.errors import StartError
from vifd.gate import listeners, relay
from vifd.gate.door import Door
from vifd.kernel import helper, netns
from vifd.kernel.authority import Authority
from vifd.kernel.monitor import LinkMonitor, Listener, open_events
from vifd.kernel.processes import Processes
from vifd.kernel.room import NoRoom, PrivilegedRoom
from vifd.kernel.rulesetmonitor import RulesetMonitor
from vifd.kernel.vdpa.netlink import GenericSocket
from vifd.systemd import Notifier

if TYPE_CHECKING:
    from grpc.aio import ServerInterceptor

    from vifd.server.app import Server

_log = getLogger("vifd")
_RUN = Path("/run/vifd")
_GRACE_SECONDS = 10.0
_OBJECTS_A_COLLECTION = 20_000
_HELPER_ANSWERS_SECONDS = 10.0


class Setup(NamedTuple):
    """What the command line comes to.

    Args:
        drivers: the network drivers there are.
        load: reads the configuration's text; again on SIGHUP.
        config: what it says.
        in_memory: keep no journal on disk.
        embedded: serve inside a program that does other things: its signals and its garbage collector stay its own.
    """

    drivers: catalog.Catalog
    load: Callable[[], str]
    config: Config
    in_memory: bool = False
    embedded: bool = False

    def parse(self, text: str) -> Config:
        """Turn the configuration's text into values.

        Raises:
            ConfigError: with every problem.
        """
        options = {name: driver.options for name, driver in self.drivers.items()}
        config = parse(text, options, lambda name, values: catalog.check_options(self.drivers, name, values))
        catalog.check_together(self.drivers, config)
        return config

    def load_authority(self) -> tuple[str, Authority]:
        """Read the configuration for the helper: its text, and what it lets the helper touch."""
        text = self.load()
        return text, catalog.authority(self.drivers, self.parse(text))

    def load_dhcp(self) -> dict[str, DhcpNetwork]:
        """Read the configuration for the supervisor of the DHCP servers."""
        return catalog.dhcp_networks(self.drivers, self.parse(self.load()))


class _Privileged(NamedTuple):
    """The processes that keep privileges, as the one that drops them sees them.

    Args:
        helper: what changes the kernel.
        events: tells of the kernel's devices.
        dhcp: what keeps DHCP servers; None where no network had any at the start.
    """

    helper: helper.Channels
    events: socket.socket
    dhcp: supervisor.Supervisor | None

    def stop(self) -> None:
        """End them, and wait for it."""
        helper.stop()
        if self.dhcp is not None:
            self.dhcp.stop()


class Sockets(NamedTuple):
    """The public socket, the fd socket, and where grpc listens: in a directory that only vifd's user can enter."""

    rpc: socket.socket
    fds: socket.socket
    upstream: Path


def run(setup: Setup) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        StartError: vifd can't start.
    """
    privileged = os.geteuid() == 0 and not setup.in_memory
    if not privileged and (needing := catalog.authority(setup.drivers, setup.config)):
        raise StartError(
            f"network {next(iter(needing))} needs root to be made; start vifd as root, or try it out with vifd --fake"
        )
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload
    notifier = Notifier()
    identity = privileges.resolve(setup.config.daemon) if privileged else None
    vdpa = GenericSocket() if privileged else None  # the kernel hears of vDPA only in the host's own namespace
    if setup.config.daemon.netns:
        netns.enter(setup.config.daemon.netns)
    locks = _lock(setup.config, privileged=privileged)
    sockets = listen(setup.config, identity)
    if not setup.in_memory:
        privileges.make_directory(Path(setup.config.daemon.state_dir), identity)
    privileges.raise_file_limit()
    privileged_processes = None
    if identity is not None:
        _spare_the_collector()  # in the others too; and pages that the collector doesn't touch stay shared
        dhcp = _start_dhcp(setup, identity, locks)  # the helper's fork takes a thread with it, so this is first
        daemon = setup.config.daemon
        channels = helper.start(setup.load_authority, Path(daemon.device_dir), vdpa, own_tables=daemon.own_nftables)
        privileged_processes = _Privileged(channels, open_events(), dhcp)
        # Python's own files may be out of the user's reach (a Python below /root): take in what is needed before the drop.
        importlib.import_module("vifd.server.app")
        privileges.drop(identity)
    uvloop.run(Daemon(setup, sockets, privileged_processes, notifier).serve())
    if privileged_processes is not None:
        privileged_processes.stop()
    for lock in locks:
        os.close(lock)


def _lock(config: Config, *, privileged: bool) -> list[int]:
    """Be the only vifd on the socket, and on this network namespace: the recovery takes every marked device for its own."""
    locks = [listeners.lock(Path(f"{config.daemon.socket}.lock"), f"the socket {config.daemon.socket}")]
    if privileged:
        locks.append(listeners.lock(_RUN / f"netns-{netns.inode()}.lock", "this network namespace"))
        listeners.discard_stale_locks(_RUN, "netns-*.lock")
    return locks


def listen(config: Config, identity: privileges.Identity | None) -> Sockets:
    """Make the sockets that the configuration names, or take those that systemd passes; None: they are this user's."""
    path = Path(config.daemon.socket)
    access = listeners.Access(identity.socket_gid if identity else None, int(config.daemon.socket_mode, 8))
    passed = {listener.type: listener for listener in listeners.passed()}
    rpc = passed.get(socket.SOCK_STREAM) or listeners.listen(path, socket.SOCK_STREAM, access)
    fds = passed.get(socket.SOCK_SEQPACKET) or listeners.listen(Path(config.daemon.fd_socket), socket.SOCK_SEQPACKET, access)
    private = Path(f"{path}.d")
    privileges.make_directory(private, identity)
    return Sockets(rpc, fds, private / "grpc")  # grpc takes the place of an earlier run's socket by itself


def _dhcp_files(config: Config) -> Files:
    return Files.below(Path(f"{config.daemon.socket}.dhcp"))


def _start_dhcp(setup: Setup, identity: privileges.Identity, locks: list[int]) -> supervisor.Supervisor | None:
    """Fork the supervisor of the DHCP servers where a network has any. Who may write which of their files is root's to say."""
    user = privileges.find_dhcp_user(setup.config.daemon)
    if not catalog.dhcp_networks(setup.drivers, setup.config):
        return None
    files = _dhcp_files(setup.config)
    privileges.make_shared_directory(files.hosts.parent, 0, 0, 0o755)
    privileges.make_shared_directory(files.hosts, identity.uid, user.gid if user else identity.gid, 0o750)
    if user is not None:
        privileges.make_shared_directory(files.leases, user.uid, identity.gid, 0o750)
    return supervisor.start(setup.load_dhcp, files, user, locks)


def _boot_id() -> str:
    """Give the kernel's boot id (proc_sys_kernel(5))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


async def _wait_for(work: Callable[[], Awaitable[None]]) -> None:
    """Wait for work as long as whoever stops vifd may be kept waiting."""
    with suppress(TimeoutError):
        await asyncio.wait_for(work(), _GRACE_SECONDS)


def _spare_the_collector() -> None:
    """Keep the garbage collector from walking through what stays anyway, with every 700 objects: a request or two."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS_A_COLLECTION, 20, 50)
    gc.enable()  # which `vifd.__main__` has turned off


class Daemon:
    """The unprivileged process from here on: all of it lives in one event loop. `interceptors` stand in front of its services."""

    def __init__(
        self,
        setup: Setup,
        sockets: Sockets,
        privileged: _Privileged | None,
        notifier: Notifier,
        interceptors: Sequence[ServerInterceptor] = (),
    ) -> None:
        self._setup, self._sockets, self._notifier, self._interceptors = setup, sockets, notifier, interceptors
        self._channels = privileged.helper if privileged else None
        self._events = privileged.events if privileged else None
        self._room: PrivilegedRoom | NoRoom = NoRoom()
        self.networks = Networks()
        self.registry = Registry(self.networks)
        channel = privileged.dhcp.channel if privileged and privileged.dhcp else None
        served = catalog.dhcp_networks(setup.drivers, setup.config)
        self._dhcp = DhcpServers(channel, _dhcp_files(setup.config), served, self._lose_helper)
        self._dhcp.on_status(self.networks.set_service_problem)
        self.registry.listen(Guests(self._dhcp).on_change)
        self._stop, self._one_reload = asyncio.Event(), asyncio.Lock()
        self.stop = self._stop.set  # lets `serve` come to its end; to be called in its thread
        self._tasks: set[asyncio.Future[None]] = set()

    async def serve(self) -> None:
        """Start, serve, stop."""
        async with AsyncExitStack() as stop:
            await self._start(stop)
            if not self._setup.embedded:
                self._listen_to_signals()
                _spare_the_collector()
            self._notifier.ready(self._status())
            networks = len(self._setup.config.networks)
            _log.info("vifd serves", extra={"socket": self._setup.config.daemon.socket, "networks": networks})
            await self._stop.wait()
            _log.info("vifd stops")
            self._notifier.stopping()

    async def _start(self, stop: AsyncExitStack) -> None:
        """Start everything.

        Args:
            stop: takes what is done at the end, in reverse: nobody new comes in, what was begun is finished and answered, then
                what that needs is closed.
        """
        daemon = self._setup.config.daemon
        if self._channels is not None:
            self._room = self._enter_room(self._channels, stop)
        problems = await self._prepare()
        journal = Journal(":memory:" if self._setup.in_memory else Path(daemon.state_dir) / "journal.db")
        stop.callback(journal.close)
        registry, processes = self.registry, Processes()
        # What is heard before the mender is there, the recovery looks at itself.
        follower = Follower(registry, self.networks, self._room, lambda endpoint_id: mender.look([endpoint_id]))
        listener = self._listener(follower, lambda ifindex: activation.on_learned(ifindex))  # noqa: PLW0108  made later
        monitor = LinkMonitor(listener, self._events or open_events())
        engine = Engine(journal, self._room, registry, self.networks, Host(monitor.has_carrier, processes))
        mender = Mender(journal, self._room, registry, self.networks, engine.busy)
        lifetimes = Lifetimes(registry, engine, processes, Clock.of_loop())
        changes = Changes(journal, self._room, registry, self.networks, engine)
        activation = Activation(journal, self._room, registry, self.networks, engine.busy)
        self._configure(self._setup.config, problems)
        for entry in await recover(journal, self._room, _boot_id(), self.networks.drivers, processes):
            registry.add(entry.endpoint, entry.plan)
        door = Door(self.networks.admits)
        stop.push_async_callback(door.close)
        self._dhcp.start()
        stop.push_async_callback(self._dhcp.close)
        activation.follow(monitor.follow_learning)  # first, so that nothing is learned in between
        monitor.start()
        stop.callback(monitor.close)
        self._watch_rulesets(mender, stop)
        for close in (engine.close, activation.close, mender.close):
            stop.push_async_callback(close)
        stop.callback(lifetimes.close)
        for patrol in (mender.patrol, Leftovers(registry, engine).patrol):
            stop.callback(asyncio.get_running_loop().create_task(patrol(daemon.patrol_seconds)).cancel)
        relaying = relay.Relay(self._sockets.upstream)
        server = self._build_server(engine, changes, mender, activation, relaying)
        await server.start()
        stop.push_async_callback(server.stop, _GRACE_SECONDS)
        # Until what was begun is done, grpc answers, so that who comes now is told to try again.
        stop.push_async_callback(_wait_for, engine.busy.drain)
        stop.push_async_callback(server.say_that_it_ends)
        stop.callback(engine.refuse_work)
        self._open(door, relaying)
        stop.callback(door.shut)

    def _enter_room(self, channels: helper.Channels, stop: AsyncExitStack) -> PrivilegedRoom:
        loop = asyncio.get_running_loop()
        loop.add_reader(channels.lifeline, self._lose_helper, "it died")
        stop.callback(loop.remove_reader, channels.lifeline)
        return PrivilegedRoom(helper.calls(self._lose_helper), channels.fds, channels.card_calls)

    def _listener(self, follower: Follower, on_learned: Callable[[int], None]) -> Listener:
        return Listener(
            on_carrier=follower.on_carrier,
            on_change=follower.on_change,
            on_port=follower.on_port,
            on_gone=follower.on_gone,
            on_learned=on_learned,
            on_overflow=lambda: self._keep(follower.resync()),
        )

    def _open(self, door: Door, relaying: relay.Relay) -> None:
        from vifd.gate import handoff  # noqa: PLC0415  grpc must not exist before the helper is forked

        door.open(self._sockets.rpc, relaying.serve, relay.refuse)
        queues = Queues(self.registry, self.networks, self._room)
        door.open(self._sockets.fds, handoff.Handoff(queues.open).serve, handoff.refuse)

    def _watch_rulesets(self, mender: Mender, stop: AsyncExitStack) -> None:
        if self._channels is not None and self._channels.rulesets is not None:
            monitor = RulesetMonitor(self._channels.rulesets, lambda: self._keep(mender.on_ruleset()))
            monitor.start()
            stop.callback(monitor.close)

    def _build_server(
        self, engine: Engine, changes: Changes, mender: Mender, activation: Activation, relaying: relay.Relay
    ) -> Server:
        from vifd.server.app import Server  # noqa: PLC0415  grpc must not exist before the helper is forked
        from vifd.server.services import EndpointService, HostFacts, HostService, UseCases  # noqa: PLC0415  as above

        daemon, views = self._setup.config.daemon, Views(self.registry, self.networks)
        mechanism = None if self._channels is None else self._channels.support.ingress
        facts = HostFacts(_boot_id(), sorted(self._setup.drivers), daemon.fd_socket, mechanism)
        host = HostService(views, relaying.find_caller, facts)
        use_cases = UseCases(engine, views, changes, mender, activation, Garbage(self.registry, engine))
        endpoints = EndpointService(use_cases, relaying.find_caller, netns.path_of(daemon.netns))
        return Server(self._sockets.upstream, endpoints, host, self._interceptors)

    async def _prepare(self) -> dict[str, str]:
        """Bring the networks' bridges to what the configuration says; a network that can't be is reported, the others work."""
        if not isinstance(self._room, PrivilegedRoom):
            return {}
        _, problems, remarks = await self._room.reload()
        self._tell_of_networks(self._setup.config, problems, remarks)
        return problems

    def _tell_of_networks(self, config: Config, problems: dict[str, str], remarks: dict[str, str]) -> None:
        for network, problem in problems.items():
            _log.error("a network isn't ready", extra={"network": network, "error": problem})
        for network, remark in remarks.items():
            _log.warning("a network isn't as it is configured", extra={"network": network, "error": remark})
        for key, message in catalog.find_contradictions(self._setup.drivers, config):
            _log.warning("two networks contradict each other", extra={"key": key, "error": message})

    def _configure(self, config: Config, problems: dict[str, str]) -> None:
        drivers = {name: catalog.create(self._setup.drivers, network) for name, network in config.networks.items()}
        self.networks.configure(drivers, Policy(config.policy), problems)

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._keep(self.reload()))
        if self._notifier.watchdog_s is not None:
            self._keep(self._give_signs_of_life(self._notifier.watchdog_s))

    async def reload(self) -> None:
        """Take networks and policy of the configuration as it is now; a wrong one changes nothing."""
        async with self._one_reload:  # or who was asked later may answer earlier, and the older one would stay
            self._notifier.reloading()
            try:
                await self._take_configuration()
            finally:
                self._notifier.ready(self._status())

    async def _take_configuration(self) -> None:
        try:
            problems: dict[str, str] = {}
            remarks: dict[str, str] = {}
            if isinstance(self._room, PrivilegedRoom):
                text, problems, remarks = await self._room.reload()
            else:
                text = self._setup.load()
            config = self._setup.parse(text)
            self._configure(config, problems)
            self._dhcp.configure(catalog.dhcp_networks(self._setup.drivers, config))
        except StartError as error:
            _log.error("the configuration is wrong and stays as it was", extra={"error": str(error)})
        else:
            self._tell_of_networks(config, problems, remarks)
            if config.daemon != self._setup.config.daemon:
                _log.warning("a change of [daemon] takes a restart")
            _log.info("the configuration is read again", extra={"networks": len(config.networks)})

    async def _give_signs_of_life(self, interval_s: float) -> None:
        """Tell systemd that the loop runs and the helper answers; if either doesn't, vifd is restarted."""
        while True:
            if isinstance(self._room, PrivilegedRoom):
                await asyncio.wait_for(self._room.ping(), _HELPER_ANSWERS_SECONDS)
            self._notifier.alive()
            await asyncio.sleep(interval_s)

    def _lose_helper(self, reason: str) -> None:
        """End at once: nothing can be said of what that process was doing, and the next start's recovery finds out."""
        _log.critical("a privileged process is lost; vifd ends, to be started anew", extra={"reason": reason})
        os._exit(1)

    def _status(self) -> str:
        return f"{len(self.registry)} endpoints"

    def _keep(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._note_end)

    def _note_end(self, task: asyncio.Future[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.critical("a part of vifd ended with a bug", exc_info=error)
