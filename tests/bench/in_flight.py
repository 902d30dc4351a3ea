"""Many at once: 64 calls in flight, batches of 64, and the bare kernel's deletion by groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from tests.bench.contenders.bare import InGroups, bare_kernel
from tests.bench.contenders.in_flight import InFlight
from tests.bench.contenders.vifd import batches
from tests.bench.daemon import running_daemon
from tests.bench.measure import Contender, Row, Samples, make_row
from tests.bench.namespaces import private_namespace

WAYS = 3  # of doing it


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
        batches(daemon) as in_batches,
    ):
        contenders: tuple[Contender, ...] = (InGroups(bare), InFlight(daemon), in_batches)
        for _ in range(rounds):
            for contender in contenders:
                for operation, times in contender.round(count).items():
                    samples[contender.name, operation] += times
                advance()
    return [make_row(name, operation, times) for (name, operation), times in samples.items()]
