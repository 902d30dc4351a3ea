"""Which tests the machine runs: its own, and those of the functional tier that this host's kernel can't show.

As a plugin of pytest's (`-p tests.vm.selection --vm-list FILE`) it writes down what is collected, and with which marks.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

#: Where the machine's own tests are: they take its hardware.
OWN = "tests/vm/"
#: What they are counted under.
HARDWARE = "its hardware"


class Collected(NamedTuple):
    """A test that pytest has collected.

    Args:
        id: As pytest's command line takes it.
        needs: The features of a kernel that it takes, by their marks `kernel`.
        lacks: The features that the kernel may not have, by its marks `kernel_without`.
        varies: The features with which it shows something else, by its marks `kernel_varies`.
        shares: Whether it has a fixture that is its module's.
    """

    id: str
    needs: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    varies: tuple[str, ...] = ()
    shares: bool = False

    @property
    def path(self) -> str:
        """The file that it is in."""
        return self.id.partition("::")[0]

    @property
    def group(self) -> str:
        """What runs one after the other in one machine: tests that share a fixture."""
        return self.path if self.shares else self.id


class Selection(NamedTuple):
    """What runs where.

    Args:
        inside: What the machine runs, with the group of each.
        nowhere: What neither the machine nor this host's kernel can show, and why.
        reasons: What those inside take, and how many of each file.
    """

    inside: dict[str, str]
    nowhere: dict[str, str]
    reasons: dict[str, Counter[str]]

    def groups(self) -> list[list[str]]:
        """Give the groups of what runs inside, those that take longest first: so the machines are done at about the same time."""
        found: dict[str, list[str]] = {}
        for test, group in self.inside.items():
            found.setdefault(group, []).append(test)
        return sorted(found.values(), key=lambda tests: (not tests[0].startswith(OWN), -len(tests)))


def select(tests: Iterable[Collected], missing: Mapping[str, str]) -> Selection:
    """Choose what the machine runs.

    Args:
        tests: All that there are.
        missing: By feature, why this host's kernel lacks it; empty: it has it.
    """
    chosen = Selection({}, {}, {})
    for test in tests:
        features = (*test.needs, *test.varies)
        reason = HARDWARE if test.path.startswith(OWN) else next((name for name in features if missing[name]), "")
        present = [name for name in test.lacks if not missing[name]]
        if reason:
            chosen.inside[test.id] = test.group
            chosen.reasons.setdefault(reason, Counter())[test.path] += 1
        elif present:
            chosen.nowhere[test.id] = f"it shows what happens without {present[0]}, and this kernel and the machine's have that"
    return chosen


def read(path: Path) -> list[Collected]:
    """Read what the plugin has written."""
    return [
        Collected(one["id"], tuple(one["needs"]), tuple(one["lacks"]), tuple(one["varies"]), one["shares"])
        for one in json.loads(path.read_text())
    ]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the option that says where the list goes."""
    parser.addoption("--vm-list", type=Path, required=True, help="where to write what is collected")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Write what is collected."""
    marks = {"needs": "kernel", "lacks": "kernel_without", "varies": "kernel_varies"}
    found = [
        {"id": item.nodeid, "shares": _shares(item)} | {name: _marked(item, mark) for name, mark in marks.items()}
        for item in session.items
    ]
    session.config.getoption("vm_list").write_text(json.dumps(found))


def _shares(item: pytest.Item) -> bool:
    found = item._fixtureinfo.name2fixturedefs if isinstance(item, pytest.Function) else {}
    return any(fixture.scope not in {"function", "session"} for fixtures in found.values() for fixture in fixtures)


def _marked(item: pytest.Item, name: str) -> list[str]:
    return [mark.args[0] for mark in item.iter_markers(name)]
