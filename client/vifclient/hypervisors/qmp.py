"""QMP, in which a running QEMU is spoken to: asks what it can do, plugs endpoints and unplugs them.

Sources: QEMU's docs/interop/qmp-spec.rst and its QMP reference, for 7.2 and later. For asyncio: `asyncio.to_thread`.
"""

import array
import json
import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from vifclient.hypervisors.qemu import Capabilities, Command, Plug, read_capabilities

DEFAULT_TIMEOUT_S = 30.0
_PROBE = ("-machine", "none", "-nodefaults", "-no-user-config", "-display", "none")
_UCRED = struct.Struct("3i")
_TIMEVAL = struct.Struct("ll")
_ASKED_BEFORE = "already in the process of unplug"  # qdev_unplug() of system/qdev-monitor.c; its class tells nothing


class QmpError(Exception):
    """QEMU refused a command, or can't be spoken to.

    Attributes:
        kind: The class that QEMU gives its error: "GenericError", "DeviceNotFound". Empty where it gave none.
    """

    def __init__(self, message: str, *, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


class QemuEnded(QmpError):
    """QEMU doesn't run, or no more: nobody answers on its socket."""


class QmpTimeout(QmpError):
    """QEMU didn't answer in time, or the guest didn't give a device back: unplug it again later."""


class Monitor:
    """A connection to a QEMU's QMP socket (`-qmp unix:PATH,server=on,wait=off`), which has one at a time; for one thread.

    Args:
        connection: The socket, connected.
        timeout_s: How long an answer or event may take, in seconds.

    Raises:
        QmpError: It isn't QEMU's.
    """

    def __init__(self, connection: socket.socket, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._socket = connection
        self._timeout_s = timeout_s
        self._buffer = b""
        self._last_id = 0
        self._events: list[dict[str, Any]] = []
        try:
            if "QMP" not in self._receive(self._deadline()):
                raise QmpError("the socket isn't a QEMU's QMP socket")
            self.execute("qmp_capabilities")
        except BaseException:
            connection.close()
            raise

    @classmethod
    def connect(cls, path: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Self:
        """Connect to a QEMU.

        Args:
            path: Its QMP socket.
            timeout_s: How long an answer or event may take, in seconds.

        Returns:
            The connection.

        Raises:
            QemuEnded: Nobody answers on the socket.
            QmpTimeout: Others have it, and more wait for it.
            QmpError: It can't be used.
        """
        connection = socket.socket(socket.AF_UNIX)
        try:
            # With Python's timeout, connecting fails at once where others wait already (EAGAIN); with none, it may wait for ever.
            timeval = _TIMEVAL.pack(*divmod(max(1, round(timeout_s * 1e6)), 10**6))  # 0 is for ever too
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
            connection.connect(path)
        except BlockingIOError as error:
            connection.close()
            raise QmpTimeout(f"QEMU can't be reached on {path} within {timeout_s:.3g} s: others wait for it too") from error
        except OSError as error:
            connection.close()
            kind = QemuEnded if isinstance(error, FileNotFoundError | ConnectionRefusedError) else QmpError
            raise kind(f"QEMU can't be reached on {path}: {error.strerror or error}") from error
        return cls(connection, timeout_s=timeout_s)

    @property
    def pid(self) -> int:
        """QEMU's process id: that of who last called listen(2) on the socket (SO_PEERCRED); 0 in another pid namespace.

        QEMU listens anew on a socket that its starter made (`-chardev socket,fd=N,server=on`). Who connects before that, or by a
        socketpair, is told the starter's.
        """
        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        pid: int = _UCRED.unpack(credentials)[0]
        return pid

    def execute(self, name: str, *, fds: Sequence[int] = (), **arguments: Any) -> Any:
        """Run a command.

        Args:
            name: The command.
            fds: Open files that go with it (SCM_RIGHTS).
            arguments: Its arguments.

        Returns:
            QEMU's answer.

        Raises:
            QmpError: QEMU refused it.
            QemuEnded: It has ended.
            QmpTimeout: It didn't answer.
        """
        return self.run({"execute": name, "arguments": arguments}, fds=fds)

    def run(self, command: Command, *, fds: Sequence[int] = ()) -> Any:
        """Run a command of `vifclient.hypervisors.qemu`; the rest is as of `execute`.

        Args:
            command: The command.
            fds: Open files that go with it.
        """
        self._last_id += 1
        deadline_s = self._deadline()
        self._send(json.dumps({**command, "id": self._last_id}).encode() + b"\n", fds)
        while True:
            message = self._receive(deadline_s)
            if "event" in message:
                self._events.append(message)
            elif message.get("id", self._last_id) != self._last_id:
                continue  # the answer to an earlier command, for which nobody waits any more
            elif "error" in message:
                refusal = message["error"]
                raise QmpError(f"QEMU refused {command['execute']}: {refusal['desc']}", kind=refusal["class"])
            else:
                return message["return"]

    def wait_for(self, matches: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait for an event. Those that came since the connection was made count.

        Args:
            matches: Tells whether it is the event.

        Returns:
            The event.

        Raises:
            QmpTimeout: It didn't come.
        """
        deadline_s = self._deadline()
        while True:
            for event in self._events:
                if matches(event):
                    self._events.remove(event)
                    return event
            message = self._receive(deadline_s)
            if "event" in message:
                self._events.append(message)

    def forget(self, matches: Callable[[dict[str, Any]], bool]) -> None:
        """Forget events that came until now, so that the next wait is for new ones.

        Args:
            matches: Tells which.
        """
        self._events = [event for event in self._events if not matches(event)]

    def quit(self) -> None:
        """End QEMU, and wait until its process is gone, and with it the devices that it held open.

        Raises:
            QemuEnded: It had ended before.
            QmpTimeout: It didn't end.
            QmpError: It can't be spoken to, or its process isn't known (`pid`).
        """
        process = self._open_process()
        try:
            self.execute("query-name")  # it answers still: so the pid is its own, and not a later process's
            with suppress(QemuEnded):  # it may end before it has answered
                self.execute("quit")
            poll = select.poll()
            poll.register(process, select.POLLIN)
            if not poll.poll(self._timeout_s * 1000):
                raise QmpTimeout(f"QEMU, process {self.pid}, didn't end within {self._timeout_s:.3g} s")
        finally:
            os.close(process)

    def close(self) -> None:
        """Close the connection. QEMU goes on."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _open_process(self) -> int:
        if self.pid in {0, os.getpid()}:
            raise QmpError("QEMU's process isn't known: it is in another pid namespace, or this one made its socket")
        try:
            return os.pidfd_open(self.pid)
        except OSError as error:
            kind = QemuEnded if isinstance(error, ProcessLookupError) else QmpError
            raise kind(f"QEMU's process {self.pid} can't be watched: {error.strerror}") from error

    def _send(self, line: bytes, fds: Sequence[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._socket.settimeout(self._timeout_s)
        try:
            sent = self._socket.sendmsg([line], rights)
            if rest := line[sent:]:  # to send nothing fails too, where QEMU has answered and ended meanwhile
                self._socket.sendall(rest)
        except TimeoutError as error:  # it is stuck, and has not ended
            raise QmpTimeout(f"QEMU took nothing within {self._timeout_s:.3g} s") from error
        except OSError as error:
            raise QemuEnded(f"QEMU has ended: {error.strerror}") from error

    def _deadline(self) -> float:
        return time.monotonic() + self._timeout_s

    def _receive(self, deadline_s: float) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            self._socket.settimeout(max(0.001, deadline_s - time.monotonic()))
            try:
                data = self._socket.recv(65536)
            except TimeoutError as error:
                raise QmpTimeout(f"QEMU said nothing within {self._timeout_s:.3g} s") from error
            except OSError as error:
                raise QemuEnded(f"QEMU has ended: {error.strerror}") from error
            if not data:
                raise QemuEnded("QEMU has ended")
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        try:
            message: dict[str, Any] = dict(json.loads(line))
        except (TypeError, ValueError) as error:
            raise QmpError("the socket isn't a QEMU's QMP socket") from error
        return message


def probe(program: str = "qemu-system-x86_64") -> Capabilities:
    """Ask a QEMU that isn't running what it can do, by starting one without a machine: it takes some tenths of a second.

    Args:
        program: The QEMU.

    Returns:
        What it can do.

    Raises:
        QmpError: It can't be started.
    """
    ours, its = socket.socketpair()
    number = its.fileno()
    monitor = ("-chardev", f"socket,id=qmp,fd={number}", "-mon", "chardev=qmp,mode=control")
    try:
        process = subprocess.Popen([program, *_PROBE, *monitor], pass_fds=[number], stderr=subprocess.PIPE, text=True)  # noqa: S603  (no shell)
    except OSError as error:
        ours.close()
        raise QmpError(f"{program} can't be started: {error.strerror}") from error
    finally:
        its.close()
    with process:
        try:
            with Monitor(ours) as qemu:
                return ask(qemu)
        except QmpError as error:
            process.kill()
            _, said = process.communicate()
            raise QmpError(f"{program} can't be asked: {said.strip() or error}") from error
        finally:
            process.kill()


def ask(monitor: Monitor) -> Capabilities:
    """Ask a running QEMU what it can do.

    Args:
        monitor: The QEMU.

    Returns:
        What it can do.

    Raises:
        QmpError: It can't be spoken to.
    """
    types = monitor.execute("qom-list-types", implements="device", abstract=False)
    return read_capabilities(monitor.execute("query-version"), monitor.execute("query-qmp-schema"), types)


def plug(monitor: Monitor, what: Plug, fds: Sequence[int] = ()) -> None:
    """Plug an endpoint into a running QEMU: all of it, or nothing.

    Args:
        monitor: The QEMU.
        what: Of `vifclient.hypervisors.qemu.plug`.
        fds: The endpoint's open queues, which the caller closes afterwards.

    Raises:
        QmpError: QEMU refused it. If that was to take the guest's carrier, which comes last, the device stays plugged.
        ValueError: The fds don't fit.
    """
    if len(fds) != len(what.fd_names):
        raise ValueError(f"{len(what.fd_names)} queues have to be handed over, and {len(fds)} fds are given")
    done: list[Command] = []
    try:
        for name, fd in zip(what.fd_names, fds, strict=True):
            monitor.execute("getfd", fds=[fd], fdname=name)
        for command, undo in what.backend:
            monitor.run(command)
            done.insert(0, undo)
        monitor.run(what.device)
    except BaseException as error:
        _undo(monitor, what.fd_names, done, error)
        raise
    for command in what.link:
        monitor.run(command)


def unplug(monitor: Monitor, what: Plug) -> None:
    """Unplug an endpoint from a running QEMU, whose guest has to let it go. What is unplugged already stays so.

    Args:
        monitor: The QEMU.
        what: As it was plugged.

    Raises:
        QmpTimeout: The guest didn't let it go: it doesn't run yet, or no more. Nothing has changed.
        QmpError: The guest refuses, or QEMU does.
    """
    if what.device_id in devices(monitor):
        monitor.forget(lambda event: _is_about(event, what.device_id))  # of an earlier life of the id
        if _delete_device(monitor, what.device_id):
            event = monitor.wait_for(lambda event: _is_about(event, what.device_id))
            if event["event"] != "DEVICE_DELETED":
                raise QmpError(f"the guest doesn't let {what.device_id} go")
    for _, undo in reversed(what.backend):
        try:
            monitor.run(undo)
        except QmpError as error:
            if error.kind != "DeviceNotFound":  # an earlier call took it down
                raise


def devices(monitor: Monitor) -> list[str]:
    """List the ids of the devices that a QEMU was given, by its arguments or later.

    Args:
        monitor: The QEMU.

    Returns:
        The ids.
    """
    return [item["name"] for item in monitor.execute("qom-list", path="/machine/peripheral") if item["type"].startswith("child<")]


def _delete_device(monitor: Monitor, device_id: str) -> bool:
    """Ask the guest to let a device go, unless it has been asked and hasn't answered; tell whether it still has it."""
    try:
        monitor.execute("device_del", id=device_id)
    except QmpError as error:
        if error.kind == "DeviceNotFound":  # it has let it go this moment
            return False
        if _ASKED_BEFORE not in str(error):
            raise
    return True


def _is_about(event: dict[str, Any], device_id: str) -> bool:
    kinds = {"DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR"}
    return event["event"] in kinds and event.get("data", {}).get("device") == device_id


def _undo(monitor: Monitor, fd_names: Sequence[str], commands: Sequence[Command], error: BaseException) -> None:
    """Run every command; what can't be undone is told with the error, for the first failure says why."""
    for name in fd_names:
        with suppress(QmpError):  # it may never have got it, and a netdev takes what it is made of
            monitor.execute("closefd", fdname=name)
    for command in commands:
        try:
            monitor.run(command)
        except QmpError as failure:
            error.add_note(f"undoing it: {failure}")
