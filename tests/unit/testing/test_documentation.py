"""The examples of docs/conformance.md work as they stand there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support.asking import BRIDGE, TAP, asked
from vifclient import Client
from vifclient.messages import Endpoint
from vifclient.sanity import runner
from vifd.drivers.bridge import BridgeDriver
from vifd.testing import FakeDaemon, NetworkDriverConformance

TEXT = (Path(__file__).parents[3] / "docs/conformance.md").read_text()
HYPERVISORS, NETWORKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


class GreenDriver(BridgeDriver):
    name = "green"


def plug(client: Client, network: str) -> Endpoint:
    return client.request_endpoint(asked(network=network, acceptable=[TAP, BRIDGE])).endpoint


@pytest.fixture(autouse=True)
def _modules(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, members in {"mydriver": {"plug": plug}, "mynetwork": {"GreenDriver": GreenDriver}}.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(code, "docs/conformance.md", "exec"), names)
    return names


def test_the_tests_of_a_hypervisor_driver() -> None:
    tests = {name: one for name, one in run(HYPERVISORS).items() if name.startswith("test_")}
    assert len(tests) == 3
    for one in tests.values():
        if one.__code__.co_argcount:
            with FakeDaemon() as daemon:
                one(daemon)
        else:
            one()


def test_the_tests_of_a_network_driver() -> None:
    suite = run(NETWORKS)["TestGreenDriver"]
    assert issubclass(suite, NetworkDriverConformance)
    for keys in suite.networks:
        suite().test_plans_pass_the_privileged_helpers_check(keys)
    for bad_key in suite.bad_networks:
        suite().test_a_wrong_key_is_named(bad_key)


def test_what_vif_sanity_prints() -> None:
    checks = {check.name: check for check in runner.select([], [])}
    for mark, name in re.findall(r"^(ok|skip|FAIL) +([\w.-]+)", TEXT, re.MULTILINE):
        assert name in checks
        if mark == "FAIL":
            assert f'rule: "{checks[name].rule}" ({checks[name].where})' in TEXT
    passed, skipped = re.findall(r"(\d+) passed, 0 failed, (\d+) skipped", TEXT)[0]
    assert int(passed) + int(skipped) == len(checks), "run it again, and copy the last line"


@pytest.mark.parametrize("name", re.findall(r"\.(\w+)\(", TEXT.partition("| | |")[2].partition("\n\n")[0]))
def test_every_knob_is_there(name: str) -> None:
    assert callable(getattr(FakeDaemon, name, None)) or name == "wait_for_call"
