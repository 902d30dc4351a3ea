"""Plans with vDPA devices as data: what they say to people, and that they survive the journal and the way to the helper."""

from __future__ import annotations

import pytest

from tests.support.messages import ID
from vifd.kernel import names, ops
from vifd.kernel.authority import PlanRejectedError, VdpaGrant, check_plan, vdpa_grant
from vifd.kernel.ops import BindVdpa, CreateVdpa
from vifd.model import Kind, Port

NAME = names.device_name(Kind.VDPA, ID)
PLAN = (
    CreateVdpa(ID, NAME, "net", "pci/0000:03:00.2#1", Port("52:54:00:12:34:56", mtu_bytes=9000), 4),
    BindVdpa(ID, NAME, "net", 1000),
)


def test_a_plan_is_described() -> None:
    wanted = "4 queue pair(s), MAC 52:54:00:12:34:56, MTU 9000, link up"
    assert ops.describe(PLAN) == (
        f"make vDPA device {NAME} of network net at pci/0000:03:00.2#1 with {wanted}",
        f"bind vDPA device {NAME} to vhost-vdpa, for uid 1000",
    )


def test_a_plan_is_read_as_it_was_written() -> None:
    assert ops.decode_apply(ops.encode(ops.ApplyRequest(((PLAN,),)))).groups == ((PLAN,),)


@pytest.mark.parametrize(
    ("grant", "fits"),
    [
        (VdpaGrant(("pci/0000:03:00.2",), 4), True),
        (VdpaGrant(("vdpasim_net", "pci/0000:03:00.2"), 256, 9000), True),
        (VdpaGrant(("pci/0000:03:00.2",), 3), False),
        (VdpaGrant(("pci/0000:03:00.2",), 4, 8999), False),
        (VdpaGrant(("pci/0000:03:00.3",), 4), False),
        (VdpaGrant(()), False),
    ],
)
def test_the_configuration_decides_what_is_made(grant: VdpaGrant, fits: bool) -> None:
    if fits:
        check_plan(PLAN, {"net": grant})
        return
    with pytest.raises(PlanRejectedError):
        check_plan(PLAN, {"net": grant})


def test_a_network_without_vdpa_has_none() -> None:
    with pytest.raises(PlanRejectedError, match="has no vDPA management device for network 'net'"):
        vdpa_grant({}, "net")
