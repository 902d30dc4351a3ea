import json
import subprocess
import sys
from pathlib import Path

from tests.vm.selection import Collected, read, select

VLAN = Collected("tests/functional/test_vlans.py::test_a", needs=("8021q",))
ORDINARY = Collected("tests/functional/test_taps.py::test_b[x]")
CARD = Collected("tests/vm/test_cards.py::test_c")
LIMIT = Collected("tests/functional/test_limits.py::test_e", varies=("police",))
WITHOUT = Collected("tests/functional/test_vlans.py::test_d", lacks=("8021q",))
ALL = [VLAN, ORDINARY, CARD, LIMIT, WITHOUT]


def test_a_kernel_that_lacks_a_feature_leaves_its_tests_to_the_machine() -> None:
    selection = select(ALL, {"8021q": "this kernel has no 8021q", "police": ""})
    assert list(selection.inside) == [VLAN.id, CARD.id]
    assert selection.reasons == {"8021q": {VLAN.path: 1}, "its hardware": {CARD.path: 1}}
    assert selection.nowhere == {}


def test_a_full_kernel_leaves_only_its_hardware_to_the_machine_and_names_what_nothing_shows() -> None:
    selection = select(ALL, {"8021q": "", "police": ""})
    assert list(selection.inside) == [CARD.id]
    assert list(selection.nowhere) == [WITHOUT.id]
    assert "without 8021q" in selection.nowhere[WITHOUT.id]


def test_what_takes_another_way_with_a_feature_runs_there_too() -> None:
    assert select([LIMIT], {"police": "this kernel has no police"}).inside == {LIMIT.id: LIMIT.id}


def test_what_shares_a_fixture_runs_in_one_machine_and_the_hardwares_tests_first() -> None:
    shared = [VLAN._replace(id=f"{VLAN.path}::test_{name}", shares=True) for name in ("g", "h")]
    selection = select([VLAN, *shared, CARD, LIMIT], {"8021q": "none", "police": "none"})
    assert selection.groups() == [[CARD.id], [one.id for one in shared], [VLAN.id], [LIMIT.id]]


def test_the_plugin_writes_down_what_is_collected_and_its_marks(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text(
        "import pytest\npytestmark = pytest.mark.kernel('8021q')\n"
        "@pytest.fixture(scope='module')\ndef host(): pass\n"
        "@pytest.mark.kernel_without('flower')\n@pytest.mark.kernel_varies('police')\n"
        "@pytest.mark.parametrize('n', [1])\ndef test_it(n, host): pass\n"
    )
    listed = tmp_path / "list"
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "tests.vm.selection", f"--vm-list={listed}"]
    subprocess.run([*argv, "--collect-only", f"--rootdir={tmp_path}", str(tmp_path)], check=True, capture_output=True)
    assert read(listed) == [Collected("test_one.py::test_it[1]", ("8021q",), ("flower",), ("police",), shares=True)]
    assert len(json.loads(listed.read_text())) == 1
