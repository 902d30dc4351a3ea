"""What pytest has where vifd is installed (entry point `pytest11`): the fixture `vifd_fake`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vifd.testing.daemon import FakeDaemon

pytest.register_assert_rewrite("vifd.testing.conformance")


@pytest.fixture
def vifd_fake() -> Iterator[FakeDaemon]:
    """Serve a vifd inside this test, with one network `default` of pretended endpoints of every kind."""
    from vifd.testing.daemon import FakeDaemon  # noqa: PLC0415  it takes grpc, which most runs of pytest don't need

    with FakeDaemon() as daemon:
        yield daemon
