"""What the emulated machine has, for the tests that count on it."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.vm.conftest import PhysicalFunction

_VFS = 7


def test_each_card_makes_virtual_functions_with_iommu_groups_of_their_own(physical_functions: Sequence[PhysicalFunction]) -> None:
    for one in physical_functions:
        assert int((one.device / "sriov_totalvfs").read_text()) == _VFS
        (one.device / "sriov_numvfs").write_text("2")
        try:
            functions = [link.resolve() for link in one.device.glob("virtfn*")]
            groups = {(function / "iommu_group").resolve().name for function in functions}
            assert len(groups) == len(functions) == 2
        finally:
            (one.device / "sriov_numvfs").write_text("0")


@pytest.mark.usefixtures("physical_functions")
@pytest.mark.parametrize("module", ["netdevsim", "vdpa_sim_net"])
def test_it_has_simulators_that_debian_does_not_build(module: str) -> None:
    subprocess.run(["modprobe", module], check=True)
    assert Path("/sys/module", module).is_dir()
