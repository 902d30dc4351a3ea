"""The table of calls that both clients have: for each, its arguments, its request message and what it returns.

A client turns a row into a method: `vifclient.client` one that blocks, `vifclient.aio` one that is awaited. So the signatures and
docstrings here are those of the clients' methods, and nothing is written twice. Every method takes `timeout_s`: how long the
call may take in seconds, with all repetitions. None: the client's `timeout_s`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from google.protobuf.field_mask_pb2 import FieldMask

from vif.v1 import endpoint_service_pb2 as pb
from vif.v1.endpoint_pb2 import Endpoint, PortSpec
from vif.v1.host_service_pb2 import GetHostInfoRequest, GetHostInfoResponse

BATCH = 64  #: how many endpoints a batch may be of
_Result = TypeVar("_Result")


class Call(NamedTuple, Generic[_Result]):
    """One call: what to send, and what becomes of the answer.

    Attributes:
        rpc: The RPC's name.
        request: Its request message.
        result: Makes the method's result of the response message.
        timeout_s: How long it may take. None: the client's default.
    """

    rpc: str
    request: Any
    result: Callable[[Any], _Result]
    timeout_s: float | None


class Calls:
    """The rows of the table. Each says which errors of `vifclient.errors` it raises beside those that every call can raise.

    Every call can raise NotAllowed, Unsupported, Unavailable, DeadlineExceeded and ServerError.
    """

    def request_endpoint(
        self, request: pb.RequestEndpointRequest, *, timeout_s: float | None = None
    ) -> Call[pb.RequestEndpointResponse]:
        """Make an endpoint: the first of the request's `acceptable` that the network can give.

        The same request again returns the same endpoint, so it may be repeated after every TransientError.

        Args:
            request: What is wanted; `endpoint_id`, `network` and `acceptable` are required.
            timeout_s: How long it may take, in seconds. None: the client's default.

        Returns:
            The endpoint, and for every preference what became of it; with `validate_only` the plan instead of a deed.

        Raises:
            InvalidArgument: Fields are missing or malformed.
            NotFound: There is no such network.
            AlreadyExists: The id is in use with another spec.
            NoAcceptableKind: The network can give none of the acceptable kinds.
            HostNotReady: The network's bridge or uplink isn't there, or this kernel can't do what is asked for.
            NoProcess: The process that it is to live as long as isn't there (any more).
            Exhausted: The network is full, or the quota is reached.
        """
        return Call("RequestEndpoint", request, _itself, timeout_s)

    def release_endpoint(self, endpoint_id: str, *, generation: int = 0, timeout_s: float | None = None) -> Call[None]:
        """Take an endpoint down and forget it. All is well, too, when there is none (any more).

        Args:
            endpoint_id: The endpoint.
            generation: The life that is meant, so that a late release can't hurt the next one. 0: whichever.
            timeout_s: How long it may take, in seconds. None: the client's default.

        Raises:
            InvalidArgument: The id is malformed.
            StaleGeneration: The id has a later life, which stays.
        """
        request = pb.ReleaseEndpointRequest(endpoint_id=endpoint_id, generation=generation)
        return Call("ReleaseEndpoint", request, _nothing, timeout_s)

    def batch_request_endpoints(
        self, requests: Iterable[pb.RequestEndpointRequest], *, timeout_s: float | None = None
    ) -> Call[list[pb.RequestEndpointResponse]]:
        """Make up to 64 endpoints, all or none: the interfaces of one VM.

        Args:
            requests: 1 to 64 requests with different ids.
            timeout_s: How long it may take, in seconds. None: the client's default.

        Returns:
            An answer for each request, in its order.

        Raises:
            RequestError: What `request_endpoint` raises, for the first request that failed.
            HostError: Likewise.
        """
        return Call("BatchRequestEndpoints", pb.BatchRequestEndpointsRequest(requests=requests), _responses, timeout_s)

    def batch_release_endpoints(
        self, requests: Iterable[pb.ReleaseEndpointRequest], *, timeout_s: float | None = None
    ) -> Call[None]:
        """Take up to 64 endpoints down. If one can't be, the others still are, and the call can be repeated.

        Args:
            requests: 1 to 64 requests with different ids.
            timeout_s: How long it may take, in seconds. None: the client's default.

        Raises:
            InvalidArgument: An id is malformed, or there are too many.
            StaleGeneration: An id has a later life; nothing was released.
        """
        return Call("BatchReleaseEndpoints", pb.BatchReleaseEndpointsRequest(requests=requests), _nothing, timeout_s)

    def get_endpoint(self, endpoint_id: str, *, timeout_s: float | None = None) -> Call[Endpoint]:
        """Show one endpoint.

        Args:
            endpoint_id: The endpoint.
            timeout_s: How long it may take, in seconds. None: the client's default.

        Returns:
            The endpoint.

        Raises:
            InvalidArgument: The id is malformed.
            NotFound: There is none, or none that the caller may see.
        """
        return Call("GetEndpoint", pb.GetEndpointRequest(endpoint_id=endpoint_id), _endpoint, timeout_s)

    def update_endpoint(
        self, endpoint_id: str, port: PortSpec, update_mask: Iterable[str], *, timeout_s: float | None = None
    ) -> Call[Endpoint]:
        """Change the port of an endpoint, also while its VM runs: all that the mask names, or nothing.

        Args:
            endpoint_id: The endpoint.
            port: The new values.
            update_mask: Which fields of `port` count: "guard", "limits", "addresses", "vlan", "isolated", "mtu_bytes", "link_up",
                "tx_queue_length", "public_addresses". Each counts as a whole: "limits" sets both directions. A field that is
                named and empty goes back to vifd's choice.
            timeout_s: How long it may take, in seconds. None: the client's default.

        Returns:
            The endpoint after the change.

        Raises:
            InvalidArgument: The mask or a value is malformed.
            NotFound: There is none, or none that the caller may see.
            AddressInUse: An address is another endpoint's, or the network's own.
            HostNotReady: This kernel or the network's bridge can't have it.
            Exhausted: The network has no address left to hand out.
            WrongState: Its state doesn't allow the change.
        """
        request = pb.UpdateEndpointRequest(endpoint_id=endpoint_id, port=port, update_mask=FieldMask(paths=update_mask))
        return Call("UpdateEndpoint", request, _endpoint, timeout_s)

    def activate_endpoint(self, endpoint_id: str, *, timeout_s: float | None = None) -> Call[Endpoint]:
        """Say that the VM now runs here. vifd normally notices it by itself.

        Args:
            endpoint_id: The endpoint.
            timeout_s: How long it may take, in seconds. None: the client's default.

        Returns:
            The endpoint.

        Raises:
            InvalidArgument: The id is malformed.
            NotFound: There is none, or none that the caller may see.
            WrongState: No hypervisor has it open.
        """
        return Call("ActivateEndpoint", pb.ActivateEndpointRequest(endpoint_id=endpoint_id), _endpoint, timeout_s)

    def check_endpoint(
        self, endpoint_id: str, *, repair: bool = False, timeout_s: float | None = None
    ) -> Call[pb.CheckEndpointResponse]:
        """Compare an endpoint with what is there.

        Args:
            endpoint_id: The endpoint.
            repair: Mend what differs.
            timeout_s: How long it may take, in seconds. None: the client's default.

        Returns:
            What differed when the call came; the endpoint's own `drifts` say what is left.

        Raises:
            InvalidArgument: The id is malformed.
            NotFound: There is none, or none that the caller may see.
        """
        return Call("CheckEndpoint", pb.CheckEndpointRequest(endpoint_id=endpoint_id, repair=repair), _itself, timeout_s)

    def collect_garbage(
        self,
        keep_endpoint_ids: Iterable[str],
        *,
        network: str = "",
        dry_run: bool = False,
        allow_empty: bool = False,
        timeout_s: float | None = None,
    ) -> Call[list[str]]:
        """Release the caller's own endpoints but those to keep: for a hypervisor driver after its own restart.

        What is being made when the call comes, or is asked for after that, stays.

        Args:
            keep_endpoint_ids: The endpoints that stay; there may be some among them that don't exist.
            network: Only those on this network. Empty: on all.
            dry_run: Only say which would be released.
            allow_empty: Allow an empty `keep_endpoint_ids`, which releases all of the caller's.
            timeout_s: How long it may take, in seconds. None: the client's default.

        Returns:
            The ids that were released, or would be.

        Raises:
            InvalidArgument: An id is malformed, or there is none and `allow_empty` isn't set.
        """
        request = pb.CollectGarbageRequest(
            keep_endpoint_ids=keep_endpoint_ids, network=network, dry_run=dry_run, allow_empty=allow_empty
        )
        return Call("CollectGarbage", request, _released, timeout_s)

    def get_host_info(self, *, timeout_s: float | None = None) -> Call[GetHostInfoResponse]:
        """Say what vifd and the networks that the caller may use can do on this host, now.

        Args:
            timeout_s: How long it may take, in seconds. None: the client's default.

        Returns:
            The host's version, drivers and networks.
        """
        return Call("GetHostInfo", GetHostInfoRequest(), _itself, timeout_s)

    def list_endpoints(
        self,
        *,
        network: str = "",
        instance_uuid: str = "",
        labels: Mapping[str, str] | None = None,
        page_size: int = 0,
        timeout_s: float | None = None,
    ) -> Call[pb.ListEndpointsResponse]:
        """Go through the endpoints that the caller may see, by id; further pages are fetched on the way.

        Args:
            network: Only those on this network. Empty: on all.
            instance_uuid: Only those of the VM with this UUID. Empty: of all.
            labels: Only those that have all these labels. None: all.
            page_size: How many to fetch at once, up to 1,000. 0: vifd's choice.
            timeout_s: How long each page may take, in seconds. None: the client's default.

        Returns:
            An iterator of endpoints.

        Raises:
            InvalidArgument: A value is malformed.
        """
        request = pb.ListEndpointsRequest(page_size=page_size, filter=_filter(network, instance_uuid, labels))
        return Call("ListEndpoints", request, _itself, timeout_s)

    def watch_endpoints(
        self,
        *,
        network: str = "",
        instance_uuid: str = "",
        labels: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Call[pb.WatchEndpointsResponse]:
        """Follow the endpoints that the caller may see: first each that is there, then SYNCED, then each change.

        A watch that breaks is not repeated silently, for changes may have been missed: it raises, and the caller watches again,
        which begins with all that is current.

        Args:
            network: Only those on this network. Empty: on all.
            instance_uuid: Only those of the VM with this UUID. Empty: of all.
            labels: Only those that have all these labels. None: all.
            timeout_s: How long to watch, in seconds, until DeadlineExceeded. None: for ever.

        Returns:
            An iterator of events, which is also a context manager that ends the watch.

        Raises:
            InvalidArgument: A value is malformed.
            Overloaded: This watcher was too slow: watch again.
            Unavailable: vifd stops: watch again.
        """
        request = pb.WatchEndpointsRequest(filter=_filter(network, instance_uuid, labels))
        return Call("WatchEndpoints", request, _itself, timeout_s)


def _filter(network: str, instance_uuid: str, labels: Mapping[str, str] | None) -> pb.EndpointFilter:
    return pb.EndpointFilter(network=network, instance_uuid=instance_uuid, labels=labels or {})


def _itself(response: Any) -> Any:
    return response


def _nothing(_response: Any) -> None:
    return None


def _endpoint(response: Any) -> Endpoint:
    endpoint: Endpoint = response.endpoint
    return endpoint


def _responses(response: pb.BatchRequestEndpointsResponse) -> list[pb.RequestEndpointResponse]:
    return list(response.responses)


def _released(response: pb.CollectGarbageResponse) -> list[str]:
    return list(response.released_endpoint_ids)
