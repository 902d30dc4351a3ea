"""Many at once: 64 calls in flight, batches of 64, and the bare kernel's deletion by groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from tests.bench.contenders.bare import BareKernel, bare_kernel
from tests.bench.contenders.in_flight import in_flight_round
from tests.bench.contenders.vifd import Batches
from tests.bench.daemon import Daemon, running_daemon
from tests.bench.measure import Row, Samples, make_row
from tests.bench.namespaces import private_namespace

WAYS = 3


def measure_in_flight(rounds: int, count: int, advance: Callable[[], None]) -> list[Row]:
    """Make `count` endpoints and release them, `rounds` times in each way, by turns.

    Args:
        rounds: how many turns each way gets.
        count: how many endpoints a turn makes: a multiple of 128.
        advance: is called after each turn.
    """
    samples: defaultdict[tuple[str, str], Samples] = defaultdict(list)
    with (
        private_namespace("bare") as namespace,
        bare_kernel(namespace) as bare,
        running_daemon() as daemon,
        Batches(daemon) as batches,
    ):
        for _ in range(rounds):
            for name, way in _ways(bare, daemon, batches):
                for operation, times in way(count).items():
                    samples[name, operation] += times
                advance()
    return [make_row(name, operation, times) for (name, operation), times in samples.items()]


def _ways(bare: BareKernel, daemon: Daemon, batches: Batches) -> Sequence[tuple[str, Callable[[int], dict[str, Samples]]]]:
    return (
        (bare.name, bare.round_by_group),
        ("vifd", lambda count: in_flight_round(daemon, count)),
        ("vifd", batches.round),
    )
