"""What the unprivileged process and the supervisor say to each other, a packet each. Nothing of it is a path or an argument."""

from __future__ import annotations

import re
from typing import Final

import msgspec
from msgspec import Struct

_NETWORK = re.compile(rb"[a-z0-9][a-z0-9._-]{0,62}")
_HOSTS_CHANGED, _RELOAD = b"H", b"R"
_REASON_CHARACTERS = 500
#: As much as a packet may have.
PACKET_BYTES: Final = 4096


class HostsChanged(Struct, frozen=True):
    """The files of a network are written: serve it, or read them again."""

    network: str


class Reload(Struct, frozen=True):
    """The configuration has changed."""


class Status(Struct, frozen=True):
    """How a network's server is.

    Args:
        network: which.
        problem: why it doesn't run; empty: it does.
    """

    network: str
    problem: str = ""


Request = HostsChanged | Reload
_decoder = msgspec.json.Decoder(Status)


def encode_request(request: Request) -> bytes:
    """Pack what the unprivileged process says."""
    return _HOSTS_CHANGED + request.network.encode() if isinstance(request, HostsChanged) else _RELOAD


def decode_request(packet: bytes) -> Request | None:
    """Unpack what the unprivileged process says. It may be anybody's by now: None is what no vifd says."""
    if packet == _RELOAD:
        return Reload()
    if packet[:1] == _HOSTS_CHANGED and _NETWORK.fullmatch(packet[1:]):
        return HostsChanged(packet[1:].decode())
    return None


def encode_status(status: Status) -> bytes:
    """Pack what the supervisor says."""
    short = msgspec.structs.replace(status, problem=status.problem[:_REASON_CHARACTERS])
    return msgspec.json.encode(short)


def decode_status(packet: bytes) -> Status:
    """Unpack what the supervisor says."""
    return _decoder.decode(packet)
