"""What the guard and limits cost: requests with and without them, and frames through the same tap or macvtap, by turns."""

from __future__ import annotations

import os
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence

from tests.bench.contenders.vifd import BATCH_SIZE
from tests.bench.daemon import DIRECT, NETWORK, running_daemon
from tests.bench.measure import Row, Samples, make_row, timed
from tests.support import frames
from vifclient import Client
from vifclient.messages import (
    Endpoint,
    EndpointPreference,
    GuardSpec,
    LimitsSpec,
    MacvtapMode,
    MacvtapPreference,
    PortSpec,
    RateLimit,
    ReleaseEndpointRequest,
    RequestEndpointRequest,
    TapPreference,
)

#: How many endpoints are there already.
RESIDENTS = (10, 1_000)
#: What the names of rows end with that are about macvtaps.
MACVTAP = ", macvtap"
_LIMIT = RateLimit(rate_bps=1_000_000_000)
GUARDED = PortSpec(guard=GuardSpec(enabled=True), limits=LimitsSpec(from_vm=_LIMIT, to_vm=_LIMIT))
_GUARD_ALONE, OPEN = PortSpec(guard=GuardSpec(enabled=True)), PortSpec(guard=GuardSpec(enabled=False))
_ADDRESS = "10.0.0.1"
#: What the sender of frames is like: without a guard, with one, and with one that knows its address.
PORTS = {"open": OPEN, "guarded": _GUARD_ALONE, "guarded with an address": PortSpec(guard=GUARDED.guard, addresses=[_ADDRESS])}
_TAP = EndpointPreference(tap=TapPreference())
_MACVTAP = EndpointPreference(macvtap=MacvtapPreference(mode=MacvtapMode.MACVTAP_MODE_BRIDGE))
#: Requests and frames with each number of residents, and frames of macvtaps.
TURNS = 2 * len(RESIDENTS) + 1
_VNET_HDR, _SIZES = bytes(10), {"small": 60, "big": 1514}
_FRAMES_A_TURN = 4_000


def measure_guarded(rounds: int, advance: Callable[[], None]) -> list[Row]:
    """Measure with 10 and with 1,000 endpoints resident, macvtaps with 10.

    Args:
        rounds: how many turns each way gets.
        advance: is called after each.
    """
    rows = []
    for count in RESIDENTS:
        with running_daemon(direct=True) as daemon, Client(daemon.socket, fd_socket_path=daemon.fd_socket) as client:
            _fill(client, count)
            rows += _requests(client, rounds, f", {count:,} resident", advance)
            taps = [_request(_GUARD_ALONE) for _ in range(2)]
            rows += _throughput(client, taps, rounds, f", {count:,} resident", advance)
            if count == RESIDENTS[0]:
                macvtaps = [_request(_GUARD_ALONE, DIRECT, _MACVTAP) for _ in range(2)]
                rows += _throughput(client, macvtaps, rounds, MACVTAP, advance)
    return rows


def _request(port: PortSpec, network: str = NETWORK, kind: EndpointPreference = _TAP) -> RequestEndpointRequest:
    return RequestEndpointRequest(endpoint_id=str(uuid.uuid4()), network=network, acceptable=[kind], port=port)


def _fill(client: Client, count: int) -> None:
    """Make guarded endpoints, the only ones that are there."""
    for start in range(0, count, BATCH_SIZE):
        client.batch_request_endpoints([_request(_GUARD_ALONE) for _ in range(min(BATCH_SIZE, count - start))])


def _requests(client: Client, rounds: int, suffix: str, advance: Callable[[], None]) -> list[Row]:
    samples: defaultdict[str, Samples] = defaultdict(list)
    for _ in range(rounds):
        for name, port in (("open", OPEN), ("guarded and limited", GUARDED)):
            request = _request(port)
            timed(samples[name], client.request_endpoint, request)
            client.batch_release_endpoints([ReleaseEndpointRequest(endpoint_id=request.endpoint_id)])
        advance()
    return [make_row("vifd", f"make {name}{suffix}", times) for name, times in samples.items()]


def _throughput(
    client: Client, requests: Sequence[RequestEndpointRequest], rounds: int, suffix: str, advance: Callable[[], None]
) -> list[Row]:
    """Send frames from one endpoint to another, with what guards the first by turns."""
    sender, receiver = (client.request_endpoint(request).endpoint for request in requests)
    samples: defaultdict[str, Samples] = defaultdict(list)
    with client.acquire_fds(sender.endpoint_id) as sending, client.acquire_fds(receiver.endpoint_id) as receiving:
        for fd in (sending.fds[0], receiving.fds[0]):
            os.set_blocking(fd, False)
        connect(receiver, receiving.fds[0], sending.fds[0])
        for _ in range(rounds):
            for way, port in PORTS.items():
                client.update_endpoint(sender.endpoint_id, port, ["guard", "addresses"])
                for size, length in _SIZES.items():
                    frame = _frame(sender, receiver, length)
                    samples[f"{size} frames, {way}{suffix}"].append(_rate(frame, sending.fds[0], receiving.fds[0]))
            advance()
    return [make_row("vifd", name, rates, "/s") for name, rates in samples.items()]


def _frame(sender: Endpoint, receiver: Endpoint, length: int) -> bytes:
    """Give a UDP datagram in a frame of a length."""
    payload = frames.udp(1000, 2000, bytes(length - 14 - 20 - 8))
    packet = frames.ip4(sender.port.mac, _ADDRESS, "10.0.0.2", frames.UDP, payload)
    return _VNET_HDR + frames.mac_bytes(receiver.port.mac) + packet[6:]


def connect(receiver: Endpoint, fd: int, other: int) -> None:
    """Wait until frames pass, and let a bridge learn where the receiver is."""
    mac = bytes.fromhex(receiver.port.mac.replace(":", ""))
    hello = _VNET_HDR + b"\xff" * 6 + mac + b"\x88\xb5" + bytes(46)
    while not _drain(other):
        os.write(fd, hello)


def _rate(frame: bytes, sender: int, receiver: int) -> float:
    """Give how many frames a second get through: each is written and read, so none is lost to a full queue."""
    _drain(receiver)
    begin = time.perf_counter()
    for _ in range(_FRAMES_A_TURN):
        os.write(sender, frame)
        os.read(receiver, 2048)
    return _FRAMES_A_TURN / (time.perf_counter() - begin)


def _drain(fd: int) -> int:
    count = 0
    while True:
        try:
            os.read(fd, 2048)
        except BlockingIOError:
            return count
        count += 1
