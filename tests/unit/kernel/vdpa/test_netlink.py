"""Messages of generic netlink as drivers/vdpa/vdpa.c reads and writes them; what a real kernel makes of them, tests/vm shows."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import closing
from struct import pack, unpack_from

import pytest

from vifd.kernel.netlink import attribute, parse_attributes, text
from vifd.kernel.vdpa.netlink import Command, GenericSocket, ManagementDevice, NetConfig

FAMILY = 0x21
NAME, MAC = "vdvaaaaaaaaaa", "52:54:00:12:34:56"
Answer = bytes | int


class Kernel:
    """Answers messages: the family's number, and what a test says of vDPA."""

    def __init__(self, answer: Answer, *, family: Answer | None = None) -> None:
        self._answer = answer
        self._family = attribute(2, text(1, "vdpa")) + attribute(1, pack("=H", FAMILY)) if family is None else family
        self._queue: list[bytes] = []
        #: The command and the attributes of each message to vDPA, and whether it asks for an answer.
        self.heard: list[tuple[int, dict[int, bytes], bool]] = []
        self.stale: bytes = b""

    def send(self, message: bytes) -> None:
        """Take a message."""
        length, kind, flags, sequence = unpack_from("=IHHI", message)
        assert length == len(message)
        if kind == FAMILY:
            self.heard.append((message[16], parse_attributes(message[20:]), bool(flags & 4)))
        answer = self._answer if kind == FAMILY else self._family
        if self.stale:
            self._queue.append(self.stale)
        if isinstance(answer, int):
            words = attribute(1, b"said by the kernel\0")
            body = pack("=i", -answer) + pack("=IHHII", 16, kind, 0, sequence, 0) + words
            self._queue.append(pack("=IHHII", 16 + len(body), 2, 0x300, sequence, 0) + body)
        else:
            self._queue.append(pack("=IHHII", 20 + len(answer), kind, 0, sequence, 0) + pack("=BBH", 1, 1, 0) + answer)

    def recv(self, size: int) -> bytes:
        """Give an answer."""
        del size
        return self._queue.pop(0)

    def close(self) -> None:
        """Close it."""


@pytest.fixture
def connect() -> Iterator[Callable[[Kernel], GenericSocket]]:
    """Make a socket whose kernel is a made-up one."""
    with closing(GenericSocket()) as one:
        real = one._socket

        def connected(kernel: Kernel) -> GenericSocket:
            one._socket = kernel  # type: ignore[assignment]  # all of a socket that it uses
            return one

        yield connected
        one._socket = real


def test_a_device_is_asked_for_by_name_with_all_that_it_is_to_be(connect: Callable[[Kernel], GenericSocket]) -> None:
    kernel = Kernel(0)
    connect(kernel).add(NAME, "pci/0000:01:00.2", mac=MAC, mtu_bytes=9000, queues=4)
    assert kernel.heard == [
        (
            Command.DEV_NEW,
            {
                1: b"pci\0",
                2: b"0000:01:00.2\0",
                4: NAME.encode() + b"\0",
                10: bytes.fromhex("525400123456"),
                13: pack("=H", 9000),
                12: pack("=H", 4),
            },
            True,
        )
    ]


def test_what_isnt_asked_for_isnt_said(connect: Callable[[Kernel], GenericSocket]) -> None:
    kernel = Kernel(0)
    connect(kernel).add(NAME, "vdpasim_net", mac=MAC, mtu_bytes=0, queues=1)
    assert kernel.heard[0][1].keys() == {2, 4, 10}


def test_a_deletion_names_the_device(connect: Callable[[Kernel], GenericSocket]) -> None:
    kernel = Kernel(0)
    connect(kernel).delete(NAME)
    assert kernel.heard == [(Command.DEV_DEL, {4: NAME.encode() + b"\0"}, True)]


def test_a_management_device_is_read(connect: Callable[[Kernel], GenericSocket]) -> None:
    answer = text(2, "vdpasim_net") + attribute(3, pack("=Q", 1 << 1 | 1 << 2)) + attribute(15, pack("=I", 9))
    kernel = Kernel(answer)
    assert connect(kernel).find_management_device("vdpasim_net") == ManagementDevice("vdpasim_net", is_net=True, max_queues=4)
    assert kernel.heard == [(Command.MGMTDEV_GET, {2: b"vdpasim_net\0"}, False)]
    block = connect(Kernel(text(2, "vdpasim_blk") + attribute(3, pack("=Q", 1 << 2))))
    assert block.find_management_device("vdpasim_blk") == ManagementDevice("vdpasim_blk", is_net=False, max_queues=0)


def test_a_device_says_on_what_it_was_made(connect: Callable[[Kernel], GenericSocket]) -> None:
    assert connect(Kernel(text(1, "pci") + text(2, "0000:01:00.2") + text(4, NAME))).find(NAME) == "pci/0000:01:00.2"
    assert connect(Kernel(text(2, "vdpasim_net") + text(4, NAME))).find(NAME) == "vdpasim_net"


def test_what_a_device_tells_its_vm_is_read(connect: Callable[[Kernel], GenericSocket]) -> None:
    answer = text(4, NAME) + attribute(10, bytes.fromhex("525400123456")) + attribute(13, pack("=H", 1400))
    assert connect(Kernel(answer)).find_config(NAME) == NetConfig(MAC, 1400)
    assert connect(Kernel(errno.EAGAIN)).find_config(NAME) is None


def test_what_isnt_there_is_none(connect: Callable[[Kernel], GenericSocket]) -> None:
    assert connect(Kernel(errno.ENODEV)).find(NAME) is None
    assert connect(Kernel(errno.ENODEV)).find_management_device("vdpasim_net") is None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EOPNOTSUPP, errno.EPERM])
def test_a_refusal_has_the_kernels_words(connect: Callable[[Kernel], GenericSocket], number: int) -> None:
    with pytest.raises(OSError, match="said by the kernel") as caught:
        connect(Kernel(number)).add(NAME, "vdpasim_net", mac=MAC, mtu_bytes=0, queues=1)
    assert caught.value.errno == number


def test_a_kernel_that_says_nothing_of_vdpa_is_told_from_one_without_the_device(
    connect: Callable[[Kernel], GenericSocket],
) -> None:
    with pytest.raises(OSError, match="Protocol not supported") as caught:
        connect(Kernel(0, family=errno.ENOENT)).find(NAME)
    assert caught.value.errno == errno.EPROTONOSUPPORT


def test_an_answer_to_an_earlier_question_is_none_to_this(connect: Callable[[Kernel], GenericSocket]) -> None:
    kernel = Kernel(text(2, "vdpasim_net"))
    kernel.stale = pack("=IHHIIi", 20, 2, 0, 0xFFFF, 0, -errno.ENODEV)
    assert connect(kernel).find(NAME) == "vdpasim_net"
