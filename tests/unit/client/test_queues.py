import fcntl
import os
import resource
import socket
import stat
import time
from pathlib import Path

import grpc
import pytest

from tests.unit.client.conftest import QUICK_RETRY
from tests.unit.client.fake_vifd import FakeVifd, make_status, retry_info
from vif.v1.fd_pb2 import AcquireFdsRequest, AcquireFdsResponse
from vifclient import Client, QueueFds, errors, queues


def open_fds() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()}


def null_fds(count: int) -> list[int]:
    return [os.open("/dev/null", os.O_RDWR) for _ in range(count)]


def test_fds_are_handed_over_in_order_and_closed(vifd: FakeVifd, client: Client) -> None:
    with client.acquire_fds("a", 3) as handed:
        fds = handed.fds
        assert len(handed) == 3
        assert (list(handed), handed[0], handed[1:]) == (list(fds), fds[0], fds[1:])
        for fd in fds:
            assert stat.S_ISCHR(os.fstat(fd).st_mode)
            assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert handed.fds == ()
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    assert vifd.fds.asked == [AcquireFdsRequest(endpoint_id="a", count=3)]


def test_detached_fds_stay_open(client: Client) -> None:
    with client.acquire_fds("a") as handed:
        fds = handed.detach()
    for fd in fds:
        os.close(fd)  # raises if it were closed


def test_close_twice(client: Client) -> None:
    handed = client.acquire_fds("a")
    handed.close()
    handed.close()


def test_forgotten_fds_are_closed_and_complained_about() -> None:
    fd = null_fds(1)[0]
    handed = QueueFds([fd], vnet_hdr=True)
    assert repr(handed) == f"QueueFds([{fd}], vnet_hdr=True)"
    with pytest.warns(ResourceWarning, match="never closed"):
        handed.__del__()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_close_all_goes_on_after_a_failure() -> None:
    first, second = null_fds(2)
    os.close(first)
    queues.close_all([first, second])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(second)


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (AcquireFdsResponse(code=5, reason="UNKNOWN_ENDPOINT", message="no endpoint"), errors.NotFound, "no endpoint"),
        (AcquireFdsResponse(code=7, reason="NOT_ALLOWED", message="not yours"), errors.NotAllowed, "not yours"),
        (AcquireFdsResponse(code=9, reason="WRONG_STATE", message="busy"), errors.WrongState, "busy"),
        (AcquireFdsResponse(count=2), errors.ServerError, "announced 2 queues and sent 0"),
    ],
)
def test_refusals(vifd: FakeVifd, client: Client, answer: AcquireFdsResponse, kind: type[errors.VifError], words: str) -> None:
    vifd.fds.answer = lambda request: (answer.SerializeToString(), [])
    with pytest.raises(kind, match=words) as caught:
        client.acquire_fds("a")
    assert caught.value.reason == answer.reason


@pytest.mark.parametrize(
    "packet", [AcquireFdsResponse(code=13).SerializeToString(), AcquireFdsResponse(count=3).SerializeToString(), b"\xff\xff"]
)
def test_fds_beside_an_error_are_closed(packet: bytes) -> None:
    sending, receiving = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with sending, receiving:
        fds = null_fds(2)
        socket.send_fds(sending, [packet], fds)
        queues.close_all(fds)
        before = open_fds()
        with pytest.raises(errors.ServerError):
            queues.receive_queues(receiving)
        assert open_fds() <= before


def test_a_connection_that_breaks_is_unavailable() -> None:
    sending, receiving = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with receiving:
        receiving.send(b"unread")  # closing with something unread is a reset, not an end
        sending.close()
        with pytest.raises(errors.Unavailable, match="broke the connection"):
            queues.receive_queues(receiving)


def test_garbage_is_not_understood(vifd: FakeVifd, client: Client) -> None:
    vifd.fds.answer = lambda request: (b"\xff\xff", null_fds(1))
    with pytest.raises(errors.ServerError, match="can't be understood"):
        client.acquire_fds("a")


def test_a_limit_of_open_files_is_named_and_nothing_leaks() -> None:
    sending, receiving = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with sending, receiving:
        fds = null_fds(8)
        socket.send_fds(sending, [AcquireFdsResponse(count=8).SerializeToString()], fds)
        queues.close_all(fds)
        before = open_fds()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest_free = fds[0]
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 2, hard))
        try:
            with pytest.raises(errors.FdsTruncated, match=r"only 2 of the endpoint's queues.*ulimit"):
                queues.receive_queues(receiving)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert open_fds() <= before


def test_a_connection_that_ends_without_answer_is_tried_again(vifd: FakeVifd, client: Client) -> None:
    vifd.fds.answer = lambda request: vifd.fds.give(request) if len(vifd.fds.asked) > 2 else None
    with client.acquire_fds("a") as handed:
        assert len(handed) == 2
    assert len(vifd.fds.asked) == 3


def test_an_fd_socket_that_does_not_answer(vifd: FakeVifd, client: Client) -> None:
    vifd.fds.answer = lambda request: vifd.fds.release.wait() and None
    with pytest.raises(errors.DeadlineExceeded, match="fd socket"):
        client.acquire_fds("a", timeout_s=0.05)


def test_no_such_fd_socket(vifd: FakeVifd, folder: Path) -> None:
    path = str(folder / "none.sock")
    with (
        Client(vifd.socket_path, fd_socket_path=path, retry=QUICK_RETRY) as client,
        pytest.raises(errors.Unreachable, match="there is no such socket"),
    ):
        client.acquire_fds("a", timeout_s=0.1)


def test_the_way_to_the_fd_socket_is_within_the_time(vifd: FakeVifd, client: Client, folder: Path) -> None:
    vifd.failures.append(make_status(grpc.StatusCode.UNAVAILABLE, "starting", "TRY_AGAIN", retry_info(1.8)))
    vifd.fd_socket_path = str(folder / "none.sock")
    began_s = time.monotonic()
    with pytest.raises(errors.Unreachable, match=r"none\.sock"):
        client.acquire_fds("a", timeout_s=3)
    assert time.monotonic() - began_s < 4.2  # 4.8, were each step given all of the time
    assert vifd.calls == ["GetHostInfo"] * 2


def test_a_vifd_without_fd_socket(vifd: FakeVifd, client: Client) -> None:
    vifd.fd_socket_path = ""
    with pytest.raises(errors.Unsupported, match="hands no queues over"):
        client.acquire_fds("a")


def test_the_environment_names_the_fd_socket(vifd: FakeVifd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIFD_FD_SOCKET", vifd.fd_socket_path)
    with Client(vifd.socket_path) as client, client.acquire_fds("a"):
        assert vifd.calls == []
