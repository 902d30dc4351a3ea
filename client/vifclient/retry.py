"""When a call that failed is made again: one policy for the synchronous and the asyncio client.

gRPC's own retry can't do it: it stops after five attempts, which a restart of vifd outlasts, and doesn't know RetryInfo.
Every unary call of the contract is idempotent, so that repeating it is safe. A watch is not repeated: its caller has to know
that it may have missed changes.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from vifclient.errors import Unavailable, VifError


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How UNAVAILABLE is repeated, until the call's time is over.

    Attributes:
        initial_delay_s: The delay before the first repetition. 0 together with `max_delay_s` 0: no repetition at all.
        max_delay_s: What the delay grows to. vifd's RetryInfo may ask for more.
        multiplier: What it is multiplied with each time.
        jitter: The part of a delay that is left to chance, 0 to 1, so that clients don't come back all at once.
    """

    initial_delay_s: float = 0.02
    max_delay_s: float = 1.0
    multiplier: float = 2.0
    jitter: float = 0.3

    @property
    def enabled(self) -> bool:
        """Whether anything is repeated."""
        return self.max_delay_s > 0


NO_RETRY = RetryPolicy(initial_delay_s=0, max_delay_s=0)


class Attempts:
    """The attempts of one call: how much time is left, and how long to wait before the next."""

    __slots__ = ("_clock", "_deadline_s", "_delay_s", "_dice", "_policy")

    def __init__(
        self,
        policy: RetryPolicy,
        timeout_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._dice = dice
        self._deadline_s = clock() + timeout_s
        self._delay_s = policy.initial_delay_s

    @property
    def remaining_s(self) -> float:
        """The time that is left for the call, in seconds; never negative."""
        return max(0.0, self._deadline_s - self._clock())

    def delay_after(self, error: VifError) -> float:
        """Decide how long to wait before the call is made again.

        Args:
            error: What the last attempt raised.

        Returns:
            The delay in seconds.

        Raises:
            VifError: The same error, if repeating doesn't help or the time doesn't suffice.
        """
        if not isinstance(error, Unavailable) or not self._policy.enabled:
            raise error
        delay_s = self._next_delay_s(error.retry_delay_s or 0.0)
        if delay_s >= self.remaining_s:
            raise error
        return delay_s

    def _next_delay_s(self, asked_s: float) -> float:
        policy = self._policy
        base_s, self._delay_s = self._delay_s, min(self._delay_s * policy.multiplier, policy.max_delay_s)
        # vifd's own wish is a least: chance only adds to it.
        if asked_s > base_s:
            return asked_s * (1 + policy.jitter * self._dice())
        return base_s * (1 - policy.jitter * self._dice())
