"""What a sample is, and what is made of samples."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
Samples = list[float]


class Contender(Protocol):
    """Someone who does its operations `count` times and says how long each took, in milliseconds."""

    @property
    def name(self) -> str:
        """Its name in the report."""

    def round(self, count: int) -> dict[str, Samples]:
        """Measure one round; the operations' names are the keys."""


@dataclass(frozen=True)
class Row:
    """One line of the report."""

    contender: str
    operation: str
    unit: str
    p50: float
    p90: float
    samples: int


def timed(samples: Samples, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Add to `samples` how many milliseconds a call took."""
    start = time.perf_counter()
    result = call(*args, **kwargs)
    samples.append((time.perf_counter() - start) * 1000)
    return result


def quantile(samples: Samples, percent: int) -> float:
    """The sample below which `percent` of the others are (interpolated)."""
    if len(samples) == 1:
        return samples[0]
    return statistics.quantiles(samples, n=100, method="inclusive")[percent - 1]


def make_row(contender: str, operation: str, samples: Samples, unit: str = "ms") -> Row:
    """Sum the samples of one operation up."""
    return Row(contender, operation, unit, quantile(samples, 50), quantile(samples, 90), len(samples))


def make_value(contender: str, operation: str, value: float, unit: str) -> Row:
    """A row of a single value."""
    return Row(contender, operation, unit, value, value, 1)
