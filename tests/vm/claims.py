"""As a plugin of pytest's, in several machines with the same tests: each takes a group of them when it is done with its last.

`--vm-groups FILE` has the groups, and in `--vm-claims FOLDER`, which the machines share, a directory says that one is taken.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the options that say where the groups are, and which are taken."""
    parser.addoption("--vm-groups", type=Path, required=True, help="where the groups of tests are")
    parser.addoption("--vm-claims", type=Path, required=True, help="where it is seen which are taken")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool:
    """Run groups of tests as long as there are any that nobody has taken."""
    taken = _take(session)
    item = next(taken, None)
    while item is not None:
        following = next(taken, None)  # a fixture of both's stays
        session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
        item = following
    return True


def _take(session: pytest.Session) -> Iterator[pytest.Item]:
    items = {item.nodeid: item for item in session.items}
    folder = session.config.getoption("vm_claims")
    for number, group in enumerate(json.loads(session.config.getoption("vm_groups").read_text())):
        try:
            (folder / str(number)).mkdir()
        except FileExistsError:
            continue
        yield from (items[test] for test in group if test in items)
