from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.sriov_host import FakeHost


@pytest.fixture
def host(tmp_path: Path) -> Iterator[FakeHost]:
    """Two PFs, eth0 and eth1, with two VFs each."""
    with closing(FakeHost(tmp_path)) as one:
        yield one
