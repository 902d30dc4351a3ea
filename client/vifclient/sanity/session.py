"""What checks ask a daemon with: calls as they are, requests with names of their own, and an end that leaves nothing behind."""

from __future__ import annotations

import contextlib
import secrets
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from vif.v1 import endpoint_service_pb2 as pb
from vif.v1.endpoint_pb2 import Endpoint, EndpointKind
from vif.v1.host_service_pb2 import Feature, GetHostInfoRequest, GetHostInfoResponse, KindOffer, Network
from vifclient.calls import BATCH
from vifclient.channel import OPTIONS, make_stubs, make_target, translate
from vifclient.errors import InvalidArgument, VifError
from vifclient.sanity.check import FailedError, SkippedError

AT_ONCE = 16
RUN_LABEL, CHECK_LABEL = "vif-sanity/run", "vif-sanity/check"
_T = TypeVar("_T")
_PREFIX = "ENDPOINT_KIND_"
#: The names of the kinds in a preference and a location: "tap".
KINDS = tuple(name.removeprefix(_PREFIX).lower() for name, number in EndpointKind.items() if number)


class NothingToTestError(Exception):
    """There is no network, or no kind, to make endpoints of; the text says why."""


class Session:
    """A connection to a daemon, and what was asked of it.

    Args:
        socket_path: The daemon's public socket.
        timeout_s: How long a call may take, in seconds.
        network: On which network to make endpoints. Empty: the first that can make one for this caller.
        kind: Which kind to make. Empty: of those that this caller gets there, the one with most features.

    Attributes:
        host: What GetHostInfo said at the begin.
        network: The network that endpoints are made on.
        offer: What the host says of the kind that is made.
        kind: Its name, "tap".
    """

    def __init__(self, socket_path: str, *, timeout_s: float, network: str = "", kind: str = "") -> None:
        self.socket_path, self.timeout_s = socket_path, timeout_s
        self.channel = grpc.insecure_channel(make_target(socket_path), options=OPTIONS)
        self._stubs = make_stubs(self.channel)
        self._run, self._check = secrets.token_hex(8), ""
        self._lock, self._ids = threading.Lock(), set[str]()
        self.host: GetHostInfoResponse = self.call("GetHostInfo", GetHostInfoRequest())
        self.network, self.offer = self._choose(network, kind)
        self.kind = kind_name(self.offer.kind)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.channel.close()

    # --- what is asked

    def call(self, rpc: str, message: Any, *, timeout_s: float | None = None) -> Any:
        """Make one call, once.

        Args:
            rpc: Its name.
            message: Its request.
            timeout_s: How long it may take, in seconds. None: as long as any.

        Returns:
            Its response.

        Raises:
            VifError: It is refused, or fails.
        """
        try:
            return self._stubs[rpc](message, timeout=self.timeout_s if timeout_s is None else timeout_s)
        except grpc.RpcError as error:
            raise translate(error, self.socket_path) from error

    def begin_check(self) -> None:
        """Give what is made from here on a label of its own."""
        self._check = secrets.token_hex(8)

    @property
    def labels(self) -> dict[str, str]:
        """The labels that what this check makes has, and nothing else."""
        return {RUN_LABEL: self._run, CHECK_LABEL: self._check}

    @property
    def filter(self) -> pb.EndpointFilter:
        """What finds the endpoints of this check."""
        return pb.EndpointFilter(labels=self.labels)

    def new_id(self) -> str:
        """Choose an id that nobody has; whatever is made with it is released at the check's end."""
        endpoint_id = str(uuid.uuid4())
        with self._lock:
            self._ids.add(endpoint_id)
        return endpoint_id

    def request(self, endpoint_id: str = "", **fields: Any) -> pb.RequestEndpointRequest:
        """Word a request for an endpoint of the session's network and kind.

        Args:
            endpoint_id: Its id. Empty: a new one.
            fields: Of RequestEndpointRequest; `labels` come beside the session's.
        """
        fields = {"network": self.network.name, "acceptable": [preference(self.kind)]} | fields
        fields["labels"] = self.labels | dict(fields.get("labels", {}))
        return pb.RequestEndpointRequest(endpoint_id=endpoint_id or self.new_id(), **fields)

    def make(self, endpoint_id: str = "", **fields: Any) -> Endpoint:
        """Request an endpoint, and give it."""
        return self.ask(self.request(endpoint_id, **fields)).endpoint

    def ask(self, request: pb.RequestEndpointRequest) -> pb.RequestEndpointResponse:
        """Make a request."""
        answer: pb.RequestEndpointResponse = self.call("RequestEndpoint", request)
        return answer

    def ask_batch(self, requests: Sequence[pb.RequestEndpointRequest]) -> list[pb.RequestEndpointResponse]:
        """Make requests as a batch."""
        return list(self.call("BatchRequestEndpoints", pb.BatchRequestEndpointsRequest(requests=requests)).responses)

    def release(self, endpoint_id: str, generation: int = 0) -> None:
        """Release an endpoint."""
        self.call("ReleaseEndpoint", pb.ReleaseEndpointRequest(endpoint_id=endpoint_id, generation=generation))

    def release_batch(self, releases: Sequence[pb.ReleaseEndpointRequest]) -> None:
        """Release endpoints as a batch."""
        self.call("BatchReleaseEndpoints", pb.BatchReleaseEndpointsRequest(requests=releases))

    def find(self, endpoint_id: str) -> Endpoint | None:
        """Get an endpoint; None where there is none."""
        try:
            endpoint: Endpoint = self.call("GetEndpoint", pb.GetEndpointRequest(endpoint_id=endpoint_id)).endpoint
        except VifError as error:
            if error.code is grpc.StatusCode.NOT_FOUND:
                return None
            raise
        return endpoint

    def listed(self, where: pb.EndpointFilter | None = None, page_size: int = 0) -> list[Endpoint]:
        """List the endpoints of this check, or those that another filter finds, through all pages."""
        request = pb.ListEndpointsRequest(filter=where or self.filter, page_size=page_size)
        found: list[Endpoint] = []
        while True:
            page = self.call("ListEndpoints", request)
            found += page.endpoints
            request.page_token = page.next_page_token
            if not request.page_token:
                return found

    @contextlib.contextmanager
    def watch(self, where: pb.EndpointFilter | None = None) -> Iterator[Watch]:
        """Watch the endpoints of this check, or those that another filter finds."""
        stream = self._stubs["WatchEndpoints"](pb.WatchEndpointsRequest(filter=where or self.filter), timeout=self.timeout_s)
        try:
            yield Watch(stream, self)
        finally:
            stream.cancel()

    def at_once(self, works: Sequence[Callable[[], _T]]) -> list[_T]:
        """Do works at once, each in a thread of its own.

        Returns:
            What each came to, in their order.
        """
        start = threading.Barrier(len(works))

        def run(work: Callable[[], _T]) -> _T:
            start.wait()
            return work()

        with ThreadPoolExecutor(len(works)) as pool:
            return list(pool.map(run, works))

    # --- what it needs

    def has(self, feature: Feature.ValueType) -> bool:
        """Tell whether the host says that the session's kind has a feature here."""
        return feature in self.offer.features

    def other_kinds(self, *, available: bool) -> list[str]:
        """Name the kinds beside the session's that the network can make now, or can't."""
        can = {kind_name(offer.kind) for offer in self.network.offers if offer.available}
        return [kind for kind in KINDS if kind != self.kind and (kind in can) is available]

    def _choose(self, network: str, kind: str) -> tuple[Network, KindOffer]:
        networks = [one for one in self.host.networks if network in ("", one.name)]
        if not networks:
            names = ", ".join(one.name for one in self.host.networks) or "none"
            raise NothingToTestError(f"there is no network {network!r} that this user may use; there are: {names}")
        why = []
        for one in networks:
            offers = [offer for offer in one.offers if kind in ("", kind_name(offer.kind))]
            for offer in sorted(offers, key=lambda offer: -len(offer.features)):  # what can do most shows most
                obstacle = self._find_obstacle(one, offer) if offer.available else offer.message
                if not obstacle:
                    return one, offer
                why.append(f"{one.name}, {kind_name(offer.kind)}: {obstacle}")
        raise NothingToTestError(f"no endpoint can be made: {'; '.join(why) or f'no network has kind {kind}'}")

    def _find_obstacle(self, network: Network, offer: KindOffer) -> str:
        kinds = [preference(kind_name(offer.kind))]
        request = pb.RequestEndpointRequest(
            endpoint_id=str(uuid.uuid4()), network=network.name, acceptable=kinds, validate_only=True
        )
        try:
            self.ask(request)
        except VifError as error:
            return error.message
        return ""

    # --- the end of a check

    def clean_up(self) -> None:
        """Release whatever was made under the session's ids since the last time.

        Raises:
            FailedError: Something is left.
        """
        with self._lock:
            ids, self._ids = sorted(self._ids), set()
        for start in range(0, len(ids), BATCH):
            self._discard(ids[start : start + BATCH])
        mine = pb.EndpointFilter(labels={RUN_LABEL: self._run})
        for endpoint in self.listed(mine):
            self._discard([endpoint.endpoint_id])
        if left := [endpoint.endpoint_id for endpoint in self.listed(mine)]:
            raise FailedError(f"endpoints that were released are still there: {', '.join(left)}")

    def _discard(self, ids: Sequence[str]) -> None:
        try:
            self.release_batch([pb.ReleaseEndpointRequest(endpoint_id=one) for one in ids])
        except VifError:  # a daemon that breaks the contract may do so here; what is left is looked for
            for one in ids:
                with contextlib.suppress(VifError):
                    self.release(one)


class Watch:
    """A stream of events."""

    def __init__(self, stream: Any, session: Session) -> None:
        self._stream, self._session = stream, session

    def next(self) -> tuple[str, Endpoint | None]:
        """Wait for the next event.

        Returns:
            Its kind, "ADDED", and its endpoint; None where it has none.

        Raises:
            VifError: The watch failed.
            FailedError: It ended, or nothing came.
        """
        try:
            event = next(self._stream)
        except StopIteration:
            raise FailedError("the watch ended by itself") from None
        except grpc.RpcError as error:
            failure = translate(error, self._session.socket_path)
            if failure.code is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise FailedError(f"expected an event of the watch, but none came in {self._session.timeout_s:g} s") from error
            raise failure from error
        kind = pb.WatchEventKind.Name(event.kind).removeprefix("WATCH_EVENT_KIND_")
        return kind, event.endpoint if event.HasField("endpoint") else None

    def until_synced(self) -> list[Endpoint]:
        """Take the events up to SYNCED.

        Returns:
            The endpoints that were there.

        Raises:
            FailedError: Another event came before.
        """
        found: list[Endpoint] = []
        while True:
            kind, endpoint = self.next()
            if kind == "SYNCED":
                return found
            if kind != "CURRENT" or endpoint is None:
                raise FailedError(f"before SYNCED: expected CURRENT with an endpoint, got {kind}")
            found.append(endpoint)

    def until(self, kind: str, endpoint_id: str) -> list[tuple[str, Endpoint]]:
        """Take the events up to one.

        Args:
            kind: Of that one.
            endpoint_id: Of that one.

        Returns:
            All of them.
        """
        events: list[tuple[str, Endpoint]] = []
        while not events or (events[-1][0], events[-1][1].endpoint_id) != (kind, endpoint_id):
            happened, endpoint = self.next()
            if endpoint is None:
                raise FailedError(f"after SYNCED: expected an event with an endpoint, got {happened} without")
            events.append((happened, endpoint))
        return events


def kind_name(number: EndpointKind.ValueType) -> str:
    """Name a kind as preferences and locations have it, "tap"."""
    value = EndpointKind.DESCRIPTOR.values_by_number.get(number)
    return value.name.removeprefix(_PREFIX).lower() if value else str(number)


def preference(kind: str, **options: Any) -> pb.EndpointPreference:
    """Accept a kind, with its options."""
    wanted = pb.EndpointPreference()
    target = getattr(wanted, kind)
    target.SetInParent()
    for name, value in options.items():
        setattr(target, name, value)
    return wanted


def newer(message: Any) -> Any:
    """Give a message of a newer contract: with a field that this one doesn't have."""
    return type(message).FromString(message.SerializeToString() + b"\xa2\x7d\x01x")  # field 2004, a string


@contextlib.contextmanager
def or_skip(*codes: str) -> Iterator[None]:
    """Skip the check where the block's call is refused because this daemon, or this host, can't do it.

    Args:
        codes: The names of the status codes that say so.
    """
    try:
        yield
    except VifError as error:
        if error.code.name in codes and not isinstance(error, InvalidArgument):
            raise SkippedError(f"this daemon can't do it here: {error.message}") from error
        raise
