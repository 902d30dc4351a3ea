"""VFs that are changed while their VM runs, and those that somebody else has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.support.messages import endpoint_id
from tests.support.nics import REPRESENTOR_IFINDEX, NicWorld, macvtap_asked, nic_world, set_switchdev, vf, vf_asked
from tests.support.worlds import ALICE, ROOT, asked, failure_of
from vifd.endpoints.activation import Activation
from vifd.endpoints.changes import Change, Changes
from vifd.endpoints.follower import Follower
from vifd.endpoints.mending import Mender
from vifd.errors import KernelRefused, NotAllowed, Unsupported, VifdError, WrongState
from vifd.kernel import ops
from vifd.model import Drift, DriftKind, Limits, PciDevice, Port, RateLimit, State, Vlan

LIMITS = Limits(RateLimit(rate_bps=10**8))


@pytest.fixture
def nics(tmp_path: Path) -> Iterator[NicWorld]:
    with nic_world(tmp_path, vlan=7, mtu=9000) as made:
        yield made


def changes_of(one: NicWorld) -> Changes:
    return Changes(one.journal, one.room, one.registry, one.networks, one.engine)


def mender_of(one: NicWorld) -> Mender:
    return Mender(one.journal, one.room, one.registry, one.networks, one.engine.busy)


def change(**port: Any) -> Change:
    return Change(endpoint_id(1), Port(**port), list(port))


async def test_a_change_of_a_vf_is_in_the_kernel_the_journal_and_the_answer(nics: NicWorld) -> None:
    (made,) = await nics.make(vf_asked())
    changed = await changes_of(nics).update(ALICE, change(limits=LIMITS, link_up=False))
    wanted = (LIMITS, False, Vlan(7), 9000)
    assert (changed.port.limits, changed.port.link_up, changed.port.vlan, changed.port.mtu_bytes) == wanted
    assert nics.nics.ran[-1] == (ops.ChangeFunction(endpoint_id(1), "fast", vf(0, 0), made.port, changed.port),)
    assert nics.recorded()[endpoint_id(1)].port == changed.port
    (claim, _) = nics.registry.plan_of(endpoint_id(1))
    assert isinstance(claim, ops.ClaimFunction)
    assert claim.port == changed.port
    assert changed.function == vf(0, 0)


async def test_a_macvtap_changes_with_its_vf_and_is_found_again_by_the_next_start(nics: NicWorld) -> None:
    (made,) = await nics.make(macvtap_asked(port=Port(limits=LIMITS)))
    changed = await changes_of(nics).update(ALICE, change(mtu_bytes=1400, vlan=Vlan(7, qos=3), addresses=("192.0.2.1",)))
    node, of_macvtap, of_vf = nics.nics.ran[-1]
    before, after = ops.below_macvtap(made.port), ops.below_macvtap(changed.port)
    assert of_vf == ops.ChangeFunction(endpoint_id(1), "fast", vf(0, 0), before, after)
    assert (after.mtu_bytes, after.vlan, after.addresses, after.limits) == (1400, Vlan(7, qos=3), (), None)
    assert isinstance(node, ops.EnsureNode)
    assert isinstance(of_macvtap, ops.ChangePort)
    assert (of_macvtap.mac, of_macvtap.before, of_macvtap.port) == (made.port.mac, made.port, changed.port)
    nics.crash()
    nics.nics.drifts[vf(0, 0)] = [Drift(DriftKind.VLAN, "7", "8", "its VLAN differs")]
    restarted = nics.restarted()
    (endpoint,) = await restarted.recover()
    restarted.close()
    assert (endpoint.port, endpoint.location) == (changed.port, changed.location)
    assert nics.nics.ran[-1] == (
        node,
        replace(of_macvtap, before=None, port=changed.port),
        ops.ChangeFunction(endpoint_id(1), "fast", vf(0, 0), None, after),
    )


async def test_what_is_left_open_again_is_the_networks_again(nics: NicWorld) -> None:
    await nics.make(vf_asked(port=Port(vlan=Vlan(7, qos=3), mtu_bytes=1400)))
    changed = await changes_of(nics).update(ALICE, change(vlan=None, mtu_bytes=0))
    assert (changed.port.vlan, changed.port.mtu_bytes) == (Vlan(7), 9000)


@pytest.mark.parametrize(
    ("port", "kind", "why"),
    [
        ({"vlan": Vlan(8)}, WrongState, "VLAN 7"),
        ({"limits": Limits(to_vm=RateLimit(rate_bps=10**6))}, WrongState, "to_vm"),
        ({"isolated": True}, Unsupported, "port.isolated"),
        ({"guard_enabled": True}, Unsupported, "port.guard"),
        ({"trusted": True}, NotAllowed, "trusted"),
    ],
)
async def test_what_a_vf_cannot_do_or_the_caller_may_not_have_is_refused(
    nics: NicWorld, port: dict[str, object], kind: type[VifdError], why: str
) -> None:
    (made,) = await nics.make(vf_asked())
    error = await failure_of(changes_of(nics).update(ALICE, change(**port)))
    assert isinstance(error, kind)
    assert why in str(error)
    assert nics.registry.find(endpoint_id(1)) == made


async def test_an_administrator_may_trust_a_vf_and_anybody_may_stop_that(nics: NicWorld) -> None:
    await nics.make(vf_asked())
    assert (await changes_of(nics).update(ROOT, change(trusted=True))).port.trusted is True
    assert (await changes_of(nics).update(ALICE, change(limits=LIMITS))).port.trusted is True
    assert (await changes_of(nics).update(ALICE, change(trusted=None))).port.trusted is False


async def test_a_change_that_was_cut_off_is_taken_back_by_the_next_start(nics: NicWorld) -> None:
    (made,) = await nics.make(vf_asked())
    nics.room.lose()
    with pytest.raises(Exception, match="the helper is gone"):
        await changes_of(nics).update(ALICE, change(limits=LIMITS))
    nics.crash()
    nics.room._lost = False
    nics.nics.drifts[vf(0, 0)] = [Drift(DriftKind.LIMITS, "none", "100 Mbit/s", "its limits differ")]
    after = nics.restarted()
    (endpoint,) = await after.recover()
    after.close()
    assert (endpoint.port, endpoint.drifts) == (made.port, ())
    assert nics.nics.ran[-1] == (ops.ChangeFunction(endpoint_id(1), "fast", vf(0, 0), None, made.port),)


async def test_what_somebody_changed_of_a_vf_is_mended(nics: NicWorld) -> None:
    (made,) = await nics.make(vf_asked())
    drift = Drift(DriftKind.VLAN, "7", "8", "its VLAN differs")
    nics.nics.drifts[vf(0, 0)] = [drift]
    drifts, endpoint = await mender_of(nics).check(ALICE, endpoint_id(1), repair=True)
    assert (drifts, endpoint) == ((drift,), made)
    assert nics.nics.ran[-1] == (ops.ChangeFunction(endpoint_id(1), "fast", vf(0, 0), None, made.port),)


async def test_a_vf_that_was_bound_to_something_else_is_bound_again_and_told_as_it_is_then(nics: NicWorld) -> None:
    (made,) = await nics.make(vf_asked())
    assert isinstance(made.location, PciDevice)
    nics.nics.drifts[vf(0, 0)] = [Drift(DriftKind.BINDING, "vfio-pci", "igbvf", "it is bound to another driver")]
    group = nics.sysfs.device(vf(0, 0)) / "iommu_group"
    group.unlink()
    group.symlink_to("../../../kernel/iommu_groups/11")
    _, endpoint = await mender_of(nics).check(ALICE, endpoint_id(1), repair=True)
    assert nics.nics.ran[-1] == (nics.registry.plan_of(endpoint_id(1))[1],)
    assert isinstance(endpoint.location, PciDevice)
    assert (endpoint.location.iommu_group, endpoint.location.vfio_path) == (11, "/dev/vfio/11")
    assert endpoint.location.address == made.location.address
    assert nics.recorded()[endpoint_id(1)].location == endpoint.location


async def test_a_vf_that_went_away_is_a_drift_that_says_why_it_is_left(nics: NicWorld) -> None:
    await nics.make(vf_asked())
    nics.nics.drifts[vf(0, 0)] = [Drift(DriftKind.DEVICE_MISSING, vf(0, 0), "", "the VF is gone")]
    nics.sysfs.remove(vf(0, 0))
    _, endpoint = await mender_of(nics).check(ALICE, endpoint_id(1), repair=True)
    assert endpoint.state is State.READY
    (drift,) = endpoint.drifts
    assert drift.message == f"the VF is gone; it can't be mended: VF {vf(0, 0)} is gone"


async def test_a_change_that_the_nic_refuses_changes_nothing(nics: NicWorld) -> None:
    (made,) = await nics.make(vf_asked())
    nics.room.fail_operation(1, KernelRefused("ChangeFunction", vf(0, 0), 22, "invalid argument"))
    assert isinstance(await failure_of(changes_of(nics).update(ALICE, change(limits=LIMITS))), KernelRefused)
    assert nics.registry.find(endpoint_id(1)) == made
    assert nics.recorded()[endpoint_id(1)] == made


async def test_a_vf_that_takes_its_time_to_be_looked_at_keeps_no_tap_waiting(
    nics: NicWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    await nics.make(vf_asked(1), asked(2))
    nics.room.change_mtu(endpoint_id(2), 1400)
    check, let_go, held = nics.room.check, asyncio.Event(), asyncio.Event()

    async def slow_check(plans: Sequence[ops.Plan]) -> list[list[Drift]]:
        if any(isinstance(op, ops.ClaimFunction) for plan in plans for op in plan):
            held.set()
            await let_go.wait()
        return await check(plans)

    monkeypatch.setattr(nics.room, "check", slow_check)
    mended, mender = asyncio.Event(), mender_of(nics)
    nics.registry.listen(lambda _, endpoint: mended.set() if not endpoint.drifts else None)
    mender.look([endpoint_id(1), endpoint_id(2)])
    async with asyncio.timeout(30):
        await held.wait()
        await mended.wait()
    assert nics.room.devices[endpoint_id(2)].mtu_bytes == 1500
    assert True in mender._looking
    let_go.set()
    await mender.close()


# --- with a representor


@pytest.fixture
def bridged(tmp_path: Path) -> Iterator[NicWorld]:
    with nic_world(tmp_path, bridge="br-fast") as made:
        set_switchdev(made.sysfs)
        yield made


async def test_a_vf_is_named_with_its_representor_and_found_by_that(bridged: NicWorld) -> None:
    (made,) = await bridged.make(vf_asked())
    assert isinstance(made.location, PciDevice)
    assert (made.location.representor, made.port.guard_enabled, made.port.mtu_bytes) == ("ens1f0r0", True, 1500)
    assert bridged.registry.find_by_ifindex(REPRESENTOR_IFINDEX) == made


async def test_a_change_is_one_of_the_representor_and_of_the_vf(bridged: NicWorld) -> None:
    await bridged.make(vf_asked())
    (claim,) = [one for one in bridged.registry.plan_of(endpoint_id(1)) if isinstance(one, ops.ClaimFunction)]
    changed = await changes_of(bridged).update(ALICE, change(isolated=True, vlan=Vlan(8)))
    assert bridged.nics.ran[-1] == (
        ops.EnsureBridge("fast"),
        ops.ChangePort(endpoint_id(1), "", "fast", "", claim.port, changed.port),
        ops.ChangeFunction(endpoint_id(1), "fast", vf(0, 0), claim.port, changed.port),
    )


async def test_a_representor_that_is_another_is_told_as_it_is_then(bridged: NicWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    await bridged.make(vf_asked())
    bridged.nics.drifts[vf(0, 0)] = [Drift(DriftKind.MASTER, "br-fast", "", "it is on no bridge")]
    monkeypatch.setattr("tests.support.nics.REPRESENTOR_IFINDEX", 901)
    _, endpoint = await mender_of(bridged).check(ALICE, endpoint_id(1), repair=True)
    assert (endpoint.ifindex, endpoint.state) == (901, State.READY)
    assert bridged.recorded()[endpoint_id(1)].location == endpoint.location


async def test_a_representor_that_goes_away_is_looked_at_and_no_end_of_the_vf(bridged: NicWorld) -> None:
    (made,) = await bridged.make(vf_asked())
    suspects = list[str]()
    follower = Follower(bridged.registry, bridged.networks, bridged.room, suspects.append)
    follower.on_gone(made.ifindex)
    follower.on_gone(5, "br-fast")
    assert suspects == [endpoint_id(1)] * 2
    assert bridged.registry.find(endpoint_id(1)) == made


async def test_its_first_frame_at_the_representor_says_that_a_vm_runs(bridged: NicWorld) -> None:
    wanted: list[bool] = []
    activation = Activation(bridged.journal, bridged.room, bridged.registry, bridged.networks, bridged.engine.busy)
    activation.follow(wanted.append)
    (made,) = await bridged.make(vf_asked())
    assert wanted[-1] is True
    activation.on_learned(made.ifindex)
    await activation.close()
    assert (wanted[-1], bridged.recorded()[endpoint_id(1)].state) == (False, State.ACTIVE)
