"""Who opens a macvtap, and who is reached through it."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from contextlib import AbstractContextManager

import pytest

from tests.support import kernel
from tests.support.asking import make, refusal
from tests.support.children import child
from tests.support.daemon import Daemon
from tests.support.macvtaps import ALICE, MAGIC, VNET_HDR, frame, listening, macvtap, make_macvtap, nodes, sysfs_number
from tests.support.users import User
from vifclient import Client
from vifclient.messages import Owner

#: Opens a node as its owner does, sends what stdin has, and prints what arrives with the second argument in it.
OPENER = """
import os, sys
os.setgroups([int(group) for group in sys.argv[4].split(",") if group])
os.setresgid(int(sys.argv[3]), int(sys.argv[3]), int(sys.argv[3]))
os.setresuid(int(sys.argv[2]), int(sys.argv[2]), int(sys.argv[2]))
fd = os.open(sys.argv[1], os.O_RDWR)
os.write(1, b"open")
os.write(fd, sys.stdin.buffer.read())
while sys.argv[5].encode() not in (frame := os.read(fd, 4096)):
    pass
os.write(1, frame)
"""


def open_as(path: str, uid: int, gid: int, groups: str, expected: bytes) -> AbstractContextManager[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-I", "-c", OPENER, path, str(uid), str(gid), groups, expected.decode()]
    return child(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_an_unprivileged_owner_sends_and_receives_through_the_node(vifd: Daemon, as_alice: Client) -> None:
    endpoint = make_macvtap(as_alice)
    far_mac = kernel.settings(vifd.netns, "far0")["address"]
    expected = MAGIC[::-1]
    with listening(vifd.netns) as far, open_as(endpoint.macvtap.device_path, ALICE, ALICE, "", expected) as opener:
        assert opener.stdin is not None
        assert opener.stdout is not None
        opener.stdin.write(VNET_HDR + frame(far_mac, endpoint.port.mac))
        opener.stdin.close()
        assert MAGIC in far.recv(4096)
        far.send(frame(endpoint.port.mac, far_mac, MAGIC[::-1]))
        assert MAGIC[::-1] in opener.stdout.read()
        assert opener.wait(20) == 0


@pytest.mark.parametrize(
    ("uid", "gid", "groups", "opens"),
    [
        (ALICE, ALICE, "4242", True),
        (ALICE, 4242, "", True),
        (ALICE, ALICE, "", False),
        (20002, 4242, "", False),
        (20002, 20002, "4242", False),
    ],
)
def test_an_owner_with_a_group_needs_both(vifd: Daemon, client: Client, uid: int, gid: int, groups: str, *, opens: bool) -> None:
    endpoint = make_macvtap(client, owner=Owner(uid=ALICE, gid=4242))
    with open_as(endpoint.macvtap.device_path, uid, gid, groups, MAGIC) as opener:
        output, error = opener.communicate(VNET_HDR + b"\0" * 14, 20) if not opens else (_first(opener), b"")
    assert (output == b"open", b"PermissionError" in error) == (opens, not opens)


def _first(opener: subprocess.Popen[bytes]) -> bytes:
    assert opener.stdout is not None
    return opener.stdout.read(4)


def test_the_queues_are_handed_over_to_the_owner(vifd: Daemon, alice: User, as_alice: Client) -> None:
    endpoint = make_macvtap(as_alice, queues=4)
    assert endpoint.macvtap.queues == 4
    far_mac = kernel.settings(vifd.netns, "far0")["address"]
    with alice.acquire_fds(vifd, endpoint.endpoint_id) as queues, listening(vifd.netns) as far:
        assert (len(set(queues.fds)), queues.vnet_hdr) == (4, True)
        number = sysfs_number(vifd.netns, endpoint.macvtap.ifname)
        assert {os.fstat(fd).st_rdev for fd in queues} == {number}
        assert {kernel.tun_interface(fd)[0] for fd in queues} == {endpoint.macvtap.ifname}
        os.write(queues.fds[2], VNET_HDR + frame(far_mac, endpoint.port.mac))
        assert MAGIC in far.recv(4096)
        far.send(frame(endpoint.port.mac, far_mac, MAGIC[::-1]))
        readable, *_ = select.select(queues.fds, [], [], 20)
        assert MAGIC[::-1] in os.read(readable[0], 4096)
    assert len(nodes(vifd)) == 1


def test_a_macvtap_without_a_virtio_header_is_opened_without(vifd: Daemon, alice: User, as_alice: Client) -> None:
    endpoint = make(as_alice, network="lan", acceptable=macvtap(vnet_hdr=False))
    assert not endpoint.macvtap.vnet_hdr
    far_mac = kernel.settings(vifd.netns, "far0")["address"]
    with alice.acquire_fds(vifd, endpoint.endpoint_id) as queues, listening(vifd.netns) as far:
        assert not queues.vnet_hdr
        os.write(queues.fds[0], frame(far_mac, endpoint.port.mac))
        assert far.recv(4096).startswith(bytes.fromhex(far_mac.replace(":", "")))


def test_another_users_macvtap_is_not_handed_over(vifd: Daemon, bob: User, as_alice: Client) -> None:
    endpoint = make_macvtap(as_alice)
    with refusal("NOT_FOUND", "UNKNOWN_ENDPOINT"):
        bob.acquire_fds(vifd, endpoint.endpoint_id)


@pytest.mark.parametrize(("mode", "reach"), [("bridge", True), ("private", False), ("vepa", False)])
def test_siblings_reach_each_other_as_the_mode_says(
    vifd: Daemon, alice: User, as_alice: Client, mode: str, *, reach: bool
) -> None:
    one, other = make_macvtap(as_alice, mode), make_macvtap(as_alice, mode)
    with alice.acquire_fds(vifd, one.endpoint_id) as sending, alice.acquire_fds(vifd, other.endpoint_id) as receiving:
        os.write(sending.fds[0], VNET_HDR + frame(other.port.mac, one.port.mac))
        arrived = select.select(receiving.fds, [], [], 5 if reach else 0.3)[0]
        assert bool(arrived) is reach
