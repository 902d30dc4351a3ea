import inspect
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

import vifclient
from tests.unit.client.conftest import QUICK_RETRY
from tests.unit.client.fake_vifd import FakeVifd, make_status, retry_info
from vif.v1.endpoint_service_pb2 import DESCRIPTOR as ENDPOINT_FILE
from vif.v1.host_service_pb2 import DESCRIPTOR as HOST_FILE
from vifclient import Client, aio, errors
from vifclient.calls import Calls
from vifclient.channel import translate
from vifclient.messages import (
    EndpointPreference,
    MacvtapPreference,
    PortSpec,
    ReleaseEndpointRequest,
    RequestEndpointRequest,
    TapPreference,
    WatchEventKind,
)
from vifclient.retry import NO_RETRY

CODE = grpc.StatusCode


def tap_request(endpoint_id: str, network: str = "default") -> RequestEndpointRequest:
    return RequestEndpointRequest(
        endpoint_id=endpoint_id, network=network, acceptable=[EndpointPreference(tap=TapPreference(queues=2))]
    )


def test_a_life(vifd: FakeVifd, client: Client) -> None:
    answer = client.request_endpoint(tap_request("a"))
    assert answer.endpoint.tap.queues == 2
    assert client.get_endpoint("a") == answer.endpoint
    assert client.activate_endpoint("a").endpoint_id == "a"
    assert client.check_endpoint("a", repair=True).endpoint == answer.endpoint
    assert vifd.requests[-1].repair
    assert client.update_endpoint("a", PortSpec(mtu_bytes=9000, mac="no"), ["mtu_bytes"]).port == PortSpec(
        mac=answer.endpoint.port.mac, mtu_bytes=9000
    )
    client.release_endpoint("a", generation=answer.endpoint.generation)
    assert vifd.requests[-1] == ReleaseEndpointRequest(endpoint_id="a", generation=answer.endpoint.generation)
    with pytest.raises(errors.NotFound):
        client.get_endpoint("a")


def test_batches(client: Client, vifd: FakeVifd) -> None:
    answers = client.batch_request_endpoints(tap_request(one) for one in "ab")
    assert [answer.endpoint.endpoint_id for answer in answers] == ["a", "b"]
    client.batch_release_endpoints([ReleaseEndpointRequest(endpoint_id="a")])
    assert list(vifd.endpoints) == ["b"]


def test_garbage(client: Client, vifd: FakeVifd) -> None:
    client.batch_request_endpoints(tap_request(one) for one in "abc")
    assert client.collect_garbage(["b"], dry_run=True) == ["a", "c"]
    assert client.collect_garbage(["b"], network="default", allow_empty=True) == ["a", "c"]
    assert vifd.requests[-1].allow_empty
    assert list(vifd.endpoints) == ["b"]


def test_a_list_goes_through_all_pages(client: Client, vifd: FakeVifd) -> None:
    client.batch_request_endpoints(tap_request(one) for one in "abcde")
    for endpoint in vifd.endpoints.values():
        endpoint.labels["k"] = "v"
    found = client.list_endpoints(network="default", instance_uuid="", labels={"k": "v"}, page_size=2)
    assert isinstance(found, Iterator)
    assert [endpoint.endpoint_id for endpoint in found] == list("abcde")
    pages = [request for request in vifd.requests if hasattr(request, "page_token")]
    assert [page.page_token for page in pages] == ["", "b", "d"]
    assert all(page.filter.labels == {"k": "v"} and page.page_size == 2 for page in pages)


def test_an_empty_list(client: Client) -> None:
    assert list(client.list_endpoints()) == []


def test_no_acceptable_kind(client: Client) -> None:
    request = RequestEndpointRequest(network="default", acceptable=[EndpointPreference(macvtap=MacvtapPreference())])
    with pytest.raises(errors.NoAcceptableKind) as caught:
        client.request_endpoint(request)
    assert len(caught.value.considered) == 1


def test_a_watch(vifd: FakeVifd, client: Client) -> None:
    client.request_endpoint(tap_request("a"))
    with client.watch_endpoints() as events:
        assert next(events).endpoint.endpoint_id == "a"
        assert next(events).kind == WatchEventKind.WATCH_EVENT_KIND_SYNCED
    assert list(events) == []  # closed, not failed
    assert vifd.end_watch.wait(10)  # and vifd has noticed


def test_a_watch_is_closed_by_another_thread(vifd: FakeVifd, client: Client) -> None:
    events = client.watch_endpoints()
    next(events)
    closer = threading.Thread(target=events.close)
    closer.start()
    assert list(events) == []
    closer.join()


def test_a_watch_that_breaks_is_not_repeated(vifd: FakeVifd, client: Client) -> None:
    events = client.watch_endpoints()
    next(events)
    vifd.failures.append(make_status(CODE.RESOURCE_EXHAUSTED, "too slow", "OVERLOADED"))
    vifd.end_watch.set()
    with pytest.raises(errors.Overloaded):
        next(events)
    assert vifd.calls == ["WatchEndpoints"]


def test_a_watch_ends_at_its_time(client: Client) -> None:
    with pytest.raises(errors.DeadlineExceeded):
        list(client.watch_endpoints(timeout_s=0.1))


def test_unavailable_is_repeated(vifd: FakeVifd, client: Client) -> None:
    vifd.failures += [make_status(CODE.UNAVAILABLE, "starting", "TRY_AGAIN", retry_info(0.001))] * 3
    assert client.get_host_info().version == "0.0.fake"
    assert vifd.calls == ["GetHostInfo"] * 4


def test_other_errors_are_not_repeated(vifd: FakeVifd, client: Client) -> None:
    vifd.failures += [make_status(CODE.INTERNAL, "no", "KERNEL")] * 2
    with pytest.raises(errors.ServerError):
        client.get_host_info()
    assert vifd.calls == ["GetHostInfo"]


def test_no_repetition_beyond_the_time(vifd: FakeVifd) -> None:
    vifd.failures.append(make_status(CODE.UNAVAILABLE, "starting", "TRY_AGAIN", retry_info(60)))
    with Client(vifd.socket_path) as client, pytest.raises(errors.Unavailable, match="starting"):
        client.get_host_info(timeout_s=5)
    assert vifd.calls == ["GetHostInfo"]


def test_deadlines_reach_vifd(vifd: FakeVifd) -> None:
    with Client(vifd.socket_path, timeout_s=20) as client:
        client.get_host_info()
        client.get_host_info(timeout_s=7)
    assert 15 < vifd.deadlines_s[0] < 20.5
    assert 5 < vifd.deadlines_s[1] < 7.5


def test_a_call_that_takes_too_long(vifd: FakeVifd, client: Client) -> None:
    vifd.hang.clear()
    with pytest.raises(errors.DeadlineExceeded, match="didn't answer in time") as caught:
        client.get_host_info(timeout_s=0.1)
    assert caught.value.code is CODE.DEADLINE_EXCEEDED


def test_a_restart_of_vifd_is_survived(vifd: FakeVifd, client: Client) -> None:
    client.get_host_info()
    vifd.stop()
    starter = threading.Thread(target=vifd.start)
    waiter = threading.Timer(0.2, starter.start)
    waiter.start()
    assert client.get_host_info().version == "0.0.fake"
    waiter.join()
    starter.join()


def test_nobody_there(folder: Path) -> None:
    path = str(folder / "none.sock")
    with Client(path, retry=QUICK_RETRY) as client, pytest.raises(errors.Unreachable, match="there is no such socket") as caught:
        client.get_host_info(timeout_s=0.2)
    assert path in caught.value.message


def test_a_socket_of_odd_name(folder: Path) -> None:
    odd = folder / "a b%20#?é"
    odd.mkdir()
    server = FakeVifd(odd)
    with Client(server.socket_path, retry=NO_RETRY) as client:
        assert client.get_host_info().version == "0.0.fake"
    server.close()


def test_the_environment_names_the_socket(vifd: FakeVifd, monkeypatch: pytest.MonkeyPatch) -> None:
    with Client() as client:
        assert client.socket_path == "/run/vifd/vifd.sock"
    monkeypatch.setenv("VIFD_SOCKET", vifd.socket_path)
    with Client() as client:
        assert client.get_host_info().version == "0.0.fake"


def test_close_lets_go_of_the_socket(vifd: FakeVifd) -> None:
    with Client(vifd.socket_path) as one, Client(vifd.socket_path) as other:
        one.get_host_info()
        other.get_host_info()
        one.close()
        assert other.get_host_info().version == "0.0.fake"
    with pytest.raises(ValueError, match="closed"):
        other.get_host_info()


def test_the_table_has_every_rpc() -> None:
    rpcs = {
        method.name
        for file in (ENDPOINT_FILE, HOST_FILE)
        for service in file.services_by_name.values()
        for method in service.methods
    }
    rows = {"".join(word.title() for word in name.split("_")) for name in vars(Calls) if not name.startswith("_")}
    assert rows == rpcs


@pytest.mark.parametrize("kind", [Client, aio.Client])
def test_both_clients_have_every_row_with_its_arguments_and_words(kind: type[object]) -> None:
    for name, row in vars(Calls).items():
        if name.startswith("_"):
            continue
        method = getattr(kind, name)
        assert inspect.signature(method).parameters == inspect.signature(row).parameters
        assert method.__doc__ == row.__doc__
        assert "Call" not in str(inspect.signature(method))


def test_public_names() -> None:
    for name in vifclient.__all__:
        assert getattr(vifclient, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing"):
        _ = vifclient.nothing


class _TooLateError(grpc.RpcError):
    """What gRPC makes of a connect that was under way when the time was over."""

    def code(self) -> grpc.StatusCode:
        return CODE.DEADLINE_EXCEEDED

    def details(self) -> str:
        return "Deadline Exceeded"

    def trailing_metadata(self) -> tuple[()]:
        return ()


def test_a_connect_that_took_too_long_names_the_socket(vifd: FakeVifd, folder: Path) -> None:
    assert isinstance(translate(_TooLateError(), str(folder / "none")), errors.Unreachable)
    assert isinstance(translate(_TooLateError(), vifd.socket_path), errors.DeadlineExceeded)
