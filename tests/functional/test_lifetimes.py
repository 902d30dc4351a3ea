"""Lifetimes with real processes: what ends takes its endpoints along, whatever happens to vifd meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration

from tests.functional.conftest import ALICE, BOB
from tests.support.asking import asked, event, make, new_id, refusal, state_of
from tests.support.children import child
from tests.support.daemon import BIN, Daemon, short_directory, taps, wait_for
from tests.support.restarts import listed
from tests.support.users import user
from vifclient import Client, Watch
from vifclient.messages import Endpoint, LeaseLifetime, Lifetime, PortSpec, ProcessLifetime
from vifclient.retry import NO_RETRY

MANY = 200
NETWORKS = """
[networks.blue]
driver = "bridge"
bridge = "br-blue"

[[policy]]
uid = 20001

[[policy]]
uid = 20002
role = "delegate"
"""


def process(pid: int = 0) -> Lifetime:
    return Lifetime(process=ProcessLifetime(pid=pid))


def lease(seconds: float) -> Lifetime:
    ttl = Duration()
    ttl.FromNanoseconds(int(seconds * 10**9))
    return Lifetime(lease=LeaseLifetime(ttl=ttl))


@contextlib.contextmanager
def sleeper(uid: int = 0, command: tuple[str, ...] = ("sleep", "inf")) -> Iterator[subprocess.Popen[str]]:
    """Run a process of a user's that does nothing."""
    with child(command, user=uid, group=uid, extra_groups=[], stdin=subprocess.PIPE, text=True) as running_process:
        yield running_process


@contextlib.contextmanager
def watching(client: Client) -> Iterator[Watch]:
    """Give a watch that has told all that is there."""
    with client.watch_endpoints(timeout_s=60) as watch:
        for message in watch:
            if event(message)[0] == "SYNCED":
                break
        yield watch


def removed(watch: Watch, count: int = 1) -> list[Endpoint]:
    """Read a watch until so many endpoints are gone, and give their last states."""
    found: list[Endpoint] = []
    while len(found) < count:
        message = next(watch)
        if event(message)[0] == "REMOVED":
            found.append(message.endpoint)
    return found


# --- processes


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_endpoint_ends_with_its_process(vifd: Daemon, client: Client, as_alice: Client, number: signal.Signals) -> None:
    kept = make(client)
    with sleeper(ALICE) as one, watching(client) as watch:
        endpoint = make(as_alice, lifetime=process(one.pid))
        assert endpoint.lifetime == process(one.pid)
        assert as_alice.get_endpoint(endpoint.endpoint_id) == endpoint
        one.send_signal(number)
        assert [gone.endpoint_id for gone in removed(watch)] == [endpoint.endpoint_id]
    assert [tap["ifname"] for tap in taps(vifd.netns)] == [kept.tap.ifname]
    told = f'endpoint_id={endpoint.endpoint_id} uid={ALICE} reason="process {one.pid} has ended"'
    assert f"an endpoint's lifetime is over: it is released {told}" in vifd.log()


def test_a_process_takes_all_its_endpoints_along_also_those_that_are_in_use(vifd: Daemon, client: Client) -> None:
    with sleeper() as one, watching(client) as watch:
        endpoints = [make(client, lifetime=process(one.pid)) for _ in range(3)]
        with client.acquire_fds(endpoints[0].endpoint_id):
            wait_for(lambda: state_of(client, endpoints[0].endpoint_id) == "ATTACHED")
            one.kill()
            assert {gone.endpoint_id for gone in removed(watch, 3)} == {endpoint.endpoint_id for endpoint in endpoints}
    assert taps(vifd.netns) == []


def test_without_a_pid_it_is_the_process_that_opened_the_connection(vifd: Daemon, client: Client) -> None:
    with watching(client) as watch:
        with user(ALICE) as one, one.client(vifd) as as_one:
            endpoint = make(as_one, lifetime=process())
            assert endpoint.lifetime == process(one._process.pid)
            assert as_one.request_endpoint(asked(endpoint.endpoint_id, lifetime=process())).endpoint == endpoint
        assert [gone.endpoint_id for gone in removed(watch)] == [endpoint.endpoint_id]


def test_the_same_request_of_the_next_process_makes_a_new_life(vifd: Daemon) -> None:
    """A driver that was killed and started again asks for what it asked for before."""
    endpoint_id, lives = new_id(), []
    for _ in range(3):
        with user(ALICE) as one, one.client(vifd) as as_one:
            lives.append(make(as_one, endpoint_id, lifetime=process()))
    assert len({life.generation for life in lives}) == 3


def test_another_lifetime_is_another_spec(client: Client) -> None:
    with sleeper() as one, sleeper() as other:
        endpoint = make(client, lifetime=process(one.pid))
        for lifetime in (process(other.pid), lease(60), None):
            with refusal("ALREADY_EXISTS", "ID_IN_USE"):
                make(client, endpoint.endpoint_id, lifetime=lifetime)


def test_a_process_is_the_same_after_exec(client: Client) -> None:
    with sleeper(command=("sh", "-c", "read word; exec sleep inf")) as one, watching(client) as watch:
        endpoint = make(client, lifetime=process(one.pid))
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
        wait_for(lambda: _name_of(one.pid) == "sleep")
        assert make(client, endpoint.endpoint_id, lifetime=process(one.pid)) == endpoint
        one.kill()
        assert [gone.endpoint_id for gone in removed(watch)] == [endpoint.endpoint_id]


def _name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def test_somebody_elses_process_is_refused(vifd: Daemon, as_alice: Client, as_bob: Client) -> None:
    with sleeper(BOB) as one:
        with refusal("PERMISSION_DENIED", "NOT_ALLOWED") as caught:
            make(as_alice, lifetime=process(one.pid))
        assert f"process {one.pid} isn't uid {ALICE}'s" in caught.value.message
        assert str(BOB) not in caught.value.message
    with sleeper(ALICE) as one:
        assert make(as_bob, lifetime=process(one.pid)).lifetime == process(one.pid)  # bob is a delegate
    with refusal("PERMISSION_DENIED", "NOT_ALLOWED"):
        make(as_alice, lifetime=process(vifd.process.pid if vifd.process else 0))


def test_what_is_no_process_any_more_is_refused(client: Client) -> None:
    with sleeper() as one:
        one.kill()
        os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT)
        with refusal("FAILED_PRECONDITION", "NO_PROCESS"):  # it is there still, but nobody has waited for it
            make(client, lifetime=process(one.pid))
    with refusal("FAILED_PRECONDITION", "NO_PROCESS"):
        make(client, lifetime=process(one.pid))
    assert list(client.list_endpoints()) == []


def test_a_thread_is_no_process(client: Client) -> None:
    numbers: list[int] = []
    end = threading.Event()
    started = threading.Event()

    def run() -> None:
        numbers.append(threading.get_native_id())
        started.set()
        end.wait()

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    try:
        with refusal("FAILED_PRECONDITION", "NO_PROCESS"):
            make(client, lifetime=process(numbers[0]))
    finally:
        end.set()
        thread.join()


def test_a_caller_outside_vifds_pid_namespace_is_told_so() -> None:
    class Secluded(Daemon):
        @property
        def argv(self) -> list[str]:
            return ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *super().argv]

    with short_directory() as directory:
        vifd = Secluded(directory, fake=True)
        try:
            vifd.start()
            with Client(vifd.socket, retry=NO_RETRY) as client:
                with refusal("FAILED_PRECONDITION", "HOST_NOT_READY") as caught:
                    make(client, network="default", lifetime=process())
                assert "another pid namespace" in caught.value.message
                with refusal("FAILED_PRECONDITION", "NO_PROCESS"):
                    make(client, network="default", lifetime=process(1 << 22))
                make(client, network="default", lifetime=lease(60))
        finally:
            vifd.kill()


def test_200_processes_that_end_at_once(vifd: Daemon, client: Client) -> None:
    script = f"for i in $(seq {MANY}); do sleep inf & echo $!; done; echo; wait"
    with child(["sh", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True) as shell:
        try:
            assert shell.stdout is not None
            pids = [int(shell.stdout.readline()) for _ in range(MANY)]
            with ThreadPoolExecutor(8) as pool:
                endpoints = list(pool.map(lambda pid: make(client, lifetime=process(pid)), pids))
            kept = make(client)
            with watching(client) as watch:
                os.killpg(shell.pid, signal.SIGKILL)
                gone = removed(watch, MANY)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
    assert {one.endpoint_id for one in gone} == {one.endpoint_id for one in endpoints}
    assert [tap["ifname"] for tap in taps(vifd.netns)] == [kept.tap.ifname]


@pytest.mark.parametrize("stop", [Daemon.stop, Daemon.kill], ids=["stop", "kill -9"])
def test_what_ended_while_vifd_was_down_is_gone_after_its_start_and_the_rest_is_watched_on(
    own: Daemon, stop: Callable[[Daemon], object]
) -> None:
    with sleeper() as one, sleeper() as other:
        with Client(own.socket) as client:
            make(client, lifetime=process(one.pid))
            left = make(client, lifetime=process(other.pid))
            plain = make(client)
        stop(own)
        one.kill()
        one.wait()
        own.start()
        assert listed(own) == {endpoint.endpoint_id: endpoint for endpoint in (left, plain)}
        assert {tap["ifname"] for tap in taps(own.netns)} == {left.tap.ifname, plain.tap.ifname}
        with Client(own.socket) as client, watching(client) as watch:
            other.kill()
            assert [gone.endpoint_id for gone in removed(watch)] == [left.endpoint_id]
    assert [tap["ifname"] for tap in taps(own.netns)] == [plain.tap.ifname]


def test_a_process_that_ends_while_its_endpoint_is_made_takes_it_along(own: Daemon, own_client: Client) -> None:
    with ThreadPoolExecutor(1) as pool, sleeper() as one, watching(own_client) as watch:
        with own.helper_stopped():
            request = asked(lifetime=process(one.pid))
            answer = pool.submit(own_client.request_endpoint, request)
            wait_for(lambda: state_of(own_client, request.endpoint_id) == "PENDING")
            one.kill()
            one.wait()
        assert answer.result().endpoint.endpoint_id == request.endpoint_id
        removed(watch)
    assert taps(own.netns) == []


def test_vifctl_run_leaves_nothing_however_its_command_ends(vifd: Daemon, client: Client) -> None:
    command = [str(BIN / "vifctl"), "--socket", vifd.socket, "run", "blue", "--", "sleep", "inf"]
    with watching(client) as watch, child(command) as one:
        try:
            endpoint = wait_for(lambda: next(iter(client.list_endpoints()), None))
            wait_for(lambda: state_of(client, endpoint.endpoint_id) == "ATTACHED")
            wait_for(lambda: _name_of(one.pid) == "sleep")
            assert endpoint.lifetime == process(one.pid)
        finally:
            one.kill()
        removed(watch)
    assert taps(vifd.netns) == []


# --- leases


def test_a_lease_that_nobody_renews_runs_out(vifd: Daemon, client: Client) -> None:
    with watching(client) as watch:
        start = time.monotonic()
        endpoint = make(client, lifetime=lease(1))
        assert endpoint.lifetime == lease(1)
        assert removed(watch)[0].endpoint_id == endpoint.endpoint_id
        assert time.monotonic() - start >= 1
    assert taps(vifd.netns) == []
    assert 'reason="nobody called for it for 1 s"' in vifd.log()


def test_every_call_on_an_endpoint_renews_its_lease(vifd: Daemon, client: Client) -> None:
    requests = [asked(lifetime=lease(3)) for _ in range(6)]
    lost, *ids = [client.request_endpoint(request).endpoint.endpoint_id for request in requests]
    calls: list[Callable[[str], object]] = [
        lambda one: client.request_endpoint(requests[1]),
        client.get_endpoint,
        lambda one: client.update_endpoint(one, PortSpec(tx_queue_length=500), ["tx_queue_length"]),
        client.check_endpoint,
        lambda one: client.acquire_fds(one).close(),
    ]
    with watching(client) as watch:
        time.sleep(1.5)  # half of their lives passes
        called = {}
        for one, call in zip(ids, calls, strict=True):
            called[one] = time.monotonic()
            call(one)
        assert removed(watch)[0].endpoint_id == lost
        assert {one.endpoint_id for one in client.list_endpoints()} == set(ids)
        for _ in ids:
            (gone,) = removed(watch)
            assert time.monotonic() - called.pop(gone.endpoint_id) >= 3


def test_a_call_that_waited_while_vifd_was_held_up_renews_in_time(own: Daemon, own_client: Client) -> None:
    assert own.process is not None
    endpoint = make(own_client, lifetime=lease(1))
    with ThreadPoolExecutor(1) as pool:
        own.process.send_signal(signal.SIGSTOP)
        answer = pool.submit(own_client.get_endpoint, endpoint.endpoint_id)
        time.sleep(2.5)  # the lease would be over
        own.process.send_signal(signal.SIGCONT)
        assert answer.result() == endpoint


@pytest.mark.parametrize("stop", [Daemon.stop, Daemon.kill], ids=["stop", "kill -9"])
def test_a_lease_begins_anew_when_vifd_starts(own: Daemon, stop: Callable[[Daemon], object]) -> None:
    with Client(own.socket) as client:
        endpoint = make(client, lifetime=lease(3))
    stop(own)
    time.sleep(3.5)  # nobody can renew it meanwhile
    own.start()
    started = time.monotonic()
    with Client(own.socket) as client, watching(client) as watch:
        assert client.get_endpoint(endpoint.endpoint_id) == endpoint
        removed(watch)
        assert time.monotonic() - started >= 3
    assert taps(own.netns) == []
