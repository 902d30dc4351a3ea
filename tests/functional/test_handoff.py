"""Open queues, handed over by the fd socket to who can't open a tap."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import kernel
from tests.support.asking import BRIDGE, asked, make, new_id, refusal, release_all, state_of
from tests.support.daemon import Daemon, running, taps, wait_for
from tests.support.users import User
from vif.v1.fd_pb2 import AcquireFdsRequest, AcquireFdsResponse
from vifclient import Client, QueueFds, VifError
from vifclient.errors import DeadlineExceeded
from vifclient.messages import Endpoint, EndpointPreference, Owner, TapPreference

_TUNGETIFF = 0x800454D2
_IFF_VNET_HDR, _IFF_MULTI_QUEUE = 0x4000, 0x0100
VNET_HDR = bytes(10)
MAGIC = b"a frame of vifd's tests"

NETWORKS = """
[networks.blue]
driver = "bridge"
bridge = "br-blue"
repair = "report"

[networks.unreal]
driver = "fake"
"""


def tap_with(**options: int | bool) -> list[EndpointPreference]:
    return [EndpointPreference(tap=TapPreference(**options))]


def interface(fd: int) -> tuple[str, int]:
    """The device and the flags behind a descriptor, as the kernel says (TUNGETIFF)."""
    name, flags = struct.unpack("16sH22x", fcntl.ioctl(fd, _TUNGETIFF, bytes(40)))
    return name.rstrip(b"\0").decode(), flags


def frame(source: str, payload: bytes) -> bytes:
    """An Ethernet broadcast."""
    return b"\xff" * 6 + bytes.fromhex(source.replace(":", "")) + b"\x88\xb5" + payload.ljust(46, b"\0")


def arrives(sender: int, data: bytes, receiver: int, payload: bytes) -> bool:
    """Send until it is seen: a bridge forwards from the moment when it has noticed that a port has carrier."""

    def seen() -> bool:
        os.write(sender, data)
        while select.select([receiver], [], [], 0.02)[0]:
            if payload in os.read(receiver, 4096):
                return True
        return False

    return bool(wait_for(seen))


def answer_to(vifd: Daemon, *packets: bytes) -> list[AcquireFdsResponse]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(20)
        connection.connect(vifd.fd_socket)
        answers = []
        for packet in packets:
            connection.send(packet)
            answers.append(AcquireFdsResponse.FromString(connection.recv(4096)))
        return answers


@pytest.fixture
def endpoint(as_alice: Client) -> Endpoint:
    return make(as_alice)


@contextlib.contextmanager
def queues_of(user: User, vifd: Daemon, endpoint: Endpoint, count: int = 0) -> Iterator[QueueFds]:
    with user.acquire_fds(vifd, endpoint.endpoint_id, count) as queues:
        yield queues


def test_an_ordinary_owner_gets_its_open_queue(vifd: Daemon, alice: User, client: Client, endpoint: Endpoint) -> None:
    with queues_of(alice, vifd, endpoint) as queues:
        (fd,) = queues.fds
        name, flags = interface(fd)
        assert name == endpoint.tap.ifname
        assert flags & _IFF_VNET_HDR
        assert queues.vnet_hdr
        wait_for(lambda: state_of(client, endpoint.endpoint_id) == "ATTACHED")
    wait_for(lambda: state_of(client, endpoint.endpoint_id) == "READY")


def test_a_tap_without_a_virtio_header_is_opened_without(vifd: Daemon, alice: User, as_alice: Client) -> None:
    with queues_of(alice, vifd, make(as_alice, acceptable=tap_with(vnet_hdr=False))) as queues:
        assert not queues.vnet_hdr
        assert not interface(queues.fds[0])[1] & _IFF_VNET_HDR


def test_all_queues_come_in_one_packet(vifd: Daemon, alice: User, as_alice: Client) -> None:
    endpoint = make(as_alice, acceptable=tap_with(queues=4))
    with queues_of(alice, vifd, endpoint) as queues:
        assert len(set(queues.fds)) == 4
        assert {interface(fd)[0] for fd in queues} == {endpoint.tap.ifname}
        assert all(interface(fd)[1] & _IFF_MULTI_QUEUE for fd in queues)
        (tap,) = taps(vifd.netns)
        assert tap["linkinfo"]["info_data"]["numqueues"] == 4


def test_fewer_queues_than_there_are_may_be_had(vifd: Daemon, alice: User, as_alice: Client) -> None:
    endpoint = make(as_alice, acceptable=tap_with(queues=4))
    with queues_of(alice, vifd, endpoint, 3) as three, queues_of(alice, vifd, endpoint, 1) as one:
        assert (len(three), len(one)) == (3, 1)


def test_more_queues_than_there_are_are_refused(vifd: Daemon, alice: User, endpoint: Endpoint) -> None:
    with refusal("FAILED_PRECONDITION", "WRONG_STATE"):
        alice.acquire_fds(vifd, endpoint.endpoint_id, 2)
    with queues_of(alice, vifd, endpoint, 1) as queues:
        assert len(queues) == 1


def test_more_queues_than_any_tap_has_are_refused(vifd: Daemon, alice: User, endpoint: Endpoint) -> None:
    with refusal("INVALID_ARGUMENT", "INVALID_FIELD"):
        alice.acquire_fds(vifd, endpoint.endpoint_id, 257)


def test_more_queues_than_a_packet_carries_come_in_two(vifd: Daemon, alice: User, as_alice: Client) -> None:
    endpoint = make(as_alice, acceptable=tap_with(queues=256))
    with refusal("FAILED_PRECONDITION", "WRONG_STATE") as caught:
        alice.acquire_fds(vifd, endpoint.endpoint_id)
    assert "253" in caught.value.message
    with queues_of(alice, vifd, endpoint, 253) as first, queues_of(alice, vifd, endpoint, 3) as second:
        assert (len(first), len(second)) == (253, 3)


def test_queues_that_are_open_already_are_refused_and_stay_open(vifd: Daemon, alice: User, endpoint: Endpoint) -> None:
    with queues_of(alice, vifd, endpoint) as queues:
        with refusal("FAILED_PRECONDITION", "WRONG_STATE") as caught:
            alice.acquire_fds(vifd, endpoint.endpoint_id)
        assert "open already" in caught.value.message
        assert interface(queues.fds[0])[0] == endpoint.tap.ifname
    with queues_of(alice, vifd, endpoint) as again:
        assert len(again) == 1


def test_another_users_queues_are_refused(vifd: Daemon, bob: User, endpoint: Endpoint) -> None:
    with refusal("NOT_FOUND", "UNKNOWN_ENDPOINT"):
        bob.acquire_fds(vifd, endpoint.endpoint_id)
    assert taps(vifd.netns)[0]["linkinfo"]["info_data"].get("numqueues", 0) == 0


def test_root_gets_everybodys_queues(client: Client, endpoint: Endpoint) -> None:
    with client.acquire_fds(endpoint.endpoint_id) as queues:
        assert interface(queues.fds[0])[0] == endpoint.tap.ifname


def test_an_endpoint_that_is_not_there_has_no_queues(vifd: Daemon, alice: User) -> None:
    with refusal("NOT_FOUND", "UNKNOWN_ENDPOINT"):
        alice.acquire_fds(vifd, new_id())


def test_a_tap_that_was_deleted_has_no_queues_and_none_is_made(vifd: Daemon, alice: User, endpoint: Endpoint) -> None:
    kernel.let_tap_go(kernel.open_tap(vifd.netns, endpoint.tap.ifname))
    with refusal("NOT_FOUND", "UNKNOWN_ENDPOINT"):
        alice.acquire_fds(vifd, endpoint.endpoint_id)
    assert taps(vifd.netns) == []


def test_what_is_no_tap_has_no_queues(vifd: Daemon, alice: User, client: Client) -> None:
    endpoint = make(client, acceptable=[BRIDGE], owner=Owner(uid=alice.uid))
    with refusal("UNIMPLEMENTED", "UNSUPPORTED"):
        alice.acquire_fds(vifd, endpoint.endpoint_id)


def test_a_pretended_tap_has_queues_that_lead_nowhere(vifd: Daemon, alice: User, as_alice: Client) -> None:
    endpoint = make(as_alice, network="unreal", acceptable=tap_with(queues=2))
    with queues_of(alice, vifd, endpoint) as queues:
        assert len(queues) == 2
    assert taps(vifd.netns) == []


@pytest.mark.parametrize("packet", [b"garbage", b"\xff" * 4096, b"\x0a\x03\xff\xfe\xfd", b"\0", bytes(60_000)])
def test_a_malformed_packet_is_answered_and_the_connection_goes_on(vifd: Daemon, endpoint: Endpoint, packet: bytes) -> None:
    good = AcquireFdsRequest(endpoint_id=new_id()).SerializeToString()
    first, second = answer_to(vifd, packet, good)
    assert (first.code, first.reason, first.count) == (3, "INVALID_FIELD", 0)
    assert len(first.message.split()) >= 4
    assert (second.code, second.reason) == (5, "UNKNOWN_ENDPOINT")


def test_a_field_of_a_newer_contract_is_refused(vifd: Daemon, endpoint: Endpoint) -> None:
    packet = AcquireFdsRequest(endpoint_id=endpoint.endpoint_id).SerializeToString() + b"\xa2\x7d\x01x"
    (answer,) = answer_to(vifd, packet)
    assert (answer.code, answer.reason) == (3, "INVALID_FIELD")


@pytest.mark.parametrize("endpoint_id", ["../x", "%d", "6F9619FF-8B86-4D01-B42D-00CF4FC964FF", "x" * 3000])
def test_a_malformed_id_is_refused(vifd: Daemon, alice: User, endpoint_id: str) -> None:
    with refusal("INVALID_ARGUMENT", "INVALID_FIELD"):
        alice.acquire_fds(vifd, endpoint_id)


def test_an_endpoint_that_is_being_made_has_no_queues_yet(vifd: Daemon, alice: User, as_alice: Client) -> None:
    endpoint_id = new_id()
    with vifd.helper_stopped():
        with pytest.raises(DeadlineExceeded):
            as_alice.request_endpoint(asked(endpoint_id), timeout_s=0.3)
        with refusal("FAILED_PRECONDITION", "WRONG_STATE"):
            alice.acquire_fds(vifd, endpoint_id)
    wait_for(lambda: state_of(as_alice, endpoint_id) == "READY")


def test_a_caller_that_does_not_wait_for_its_queues_leaves_them_closed(vifd: Daemon, alice: User, endpoint: Endpoint) -> None:
    for _ in range(20):
        with alice.connect(vifd.fd_socket, socket.SOCK_SEQPACKET) as connection:
            connection.send(AcquireFdsRequest(endpoint_id=endpoint.endpoint_id).SerializeToString())
    wait_for(lambda: taps(vifd.netns)[0]["linkinfo"]["info_data"].get("numqueues", 0) == 0)
    wait_for(lambda: opened(alice, vifd, endpoint))


def opened(user: User, vifd: Daemon, endpoint: Endpoint) -> bool:
    try:
        user.acquire_fds(vifd, endpoint.endpoint_id).close()
    except VifError:
        return False
    return True


def test_neither_process_keeps_a_descriptor_that_it_handed_over(vifd: Daemon, alice: User, as_alice: Client) -> None:
    assert vifd.process is not None
    endpoint = make(as_alice, acceptable=tap_with(queues=8))
    directories = [Path(f"/proc/{pid}/fd") for pid in (vifd.process.pid, vifd.helper_pid)]
    alice.acquire_fds(vifd, endpoint.endpoint_id).close()
    before = [len(list(directory.iterdir())) for directory in directories]
    for _ in range(50):
        alice.acquire_fds(vifd, endpoint.endpoint_id).close()
    wait_for(lambda: [len(list(directory.iterdir())) for directory in directories] <= before)


def test_queues_of_endpoints_that_come_and_go_do_no_harm(vifd: Daemon, alice: User, as_alice: Client) -> None:
    ids = [new_id() for _ in range(4)]
    reasons = set()

    def turn(number: int) -> None:
        endpoint_id = ids[number % len(ids)]
        try:
            if number % 3 == 0:
                make(as_alice, endpoint_id)
            elif number % 3 == 1:
                alice.acquire_fds(vifd, endpoint_id).close()
            else:
                as_alice.release_endpoint(endpoint_id)
        except VifError as error:
            reasons.add(error.reason)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(turn, range(600)))
    assert reasons <= {"UNKNOWN_ENDPOINT", "WRONG_STATE"}
    release_all(as_alice, ids)
    assert taps(vifd.netns) == []


def test_frames_pass_from_one_taps_queue_to_anothers_on_the_bridge(
    vifd: Daemon, alice: User, bob: User, as_alice: Client, as_bob: Client
) -> None:
    one, other = make(as_alice), make(as_bob)
    with queues_of(alice, vifd, one) as sending, queues_of(bob, vifd, other) as receiving:
        (sender,), (receiver,) = sending.fds, receiving.fds
        assert arrives(sender, VNET_HDR + frame(one.port.mac, MAGIC), receiver, MAGIC)
        assert arrives(receiver, VNET_HDR + frame(other.port.mac, MAGIC[::-1]), sender, MAGIC[::-1])


def test_queues_outlive_the_daemon_that_opened_them(alice: User) -> None:
    with running(networks=NETWORKS) as daemon, alice.client(daemon) as client:
        one, other = make(client), make(client)
        with queues_of(alice, daemon, one) as sending, queues_of(alice, daemon, other) as receiving:
            assert daemon.stop() == 0
            assert arrives(sending.fds[0], VNET_HDR + frame(one.port.mac, MAGIC), receiving.fds[0], MAGIC)
            daemon.start()
            with alice.client(daemon) as again:
                wait_for(lambda: state_of(again, one.endpoint_id) == "ACTIVE")  # its frame was seen, too
                assert again.get_endpoint(one.endpoint_id).tap.ifindex == one.tap.ifindex
            assert Path(f"/proc/self/fd/{sending.fds[0]}").exists()
