import itertools

from hypothesis import given
from hypothesis import strategies as st

from vifd.endpoints.intervals import Intervals

NUMBERS = st.integers(0, 40)
CHANGES = st.lists(st.tuples(st.booleans(), NUMBERS, NUMBERS))


@given(CHANGES, NUMBERS, NUMBERS)
def test_it_is_a_set_of_numbers(changes: list[tuple[bool, int, int]], one: int, other: int) -> None:
    intervals, model = Intervals(), set[int]()
    for adds, a, b in changes:
        numbers = set(range(min(a, b), max(a, b) + 1))
        (intervals.add if adds else intervals.discard)(min(a, b), max(a, b))
        model = model | numbers if adds else model - numbers
    first, last = min(one, other), max(one, other)
    assert {n for part in intervals.within(0, 100) for n in range(part[0], part[1] + 1)} == model
    assert {n for part in intervals.within(first, last) for n in range(part[0], part[1] + 1)} == {
        n for n in model if first <= n <= last
    }
    assert intervals.next_from(one) == min((n for n in model if n >= one), default=min(model, default=None))
    assert bool(intervals) is bool(model)


@given(CHANGES)
def test_its_intervals_never_touch(changes: list[tuple[bool, int, int]]) -> None:
    intervals = Intervals()
    for adds, a, b in changes:
        (intervals.add if adds else intervals.discard)(min(a, b), max(a, b))
    parts = intervals.within(0, 100)
    assert all(before[1] + 1 < after[0] for before, after in itertools.pairwise(parts))


def test_the_addresses_of_a_whole_prefix_are_one_interval() -> None:
    intervals = Intervals([(0, (1 << 64) - 1)])
    intervals.discard(7, 7)
    assert intervals.next_from(7) == 8
    assert intervals.next_from(1 << 64) == 0
