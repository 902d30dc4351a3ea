# ruff: noqa: A002  (the names of QMP)
"""A QEMU for the tests of what speaks to one: real QMP on a socket, over devices that are only remembered."""

import contextlib
import json
import os
import socket
import threading
from typing import Any

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": ""}, "capabilities": []}}


class Refusal(Exception):
    """What a command is answered with: a class of error, and a sentence."""


class FakeQemu:
    """Serves one connection, `client`, until that is closed, or it is told to quit.

    `commands` are those that came; `refuse` says which fail, and how; `on_device_del` is the event that device_del leads to, or
    nothing; `hold`, cleared, lets it read no further; `devices`, `netdevs`, `chardevs` and `fds` are what is there.
    """

    def __init__(self) -> None:
        self.client, self._socket = socket.socketpair()
        self.commands: list[str] = []
        self.refuse: dict[str, Refusal] = {}
        self.on_device_del: str | None = "DEVICE_DELETED"
        self.devices: list[str] = []
        self.netdevs: list[str] = []
        self.chardevs: list[str] = []
        self.fds: dict[str, int] = {}  # name: inode
        self.hold = threading.Event()
        self.hold.set()
        self._received: list[int] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def wait_until_ended(self) -> None:
        self._thread.join()

    def close(self) -> None:
        self.client.close()
        self._thread.join()
        self._socket.close()
        for fd in self._received:
            os.close(fd)

    def _serve(self) -> None:
        with contextlib.suppress(ConnectionError):  # the monitor is closed
            self._talk()

    def _talk(self) -> None:
        self._say(GREETING)
        buffer = b""
        while True:
            while b"\n" not in buffer:
                data, fds, _, _ = socket.recv_fds(self._socket, 65536, 8)
                self._received += fds
                if not data:
                    return
                buffer += data
            self.hold.wait()
            line, buffer = buffer.split(b"\n", 1)
            self._answer(json.loads(line))
            if self.commands[-1] == "quit":
                self._socket.shutdown(socket.SHUT_RDWR)
                return

    def _answer(self, message: dict[str, Any]) -> None:
        name, arguments = message["execute"], message["arguments"]
        self.commands.append(name)
        try:
            if name in self.refuse:
                raise self.refuse[name]
            answer = getattr(self, f"_do_{name.replace('-', '_')}")(**arguments)
        except Refusal as refusal:
            kind, sentence = refusal.args
            self._say({"error": {"class": kind, "desc": sentence}, "id": message["id"]})
        else:
            self._say({"return": answer or {}, "id": message["id"]})
            if name == "device_del" and self.on_device_del:
                self._say({"event": "DEVICE_DELETED", "data": {"path": "/machine/peripheral/x/virtio-backend"}})
                self._say({"event": self.on_device_del, "data": {"device": arguments["id"]}})

    def _say(self, message: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\r\n")

    def _do_qmp_capabilities(self) -> None:
        self._say({"event": "RESUME"})  # an event may come before any answer

    def _do_query_name(self) -> dict[str, str]:
        return {"name": "fake"}

    def _do_quit(self) -> None:
        pass

    def _do_getfd(self, fdname: str) -> None:
        if not self._received:
            raise Refusal("GenericError", "No file descriptor supplied via SCM_RIGHTS")
        fd = self._received.pop()
        self.fds[fdname] = os.fstat(fd).st_ino
        os.close(fd)

    def _do_closefd(self, fdname: str) -> None:
        if self.fds.pop(fdname, None) is None:
            raise Refusal("GenericError", f"File descriptor named '{fdname}' not found")

    def _do_netdev_add(self, type: str, id: str, fds: str = "", chardev: str = "", **more: Any) -> None:
        if chardev and chardev not in self.chardevs:
            raise Refusal("GenericError", f'chardev "{chardev}" not found')
        for name in filter(None, fds.split(":")):
            self._do_closefd(name)
        self.netdevs.append(id)

    def _do_netdev_del(self, id: str) -> None:
        if id not in self.netdevs:
            raise Refusal("DeviceNotFound", f"Device '{id}' not found")
        self.netdevs.remove(id)

    def _do_chardev_add(self, id: str, backend: Any) -> None:
        self.chardevs.append(id)

    def _do_chardev_remove(self, id: str) -> None:
        self.chardevs.remove(id)

    def _do_device_add(self, id: str, **more: Any) -> None:
        self.devices.append(id)

    def _do_device_del(self, id: str) -> None:
        if self.on_device_del == "DEVICE_DELETED":
            self.devices.remove(id)

    def _do_set_link(self, name: str, up: bool) -> None:
        pass

    def _do_qom_list(self, path: str) -> list[dict[str, str]]:
        children = [{"name": name, "type": "child<virtio-net-pci>"} for name in self.devices]
        return [{"name": "type", "type": "string"}, *children]


def refuse_in_words(sentence: str, kind: str = "GenericError") -> Refusal:
    return Refusal(kind, sentence)
