from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.worlds import World, world


@pytest.fixture
def one(tmp_path: Path) -> Iterator[World]:
    """The world of a test."""
    with world(tmp_path / "journal.db") as made:
        yield made
