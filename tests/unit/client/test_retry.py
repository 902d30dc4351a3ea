import pytest

from vifclient import errors
from vifclient.retry import NO_RETRY, Attempts, RetryPolicy


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def unavailable(retry_delay_s: float | None = None) -> errors.Unavailable:
    error = errors.Unavailable("try again")
    error.retry_delay_s = retry_delay_s
    return error


POLICY = RetryPolicy(initial_delay_s=1, max_delay_s=4, multiplier=2, jitter=0.5)


def test_delays_grow_to_their_limit() -> None:
    attempts = Attempts(POLICY, 1000, clock=Clock(), dice=lambda: 0)
    assert [attempts.delay_after(unavailable()) for _ in range(5)] == [1, 2, 4, 4, 4]


def test_chance_shortens_a_delay() -> None:
    attempts = Attempts(POLICY, 1000, clock=Clock(), dice=lambda: 1)
    assert attempts.delay_after(unavailable()) == 0.5


def test_vifds_own_wish_is_a_least() -> None:
    for dice in (0.0, 1.0):
        attempts = Attempts(POLICY, 1000, clock=Clock(), dice=lambda dice=dice: dice)
        assert 7 <= attempts.delay_after(unavailable(7)) <= 7 * 1.5


def test_it_ends_where_the_time_does_not_suffice() -> None:
    clock = Clock()
    attempts = Attempts(POLICY, 2.5, clock=clock, dice=lambda: 0)
    assert attempts.delay_after(unavailable()) == 1
    clock.now_s += 1
    error = unavailable()
    with pytest.raises(errors.Unavailable) as caught:
        attempts.delay_after(error)
    assert caught.value is error
    clock.now_s += 10
    assert attempts.remaining_s == 0


@pytest.mark.parametrize("error", [errors.NotFound("no"), errors.DeadlineExceeded("late"), errors.SocketDenied("no")])
def test_only_unavailable_is_repeated(error: errors.VifError) -> None:
    with pytest.raises(type(error)):
        Attempts(POLICY, 1000).delay_after(error)


def test_no_retry_means_none() -> None:
    with pytest.raises(errors.Unavailable):
        Attempts(NO_RETRY, 1000).delay_after(unavailable())
