"""The vifd inside a test: what its knobs do, as an author of a hypervisor driver sees it."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.asking import TAP, asked, event, make, new_id, refusal
from vifclient import Client, aio
from vifclient.errors import DeadlineExceeded
from vifclient.messages import ConsiderationOutcome, EndpointPreference, PciPreference
from vifclient.retry import NO_RETRY
from vifd.errors import ConfigError, KernelRefused, NetworkFull, StartError, TryAgain
from vifd.model import DriftKind
from vifd.testing import FakeDaemon

BLUE = '[networks.blue]\ndriver = "fake"\n'


@pytest.fixture
def daemon() -> Iterator[FakeDaemon]:
    with FakeDaemon(BLUE) as one:
        yield one


@pytest.fixture
def client(daemon: FakeDaemon) -> Iterator[Client]:
    with Client(daemon.socket, retry=NO_RETRY) as one:
        yield one


def test_the_fixture_of_the_plugin_serves_a_network(vifd_fake: FakeDaemon) -> None:
    with Client(vifd_fake.socket) as client:
        assert make(client, network="default").HasField("tap")


def test_it_has_an_fd_socket(client: Client) -> None:
    with client.acquire_fds(make(client).endpoint_id) as queues:
        assert len(queues) == 1


def test_the_asyncio_client_talks_to_it_too(daemon: FakeDaemon) -> None:
    async def ask() -> str:
        async with aio.Client(daemon.socket) as client:
            answers = await asyncio.gather(*(client.request_endpoint(asked()) for _ in range(20)))
            return {answer.endpoint.WhichOneof("location") for answer in answers}

    assert asyncio.run(ask()) == {"tap"}


def test_it_leaves_nothing_behind_and_the_program_as_it_was() -> None:
    handlers, threshold = signal.getsignal(signal.SIGTERM), gc.get_threshold()
    with FakeDaemon(BLUE) as daemon:
        assert Path(daemon.socket).is_socket()
    assert not Path(daemon.socket).parent.exists()
    assert "vifd" not in {thread.name for thread in threading.enumerate()}
    assert (signal.getsignal(signal.SIGTERM), gc.get_threshold()) == (handlers, threshold)


def test_several_live_side_by_side(daemon: FakeDaemon, client: Client) -> None:
    make(client)
    with FakeDaemon(BLUE) as other, Client(other.socket) as elsewhere:
        assert list(elsewhere.list_endpoints()) == []


def test_kinds_that_cannot_be_made_are_the_configurations(daemon: FakeDaemon, client: Client) -> None:
    daemon.configure(f'{BLUE}unavailable = ["tap"]\n')
    answer = client.request_endpoint(asked(acceptable=[TAP, EndpointPreference(pci=PciPreference())]))
    assert answer.endpoint.HasField("pci")
    assert answer.considered[0].outcome == ConsiderationOutcome.CONSIDERATION_OUTCOME_NOT_POSSIBLE_HERE


def test_a_wrong_configuration_is_refused_and_changes_nothing(daemon: FakeDaemon, client: Client) -> None:
    with pytest.raises(ConfigError, match="kinds"):
        daemon.configure(f'{BLUE}kinds = ["tpa"]\n')
    assert make(client).HasField("tap")


def test_a_network_that_needs_root_is_refused(daemon: FakeDaemon) -> None:
    text = '[networks.blue]\ndriver = "bridge"\nbridge = "br-blue"\n'
    with pytest.raises(StartError, match="driver 'fake' alone"), FakeDaemon(text):
        pass
    with pytest.raises(StartError, match="driver 'fake' alone"):
        daemon.configure(text)


def test_a_start_that_fails_is_told_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ConfigError), FakeDaemon("[networks.blue]\n"):
        pass
    assert list(tmp_path.iterdir()) == []


def break_down(daemon: FakeDaemon) -> None:
    with daemon:
        daemon._loop.call_soon_threadsafe(daemon._loop.stop)
        daemon._thread.join()


def test_a_vifd_that_breaks_is_told_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(RuntimeError, match="the fake vifd broke"):
        break_down(FakeDaemon(BLUE))
    assert list(tmp_path.iterdir()) == []


def test_calls_fail_as_often_as_they_are_told_to(daemon: FakeDaemon, client: Client) -> None:
    daemon.fail("RequestEndpoint", NetworkFull("no port is left on br-blue"), times=2)
    for _ in range(2):
        with refusal("RESOURCE_EXHAUSTED", "NETWORK_FULL"):
            make(client)
    assert make(client).HasField("tap")


def test_a_failure_has_the_details_that_vifd_gives(daemon: FakeDaemon, client: Client) -> None:
    daemon.fail("RequestEndpoint", KernelRefused("CreateTap", "vdt0", 16, "device or resource busy"))
    with refusal("INTERNAL", "KERNEL") as caught:
        make(client)
    assert caught.value.metadata == {"operation": "CreateTap", "device": "vdt0", "errno": "16"}


def test_a_watch_fails_too(daemon: FakeDaemon, client: Client) -> None:
    daemon.fail("WatchEndpoints", TryAgain("vifd is stopping, watch again"))
    with refusal("UNAVAILABLE", "TRY_AGAIN"), client.watch_endpoints() as watch:
        next(watch)
    with client.watch_endpoints() as watch:
        assert event(next(watch))[0] == "SYNCED"


def test_a_client_gets_over_what_passes(daemon: FakeDaemon) -> None:
    daemon.fail("RequestEndpoint", TryAgain("vifd is starting, try again", 0.01), times=3)
    with Client(daemon.socket) as patient:
        assert make(patient).HasField("tap")


def test_an_answer_may_be_lost_on_its_way(daemon: FakeDaemon, client: Client) -> None:
    request = asked()
    daemon.fail("RequestEndpoint", TryAgain("vifd is stopping, try again"), lose_answer=True)
    with refusal("UNAVAILABLE", "TRY_AGAIN"):
        client.request_endpoint(request)
    (made,) = client.list_endpoints()
    assert client.request_endpoint(request).endpoint == made


def test_calls_wait_while_they_are_held(daemon: FakeDaemon, client: Client) -> None:
    request = asked()
    with ThreadPoolExecutor(1) as pool:
        with daemon.hold("RequestEndpoint") as hold:
            answer = pool.submit(client.request_endpoint, request)
            hold.wait_for_call()
            assert list(client.list_endpoints()) == []
        assert answer.result().endpoint.endpoint_id == request.endpoint_id


def test_a_call_that_is_held_runs_out_of_time(daemon: FakeDaemon, client: Client) -> None:
    with daemon.hold("RequestEndpoint"), pytest.raises(DeadlineExceeded):
        client.request_endpoint(asked(), timeout_s=0.1)


def test_a_hold_that_no_call_meets_says_so(daemon: FakeDaemon) -> None:
    with daemon.hold("RequestEndpoint") as hold, pytest.raises(TimeoutError, match="no call came"):
        hold.wait_for_call(timeout_s=0)


def test_what_would_never_come_to_pass_is_refused(daemon: FakeDaemon) -> None:
    error = TryAgain("vifd is stopping, try again")
    with pytest.raises(ValueError, match=r"no RPC 'RequestEndpoints'; there are ActivateEndpoint, .*, WatchEndpoints"):
        daemon.fail("RequestEndpoints", error)
    with pytest.raises(ValueError, match="no RPC 'Request'"), daemon.hold("Request"):
        pass
    with pytest.raises(ValueError, match="no answer to lose"):
        daemon.fail("WatchEndpoints", error, lose_answer=True)
    with daemon.hold("GetHostInfo"), pytest.raises(ValueError, match="held already"), daemon.hold("GetHostInfo"):
        pass


def test_a_watch_sees_what_a_hypervisor_would_do(daemon: FakeDaemon, client: Client) -> None:
    endpoint = make(client)
    with client.watch_endpoints() as watch:
        assert [event(next(watch))[0] for _ in range(2)] == ["CURRENT", "SYNCED"]
        daemon.attach(endpoint.endpoint_id)
        assert event(next(watch)) == ("CHANGED", endpoint.endpoint_id, "ATTACHED")
        daemon.detach(endpoint.endpoint_id)
        assert event(next(watch)) == ("CHANGED", endpoint.endpoint_id, "READY")


def test_a_drift_is_told_and_found_until_it_is_mended(daemon: FakeDaemon, client: Client) -> None:
    endpoint = make(client)
    with client.watch_endpoints() as watch:
        assert [event(next(watch))[0] for _ in range(2)] == ["CURRENT", "SYNCED"]
        daemon.drift(endpoint.endpoint_id, DriftKind.MTU, expected="1500", actual="900")
        (told,) = next(watch).endpoint.drifts
    assert (told.expected, told.actual) == ("1500", "900")
    assert list(client.check_endpoint(endpoint.endpoint_id).drifts) == [told]
    mended = client.check_endpoint(endpoint.endpoint_id, repair=True)
    assert (list(mended.drifts), list(mended.endpoint.drifts)) == ([told], [])
    assert list(client.check_endpoint(endpoint.endpoint_id).drifts) == []


@pytest.mark.parametrize("knob", [FakeDaemon.attach, FakeDaemon.detach, lambda one, i: one.drift(i, DriftKind.MTU)])
def test_what_isnt_there_cannot_change(daemon: FakeDaemon, knob: object) -> None:
    with pytest.raises(LookupError, match="there is no endpoint"):
        knob(daemon, new_id())
