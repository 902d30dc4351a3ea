import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.client.hypervisors.examples import pci, tap, vhost_user, without_link
from tests.unit.client.hypervisors.fake_qemu import FakeQemu, refuse_in_words
from vifclient.hypervisors import qemu, qmp


@pytest.fixture
def running() -> Iterator[FakeQemu]:
    one = FakeQemu()
    yield one
    one.close()


@pytest.fixture
def monitor(running: FakeQemu) -> Iterator[qmp.Monitor]:
    with qmp.Monitor(running.client, timeout_s=10) as one:
        yield one


@pytest.fixture
def queues() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)  # raises if the monitor had closed them


PLUG = qemu.plug(tap(queues=2), netdev_id="n0")


class Lagging(socket.socket):
    """A socket that goes on only when its peer has ended."""

    def __init__(self, connection: socket.socket, peer: FakeQemu) -> None:
        super().__init__(fileno=connection.detach())
        self._peer = peer

    def sendmsg(self, buffers: Any, *arguments: Any) -> int:
        sent = super().sendmsg(buffers, *arguments)
        if b"quit" in buffers[0]:
            self._peer.wait_until_ended()
        return sent


def test_an_answer_counts_though_qemu_ends_with_it(running: FakeQemu) -> None:
    with qmp.Monitor(Lagging(running.client, running), timeout_s=10) as monitor:
        assert monitor.execute("quit") == {}


def test_plugs_by_queues_and_unplugs(running: FakeQemu, monitor: qmp.Monitor, queues: tuple[int, int]) -> None:
    qmp.plug(monitor, PLUG, queues)
    assert running.commands == ["qmp_capabilities", "getfd", "getfd", "netdev_add", "device_add"]
    assert (running.netdevs, running.fds, qmp.devices(monitor)) == (["n0"], {}, ["n0"])
    qmp.unplug(monitor, PLUG)
    assert (running.netdevs, running.devices) == ([], [])


def test_takes_a_ports_carrier(running: FakeQemu, monitor: qmp.Monitor, queues: tuple[int, int]) -> None:
    qmp.plug(monitor, qemu.plug(without_link(tap()), netdev_id="n0"), queues[:1])
    assert running.commands[-2:] == ["device_add", "set_link"]


def test_plugs_by_a_socket_and_unplugs(running: FakeQemu, monitor: qmp.Monitor) -> None:
    plug = qemu.plug(vhost_user(), netdev_id="n0")
    qmp.plug(monitor, plug)
    assert (running.chardevs, running.netdevs) == (["n0-chardev"], ["n0"])
    qmp.unplug(monitor, plug)
    assert (running.chardevs, running.netdevs, running.devices) == ([], [], [])
    assert running.commands[-2:] == ["netdev_del", "chardev-remove"]


def test_plugs_a_device_alone(running: FakeQemu, monitor: qmp.Monitor) -> None:
    qmp.plug(monitor, qemu.plug(pci(), netdev_id="n0"))
    qmp.unplug(monitor, qemu.plug(pci(), netdev_id="n0"))
    assert "netdev_del" not in running.commands


@pytest.mark.parametrize("failing", ["getfd", "netdev_add", "device_add"])
def test_nothing_is_left_when_a_step_fails(
    running: FakeQemu, monitor: qmp.Monitor, queues: tuple[int, int], failing: str
) -> None:
    running.refuse[failing] = refuse_in_words("not today")
    with pytest.raises(qmp.QmpError, match=f"QEMU refused {failing}: not today") as caught:
        qmp.plug(monitor, PLUG, queues)
    assert (caught.value.kind, getattr(caught.value, "__notes__", [])) == ("GenericError", [])
    assert (running.devices, running.netdevs, running.fds) == ([], [], {})


@pytest.mark.parametrize("failing", ["chardev-add", "netdev_add", "device_add"])
def test_no_socket_is_left_when_a_step_fails(running: FakeQemu, monitor: qmp.Monitor, failing: str) -> None:
    running.refuse[failing] = refuse_in_words("not today")
    with pytest.raises(qmp.QmpError, match="not today"):
        qmp.plug(monitor, qemu.plug(vhost_user(), netdev_id="n0"))
    assert (running.devices, running.netdevs, running.chardevs) == ([], [], [])


def test_what_cannot_be_undone_is_told(running: FakeQemu, monitor: qmp.Monitor, queues: tuple[int, int]) -> None:
    running.refuse = {"device_add": refuse_in_words("no slot"), "netdev_del": refuse_in_words("busy")}
    with pytest.raises(qmp.QmpError, match="no slot") as caught:
        qmp.plug(monitor, PLUG, queues)
    assert caught.value.__notes__ == ["undoing it: QEMU refused netdev_del: busy"]


def test_fds_have_to_fit(monitor: qmp.Monitor, queues: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="2 queues have to be handed over, and 1 fds"):
        qmp.plug(monitor, PLUG, queues[:1])


def test_a_guest_that_refuses(running: FakeQemu, monitor: qmp.Monitor, queues: tuple[int, int]) -> None:
    qmp.plug(monitor, PLUG, queues)
    running.on_device_del = "DEVICE_UNPLUG_GUEST_ERROR"
    with pytest.raises(qmp.QmpError, match="the guest doesn't let n0 go"):
        qmp.unplug(monitor, PLUG)
    assert (running.netdevs, running.devices) == (["n0"], ["n0"])


def test_a_guest_that_does_not_answer(running: FakeQemu, queues: tuple[int, int]) -> None:
    running.on_device_del = None
    with qmp.Monitor(running.client, timeout_s=0.1) as monitor:
        qmp.plug(monitor, PLUG, queues)
        with pytest.raises(qmp.QmpTimeout, match=r"said nothing within 0.1 s"):
            qmp.unplug(monitor, PLUG)
        assert (running.netdevs, running.devices) == (["n0"], ["n0"])
        # the guest has let it go meanwhile
        running.devices.clear()
        qmp.unplug(monitor, PLUG)
        assert running.netdevs == []
        qmp.unplug(monitor, PLUG)


def test_an_event_of_an_earlier_life_is_not_taken_for_the_next(running: FakeQemu, queues: tuple[int, int]) -> None:
    with qmp.Monitor(running.client, timeout_s=0.1) as monitor:
        running.on_device_del = None
        qmp.plug(monitor, PLUG, queues)
        with pytest.raises(qmp.QmpTimeout):
            qmp.unplug(monitor, PLUG)
        running._say({"event": "DEVICE_DELETED", "data": {"device": "n0"}})
        with pytest.raises(qmp.QmpTimeout):
            qmp.unplug(monitor, PLUG)
        assert running.netdevs == ["n0"]


def test_a_guest_that_has_been_asked_is_waited_for(running: FakeQemu, queues: tuple[int, int]) -> None:
    with qmp.Monitor(running.client, timeout_s=0.1) as monitor:
        qmp.plug(monitor, PLUG, queues)
        running.refuse["device_del"] = refuse_in_words("Device n0 is already in the process of unplug")
        with pytest.raises(qmp.QmpTimeout):
            qmp.unplug(monitor, PLUG)
        assert running.netdevs == ["n0"]


def test_a_guest_that_lets_a_device_go_meanwhile(running: FakeQemu, monitor: qmp.Monitor, queues: tuple[int, int]) -> None:
    qmp.plug(monitor, PLUG, queues)
    running.refuse["device_del"] = refuse_in_words("Device 'n0' not found", "DeviceNotFound")
    qmp.unplug(monitor, PLUG)
    assert running.netdevs == []


def test_another_refusal_of_an_unplug_is_told(running: FakeQemu, monitor: qmp.Monitor, queues: tuple[int, int]) -> None:
    qmp.plug(monitor, PLUG, queues)
    running.refuse["device_del"] = refuse_in_words("Bus 'rp0' does not support hotplugging")
    with pytest.raises(qmp.QmpError, match="does not support hotplugging"):
        qmp.unplug(monitor, PLUG)
    assert running.netdevs == ["n0"]


def test_a_late_answer_is_not_taken_for_the_next(running: FakeQemu) -> None:
    with qmp.Monitor(running.client, timeout_s=0.5) as monitor:
        running.hold.clear()
        with pytest.raises(qmp.QmpTimeout):
            qmp.devices(monitor)
        running.hold.set()
        assert monitor.execute("query-name") == {"name": "fake"}


def test_a_qemu_that_takes_nothing_has_not_ended(running: FakeQemu) -> None:
    with qmp.Monitor(running.client, timeout_s=0.1) as monitor:
        running.hold.clear()
        with pytest.raises(qmp.QmpTimeout):
            monitor.execute("query-name")
        with pytest.raises(qmp.QmpTimeout, match="took nothing within"):
            monitor.execute("query-name", padding="x" * 10_000_000)
        running.hold.set()


def test_a_socket_that_others_wait_for(folder: Path) -> None:
    path = str(folder / "busy")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(path)
        listener.listen(0)
        waiting.connect(path)
        with pytest.raises(qmp.QmpTimeout, match="others wait for it too"):
            qmp.Monitor.connect(path, timeout_s=0.1)


QEMU_PROCESS = """
import json, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("listening", flush=True)
connection, _ = listener.accept()
connection.sendall(json.dumps({"QMP": {}}).encode() + b"\\n")
for line in connection.makefile():
    command = json.loads(line)
    if command["execute"] == "quit":
        break  # without an answer
    connection.sendall(json.dumps({"return": {}, "id": command["id"]}).encode() + b"\\n")
"""


@contextmanager
def qemu_process(folder: Path) -> Iterator[tuple[subprocess.Popen[str], qmp.Monitor]]:
    """Run what ends when it is told to, without an answer."""
    path = str(folder / "qmp")
    argv = [sys.executable, "-c", QEMU_PROCESS, path]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "listening\n"
            with qmp.Monitor.connect(path, timeout_s=30) as monitor:
                yield process, monitor
        finally:
            process.kill()


def test_a_qemu_that_ends_without_an_answer_is_waited_for(folder: Path) -> None:
    with qemu_process(folder) as (process, monitor):
        assert monitor.pid == process.pid
        monitor.quit()
        assert process.wait(0) == 0


def test_a_qemu_whose_process_is_not_known_is_not_ended(running: FakeQemu, monitor: qmp.Monitor) -> None:
    with pytest.raises(qmp.QmpError, match=r"process isn't known: .* or this one made its socket"):
        monitor.quit()
    assert "quit" not in running.commands


def test_a_qemu_that_had_ended_is_not_ended_again(folder: Path) -> None:
    with qemu_process(folder) as (process, monitor):
        process.kill()
        process.wait()
        with pytest.raises(qmp.QemuEnded, match="can't be watched: No such process"):
            monitor.quit()


def test_a_netdev_that_stays_is_told(running: FakeQemu, monitor: qmp.Monitor, queues: tuple[int, int]) -> None:
    qmp.plug(monitor, PLUG, queues)
    running.refuse["netdev_del"] = refuse_in_words("busy")
    with pytest.raises(qmp.QmpError, match="busy"):
        qmp.unplug(monitor, PLUG)


def test_a_qemu_that_ends(running: FakeQemu, monitor: qmp.Monitor) -> None:
    running._socket.shutdown(socket.SHUT_RDWR)
    with pytest.raises(qmp.QemuEnded, match="QEMU has ended"):
        monitor.execute("query-status")


def test_no_qemu(folder: Path) -> None:
    with pytest.raises(qmp.QemuEnded, match=r"can't be reached on .*: No such file or directory"):
        qmp.Monitor.connect(str(folder / "none"))
    stale = str(folder / "stale")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(stale)
    with pytest.raises(qmp.QemuEnded, match="Connection refused"):
        qmp.Monitor.connect(stale)
    with pytest.raises(qmp.QmpError, match="too long") as caught:
        qmp.Monitor.connect("x" * 200)
    assert not isinstance(caught.value, qmp.QemuEnded)
    with pytest.raises(qmp.QmpError, match="no-such-qemu can't be started: No such file"):
        qmp.probe("no-such-qemu")
    with pytest.raises(qmp.QmpError, match="true can't be asked: QEMU has ended"):
        qmp.probe("true")
    with pytest.raises(qmp.QmpError, match="cat can't be asked: cat: "):  # what it says of its arguments
        qmp.probe("cat")


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH\n", b'{"hello": 1}\n', b"7\n"])
def test_another_program(greeting: bytes) -> None:
    ours, its = socket.socketpair()
    with its:
        its.sendall(greeting)
        with pytest.raises(qmp.QmpError, match="isn't a QEMU's QMP socket"):
            qmp.Monitor(ours, timeout_s=10)
    assert ours.fileno() == -1
