"""Leftovers: VFs that were released and couldn't be made as new. Nobody else gets one of them, so vifd tries again by itself."""

from __future__ import annotations

import asyncio

from vifd.endpoints.engine import Engine
from vifd.endpoints.registry import Registry
from vifd.errors import TryAgain
from vifd.model import State


class Leftovers:
    """Releases again.

    Args:
        registry: the endpoints.
        engine: takes down.
    """

    def __init__(self, registry: Registry, engine: Engine) -> None:
        self._registry, self._engine = registry, engine

    async def patrol(self, interval_s: float) -> None:
        """Try all of them again each interval, until vifd stops."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                self.retry()
            except TryAgain:  # vifd stops; its next start's recovery goes on
                return

    def retry(self) -> list[asyncio.Task[None]]:
        """Begin to release them again.

        Returns:
            The work; who waits for it gets the error of what is there still.

        Raises:
            TryAgain: vifd is stopping.
        """
        left = [e for e in self._registry if e.function and e.state is State.RELEASING and e.endpoint_id not in self._engine.busy]
        return self._engine.begin_to_take_down(left)
