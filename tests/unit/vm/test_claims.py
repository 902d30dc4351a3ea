import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ARGV = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "tests.vm.claims"]
TESTS = """
import pytest
made = []

@pytest.fixture(scope="module")
def host():
    made.append("host")

def test_a(host): pass
def test_b(host): assert made == ["host"]
def test_c(): pass
"""
GROUPS = [["test_one.py::test_a", "test_one.py::test_b"], ["test_one.py::test_c"], ["test_one.py::test_unknown"]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "test_one.py").write_text(TESTS)
    (tmp_path / "groups").write_text(json.dumps(GROUPS))
    (tmp_path / "claims").mkdir()
    return tmp_path


def run(folder: Path) -> list[str]:
    """Run pytest as one of the machines does, and give the names of the tests that ran there."""
    options = [f"--vm-groups={folder / 'groups'}", f"--vm-claims={folder / 'claims'}", f"--junitxml={folder / 'report'}"]
    subprocess.run([*ARGV, *options, f"--rootdir={folder}", str(folder)], check=True, capture_output=True)
    return [case.get("name", "") for case in ElementTree.parse(folder / "report").iter("testcase")]


def test_who_is_alone_runs_all_in_the_groups_order(folder: Path) -> None:
    assert run(folder) == ["test_a", "test_b", "test_c"]
    assert sorted(path.name for path in (folder / "claims").iterdir()) == ["0", "1", "2"]


def test_what_another_has_taken_is_left_to_it(folder: Path) -> None:
    (folder / "claims/0").mkdir()
    assert run(folder) == ["test_c"]
    assert run(folder) == []
