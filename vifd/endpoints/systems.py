"""What network drivers tell their network systems; they may be another package's, and no bug of one is anybody else's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from logging import getLogger
from typing import Any

from vifd.drivers.base import NetworkDriver
from vifd.errors import DriverFailed, VifdError
from vifd.model import Endpoint

_log = getLogger(__name__)


@contextlib.contextmanager
def bugs_told(driver: str) -> Iterator[None]:
    """Log what a driver raises that no driver should.

    Args:
        driver: its name.

    Raises:
        DriverFailed: it has a bug.
    """
    try:
        yield
    except VifdError:
        raise
    except Exception as error:
        _log.exception("a network driver failed", extra={"driver": driver})
        raise DriverFailed(f"network driver {driver} has a bug ({type(error).__name__}); vifd's log has more") from error


async def bind(driver: NetworkDriver[Any], endpoint: Endpoint) -> None:
    """Tell an endpoint's network system of it, if there is one.

    Raises:
        VifdError: it can't be told, or the driver has a bug.
    """
    if driver.has_system:
        with bugs_told(driver.name):
            await driver.bind(endpoint)


async def unbind(driver: NetworkDriver[Any] | None, endpoint: Endpoint) -> VifdError | None:
    """Tell an endpoint's network system, if there is one, that it is gone; None for its driver: the network isn't configured
    any more.

    Returns:
        Why the network system doesn't let it go.
    """
    if driver is None or not driver.has_system:
        return None
    try:
        with bugs_told(endpoint.network_driver):
            await driver.unbind(endpoint)
    except VifdError as error:
        return error
    return None
