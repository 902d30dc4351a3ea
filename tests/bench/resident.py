"""What the daemon holds on to: memory with many endpoints, and its growth over many lives."""

from __future__ import annotations

from collections.abc import Callable

from tests.bench.contenders.vifd import BATCH_SIZE, Batches, batches
from tests.bench.daemon import running_daemon
from tests.bench.measure import Row, make_value
from tests.bench.process import Footprint

RESIDENT_COUNT = 1000


def count_batches(endpoints: int) -> int:
    """How many batches it takes."""
    return -(-endpoints // BATCH_SIZE)


def measure_memory(advance: Callable[[], None]) -> list[Row]:
    """Make 1,000 endpoints and look at the two processes."""
    with running_daemon() as daemon, batches(daemon) as client:
        for first in range(0, RESIDENT_COUNT, BATCH_SIZE):
            client.request(min(BATCH_SIZE, RESIDENT_COUNT - first))
            advance()
        return _rows(daemon.footprint(), f"{RESIDENT_COUNT:,} endpoints")


def measure_cycles(warm_up: int, cycles: int, advance: Callable[[], None]) -> list[Row]:
    """Request and release endpoints in batches, and compare before and after.

    Args:
        warm_up: how many lives come first: enough for all that is done once in a while, as moving the journal's log.
        cycles: how many lives.
        advance: is called after each batch.
    """
    with running_daemon() as daemon, batches(daemon) as client:
        _cycle(client, warm_up, advance)
        before = daemon.footprint()
        _cycle(client, cycles, advance)
        after = daemon.footprint()
    return [*_rows(after, f"after {cycles:,} cycles"), *_growth(before, after)]


def _cycle(client: Batches, cycles: int, advance: Callable[[], None]) -> None:
    for _ in range(0, cycles, BATCH_SIZE):
        client.release(client.request(BATCH_SIZE))
        advance()


def _rows(footprint: Footprint, when: str) -> list[Row]:
    return [
        make_value("vifd", f"RSS, {when}", footprint.rss_mib, "MiB"),
        make_value("vifd", f"PSS, {when}", footprint.pss_mib, "MiB"),
        make_value("vifd", f"open files, {when}", footprint.open_files, ""),
        make_value("vifd", f"database, {when}", footprint.database_mib, "MiB"),
    ]


def _growth(before: Footprint, after: Footprint) -> list[Row]:
    return [
        make_value("vifd", "RSS growth", after.rss_mib - before.rss_mib, "MiB"),
        make_value("vifd", "PSS growth", after.pss_mib - before.pss_mib, "MiB"),
        make_value("vifd", "open files growth", after.open_files - before.open_files, ""),
        make_value("vifd", "database growth", after.database_mib - before.database_mib, "MiB"),
    ]
