"""The door: who comes in, who is told why not, and that everybody is known behind it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.functional.conftest import ALICE
from tests.support.asking import BATCH, asked, make, refusal
from tests.support.daemon import Daemon, network_namespace, running, short_directory, wait_for
from tests.support.users import User, user
from vif.v1.host_service_pb2 import GetHostInfoRequest
from vif.v1.host_service_pb2_grpc import HostServiceStub
from vifclient import Client, VifError, aio
from vifclient.errors import NotAllowed, Unavailable, from_rpc
from vifclient.retry import NO_RETRY

MEMBERS = 20301
POLICY = f"""
[networks.blue]
driver = "bridge"
bridge = "br-blue"

[[policy]]
gid = {MEMBERS}
"""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
CONNECTIONS_A_UID = 128
IN_FLIGHT, CALLS = 64, 512


@pytest.fixture(scope="module")
def guarded() -> Iterator[Daemon]:
    """A vifd whose policy is for one group alone."""
    with running(networks=POLICY) as daemon:
        yield daemon


def received(connection: socket.socket) -> bytes:
    """Everything that comes until the other side closes."""
    connection.settimeout(20)
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(4096):
            data += part
    return data


def frames(data: bytes) -> dict[int, bytes]:
    """HTTP/2 frames, by their type."""
    found = {}
    while data:
        size = int.from_bytes(data[:3], "big")
        found[data[3]] = data[9 : 9 + size]
        data = data[9 + size :]
    return found


def test_a_caller_at_grpcs_own_socket_is_nobody_even_root(vifd: Daemon) -> None:
    with grpc.insecure_channel(f"unix:{vifd.socket}.d/grpc") as channel, pytest.raises(grpc.RpcError) as caught:
        HostServiceStub(channel).GetHostInfo(GetHostInfoRequest(), timeout=20)
    error = from_rpc(caught.value)
    assert isinstance(error, NotAllowed)
    assert (error.code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNKNOWN_CALLER")


def test_grpcs_own_socket_is_out_of_everybody_elses_reach(vifd: Daemon, alice: User) -> None:
    with pytest.raises(PermissionError):
        alice.connect(f"{vifd.socket}.d/grpc")
    assert Path(f"{vifd.socket}.d").stat().st_mode & 0o777 == 0o700


def test_a_name_of_the_relays_form_is_no_credential(vifd: Daemon) -> None:
    """The address that grpc sees is looked up, not believed."""
    upstream = socket.socket(socket.AF_UNIX)
    upstream.bind(f"\0vifd-peer-{'0' * 32}")
    relay = Path(f"{vifd.directory}/impostor")
    with upstream, socket.socket(socket.AF_UNIX) as listener, grpc.insecure_channel(f"unix:{relay}") as channel:
        listener.bind(str(relay))
        listener.listen()
        call = HostServiceStub(channel).GetHostInfo.future(GetHostInfoRequest(), timeout=20)
        connection, _ = listener.accept()
        upstream.connect(f"{vifd.socket}.d/grpc")
        _pump(connection, upstream, call)
        with pytest.raises(grpc.RpcError) as caught:
            call.result()
        assert from_rpc(caught.value).reason == "UNKNOWN_CALLER"


def _pump(one: socket.socket, other: socket.socket, call: grpc.Future) -> None:
    """Copy bytes both ways until the call has its answer."""
    one.setblocking(False)
    other.setblocking(False)

    def copied() -> bool:
        for source, sink in ((one, other), (other, one)):
            with contextlib.suppress(BlockingIOError):
                sink.sendall(source.recv(1 << 16))
        return bool(call.done())

    wait_for(copied)
    one.close()


def test_who_has_no_policy_is_told_so_before_grpc_sees_a_byte(guarded: Daemon, alice: User) -> None:
    with alice.connect(guarded.socket) as connection:
        goaway = frames(received(connection))[7]
    assert struct.unpack(">II", goaway[:8]) == (0, 0)
    assert f"no [[policy]] of vifd's configuration is for uid {ALICE}" in goaway[8:].decode()


def test_a_client_without_a_policy_reads_the_reason_in_its_error(guarded: Daemon, alice: User) -> None:
    with alice.client(guarded) as client, pytest.raises(Unavailable, match=r"no .*policy.* is for uid"):
        client.get_host_info()


def test_the_fd_socket_tells_who_has_no_policy_as_well(guarded: Daemon, alice: User) -> None:
    with alice.connect(guarded.fd_socket, socket.SOCK_SEQPACKET) as connection:
        assert b"no [[policy]]" in received(connection)


def test_a_supplementary_group_admits(guarded: Daemon) -> None:
    with user(ALICE, groups=[20300, MEMBERS]) as member, member.client(guarded) as client:
        assert client.get_host_info().networks[0].name == "blue"


def test_a_primary_group_admits(guarded: Daemon) -> None:
    with user(ALICE, gid=MEMBERS) as member, member.client(guarded) as client:
        assert client.get_host_info().networks[0].name == "blue"


def test_root_needs_no_policy(guarded: Daemon) -> None:
    with Client(guarded.socket, retry=NO_RETRY) as client:
        assert client.get_host_info().networks[0].name == "blue"


def test_a_user_has_128_connections_at_most_and_gets_new_ones_for_old(vifd: Daemon, alice: User, as_bob: Client) -> None:
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(alice.connect(vifd.socket)) for _ in range(CONNECTIONS_A_UID)]
        with alice.connect(vifd.socket) as one_more:
            assert f"uid {ALICE} has {CONNECTIONS_A_UID} connections open already" in received(one_more).decode(errors="replace")
        assert as_bob.get_host_info().networks
        connections[0].close()

        def admitted() -> bool:
            with alice.client(vifd) as client, contextlib.suppress(VifError):
                return bool(client.get_host_info().networks)
            return False

        wait_for(admitted)


def unfinished_calls(count: int) -> bytes:
    """HTTP/2 HEADERS frames that begin calls whose requests never come (RFC 9113, 6.2; RFC 7541: known and literal fields)."""
    path = b"/vif.v1.HostService/GetHostInfo"
    fields = b"\x83\x86\x04%c%b\x01\x01v\x0f\x10\x10application/grpc\0\x02te\x08trailers" % (len(path), path)
    head = struct.pack(">I", len(fields))[1:] + bytes([1, 4])  # END_HEADERS, and no END_STREAM
    return b"".join(head + struct.pack(">I", 2 * i + 1) + fields for i in range(count))


def test_calls_that_one_user_leaves_open_shut_nobody_out(vifd: Daemon, alice: User, as_bob: Client) -> None:
    ping = bytes([0, 0, 8, 6, 0, 0, 0, 0, 0]) + b"all came"
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            connection = stack.enter_context(alice.connect(vifd.socket))
            connection.settimeout(20)
            connection.sendall(PREFACE + unfinished_calls(60) + ping)
            seen = b""
            while b"all came" not in seen:
                seen += connection.recv(4096)
        for _ in range(10):
            assert as_bob.get_host_info().networks


async def keep_in_flight(call: Callable[[Any], Awaitable[object]], arguments: Iterable[Any]) -> None:
    """Have many calls under way: the next begins in the moment that one has its answer."""
    waiting = iter(arguments)

    async def work() -> None:
        for argument in waiting:
            await call(argument)

    await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))


async def live(socket_path: str) -> None:
    """Make endpoints and release them, all on one connection."""
    requests = [asked() for _ in range(CALLS)]
    async with aio.Client(socket_path, retry=NO_RETRY) as client:
        await keep_in_flight(client.request_endpoint, requests)
        await keep_in_flight(client.release_endpoint, [request.endpoint_id for request in requests])


def test_a_connection_with_64_calls_in_flight_is_refused_none(vifd: Daemon) -> None:
    asyncio.run(live(vifd.socket))


def test_both_sockets_count_together(vifd: Daemon, alice: User) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS_A_UID):
            connection = stack.enter_context(alice.connect(vifd.fd_socket, socket.SOCK_SEQPACKET))
            connection.send(b"garbage")
            assert connection.recv(4096)  # so it is in
        with alice.connect(vifd.socket) as one_more:
            assert b"connections open already" in received(one_more)


class PoorDaemon(Daemon):
    """A vifd that may open few files."""

    @property
    def argv(self) -> list[str]:
        return ["prlimit", "--nofile=48:48", *super().argv]


def test_an_accept_that_fails_does_not_end_the_loop() -> None:
    with contextlib.ExitStack() as stack:
        directory, netns = stack.enter_context(short_directory()), stack.enter_context(network_namespace())
        daemon = PoorDaemon(directory, netns=netns)
        stack.callback(daemon.kill)
        daemon.start()
        with contextlib.ExitStack() as crowd:
            for _ in range(48):
                crowd.enter_context(socket.socket(socket.AF_UNIX)).connect(daemon.socket)
            wait_for(lambda: "a connection could not be accepted" in daemon.log())
        with Client(daemon.socket) as client:
            assert make(client).HasField("tap")


def test_callers_that_leave_at_once_do_no_harm(vifd: Daemon, client: Client) -> None:
    for path, kind in ((vifd.socket, socket.SOCK_STREAM), (vifd.fd_socket, socket.SOCK_SEQPACKET)):
        for _ in range(200):
            with socket.socket(socket.AF_UNIX, kind) as connection:
                connection.connect(path)
    assert client.get_host_info().networks


def test_garbage_instead_of_http_does_no_harm(vifd: Daemon, alice: User, as_alice: Client) -> None:
    with alice.connect(vifd.socket) as connection:
        connection.sendall(os.urandom(4096))
        received(connection)
    assert as_alice.get_host_info().networks


def test_no_descriptor_stays_open_behind_connections_that_ended(vifd: Daemon, alice: User, client: Client) -> None:
    assert vifd.process is not None
    client.get_host_info()
    directory = Path(f"/proc/{vifd.process.pid}/fd")
    before = len(list(directory.iterdir()))
    for _ in range(50):
        with alice.connect(vifd.socket) as connection:
            connection.sendall(PREFACE)
    wait_for(lambda: len(list(directory.iterdir())) <= before)


def test_the_largest_messages_pass_both_ways(as_alice: Client) -> None:
    labels = {f"{i:02}{'k' * 61}": "v" * 255 for i in range(32)}
    requests = [asked(labels=labels) for _ in range(BATCH)]
    answers = as_alice.batch_request_endpoints(requests)
    assert [dict(answer.endpoint.labels) for answer in answers] == [labels] * BATCH
    assert len(list(as_alice.list_endpoints())) == BATCH


def test_a_message_that_is_too_large_is_refused_and_the_connection_goes_on(as_alice: Client) -> None:
    with pytest.raises(VifError) as caught:
        make(as_alice, instance={"name": "x" * (3 << 20)})
    assert caught.value.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert as_alice.get_host_info().networks


def test_a_call_that_vifd_does_not_know_is_unimplemented(vifd: Daemon) -> None:
    with grpc.insecure_channel(f"unix:{vifd.socket}") as channel:
        call = channel.unary_unary("/vif.v1.EndpointService/Explode")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=20)
    assert from_rpc(caught.value).code == grpc.StatusCode.UNIMPLEMENTED


def test_an_endpoint_of_one_connection_is_found_over_another(vifd: Daemon, alice: User) -> None:
    with alice.client(vifd) as first:
        endpoint = make(first)
    with alice.client(vifd) as second:
        assert second.get_endpoint(endpoint.endpoint_id) == endpoint


def test_sockets_admit_whom_group_and_mode_say(vifd: Daemon, alice: User) -> None:
    with running(daemon='socket_mode = "0660"') as closed:
        assert Path(closed.socket).stat().st_mode & 0o777 == 0o660
        with pytest.raises(PermissionError):
            alice.connect(closed.socket)
        with pytest.raises(PermissionError):
            alice.connect(closed.fd_socket, socket.SOCK_SEQPACKET)
        with user(ALICE, groups=[Path(closed.socket).stat().st_gid]) as member, member.client(closed) as client:
            assert client.get_host_info().networks


def test_a_refused_caller_meets_the_words_of_its_refusal_every_time(guarded: Daemon, alice: User) -> None:
    for _ in range(20):
        with alice.connect(guarded.socket) as connection, refusal_text(connection) as text:
            assert "ask the administrator" in text


@contextlib.contextmanager
def refusal_text(connection: socket.socket) -> Iterator[str]:
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(PREFACE)
    yield received(connection).decode(errors="replace")


def test_an_error_of_the_policys_comes_with_a_status_once_one_is_in(guarded: Daemon) -> None:
    with user(ALICE, groups=[MEMBERS]) as member, member.client(guarded) as client, refusal("NOT_FOUND", "UNKNOWN_NETWORK"):
        make(client, network="red")
