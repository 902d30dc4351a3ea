"""What vifd must reach, computed from the same run's rows.

A figure that wasn't measured is NaN: it runs through the arithmetic, and JSON shows it as null.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.bench import activation, functions, migration
from tests.bench.guarded import MACVTAP, PORTS, RESIDENTS
from tests.bench.measure import Row

MEMORY_LIMIT_MIB = 120
GUARD_FACTOR, GUARDED_RATE = 1.5, 0.9
NOTICED_MS, MORE_PINGS_LOST = 50, 1
AT_ONCE_FACTOR, BESIDE_VFS_FACTOR = 1.5, 1.3
#: What the names of operations end with that come one after the other without a pause.
BURST = ", in a row"
# Over 20,000 cycles: what allocators and the page cache do by themselves, not a leak (100 bytes a cycle make 2 MiB).
MEMORY_GROWTH_LIMIT_MIB = 2
# A record that each life left behind would make 10 MiB; the journal's log is longer at one moment than at another.
DATABASE_GROWTH_LIMIT_MIB = 4


@dataclass(frozen=True)
class Target:
    """A figure to reach."""

    name: str
    measured: float
    limit: float
    unit: str
    at_least: bool = False

    @property
    def passed(self) -> bool | None:
        """Whether it is reached; None when it wasn't measured."""
        if math.isnan(self.measured) or math.isnan(self.limit):
            return None
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


def judge(rows: Sequence[Row]) -> list[Target]:
    """Compare the rows of a run with every target."""
    p50 = {(row.contender, row.operation): row.p50 for row in rows}

    def of(contender: str, operation: str) -> float:
        return p50.get((contender, operation), math.nan)

    def vifd(operation: str) -> float:
        return of("vifd", operation)

    make, delete = vifd("make"), vifd("delete")
    noticed = next((row.p90 for row in rows if row.operation == activation.OPERATION), math.nan)
    lost, lost_by_hand = vifd(migration.OPERATION), of(migration.BY_HAND, migration.OPERATION)
    base = of("bare kernel", "make") + of("empty call", "call")
    one_by_one = of("bare kernel", "delete")
    burst = of("bare kernel", f"make{BURST}") + of("empty call", f"call{BURST}")
    return [
        Target("Request p50: 1.8 x (bare kernel + empty call)", make, 1.8 * base, "ms"),
        Target("Request p50, in bursts: 1.8 x (bare kernel + empty call)", vifd(f"make{BURST}"), 1.8 * burst, "ms"),
        Target("Request p50: 1/2 of ip", make, of("ip command", "make") / 2, "ms"),
        Target("Request p50: 1/4 of CNI's ADD", make, of("CNI bridge", "make") / 4, "ms"),
        Target("Release p50: 1.2 x bare kernel", delete, 1.2 * one_by_one, "ms"),
        Target("Release, 64 in flight: 1/10 of bare kernel one by one", vifd("delete, 64 in flight"), one_by_one / 10, "ms"),
        Target("Request, 64 in flight: 600/s", 1000 / vifd("make, 64 in flight"), 600, "/s", at_least=True),
        Target("BatchRequest of 64: 1,000/s", 1000 / vifd("make, batch of 64"), 1000, "/s", at_least=True),
        *_judge_guard(vifd),
        Target("RSS of both processes, 1,000 endpoints", vifd("RSS, 1,000 endpoints"), MEMORY_LIMIT_MIB, "MiB"),
        Target("PSS of both processes, 1,000 endpoints", vifd("PSS, 1,000 endpoints"), MEMORY_LIMIT_MIB, "MiB"),
        Target("RSS growth over the cycles", vifd("RSS growth"), MEMORY_GROWTH_LIMIT_MIB, "MiB"),
        Target("PSS growth over the cycles", vifd("PSS growth"), MEMORY_GROWTH_LIMIT_MIB, "MiB"),
        Target("Open files growth over the cycles", vifd("open files growth"), 0, ""),
        Target("Database growth over the cycles", vifd("database growth"), DATABASE_GROWTH_LIMIT_MIB, "MiB"),
        Target("First frame noticed, p90", noticed, NOTICED_MS, "ms"),
        Target(f"Pings lost in a migration, p50: by hand + {MORE_PINGS_LOST}", lost, lost_by_hand + MORE_PINGS_LOST, ""),
        *_judge_functions(vifd, ""),
        *_judge_functions(vifd, functions.STAND_IN),
    ]


def _judge_functions(vifd: Callable[[str], float], suffix: str) -> list[Target]:
    """Judge what VFs on two PFs wait for each other, and taps for VFs."""
    count, how = functions.COUNT, f"on two PFs at once: 1/{AT_ONCE_FACTOR} of one by one{suffix}"
    made, gone = (vifd(f"{way}{suffix}") / AT_ONCE_FACTOR for way in (functions.IN_TURN, functions.IN_TURN_GONE))
    beside, alone = vifd(f"{functions.TAP_BESIDE}{suffix}"), vifd(f"{functions.TAP_ALONE}{suffix}")
    name = f"Request p50 of a tap with VFs in flight: {BESIDE_VFS_FACTOR} x alone{suffix}"
    return [
        Target(f"Request of {count} VFs {how}", vifd(f"{functions.TOGETHER}{suffix}"), made, "ms"),
        Target(f"Release of {count} VFs {how}", vifd(f"{functions.TOGETHER_GONE}{suffix}"), gone, "ms"),
        Target(name, beside, BESIDE_VFS_FACTOR * alone, "ms"),
    ]


def _judge_guard(vifd: Callable[[str], float]) -> list[Target]:
    """Judge what the guard costs, with few and with many endpoints."""
    targets = []
    for count in RESIDENTS:
        suffix = f", {count:,} resident"
        made, limit = vifd(f"make guarded and limited{suffix}"), GUARD_FACTOR * vifd(f"make open{suffix}")
        targets.append(Target(f"Request guarded and limited p50{suffix}: {GUARD_FACTOR} x open", made, limit, "ms"))
        targets += _judge_frames(vifd, suffix)
    return targets + _judge_frames(vifd, MACVTAP)


def _judge_frames(vifd: Callable[[str], float], suffix: str) -> list[Target]:
    """Judge what the guard leaves of the frames that pass without it."""
    targets = []
    for size in ("small", "big"):
        least = GUARDED_RATE * vifd(f"{size} frames, open{suffix}")
        for way in PORTS:
            if way != "open":
                name = f"{size.capitalize()} frames, {way}{suffix}: {GUARDED_RATE} x open"
                targets.append(Target(name, vifd(f"{size} frames, {way}{suffix}"), least, "/s", at_least=True))
    return targets
