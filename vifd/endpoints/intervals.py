"""Sets of numbers that are huge and mostly contiguous, like the free addresses of a pool."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable


class Intervals:
    """A set of integers as sorted, disjoint intervals that don't touch. Each change costs a search and a move of memory.

    Args:
        members: the intervals that it begins with, their last ones included; they may overlap.
    """

    def __init__(self, members: Iterable[tuple[int, int]] = ()) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in members:
            self.add(first, last)

    def __bool__(self) -> bool:
        return bool(self._firsts)

    def add(self, first: int, last: int) -> None:
        """Add every number from the first to the last."""
        i, j = bisect_left(self._lasts, first - 1), bisect_right(self._firsts, last + 1)
        if i < j:
            first, last = min(first, self._firsts[i]), max(last, self._lasts[j - 1])
        self._firsts[i:j], self._lasts[i:j] = [first], [last]

    def discard(self, first: int, last: int) -> None:
        """Take out every number from the first to the last."""
        i, j = bisect_left(self._lasts, first), bisect_right(self._firsts, last)
        if i >= j:
            return
        left, right = self._firsts[i], self._lasts[j - 1]
        kept = [part for part in ((left, first - 1), (last + 1, right)) if part[0] <= part[1]]
        self._firsts[i:j], self._lasts[i:j] = [part[0] for part in kept], [part[1] for part in kept]

    def within(self, first: int, last: int) -> list[tuple[int, int]]:
        """Give the intervals between two numbers, cut to them."""
        i, j = bisect_left(self._lasts, first), bisect_right(self._firsts, last)
        return [(max(first, self._firsts[k]), min(last, self._lasts[k])) for k in range(i, j)]

    def next_from(self, number: int) -> int | None:
        """Give the smallest member that isn't smaller than a number; if there is none, the smallest of all; None: it is empty."""
        if not self._firsts:
            return None
        i = bisect_left(self._lasts, number)
        return max(number, self._firsts[i]) if i < len(self._firsts) else self._firsts[0]
