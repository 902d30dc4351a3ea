"""A vifd inside another program: the real server and engine over the network driver `fake`, as `vifd --fake` has them."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import grpc
import msgspec
import uvloop

from vifd import config
from vifd.daemon import Daemon, Setup, listen
from vifd.drivers import catalog
from vifd.drivers.fake import FakeDriver
from vifd.errors import StartError, VifdError
from vifd.model import Drift, DriftKind, Endpoint, State
from vifd.systemd import Notifier
from vifd.testing.faults import Fault, Faults, Hold

_T = TypeVar("_T")
_SECONDS = 30.0


class FakeDaemon:
    """Serves in a thread, for the time of a `with` block.

        with FakeDaemon() as daemon, vifclient.Client(daemon.socket, fd_socket_path=daemon.fd_socket) as client:
            ...

    It needs no root and leaves nothing behind. All methods are to be called from outside of its thread, and what they do is seen
    by the next call and by every watch.

    Args:
        networks: the configuration's networks and policy, TOML; every network has driver `fake`. Its keys `kinds` and
        `unavailable` say which kinds can be made.
        interceptors: grpc's, between the socket and vifd.

    Attributes:
        socket: the path of its socket.
        fd_socket: the path of its fd socket.
    """

    def __init__(self, networks: str = config.FAKE_TEXT, *, interceptors: Sequence[grpc.aio.ServerInterceptor] = ()) -> None:
        self._networks, self._faults = networks, Faults()
        self._interceptors = (self._faults, *interceptors)
        self.socket = self.fd_socket = ""

    def __enter__(self) -> Self:
        self._directory = Path(tempfile.mkdtemp(prefix="vifd-"))
        try:
            self._start()
        except BaseException:
            shutil.rmtree(self._directory)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(RuntimeError):  # its loop has ended: why is told below
            self._faults.release_all()
            self._loop.call_soon_threadsafe(self._daemon.stop)
        self._thread.join()
        shutil.rmtree(self._directory)
        if self._error is not None:
            raise RuntimeError("the fake vifd broke") from self._error

    def configure(self, networks: str) -> None:
        """Put other networks and policy in the place of those there are, as a reload does; endpoints stay.

        Args:
            networks: TOML.

        Raises:
            ConfigError: it is wrong, and all is as before.
        """
        self._parse(networks)
        self._networks = networks
        self._run(self._daemon.reload())

    def fail(self, rpc: str, error: VifdError, *, times: int = 1, lose_answer: bool = False) -> None:
        """Let the next calls of an RPC fail.

        Args:
            rpc: its name, "RequestEndpoint".
            error: one of `vifd.errors`: the caller gets its status and details.
            times: how many calls.
            lose_answer: what is asked for is done all the same; only its answer is lost on the way.

        Raises:
            ValueError: there is no such RPC, or its answer is a stream, which can't be lost.
        """
        self._faults.add(rpc, Fault(error, lose_answer), times)

    @contextlib.contextmanager
    def hold(self, rpc: str) -> Iterator[Hold]:
        """Let calls of an RPC wait, before anything of them is done, until the block ends or `Hold.release` is called.

        Args:
            rpc: its name.

        Raises:
            ValueError: there is no such RPC, or it is held already.
        """
        hold = Hold(self._loop)
        self._faults.hold(rpc, hold)
        try:
            yield hold
        finally:
            self._faults.release(rpc)

    def attach(self, endpoint_id: str) -> None:
        """Let an endpoint be as if a hypervisor had opened it: ATTACHED."""
        self._change(endpoint_id, lambda endpoint: msgspec.structs.replace(endpoint, state=State.ATTACHED))

    def detach(self, endpoint_id: str) -> None:
        """Let an endpoint be as if the hypervisor had closed it: READY."""
        self._change(endpoint_id, lambda endpoint: msgspec.structs.replace(endpoint, state=State.READY))

    def drift(self, endpoint_id: str, kind: DriftKind, *, expected: str = "", actual: str = "") -> None:
        """Let an endpoint be as if somebody else had changed it. Watchers hear of it, and a check with `repair` mends it.

        Args:
            endpoint_id: the endpoint.
            kind: what differs.
            expected: what the record says.
            actual: what is there.
        """
        found = Drift(kind, expected, actual, f"{kind.replace('_', ' ')}: {actual!r} instead of {expected!r}")

        def drifted(endpoint: Endpoint) -> Endpoint:
            drifts = (*endpoint.drifts, found)
            self._driver(endpoint).drifts[endpoint_id] = drifts
            return msgspec.structs.replace(endpoint, drifts=drifts)

        self._change(endpoint_id, drifted)

    def _start(self) -> None:
        self.socket, self.fd_socket = str(self._directory / "vifd.sock"), str(self._directory / "fd.sock")
        self._setup = Setup(catalog.load(), lambda: self._text(self._networks), config.Config(), in_memory=True, embedded=True)
        self._setup = self._setup._replace(config=self._parse(self._networks))
        told = _Told()
        self._error: BaseException | None = None
        self._sockets = listen(self._setup.config, None)
        self._daemon = Daemon(self._setup, self._sockets, None, told, self._interceptors)
        self._thread = threading.Thread(target=self._serve, args=(told,), name="vifd", daemon=True)
        self._thread.start()
        if not told.served.wait(_SECONDS) or self._error is not None:
            raise StartError(f"the fake vifd did not start within {_SECONDS} s") from self._error

    def _serve(self, told: _Told) -> None:
        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            await self._daemon.serve()

        try:
            uvloop.run(serve())
        except BaseException as error:
            self._error = error
            told.served.set()
        finally:
            self._sockets.rpc.close()
            self._sockets.fds.close()
            for driver in self._daemon.networks.drivers.values():
                if isinstance(driver, FakeDriver):
                    driver.close()

    def _text(self, networks: str) -> str:
        return f'{networks}\n[daemon]\nsocket = "{self.socket}"\nfd_socket = "{self.fd_socket}"\n'

    def _parse(self, networks: str) -> config.Config:
        parsed = self._setup.parse(self._text(networks))
        for network in parsed.networks.values():
            if not issubclass(self._setup.drivers[network.driver], FakeDriver):
                raise StartError(f"network {network.name} has driver {network.driver}; a FakeDaemon has driver 'fake' alone")
        return parsed

    def _change(self, endpoint_id: str, change: Callable[[Endpoint], Endpoint]) -> None:
        async def do() -> None:
            endpoint = self._daemon.registry.find(endpoint_id)
            if endpoint is None or not endpoint.state.is_live:
                raise LookupError(f"there is no endpoint {endpoint_id}")
            self._daemon.registry.update(change(endpoint))

        self._run(do())

    def _run(self, work: Coroutine[None, None, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_SECONDS)

    def _driver(self, endpoint: Endpoint) -> FakeDriver:
        driver = self._daemon.networks.drivers[endpoint.network]
        if not isinstance(driver, FakeDriver):
            raise TypeError(f"network {endpoint.network} has another driver")
        return driver


class _Told(Notifier):
    """Hears what systemd would be told; the environment stays the program's own."""

    def __init__(self) -> None:
        self.watchdog_s, self.served = None, threading.Event()

    def ready(self, status: str) -> None:  # noqa: ARG002  Notifier's signature
        self.served.set()

    def _send(self, message: str) -> None:
        """Tell nobody."""
