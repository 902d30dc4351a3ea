"""Garbage: endpoints that their owner knows nothing of any more."""

from __future__ import annotations

from logging import getLogger
from typing import NamedTuple

from vifd.endpoints.engine import Engine
from vifd.endpoints.registry import Registry
from vifd.model import Caller, State

_log = getLogger(__name__)


class Collection(NamedTuple):
    """What is to be collected.

    Args:
        keep: the ids of endpoints that stay.
        network: only those on this one; empty: on all.
        dry_run: only say which.
    """

    keep: frozenset[str]
    network: str = ""
    dry_run: bool = False


class Garbage:
    """Releases what nobody knows of.

    Args:
        registry: the endpoints.
        engine: takes down.
    """

    def __init__(self, registry: Registry, engine: Engine) -> None:
        self._registry, self._engine = registry, engine

    async def collect(self, caller: Caller, wanted: Collection) -> list[str]:
        """Release the caller's own endpoints but those to keep. What is being made now, and what is made from now on, stays.

        Args:
            caller: whose.
            wanted: which of them.

        Returns:
            The ids, in order.

        Raises:
            VifdError: one is still there; the others are gone.
        """
        self._engine.busy.check_running()
        lives = {
            endpoint.endpoint_id: endpoint.generation
            for endpoint in self._registry
            if endpoint.owner.uid == caller.uid
            and endpoint.state is not State.PENDING
            and endpoint.endpoint_id not in wanted.keep
            and wanted.network in ("", endpoint.network)
        }
        if not wanted.dry_run:
            await self._engine.wait_for_work(lives)
            found = [endpoint for i in lives if (endpoint := self._registry.find(i)) is not None]
            garbage = [endpoint for endpoint in found if endpoint.generation == lives[endpoint.endpoint_id]]
            for endpoint in garbage:
                about = {"endpoint_id": endpoint.endpoint_id, "uid": caller.uid, "reason": "garbage"}
                _log.info("an endpoint is released, for its owner doesn't keep it", extra=about)
            await self._engine.take_down(garbage)
        return sorted(lives)
