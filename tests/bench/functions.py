"""VFs through vifd: one after the other, several at once on two PFs, and what taps wait for while VFs are in flight."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.bench import cards, standin
from tests.bench.contenders import functions as contender
from tests.bench.contenders import vifd
from tests.bench.daemon import NETWORK
from tests.bench.measure import Row, Samples, make_row, make_value, timed
from tests.support import daemon as support
from vifclient import Client, aio

#: How many are requested at once, or one after the other: half of them on each PF.
COUNT = 8
TOGETHER, IN_TURN = f"make {COUNT} VFs, at once", f"make {COUNT} VFs, one by one"
TOGETHER_GONE, IN_TURN_GONE = f"delete {COUNT} VFs, at once", f"delete {COUNT} VFs, one by one"
TAP_ALONE, TAP_BESIDE = "make tap, alone", "make tap, VFs in flight"
#: What the names of operations end with that are done with made-up cards.
STAND_IN = ", stand-in card"
#: What is measured in a round: VFs in each way, and taps in each.
TURNS = 4
_TAPS_A_TURN = 10
_NETWORKS = f"""
[networks.{NETWORK}]
driver = "bridge"
bridge = "br-bench"
mtu = 1500

[networks.{contender.NETWORK}]
driver = "sriov"
pfs = {list(cards.PFS)}
vfs = {cards.VFS_A_PF}
"""


def measure_functions(rounds: int, advance: Callable[[], None]) -> list[Row]:
    """Measure VFs, and taps beside them.

    Args:
        rounds: how many turns each way gets.
        advance: is called after each.
    """
    with _running_daemon(autoprobe=True) as socket:
        samples = asyncio.run(_measure_at_once(socket, rounds, advance))
    # Here without: the driver of the emulated card's VFs waits for the card on a CPU that nobody else gets meanwhile.
    with _running_daemon(autoprobe=False) as socket:
        made = _measure_beside(socket, rounds, advance, samples, in_flight=1)
    return _rows(samples, made, "")


def measure_stand_in(rounds: int, advance: Callable[[], None]) -> list[Row]:
    """Measure the same with made-up cards, on any host.

    Args:
        rounds: how many turns each way gets.
        advance: is called after each.
    """
    with standin.running_daemon(_NETWORKS) as socket:
        samples = asyncio.run(_measure_at_once(socket, rounds, advance))
        made = _measure_beside(socket, rounds, advance, samples, in_flight=2)
    return _rows(samples, made, STAND_IN)


def _rows(samples: defaultdict[str, Samples], made: int, suffix: str) -> list[Row]:
    rows = [make_row("vifd", f"{operation}{suffix}", times) for operation, times in samples.items()]
    return [*rows, make_value("vifd", f"VFs made beside taps{suffix}", made, "")]


@contextmanager
def _running_daemon(*, autoprobe: bool) -> Iterator[str]:
    """Start vifd in the machine's own namespace, where its cards are; give its socket."""
    log = 'log_level = "warning"'
    with cards.without_vfs(autoprobe=autoprobe), support.running(netns="", networks=_NETWORKS, daemon=log) as daemon:
        yield daemon.socket
        daemon.stop()


async def _measure_at_once(socket: str, rounds: int, advance: Callable[[], None]) -> defaultdict[str, Samples]:
    samples: defaultdict[str, Samples] = defaultdict(list)
    async with aio.Client(socket) as client:
        await _at_once(client, 2, [], [])  # the PFs' links come up, and caches fill
        for _ in range(rounds):
            made, gone = Samples(), Samples()
            await _one_by_one(client, COUNT, made, gone)
            samples["make VF"] += made
            samples["delete VF"] += gone
            samples[IN_TURN].append(sum(made))
            samples[IN_TURN_GONE].append(sum(gone))
            advance()
            await _at_once(client, COUNT, samples[TOGETHER], samples[TOGETHER_GONE])
            advance()
    return samples


async def _one_by_one(client: aio.Client, count: int, made: Samples, gone: Samples) -> None:
    """Request VFs one after the other, then release them; each is a sample."""
    requests = [contender.make_request() for _ in range(count)]
    for request in requests:
        begin = time.perf_counter()
        await client.request_endpoint(request)
        made.append((time.perf_counter() - begin) * 1000)
    for request in requests:
        begin = time.perf_counter()
        await client.release_endpoint(request.endpoint_id)
        gone.append((time.perf_counter() - begin) * 1000)


async def _at_once(client: aio.Client, count: int, made: Samples, gone: Samples) -> None:
    """Request VFs at once, then release them; each whole is a sample."""
    requests = [contender.make_request() for _ in range(count)]
    begin = time.perf_counter()
    await asyncio.gather(*(client.request_endpoint(request) for request in requests))
    made.append((time.perf_counter() - begin) * 1000)
    begin = time.perf_counter()
    await asyncio.gather(*(client.release_endpoint(request.endpoint_id) for request in requests))
    gone.append((time.perf_counter() - begin) * 1000)


def _measure_beside(
    socket: str, rounds: int, advance: Callable[[], None], samples: defaultdict[str, Samples], *, in_flight: int
) -> int:
    """Measure taps alone and while VFs are requested or released; give how many VFs were."""
    made = list[int]()
    with Client(socket) as client, contender.traffic(socket, in_flight) as traffic:
        vifd.OneByOne(client).round(1)
        with traffic.running([]):  # the first VF of a run takes longer
            pass
        for _ in range(rounds):
            _measure_taps(client, samples[TAP_ALONE])
            advance()
            with traffic.running(made):
                _measure_taps(client, samples[TAP_BESIDE])
            advance()
    return sum(made)


def _measure_taps(client: Client, made: Samples) -> None:
    for _ in range(_TAPS_A_TURN):
        request = vifd.make_request()
        timed(made, client.request_endpoint, request)
        client.release_endpoint(request.endpoint_id)
