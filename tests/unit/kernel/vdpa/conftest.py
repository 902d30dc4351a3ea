from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.vdpa_host import FakeVdpaHost


@pytest.fixture
def host(tmp_path: Path) -> Iterator[FakeVdpaHost]:
    """Three management devices, and none of their devices."""
    with closing(FakeVdpaHost(tmp_path)) as one:
        yield one
