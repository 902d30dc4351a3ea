"""vifd's DHCP from the test's side: the process that serves, and a guest that asks."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import queue
import secrets
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from tests.support import kernel
from tests.support.daemon import ip, network_namespace, wait_for
from tests.support.patience import patient
from vifd.dhcp.dnsmasq import Files
from vifd.dhcp.network import DhcpNetwork

ROOT = Path(__file__).parents[2]
_ETH_IP, _BROADCAST = 0x0800, b"\xff" * 6
_MAGIC = bytes([99, 130, 83, 99])
DISCOVER, OFFER, REQUEST, ACK, NAK = 1, 2, 3, 5, 6
ROUTER, DNS, DOMAIN, MTU, HOSTNAME, LEASE_TIME, SERVER = 3, 6, 15, 26, 12, 51, 54
PTR, AAAA = 12, 28
SOLICIT, ADVERTISE, REQUEST6, RENEW6, REPLY6 = 1, 2, 3, 5, 7


class DhcpFront:
    """The process, from the test's side.

    Args:
        netns: where it serves.
        directory: for its configuration and files.
        networks: what it serves; `write` changes it.
        user: whom the servers run as.
    """

    def __init__(self, netns: str, directory: Path, networks: Mapping[str, DhcpNetwork], user: str = "dnsmasq") -> None:
        self.netns, self.files = netns, Files.below(directory)
        self._config = directory / "networks.json"
        self.write(networks)
        self._statuses: queue.Queue[dict[str, str]] = queue.Queue()
        self.problems: dict[str, str] = {}
        self._log = (directory / "log").open("ab")
        argv = [sys.executable, "-m", "tests.support.dhcp_front", netns, str(directory), user]
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, bufsize=1, cwd=ROOT
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.supervisor_pid = int(self.wait_status()["supervisor"])

    def write(self, networks: Mapping[str, DhcpNetwork]) -> None:
        """Change the configuration, for the next reload."""
        self._config.write_bytes(msgspec.json.encode(networks))

    def log(self) -> str:
        """What it has said so far."""
        return Path(str(self._log.name)).read_text()

    def set_host(self, network: str, endpoint_id: str, mac: str, *addresses: str, name: str = "") -> None:
        self.tell(set=[network, endpoint_id, mac, list(addresses), name])

    def remove_host(self, network: str, endpoint_id: str) -> None:
        self.tell(remove=[network, endpoint_id])

    def tell(self, **command: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")

    def wait_status(self) -> dict[str, str]:
        """Give the next status."""
        return self._statuses.get(timeout=patient(30))

    def wait_running(self, network: str = "blue") -> int:
        """Wait until a network is served, and give its server's pid."""
        return int(wait_for(lambda: self.server_pid(network) if self.is_ready(network) else 0))

    def is_ready(self, network: str) -> bool:
        """Tell whether a network is served, and whether that was told: the log may have it first."""
        while not self._statuses.empty():
            status = self._statuses.get()
            self.problems[status["network"]] = status["problem"]
        is_served = f"dhcp is served network={network} pid={self.server_pid(network)}\n" in self.log()
        return is_served and not self.problems.get(network)

    def wait_problem(self, network: str = "blue") -> str:
        """Wait until a network has a problem, and give it."""
        while not self.problems.get(network):
            status = self.wait_status()
            self.problems[status["network"]] = status["problem"]
        return self.problems[network]

    def server_pid(self, network: str) -> int:
        """Give the pid of a network's dnsmasq; 0: there is none."""
        for pid in children(self.supervisor_pid):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if f"--dhcp-leasefile={self.files.lease_file(network)}".encode() in words:
                    return pid
        return 0

    def kill(self) -> None:
        """End the front process as a crash does."""
        self.process.kill()
        self._finish()

    def stop(self) -> int:
        """End it as a stop does, and give its status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self._finish()

    def _finish(self) -> int:
        status = self.process.wait(patient(30))
        self._reader.join(patient(30))
        for file in (self.process.stdin, self.process.stdout, self._log):
            if file is not None:
                with contextlib.suppress(BrokenPipeError):
                    file.close()
        return status

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._statuses.put(json.loads(line))


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


class Answer:
    """A server's answer by DHCP: its type, the address, and its options by number."""

    def __init__(self, payload: bytes) -> None:
        self.address = str(ipaddress.IPv4Address(payload[16:20]))
        self.options: dict[int, bytes] = {}
        rest = payload[240:]
        while rest and rest[0] != 255:
            if rest[0] == 0:
                rest = rest[1:]
                continue
            self.options[rest[0]] = rest[2 : 2 + rest[1]]
            rest = rest[2 + rest[1] :]
        self.type = self.options[53][0]

    def address_of(self, option: int) -> str:
        return str(ipaddress.IPv4Address(self.options[option][:4]))


class Answer6:
    """A server's answer by DHCPv6: its type, the addresses, and its options by number."""

    def __init__(self, payload: bytes) -> None:
        self.type, self.options = payload[0], _options6(payload[4:])
        association = _options6(self.options.get(3, bytes(12))[12:])
        self.address = str(ipaddress.IPv6Address(association[5][:16])) if 5 in association else ""


def _options6(data: bytes) -> dict[int, bytes]:
    options = {}
    while len(data) >= 4:
        number, length = struct.unpack("!HH", data[:4])
        options[number] = data[4 : 4 + length]
        data = data[4 + length :]
    return options


class Guest:
    """A guest in a namespace of its own, on a port of a bridge. It asks by DHCP itself; IPv6 is its kernel's.

    Args:
        netns: its namespace.
        mac: its MAC address.
    """

    def __init__(self, netns: str, mac: str) -> None:
        self.netns, self.mac = netns, mac
        self._hardware = bytes.fromhex(mac.replace(":", ""))
        self._packets = kernel.inside(netns, self._open)

    def _open(self) -> socket.socket:
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_IP))
        opened.bind(("eth0", _ETH_IP))
        return opened

    def close(self) -> None:
        self._packets.close()

    def ask(self, kind: int, *, address: str = "", server: str = "", ciaddr: str = "0.0.0.0", options: bytes = b"") -> bytes:
        """Send one message, and give its transaction's id."""
        xid = secrets.token_bytes(4)
        body = bytes([53, 1, kind])
        if address:
            body += bytes([50, 4]) + ipaddress.IPv4Address(address).packed
        if server:
            body += bytes([54, 4]) + ipaddress.IPv4Address(server).packed
        body += bytes([55, 6, 1, ROUTER, DNS, DOMAIN, MTU, HOSTNAME]) + options + b"\xff"
        client = ipaddress.IPv4Address(ciaddr).packed
        fixed = struct.pack("!BBBB4sHH4s4s4s4s16s192x", 1, 1, 6, 0, xid, 0, 0x8000, client, b"", b"", b"", self._hardware)
        self._packets.send(_frame(self._hardware, client, fixed + _MAGIC + body))
        return xid

    def hear(self, xid: bytes, seconds: float = 3.0) -> Answer | None:
        """Wait for the answer to a transaction; None: there is none."""
        end = time.monotonic() + patient(seconds)
        while (left := end - time.monotonic()) > 0:
            self._packets.settimeout(left)
            with contextlib.suppress(TimeoutError):
                payload = _payload(self._packets.recv(2048))
                if payload is not None and payload[:1] == b"\x02" and payload[4:8] == xid:
                    return Answer(payload)
        return None

    def configure(self, **options: Any) -> Answer | None:
        """Get an address as a guest does that starts; None: it isn't given any."""
        offer = self.hear(self.ask(DISCOVER, **options))
        if offer is None or offer.type != OFFER:
            return None
        answer = self.hear(self.ask(REQUEST, address=offer.address, server=offer.address_of(SERVER), **options))
        return answer if answer is not None and answer.type == ACK else None

    def renew(self, address: str, seconds: float = 3.0) -> Answer | None:
        """Ask for the address that it has, by broadcast (RFC 2131, 4.4.5: rebinding)."""
        kernel.run(self.netns, "address", "replace", f"{address}/24", "dev", "eth0")  # that is where the answer goes
        return self.hear(self.ask(REQUEST, ciaddr=address), seconds)

    def configure6(self, duid: bytes = b"", iaid: int = 1) -> Answer6 | None:
        """Get an address by DHCPv6; None: it isn't given any.

        Args:
            duid: who it is; empty: by its MAC (RFC 8415, 11.4).
            iaid: for which interface.
        """
        duid = duid or bytes([0, 3, 0, 1]) + self._hardware
        with kernel.inside(self.netns, _open6) as sender:
            advertised = _exchange6(sender, SOLICIT, duid, iaid)
            if advertised is None or not advertised.address:
                return None
            reply = _exchange6(sender, REQUEST6, duid, iaid, advertised.options[2], advertised.address)
        return reply if reply is not None and reply.address else None

    def resolve(self, server: str, name: str, kind: int = 1) -> list[str]:
        """Ask a DNS server for a name, and give the addresses."""
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        with kernel.inside(self.netns, lambda: socket.socket(family, socket.SOCK_DGRAM)) as sender:
            sender.settimeout(patient(3))
            labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
            sender.sendto(b"\x12\x34\x01\x00\x00\x01" + bytes(6) + labels + b"\0" + struct.pack("!HH", kind, 1), (server, 53))
            answer = sender.recv(2048)
        count, rest, found = struct.unpack("!H", answer[6:8])[0], answer[12 + len(labels) + 5 :], []
        for _ in range(count):
            length = struct.unpack("!H", rest[10:12])[0]
            found.append(str(ipaddress.ip_address(rest[12 : 12 + length])))
            rest = rest[12 + length :]
        return found

    def default_routes6(self) -> list[str]:
        """The routers that its kernel took from advertisements."""
        return [route["gateway"] for route in ip(self.netns, "-6", "route", "show", "default")]


def _open6() -> socket.socket:
    opened = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
    opened.bind(("::", 546))
    return opened


def _exchange6(
    sender: socket.socket, kind: int, duid: bytes, iaid: int, server: bytes = b"", address: str = ""
) -> Answer6 | None:
    xid = secrets.token_bytes(3)
    wanted = _option6(5, ipaddress.IPv6Address(address).packed + bytes(8)) if address else b""
    options = _option6(1, duid) + _option6(8, bytes(2)) + _option6(3, struct.pack("!III", iaid, 0, 0) + wanted)
    options += (_option6(2, server) if server else b"") + _option6(6, struct.pack("!HH", 23, 24))
    for _ in range(3):  # the server may have to learn the guest's MAC first
        sender.sendto(bytes([kind]) + xid + options, ("ff02::1:2", 547))
        sender.settimeout(patient(1))
        with contextlib.suppress(TimeoutError):
            while (payload := sender.recv(2048))[1:4] != xid:
                pass
            return Answer6(payload)
    return None


def _option6(number: int, value: bytes) -> bytes:
    return struct.pack("!HH", number, len(value)) + value


def _frame(hardware: bytes, source: bytes, payload: bytes) -> bytes:
    udp = struct.pack("!HHHH", 68, 67, 8 + len(payload), 0) + payload
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, source, b"\xff" * 4)
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return _BROADCAST + hardware + struct.pack("!H", _ETH_IP) + header[:10] + struct.pack("!H", checksum) + header[12:] + udp


def _payload(frame: bytes) -> bytes | None:
    """Give what a datagram to the DHCP client port has in it."""
    header = (frame[14] & 15) * 4
    if len(frame) < 14 + header + 8 or frame[23] != 17 or frame[14 + header + 2 : 14 + header + 4] != b"\0D":
        return None
    return frame[14 + header + 8 :]


@contextlib.contextmanager
def guest(netns: str, bridge: str, mac: str) -> Iterator[Guest]:
    """Give a guest on a bridge, until the end of a block."""
    port = f"g{secrets.token_hex(4)}"
    with network_namespace() as own:
        kernel.run(netns, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", own, "address", mac)
        kernel.run(netns, "link", "set", port, "master", bridge, "addrgenmode", "none", "up")
        # Nobody else has its addresses, and to make sure takes the kernel a second.
        subprocess.run(["ip", "netns", "exec", own, "sysctl", "-q", "net.ipv6.conf.eth0.accept_dad=0"], check=True)
        kernel.run(own, "link", "set", "eth0", "up")
        with contextlib.closing(Guest(own, mac)) as one:
            yield one
